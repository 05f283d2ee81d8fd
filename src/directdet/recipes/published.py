"""The tables of both papers as data, to show next to what is measured here.

Figures are as printed. Figures from other hardware are context, not a comparison: `comparable` is False for all tables,
since neither paper says which stages its frame rates include.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Generic, TypeVar

DIRECT = "Rethinking Training from Scratch for Object Detection (direct pre-training)"
SCRATCHDET = "ScratchDet"
_MASK_RCNN = "Mask R-CNN R50-FPN 4conv1fc"


@dataclass(frozen=True)
class SpeedRow:
    """Training and inference speed; None where the paper prints no figure."""

    method: str
    train_s_per_iter: float | None = None
    fps: float | None = None
    data_s: float | None = None
    ap: float | None = None  # as the table's `metric` says
    recipe: str | None = None  # our recipe for this row, in tables whose detectors are timed


@dataclass(frozen=True)
class ApRow:
    """Accuracy in per cent; None where the paper prints no figure. `fine_tune` may name both phases: "P3x+1x"."""

    method: str
    ap_box: float
    ap_mask: float | None = None
    ap50: float | None = None
    ap75: float | None = None
    ap_s: float | None = None
    ap_m: float | None = None
    ap_l: float | None = None
    detector: str = _MASK_RCNN
    batch_per_gpu: int | None = None
    input: str | None = None
    fine_tune: str | None = None
    pretrain_cost_days: float | None = None
    total_cost_days: float | None = None
    s_per_iter: float | None = None
    memory_gb: float | None = None
    dataset: str | None = None  # where it differs from row to row
    iterations: str | None = None


RowT = TypeVar("RowT", bound=ApRow | SpeedRow, covariant=True)


@dataclass(frozen=True)
class PaperTable(Generic[RowT]):
    """One table of a paper.

    Attributes:
        source: paper and table.
        title: what it shows.
        hardware: what the paper says it ran on.
        included: which stages a frame rate includes.
        rows: in the paper's order.
        metric: what the accuracy figures are.
        comparable: whether figures measured here may be compared with these.
    """

    source: str
    title: str
    hardware: str
    included: str
    rows: tuple[RowT, ...]
    metric: str = "COCO val2017 AP"
    comparable: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def columns(self) -> list[str]:
        """Names of the fields that at least one row has, in order."""
        names = [field.name for field in fields(self.rows[0])]
        return [name for name in names if any(getattr(row, name) is not None for row in self.rows)]


_UNSTATED = "not stated in the paper"
_TRAINING = "8x RTX 2080Ti (training)"


def direct_table1() -> PaperTable[ApRow]:
    """Direct pre-training, Table 1: batch size and resolution of the pre-training.

    Three blocks that share rows. The row with batch 8 is the P3x of Table 3, where its cost is printed lower.
    """

    def row(method: str, batch: int, size: str, schedule: str, cost: float | None, box: float, mask: float) -> ApRow:
        return ApRow(method, box, mask, batch_per_gpu=batch, input=size, fine_tune=schedule, total_cost_days=cost)

    rows = (
        row("Direct", 2, "448", "P3x+1x", 0.84, 39.3, 35.1),
        row("Direct", 4, "448", "P3x+1x", 1.37, 40.6, 36.3),
        row("Direct", 8, "448", "P3x+1x", 1.76, 41.5, 37.0),
        row("Direct", 4, "320", "P3x+1x", 1.11, 39.9, 35.7),
        row("Direct", 4, "448", "P3x+1x", 1.37, 40.6, 36.3),
        row("Direct", 4, "640", "P3x+1x", 1.76, 41.1, 36.8),
        row("ImageNet", 2, "(1333,800)", "1x", None, 38.2, 34.7),
        row("Scratch (BN)", 2, "(1333,800)", "4x", 2.16, 36.1, 32.4),
        row("Direct", 2, "448", "P3x+1x", 0.84, 39.3, 35.1),
    )
    return PaperTable(f"{DIRECT}, Table 1", "batch size and resolution", _TRAINING, _UNSTATED, rows)


def direct_table2() -> PaperTable[ApRow]:
    """Direct pre-training, Table 2: what batch normalisation does in fine-tuning (2x schedule)."""

    def row(start: str, norm: str, seconds: float, box: float, mask: float) -> ApRow:
        return ApRow(f"{start}, {norm}", box, mask, fine_tune="2x", s_per_iter=seconds)

    rows = (
        row("ImageNet", "affine", 0.479, 39.2, 35.4),
        row("ImageNet", "fixed", 0.424, 38.7, 35.1),
        row("Direct(P1x)", "affine", 0.479, 37.8, 33.9),
        row("Direct(P1x)", "SyncBN", 0.483, 37.9, 34.0),
        row("Direct(P1x)", "fixed", 0.424, 40.4, 36.1),
    )
    return PaperTable(f"{DIRECT}, Table 2", "BN in fine-tuning", _TRAINING, _UNSTATED, rows)


def direct_table3() -> PaperTable[ApRow]:
    """Direct pre-training, Table 3: main results. The costs of P3x and P4x, lower than P2x's, are as printed."""

    def row(
        method: str, fine_tune: str, pre: float | None, total: float, box: float, mask: float | None = None
    ) -> ApRow:
        return ApRow(method, box, mask, fine_tune=fine_tune, pretrain_cost_days=pre, total_cost_days=total)

    rows = (
        row("ImageNet", "1x", 9.05, 9.54, 38.2, 34.7),
        row("Montage (normalised)", "1x", 2.26, 2.75, 38.4),
        row("Direct(P1x)", "1x", 0.81, 1.26, 40.0, 35.8),
        row("Direct(P2x)", "1x", 1.62, 2.07, 41.0, 36.6),
        row("ImageNet", "2x", 9.05, 10.03, 39.2, 35.4),
        row("Scratch (SyncBN)", "6x", None, 3.84, 39.6, 35.5),
        row("Scratch (GN)", "6x", None, 2.35, 41.1, 36.5),
        row("Direct(P3x)", "1x", 1.07, 1.52, 41.5, 37.0),
        row("Direct(P4x)", "1x", 1.44, 1.89, 41.7, 37.3),
    )
    return PaperTable(f"{DIRECT}, Table 3", "main results", _TRAINING, _UNSTATED, rows)


def direct_table4() -> PaperTable[ApRow]:
    """Direct pre-training, Table 4: lengths of the two phases."""
    figures = (
        ("P1x", "1x", 40.0, 35.8),
        ("P1x", "2x", 40.4, 36.1),
        ("P2x", "1x", 41.0, 36.6),
        ("P2x", "2x", 40.8, 36.4),
        ("P3x", "1x", 41.5, 37.0),
        ("P3x", "2x", 41.0, 36.6),
        ("P4x", "1x", 41.7, 37.3),
    )
    rows = tuple(ApRow(f"Direct({first})", box, mask, fine_tune=second) for first, second, box, mask in figures)
    return PaperTable(f"{DIRECT}, Table 4", "schedules", _TRAINING, _UNSTATED, rows)


def direct_table5() -> PaperTable[ApRow]:
    """Direct pre-training, Table 5: which parts are loaded, each row one more; the schedule is not printed.

    The last row is the P4x+1x of Table 4, the first the ImageNet 1x of Table 3.
    """
    figures = (
        ("ImageNet", 38.2, 34.7),
        ("Backbone", 39.0, 34.7),
        ("+ FPN", 39.4, 35.2),
        ("+ RPN", 39.3, 35.1),
        ("+ box head", 41.7, 36.8),
        ("+ mask head", 41.7, 37.3),
    )
    rows = tuple(ApRow(*values) for values in figures)
    return PaperTable(f"{DIRECT}, Table 5", "gain of each part that is loaded", _TRAINING, _UNSTATED, rows)


def direct_table6() -> PaperTable[ApRow]:
    """Direct pre-training, Table 6: multi-scale fine-tuning ("ms")."""
    figures = (
        ("ImageNet", "2x", 39.2, 35.4),
        ("Direct(P1x)", "1x", 40.0, 35.8),
        ("Direct(P1x)", "2x", 40.4, 36.1),
        ("ImageNet", "2x ms", 40.2, 36.1),
        ("Scratch (SyncBN)", "3x ms", 36.0, 32.8),
        ("Direct(P1x)", "2x ms", 41.0, 36.7),
    )
    rows = tuple(ApRow(method, box, mask, fine_tune=schedule) for method, schedule, box, mask in figures)
    title = "multi-scale training (ms: the short edge is one of 640, 672, 704, 736, 768, 800 at random)"
    return PaperTable(f"{DIRECT}, Table 6", title, _TRAINING, _UNSTATED, rows)


def direct_table7() -> PaperTable[SpeedRow]:
    """Direct pre-training, Table 7: training and inference time.

    The frame rates of ImageNet and Direct are equal, so both are of the box head in the title, whereas the AP of the
    ImageNet rows in the other tables is mmdet's, of two fully connected layers.
    """
    rows = (
        SpeedRow("ImageNet", 0.478, 8.6, None, recipe="mask_rcnn_r50_fpn_imagenet_1x_4conv1fc"),
        SpeedRow("Scratch (GN)", 0.578, 7.6, 0.029, recipe="mask_rcnn_r50_fpn_scratch_gn_6x"),
        SpeedRow("Scratch (SyncBN)", 0.483, 8.6, 0.029, recipe="mask_rcnn_r50_fpn_scratch_sync_6x"),
        SpeedRow("Direct", 0.424, 8.6, 0.014, recipe="mask_rcnn_r50_fpn_p3x_1x"),
    )
    hardware = "training on 8x RTX 2080Ti; inference on one GTX 1080Ti over COCO val2017"
    return PaperTable(f"{DIRECT}, Table 7", f"time, {_MASK_RCNN}, (1333,800)", hardware, _UNSTATED, rows)


def direct_table8() -> PaperTable[ApRow]:
    """Direct pre-training, Table 8: other detectors, ImageNet against Direct(P1x)."""

    def row(detector: str, start: str, *values: float) -> ApRow:
        box, ap50, ap75, small, medium, large = values
        return ApRow(start, box, None, ap50, ap75, small, medium, large, detector=detector, fine_tune="1x")

    rows = (
        row("RetinaNet", "ImageNet", 36.5, 55.4, 39.1, 20.4, 40.3, 48.1),
        row("RetinaNet", "Direct(P1x)", 37.1, 55.7, 39.6, 22.1, 40.0, 48.6),
        row("Faster R-CNN", "ImageNet", 37.4, 58.1, 40.4, 21.2, 41.0, 48.1),
        row("Faster R-CNN", "Direct(P1x)", 39.3, 58.7, 43.0, 24.4, 42.1, 49.8),
        row("Cascade R-CNN", "ImageNet", 40.3, 58.6, 44.0, 22.5, 43.8, 52.9),
        row("Cascade R-CNN", "Direct(P1x)", 41.5, 59.4, 45.1, 25.3, 44.2, 53.4),
        row("Mask R-CNN Swin-T", "ImageNet", 43.8, 65.3, 48.1, 26.8, 47.4, 58.0),
        row("Mask R-CNN Swin-T", "Direct(P1x)", 45.0, 65.6, 49.6, 30.2, 48.2, 57.4),
    )
    return PaperTable(f"{DIRECT}, Table 8", "other detectors", _TRAINING, _UNSTATED, rows)


def direct_table9() -> PaperTable[ApRow]:
    """Direct pre-training, Table 9: less data.

    The text of section 4.8 gives 120k iterations for Direct on 1/10 COCO where the table has P60k+30k. The VOC figures
    are in the table's column for box AP; mmdet's setting for VOC, which the paper followed, measures AP50.
    """
    coco, voc = "1/10 COCO", "VOC 2007 + 2012"
    rows = (
        ApRow("ImageNet", 22.1, dataset=coco, iterations="60k"),
        ApRow("Direct", 23.2, dataset=coco, iterations="P60k+30k"),
        ApRow("ImageNet", 79.47, detector="Faster R-CNN", dataset=voc, iterations="12.4k"),
        ApRow("Direct", 72.01, detector="Faster R-CNN", dataset=voc, iterations="P93k+12.4k"),
    )
    metric = "1/10 COCO: COCO val2017 AP; VOC: VOC 2007 AP50"
    return PaperTable(f"{DIRECT}, Table 9", "less data", _TRAINING, _UNSTATED, rows, metric)


def direct_table10() -> PaperTable[ApRow]:
    """Direct pre-training, Table 10: against the training of DropBlock. Direct is the P2x+1x of Table 3.

    The two costs are days of different GPUs; section 7.2 calls the RTX 6000 slightly faster.
    """
    rows = (
        ApRow("Direct", 41.0, 36.6, fine_tune="P2x+1x", total_cost_days=2.07, memory_gb=8.06, input="448, (1333,800)"),
        ApRow(
            "DropBlock", 39.8, 35.5, batch_per_gpu=8, input="640", fine_tune="3x", total_cost_days=3.32, memory_gb=11.25
        ),
    )
    hardware = "8x RTX 2080Ti (Direct), 8x RTX 6000 (DropBlock) (training)"
    return PaperTable(f"{DIRECT}, Table 10", "against DropBlock-style training", hardware, _UNSTATED, rows)


def direct_section_3_2() -> PaperTable[ApRow]:
    """Direct pre-training, section 3.2: two ways to shrink pre-training images; schedules are not printed."""
    rows = (ApRow("ImageNet style", 40.0, batch_per_gpu=8), ApRow("Stitcher style", 39.4, batch_per_gpu=8))
    return PaperTable(f"{DIRECT}, section 3.2", "resizing while pre-training", _TRAINING, _UNSTATED, rows)


def scratchdet_table1() -> PaperTable[SpeedRow]:
    """ScratchDet, Table 1: where batch normalisation is, and the learning rate; SSD300 VGG-16, VOC 2007 test mAP.

    None stands for the table's "NaN": training did not converge.
    """
    starts = (
        ("scratch, no BN", (67.6, None, None)),
        ("scratch, BN in head", (71.0, 75.6, None)),
        ("scratch, BN in backbone", (72.8, 77.8, 78.0)),
        ("scratch, BN in both", (71.8, 77.3, 78.7)),
        ("ImageNet, no BN", (77.1, 76.9, None)),
        ("ImageNet, BN in both", (77.6, 78.2, 75.5)),
    )
    rates = (0.001, 0.01, 0.05)
    rows = tuple(
        SpeedRow(f"{start}, learning rate {rate:g}", ap=value)
        for start, values in starts
        for rate, value in zip(rates, values, strict=True)
    )
    title = "batch normalisation and learning rate, SSD300 VGG-16"
    return PaperTable(f"{SCRATCHDET}, Table 1", title, "4x Tesla P40 (training)", _UNSTATED, rows, "VOC 2007 test mAP")


def scratchdet_table2() -> PaperTable[SpeedRow]:
    """ScratchDet, Table 2: first layer of ResNet-18 SSD300, frame rate and mAP on VOC 2007 test."""
    figures = (
        ("stride 2, one 7x7 (ResNet-18)", 59.5, 73.1, "resnet18"),
        ("stride 2, one 3x3", 62.9, 73.2, "resnet18_s2_1x3x3"),
        ("stride 2, two 3x3", 58.1, 74.9, "resnet18_s2_2x3x3"),
        ("stride 2, three 3x3", 54.5, 75.4, "resnet18_s2_3x3x3"),
        ("stride 1, one 7x7 (ResNet-18-B)", 37.0, 77.6, "resnet18_b"),
        ("stride 1, one 3x3", 37.2, 77.8, "resnet18_s1_1x3x3"),
        ("stride 1, two 3x3", 31.5, 78.1, "resnet18_s1_2x3x3"),
        ("stride 1, three 3x3 (Root-ResNet-18)", 26.9, 78.5, "root_resnet18"),
        ("stride 1, four 3x3", 24.3, 78.4, "resnet18_s1_4x3x3"),
        ("stride 1, five 3x3", 21.8, 78.5, "resnet18_s1_5x3x3"),
    )
    rows = tuple(SpeedRow(method, fps=fps, ap=ap, recipe=f"ssd300_{name}") for method, fps, ap, name in figures)
    return PaperTable(
        f"{SCRATCHDET}, Table 2", "root blocks, SSD300", "one Tesla P40", _UNSTATED, rows, "VOC 2007 test mAP"
    )


def scratchdet_section_4() -> PaperTable[SpeedRow]:
    """ScratchDet, section 4: results on VOC 2007 that are in the text only, or in Table 3. None: did not converge."""
    rows = (
        SpeedRow("SSD300 Root-ResNet-34 (section 4.2.2, Table 3)", ap=80.4),
        SpeedRow("SSD300 ResNet-18-A (section 4.2.2)", ap=75.3),
        SpeedRow("DSOD300 (section 4.2.1)", ap=77.7),
        SpeedRow("DSOD300 without BN (section 4.2.1)", ap=71.5),
        SpeedRow("Faster R-CNN VGG-16 from scratch with BN (section 4.2.1)", ap=67.2),
        SpeedRow("Faster R-CNN VGG-16 from scratch without BN (section 4.2.1)"),
        SpeedRow("Faster R-CNN VGG-16 pre-trained (section 4.2.1)", ap=73.2),
    )
    title = "results on VOC 2007 in the text"
    return PaperTable(
        f"{SCRATCHDET}, section 4", title, "4x Tesla P40 (training)", _UNSTATED, rows, "VOC 2007 test mAP"
    )


def scratchdet_figure_5() -> PaperTable[SpeedRow]:
    """ScratchDet, caption of Figure 5: SSD300 Root-ResNet-34 on VOC 2012."""
    rows = (SpeedRow("Root-ResNet-34 trained on 07++12+COCO", ap=82.1),)
    hardware = "4x Tesla P40 (training)"
    return PaperTable(f"{SCRATCHDET}, Figure 5", "VOC 2012", hardware, _UNSTATED, rows, "VOC 2012 test mAP")


def scratchdet_figure_6() -> PaperTable[SpeedRow]:
    """ScratchDet, caption of Figure 6: SSD300 Root-ResNet-34 on COCO."""
    rows = (SpeedRow("Root-ResNet-34 trained on trainval35k", ap=32.7),)
    hardware = "4x Tesla P40 (training)"
    return PaperTable(f"{SCRATCHDET}, Figure 6", "COCO", hardware, _UNSTATED, rows, "COCO test-dev AP")


def speed_tables() -> tuple[PaperTable[SpeedRow], ...]:
    """The tables with frame rates, which are shown next to what a benchmark measures."""
    return direct_table7(), scratchdet_table2()


def all_tables() -> Sequence[PaperTable[ApRow | SpeedRow]]:
    """Every table: those of direct pre-training in order, then the figures in its section 3.2, then ScratchDet's."""
    return (
        direct_table1(),
        direct_table2(),
        direct_table3(),
        direct_table4(),
        direct_table5(),
        direct_table6(),
        direct_table7(),
        direct_table8(),
        direct_table9(),
        direct_table10(),
        direct_section_3_2(),
        scratchdet_table1(),
        scratchdet_table2(),
        scratchdet_section_4(),
        scratchdet_figure_5(),
        scratchdet_figure_6(),
    )
