"""Training: weights, normalisation, the step, the loop and the run.

Called, `directdet.train` is `front.api.train`.
"""
