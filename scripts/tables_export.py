"""Result tables of exports: what their verdicts are worth, and masks at the border of pictures."""

from typing import Any

from tables_cells import Row, Table, cell

LABELS = {
    "mask_rcnn": "Mask R-CNN",
    "faster_rcnn": "Faster R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "retinanet": "RetinaNet",
    "ssd": "SSD300",
}
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


def verdict_rows(content: Any) -> list[Row]:
    """For each network and precision: sound verdicts and those that FAIL, damaged ones and those that PASS."""
    rows = []
    for name, label in LABELS.items():
        for precision in PRECISIONS:
            counts = {}
            for state, wrong in (("sound", False), ("damaged", True)):
                verdicts = [
                    one["passed"]
                    for key, found in content["cells"].items()
                    for one in found["runtimes"]
                    if key.split("/")[:2] == [state, name] and key.split("/")[4] == precision
                ]
                counts[state] = f"{sum(passed is wrong for passed in verdicts)} of {len(verdicts)}" if verdicts else "-"
            if set(counts.values()) != {"-"}:
                rows.append({"label": label, "precision": precision, **counts})
    total = {state: f"{rate['wrong']} of {rate['verdicts']}" for state, rate in content["rates"].items()}
    return [*rows, {"label": "all", "precision": "", **total}]


def border_rows(content: Any) -> list[Row]:
    return [{"label": name, **row} for name, row in content["rows"].items()]


TABLES = {
    "export_verdicts": Table(
        ("export_verdicts",),
        verdict_rows,
        {
            "detector": cell("label"),
            "precision": cell("precision"),
            "sound, FAIL": cell("sound"),
            "damaged, PASS": cell("damaged"),
        },
    ),
    "mask_border": Table(
        ("mask_border",),
        border_rows,
        {
            "dataset, canvas": cell("label"),
            "images": cell("images"),
            "detections": cell("detections"),
            "of them cut": cell("cut"),
            "mask AP, squeezed": cell("mask_ap_squeezed", "fine percent"),
            "mask AP, as predicted": cell("mask_ap", "fine percent"),
        },
    ),
}
