"""Which recipe trains which row of the paper's tables."""

from dataclasses import dataclass

from directdet.recipes import published
from directdet.recipes.published import ApRow, PaperTable, SpeedRow
from directdet.recipes.scratchdet import PLACES, RATES, TABLE2

_R50 = "mask_rcnn_r50_fpn"
# Recipes of each table's rows, in the table's order; an entry that is not a recipe says why there is none.
ROWS: dict[str, tuple[str, ...]] = {
    "1": tuple(
        f"{_R50}{end}"
        for end in (
            "_p3x_1x_b2",
            "_p3x_1x_b4",
            "_p3x_1x",
            "_p3x_1x_b4_320",
            "_p3x_1x_b4",
            "_p3x_1x_b4_640",
            "_imagenet_1x",
            "_scratch_bn_4x",
            "_p3x_1x_b2",
        )
    ),
    "2": tuple(
        f"{_R50}{end}" for end in ("_imagenet_2x", "_imagenet_2x_fixed", "_p1x_2x_affine", "_p1x_2x_sync", "_p1x_2x")
    ),
    "3": (
        f"{_R50}_imagenet_1x",
        "quoted by the paper from another, not trained",
        _R50,
        f"{_R50}_p2x_1x",
        f"{_R50}_imagenet_2x",
        f"{_R50}_scratch_sync_6x",
        f"{_R50}_scratch_gn_6x",
        f"{_R50}_p3x_1x",
        f"{_R50}_p4x_1x",
    ),
    "4": tuple(f"{_R50}{end}" for end in ("", "_p1x_2x", "_p2x_1x", "_p2x_2x", "_p3x_1x", "_p3x_2x", "_p4x_1x")),
    "5": tuple(
        f"{_R50}{end}"
        for end in ("_imagenet_1x", "_p4x_1x_backbone", "_p4x_1x_fpn", "_p4x_1x_rpn", "_p4x_1x_box", "_p4x_1x")
    ),
    "6": tuple(
        f"{_R50}{end}"
        for end in ("_imagenet_2x", "", "_p1x_2x", "_imagenet_2x_ms", "_scratch_sync_3x_ms", "_p1x_2x_ms")
    ),
    "7": tuple(f"{_R50}{end}" for end in ("_imagenet_1x", "_scratch_gn_6x", "_scratch_sync_6x", "_p3x_1x")),
    "8": tuple(
        f"{detector}{end}"
        for detector in ("retinanet_r50_fpn", "faster_rcnn_r50_fpn", "cascade_rcnn_r50_fpn", "mask_rcnn_swin_t_fpn")
        for end in ("_imagenet_1x", "")
    ),
    "9": (
        f"{_R50}_coco10_imagenet",
        f"{_R50}_coco10",
        "faster_rcnn_r50_fpn_voc_imagenet",
        "faster_rcnn_r50_fpn_voc",
    ),
    "10": (f"{_R50}_p2x_1x", f"{_R50}_dropblock_3x"),
    "3.2": (_R50, f"{_R50}_stitcher"),
    "ScratchDet 1": tuple(
        f"ssd300_vgg16_{start}_{rate}" for start in (*PLACES, "imagenet_none", "imagenet_both") for rate in RATES
    ),
    "ScratchDet 2": tuple(f"ssd300_{backbone}" for backbone in TABLE2),
}
_TABLES = {
    **{str(n): getattr(published, f"table{n}") for n in range(1, 11)},
    "3.2": published.section_3_2,
    "ScratchDet 1": published.scratchdet_table1,
    "ScratchDet 2": published.scratchdet_table2,
}


@dataclass(frozen=True)
class Row:
    """One row of a table: the recipe that trains it (or why none does), what it is, and what the paper reached."""

    recipe: str | None
    why_not: str
    label: str
    result: str


def paper_table(key: str) -> PaperTable:
    """The table behind a key of ROWS."""
    return _TABLES[key]()


def paper_groups() -> list[tuple[str, list[Row]]]:
    """Every table with its rows."""
    groups = []
    for key, names in ROWS.items():
        table, rows = paper_table(key), []
        for name, row in zip(names, table.rows, strict=True):
            trained = " " not in name
            rows.append(Row(name if trained else None, "" if trained else name, label(row), result(table, row)))
        number = f"Table {key}"
        if key == "3.2":
            number = "Section 3.2"
        elif key.startswith("ScratchDet"):
            number = key.replace(" ", ", Table ")
        groups.append((f"{number}: {table.title}", rows))
    return groups


def results_of(recipe: str) -> list[str]:
    """What the paper reached with a recipe, one line for each place where it says so."""
    found = [(title, row) for title, rows in paper_groups() for row in rows if row.recipe == recipe]
    lines = [f"{title.partition(':')[0]}, {row.label}: {row.result}" for title, row in found]
    return list(dict.fromkeys(lines))  # Table 1 prints some rows twice


def label(row: ApRow | SpeedRow) -> str:
    """What a row is, in words."""
    parts = [row.method]
    if isinstance(row, ApRow):
        if not row.detector.startswith("Mask R-CNN R50"):
            parts.insert(0, row.detector)
        batch = f"batch {row.batch_per_gpu}" if row.batch_per_gpu else None
        parts += [part for part in (row.dataset, row.input, batch, row.fine_tune, row.iterations) if part]
    return ", ".join(parts)


def result(table: PaperTable, row: ApRow | SpeedRow) -> str:
    """What the paper reached with a row, and what it cost."""
    if isinstance(row, SpeedRow):
        if table.metric.startswith("VOC"):
            reached = "did not converge" if row.ap is None else f"mAP {row.ap}"
            return reached if row.fps is None else f"{reached}; {row.fps} fps"
        return f"{row.train_s_per_iter} s per iteration, {row.fps} fps"
    parts = [f"box {row.ap_box}" + (f", mask {row.ap_mask}" if row.ap_mask is not None else "")]
    if row.total_cost_days is not None:
        parts.append(f"{row.total_cost_days} days")
    if row.s_per_iter is not None:
        parts.append(f"{row.s_per_iter} s per iteration")
    if row.memory_gb is not None:
        parts.append(f"{row.memory_gb} GB")
    return "; ".join(parts)
