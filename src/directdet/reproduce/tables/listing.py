"""The list of the comparisons, by paper."""

from rich.console import Group
from rich.table import Table

from directdet.reproduce.experiments import EXPERIMENTS, TIMED
from directdet.reproduce.scales import SCALES

_PAPERS = {"direct": "Direct pre-training", "scratchdet": "ScratchDet"}
_KINDS = {"time": "equal time", "steps": "equal steps", "schedule": "the paper's schedules"}
_LANDSCAPE = "ScratchDet's Figures 1 and 7, the loss and its gradients, are drawn by `directdet landscape`."


def comparisons() -> Group:
    """Every comparison, what it compares, how many rows it has, and what these get the same of."""
    groups = []
    for start, title in _PAPERS.items():
        table = Table("comparison", "what it compares", title=title, title_justify="left")
        table.add_column("rows", justify="right")
        table.add_column("which get")
        for name, one in EXPERIMENTS.items():
            if name.startswith(f"{start}/"):
                table.add_row(name, one.title, str(len(one.trials(SCALES["tiny"]))), _KINDS[one.equal])
        for name, what in TIMED.items():
            if name.startswith(f"{start}/"):
                table.add_row(name, what, "4", "timed, not trained")
        groups.append(table)
    return Group(*groups, _LANDSCAPE)
