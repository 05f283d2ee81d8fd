"""Result tables of scripts/full_size.py, and of large YOLO folders (scripts/annotations_size.py --yolo)."""

from typing import Any

from tables_cells import Row, Table, cell, find, labelled
from tables_training import LABEL

PARTS = {
    "first": "opening the annotations, the first time",
    "later": "opening them, later",
    "start": "opening them, comparing, describing, the network, the first batch",
    "order": "the order of an epoch of both phases, for 8 processes in turn",
    "checkpoint": "two trainings made, one written and the other resumed from it",
    "boxes": "AP of 500,000 boxes on 5,000 pictures",
    "masks": "AP of 500,000 boxes and masks on 5,000 pictures",
}
YOLO = {"before": "before, every time", "first": "now, every time"}


def parts(content: Any) -> list[Row]:
    """What was run in a process of its own, but for the plan and the loader, which have tables of their own."""
    rows = {name: row for name, row in content["rows"].items() if name not in ("plan", "loader")}
    return labelled(PARTS)({"rows": rows})


def phases(content: Any) -> list[Row]:
    """Both phases' epochs: what 8 processes were given in all, and the part that was really read."""
    order, loader = find(content, "rows/order"), find(content, "rows/loader")
    return [{"label": name, **order[name], "loader": loader[name]} for name in ("pretrain", "finetune")]


def plans(content: Any) -> list[Row]:
    """The phases of the papers' rows."""
    return [{**row, "label": row["recipe"]} for row in find(content, "rows/plan").values() if isinstance(row, dict)]


TABLES = {
    "full_size": Table(
        ("full_size",),
        parts,
        {
            "a process of its own": LABEL,
            "seconds of the processor": cell("cpu_seconds", ".1f"),
            "peak memory, MB": cell("peak_mb", ".0f"),
        },
    ),
    "full_size_order": Table(
        ("full_size",),
        phases,
        {
            "phase": LABEL,
            "pictures with objects": cell("usable", ","),
            "steps": cell("steps", ","),
            "given to 8 processes": cell("read", ","),
            "of them different": cell("different", ","),
            "left out, no full batch": cell("left_out"),
            "really read": cell("loader/pictures", ","),
            "a second and core": cell("loader/pictures_per_second", ".0f"),
        },
    ),
    "full_size_plan": Table(
        ("full_size",),
        plans,
        {
            "recipe": LABEL,
            "phase": cell("phase"),
            "images a GPU": cell("images_per_gpu"),
            "images a step": cell("images_per_step"),
            "learning rate": cell("learning_rate", ".4g"),
            "steps": cell("iterations", ","),
            "GiB of each GPU": cell("memory_gib", ".1f"),
            "days of the paper's 8 GPUs": cell("paper_days", ".2f"),
        },
    ),
    "annotations_yolo": Table(
        ("annotations_size_yolo",),
        lambda content: labelled(YOLO)({"rows": {name: content["rows"][name] for name in YOLO}}),
        {
            "a YOLO folder": LABEL,
            "seconds of the processor": cell("cpu_seconds", ".1f"),
            "peak memory, MB": cell("peak_mb", ".0f"),
        },
    ),
}
