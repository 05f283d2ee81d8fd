"""Which recipe trains which row of the two papers' tables."""

from collections.abc import Callable
from dataclasses import dataclass

from directdet.recipes import published
from directdet.recipes.published import ApRow, PaperTable, SpeedRow
from directdet.recipes.scratchdet import PLACES, RATES, TABLE2_BACKBONES

_R50 = "mask_rcnn_r50_fpn"


def _r50(*ends: str) -> tuple[str, ...]:
    """Recipes of Mask R-CNN R50-FPN by the ends of their names."""
    return tuple(f"{_R50}{end}" for end in ends)


@dataclass(frozen=True)
class TrainedTable:
    """A table of a paper and the recipes of its rows.

    Attributes:
        place: paper and table, for people.
        published: the table with its figures.
        recipes: one for each row, in the table's order. An entry with spaces is not a recipe but says why there is
            none.
    """

    place: str
    published: Callable[[], PaperTable[ApRow | SpeedRow]]
    recipes: tuple[str, ...]


# Each key starts with the paper's short name, as in `directdet reproduce`.
TABLES = {
    "direct/table1": TrainedTable(
        "Direct pre-training, Table 1",
        published.direct_table1,
        _r50(
            "_p3x_1x_b2",
            "_p3x_1x_b4",
            "_p3x_1x",
            "_p3x_1x_b4_320",
            "_p3x_1x_b4",
            "_p3x_1x_b4_640",
            "_imagenet_1x",
            "_scratch_bn_4x",
            "_p3x_1x_b2",
        ),
    ),
    "direct/table2": TrainedTable(
        "Direct pre-training, Table 2",
        published.direct_table2,
        _r50("_imagenet_2x", "_imagenet_2x_fixed", "_p1x_2x_affine", "_p1x_2x_sync", "_p1x_2x"),
    ),
    "direct/table3": TrainedTable(
        "Direct pre-training, Table 3",
        published.direct_table3,
        (
            *_r50("_imagenet_1x", "_montage_1x", "", "_p2x_1x", "_imagenet_2x", "_scratch_sync_6x", "_scratch_gn_6x"),
            *_r50("_p3x_1x", "_p4x_1x"),
        ),
    ),
    "direct/table4": TrainedTable(
        "Direct pre-training, Table 4",
        published.direct_table4,
        _r50("", "_p1x_2x", "_p2x_1x", "_p2x_2x", "_p3x_1x", "_p3x_2x", "_p4x_1x"),
    ),
    "direct/table5": TrainedTable(
        "Direct pre-training, Table 5",
        published.direct_table5,
        _r50("_imagenet_1x", "_p4x_1x_backbone", "_p4x_1x_fpn", "_p4x_1x_rpn", "_p4x_1x_box", "_p4x_1x"),
    ),
    "direct/table6": TrainedTable(
        "Direct pre-training, Table 6",
        published.direct_table6,
        _r50("_imagenet_2x", "", "_p1x_2x", "_imagenet_2x_ms", "_scratch_sync_3x_ms", "_p1x_2x_ms"),
    ),
    "direct/table7": TrainedTable(
        "Direct pre-training, Table 7",
        published.direct_table7,
        _r50("_imagenet_1x_4conv1fc", "_scratch_gn_6x", "_scratch_sync_6x", "_p3x_1x"),
    ),
    "direct/table8": TrainedTable(
        "Direct pre-training, Table 8",
        published.direct_table8,
        tuple(
            f"{detector}{end}"
            for detector in ("retinanet_r50_fpn", "faster_rcnn_r50_fpn", "cascade_rcnn_r50_fpn", "mask_rcnn_swin_t_fpn")
            for end in ("_imagenet_1x", "")
        ),
    ),
    "direct/table9": TrainedTable(
        "Direct pre-training, Table 9",
        published.direct_table9,
        (*_r50("_coco10_imagenet", "_coco10"), "faster_rcnn_r50_fpn_voc_imagenet", "faster_rcnn_r50_fpn_voc"),
    ),
    "direct/table10": TrainedTable(
        "Direct pre-training, Table 10", published.direct_table10, _r50("_p2x_1x", "_dropblock_3x")
    ),
    "direct/section3.2": TrainedTable(
        "Direct pre-training, section 3.2", published.direct_section_3_2, _r50("", "_stitcher")
    ),
    "scratchdet/table1": TrainedTable(
        "ScratchDet, Table 1",
        published.scratchdet_table1,
        tuple(
            f"ssd300_vgg16_{start}_{rate}" for start in (*PLACES, "imagenet_none", "imagenet_both") for rate in RATES
        ),
    ),
    "scratchdet/table2": TrainedTable(
        "ScratchDet, Table 2",
        published.scratchdet_table2,
        tuple(f"ssd300_{backbone}" for backbone in TABLE2_BACKBONES),
    ),
    "scratchdet/section4": TrainedTable(
        "ScratchDet, section 4",
        published.scratchdet_section_4,
        (
            "ssd300_root_resnet34",
            "ssd300_resnet18_a",
            "dsod300",
            "dsod300_no_bn",
            "faster_rcnn_vgg16_scratch",
            "faster_rcnn_vgg16_scratch_no_bn",
            "faster_rcnn_vgg16_imagenet",
        ),
    ),
    "scratchdet/figure5": TrainedTable(
        "ScratchDet, Figure 5", published.scratchdet_figure_5, ("no recipe trains on COCO and then on VOC",)
    ),
    "scratchdet/figure6": TrainedTable(
        "ScratchDet, Figure 6", published.scratchdet_figure_6, ("ssd300_root_resnet34_coco",)
    ),
}


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        recipe: the recipe that trains it, or None; then `why_not` says why there is none.
        label: what the row is.
        result: what the paper reached.
        metric: what its accuracy is; empty where it has none.
    """

    recipe: str | None
    why_not: str
    label: str
    result: str
    metric: str


def rows_of(table: TrainedTable) -> list[Row]:
    """The rows of one table, in its order."""
    figures, rows = table.published(), []
    for name, row in zip(table.recipes, figures.rows, strict=True):
        trained = " " not in name
        metric = "" if isinstance(row, SpeedRow) and row.train_s_per_iter is not None else figures.metric
        rows.append(Row(name if trained else None, "" if trained else name, label(row), result(figures, row), metric))
    return rows


@dataclass(frozen=True)
class PublishedResult:
    """What a paper reports for a recipe.

    Attributes:
        place: paper and table, section or figure.
        row: what the row is.
        result: what the paper reached.
        metric: what its accuracy is; empty where it has none.
    """

    place: str
    row: str
    result: str
    metric: str

    def words(self) -> str:
        """All of it but the metric in one line."""
        return f"{self.place}, {self.row}: {self.result}"


def published_rows(recipe: str | None) -> list[PublishedResult]:
    """What the papers report for a recipe, in the order of their tables; nothing for None or a recipe of one's own."""
    found = [
        PublishedResult(table.place, row.label, row.result, row.metric)
        for table in TABLES.values()
        for row in rows_of(table)
        if row.recipe is not None and row.recipe == recipe
    ]
    return list(dict.fromkeys(found))  # Table 1 of direct pre-training prints some rows twice


def published_results(recipe: str) -> list[str]:
    """What the papers report for a recipe, one line for each table or section that has it."""
    return [found.words() for found in published_rows(recipe)]


def beside_ours(recipe: str | None) -> list[str]:
    """Lines that set the papers' results beside accuracy measured here, by the recipe that the model is of."""
    found = published_rows(recipe)
    if not found:
        return []
    title = f"In the papers, on their data, not measured here (recipe {recipe}):"
    return [title, *(f"  {one.words()} ({one.metric})" for one in found if one.metric)]


def label(row: ApRow | SpeedRow) -> str:
    """A short description of a row."""
    parts = [row.method]
    if isinstance(row, ApRow):
        if not row.detector.startswith("Mask R-CNN R50"):
            parts.insert(0, row.detector)
        batch = f"batch {row.batch_per_gpu}" if row.batch_per_gpu else None
        parts += [part for part in (row.dataset, row.input, batch, row.fine_tune, row.iterations) if part]
    return ", ".join(parts)


def result(table: PaperTable, row: ApRow | SpeedRow) -> str:
    """The paper's accuracy or speed for a row, and its cost."""
    if isinstance(row, SpeedRow):
        if row.train_s_per_iter is None:
            reached = "did not converge" if row.ap is None else f"{table.metric.rpartition(' ')[2]} {row.ap}"
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
