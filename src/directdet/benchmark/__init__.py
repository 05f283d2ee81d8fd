"""Speed and accuracy side by side: each cell is measured in its own process; results as tables, CSV, JSON and pages.

Called, `directdet.benchmark` is `front.api.benchmark`.
"""
