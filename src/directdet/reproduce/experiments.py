"""The paper's comparisons, scaled down: which rows a table has, and the recipe that each of them trains.

A row keeps the paper's structure (phases, batch sizes, normalisation, what is loaded) and takes its pixels, network and
length from a Scale, so that rows compare with each other in minutes. Such figures are not the paper's AP.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from directdet.recipes.published import scratchdet_table2
from directdet.recipes.recipe import PARTS, Phase, Recipe
from directdet.recipes.scratchdet import PLACES, RATES, TABLE2, VOC

SHARED = "shared"


@dataclass(frozen=True)
class Scale:
    """How small a comparison is.

    Attributes:
        full: (short, long) edge that stands for (800, 1333).
        factor: what the paper's pre-training lengths are multiplied by, to the nearest multiple of 32.
        models: settings of each detector that differ from the paper's.
        base_lr, base_batch, clip_norm: as in Phase.
        ssd_width, ssd_batch: channels of SSD's stem, and its images per step; its input is always 300x300.
    """

    name: str
    full: tuple[int, int]
    factor: float
    models: dict[str, dict[str, Any]]
    base_lr: float = 0.02
    base_batch: int = 8
    clip_norm: float | None = 10.0
    precision: str = "fp32"
    workers: int = 2
    ssd_width: int | None = None
    ssd_batch: int = 128

    def length(self, paper: int) -> int:
        """A length of the paper, scaled."""
        return max(64, round(paper * self.factor / 32) * 32)


_SMALL_HEADS = {"fpn_channels": 64, "box_features": 256, "mask_channels": 64, "mask_convs": 2}
_FEW_ROIS = {
    "train_pre_nms": 500,
    "train_proposals": 250,
    "test_pre_nms": 300,
    "test_proposals": 200,
    "roi_samples": 64,
    "mask_slots": 16,
    "candidates": 300,
}
_SLIM = {"backbone": "resnet18", "width": 32}
SLIM_MODELS = {
    "rcnn": {**_SLIM, **_SMALL_HEADS, **_FEW_ROIS, "box_convs": 2},
    "cascade": {**_SLIM, **_SMALL_HEADS, **_FEW_ROIS},
    "retinanet": {**_SLIM, "fpn_channels": 64, "head_convs": 2, "test_pre_nms": 300, "candidates": 300},
    "swin": {**_SMALL_HEADS, **_FEW_ROIS, "backbone": "swin_t", "width": 32, "box_convs": 2},
}
R50_MODELS = {
    "rcnn": {"backbone": "resnet50"},
    "cascade": {"backbone": "resnet50"},
    "retinanet": {"backbone": "resnet50"},
    "swin": {"backbone": "swin_t"},
}
_TINIEST = {"fpn_channels": 16, "box_features": 16, "mask_channels": 8, "mask_convs": 1, **_FEW_ROIS, "roi_samples": 16}
_TINIEST |= {"train_proposals": 32, "test_proposals": 32, "mask_slots": 4}
SMOKE_MODELS = {
    "rcnn": {**_TINIEST, "backbone": "resnet18", "width": 8, "box_convs": 1},
    "cascade": {**_TINIEST, "backbone": "resnet18", "width": 8},
    "retinanet": {"backbone": "resnet18", "width": 8, "fpn_channels": 16, "head_convs": 1, "candidates": 100},
    "swin": {**_TINIEST, "backbone": "swin_t", "width": 32, "box_convs": 1},
}
SCALES = {
    "smoke": Scale(
        "smoke", (64, 96), 0.15, SMOKE_MODELS, ssd_width=8, ssd_batch=2
    ),  # seconds; to see that it runs, it learns nothing
    "tiny": Scale("tiny", (160, 224), 0.28, SLIM_MODELS, ssd_width=8, ssd_batch=8),
    "small": Scale("small", (320, 448), 0.5, SLIM_MODELS, ssd_width=16, ssd_batch=16),
    # For a GPU and pictures of some 360 pixels.
    "medium": Scale("medium", (288, 384), 0.5, R50_MODELS, base_batch=16, precision="bf16", workers=12),
    "paper": Scale("paper", (800, 1333), 1.0, R50_MODELS, base_batch=16, clip_norm=None, workers=4),
}


@dataclass(frozen=True)
class Trial:
    """One row of a comparison.

    Attributes:
        key: its folder.
        label: what it is.
        recipe: what it trains; the lengths of its phases are still to be set.
        shares: it starts from the pre-training that all rows share, and trains its last phase only.
        paper: what the paper reached, or None where it has no such row; a value of None is the paper's "NaN".
        needs_imagenet: it starts from ImageNet weights.
    """

    key: str
    label: str
    recipe: Recipe
    shares: bool = False
    paper: dict[str, float | None] | None = None
    needs_imagenet: bool = False


@dataclass(frozen=True)
class Experiment:
    """A comparison.

    Attributes:
        title: what it compares.
        table: key of the paper's table, see recipes.table_rows.
        equal: "time": every row trains for as long; "steps": every row makes as many steps.
        trials: the rows, for a Scale.
        metric: "coco", COCO's AP; "voc", VOC's mAP by the 11-point rule.
    """

    title: str
    table: str
    equal: str
    trials: Callable[[Scale], list[Trial]] = field(repr=False)
    metric: str = "coco"


def pretrain(scale: Scale, batch: int = 8, length: int = 448) -> Phase:
    """Direct pre-training, scaled."""
    side = scale.length(length)
    return Phase(
        name="pretrain",
        resize="direct",
        size=(side, side),
        batch_size=batch,
        base_lr=scale.base_lr,
        base_batch=scale.base_batch,
        norm_weight_decay=False,
        warmup_factor=0.01,
        clip_norm=scale.clip_norm,
        precision=scale.precision,
        workers=scale.workers,
        eval_size=scale.full,
        eval_every=0,
    )


def finetune(scale: Scale, **changes: Any) -> Phase:
    """Fine-tuning at the full size, scaled."""
    phase = replace(
        pretrain(scale),
        name="finetune",
        resize="edges",
        size=scale.full,
        batch_size=2,
        norm_weight_decay=True,
        norm="fixed",
        frozen_stages=1,
        eval_every=1_000_000,  # at the end
    )
    return replace(phase, **changes)


def scratch(scale: Scale, norm: str = "live") -> Phase:
    """From random weights at the full size."""
    return finetune(scale, name="scratch", norm=norm, frozen_stages=-1, norm_weight_decay=False)


def _recipe(
    scale: Scale, phases: tuple[Phase, ...], detector: str = "rcnn", masks: bool = True, **model: Any
) -> Recipe:
    settings = {**scale.models[detector], **model}
    name = "rcnn" if detector == "swin" else detector
    if name != "retinanet":
        settings["masks"] = masks
    return Recipe("reproduce", "", phases, name, settings)


def _table1(scale: Scale) -> list[Trial]:
    def direct(batch: int, length: int, box: float, mask: float, cost: float) -> Trial:
        phases = (pretrain(scale, batch, length), finetune(scale))
        label = f"Direct, {scale.length(length)}, batch {batch} (paper: {length})"
        paper = {"box_ap": box, "mask_ap": mask, "days": cost}
        return Trial(f"direct_{length}_b{batch}", label, _recipe(scale, phases), paper=paper)

    from_imagenet = replace(_recipe(scale, (finetune(scale, norm="affine"),)), init="imagenet")
    return [
        direct(2, 448, 39.3, 35.1, 0.84),
        direct(4, 448, 40.6, 36.3, 1.37),
        direct(8, 448, 41.5, 37.0, 1.76),
        direct(4, 320, 39.9, 35.7, 1.11),
        direct(4, 640, 41.1, 36.8, 1.76),
        Trial("imagenet", "ImageNet", from_imagenet, paper={"box_ap": 38.2, "mask_ap": 34.7}, needs_imagenet=True),
        Trial(
            "scratch_bn",
            "Scratch (BN), batch 2",
            _recipe(scale, (scratch(scale),)),
            paper={"box_ap": 36.1, "mask_ap": 32.4, "days": 2.16},
        ),
    ]


def _table2(scale: Scale) -> list[Trial]:
    def row(norm: str, label: str, box: float, mask: float, seconds: float) -> Trial:
        recipe = _recipe(scale, (pretrain(scale), finetune(scale, norm=norm)))
        return Trial(norm, label, recipe, True, {"box_ap": box, "mask_ap": mask, "s_per_iter": seconds})

    return [
        row("affine", "Direct, affine", 37.8, 33.9, 0.479),
        row("sync", "Direct, SyncBN", 37.9, 34.0, 0.483),
        row("fixed", "Direct, fixed", 40.4, 36.1, 0.424),
    ]


def _table5(scale: Scale) -> list[Trial]:
    figures = ((39.0, 34.7), (39.4, 35.2), (39.3, 35.1), (41.7, 36.8), (41.7, 37.3))
    labels = ("Backbone", "+ FPN", "+ RPN", "+ box head", "+ mask head")
    trials = []
    for number, (label, (box, mask)) in enumerate(zip(labels, figures, strict=True), 1):
        recipe = _recipe(scale, (pretrain(scale), finetune(scale, parts=PARTS[:number])))
        trials.append(Trial(PARTS[number - 1], label, recipe, True, {"box_ap": box, "mask_ap": mask}))
    return trials


def _table8(scale: Scale) -> list[Trial]:
    figures = {
        "retinanet": ("RetinaNet", 36.5, 37.1),
        "rcnn": ("Faster R-CNN", 37.4, 39.3),
        "cascade": ("Cascade R-CNN", 40.3, 41.5),
        "swin": ("Mask R-CNN Swin-T", 43.8, 45.0),
    }
    trials = []
    for detector, (label, imagenet, direct) in figures.items():
        masks, changes = detector == "swin", {}
        if detector == "swin":  # layer normalisation, never fixed (section 4.7), and AdamW (section 7.1) at 1e-4
            changes = {"optimizer": "adamw", "base_lr": scale.base_lr / 200, "weight_decay": 0.05}
            changes |= {"norm_weight_decay": False, "channels_last": False}
        live = {**changes, "norm": "live", "frozen_stages": -1} if detector == "swin" else changes

        def make(phases: tuple[Phase, ...], detector: str = detector, masks: bool = masks) -> Recipe:
            return _recipe(scale, phases, detector, masks)

        affine = finetune(scale, **({"norm": "affine"} | live))
        trials += [
            Trial(f"{detector}_scratch", f"{label}, scratch", make((replace(scratch(scale), **changes),))),
            Trial(
                f"{detector}_imagenet",
                f"{label}, ImageNet",
                replace(make((affine,)), init="imagenet"),
                paper={"box_ap": imagenet},
                needs_imagenet=True,
            ),
            Trial(
                f"{detector}_direct",
                f"{label}, Direct",
                make((replace(pretrain(scale), **changes), finetune(scale, **live))),
                paper={"box_ap": direct},
            ),
        ]
    return trials


def _scratch(scale: Scale) -> list[Trial]:
    direct = _recipe(scale, (pretrain(scale), finetune(scale)))
    return [
        Trial("direct", "Direct, then fixed BN", direct, paper={"box_ap": 41.5, "mask_ap": 37.0, "days": 1.52}),
        Trial(
            "scratch_bn",
            "Scratch (BN)",
            _recipe(scale, (scratch(scale),)),
            paper={"box_ap": 36.1, "mask_ap": 32.4, "days": 2.16},
        ),
        Trial(
            "scratch_gn",
            "Scratch (GN)",
            _recipe(scale, (scratch(scale),), norm="gn"),
            paper={"box_ap": 41.1, "mask_ap": 36.5, "days": 2.35},
        ),
    ]


def _ssd(scale: Scale, rate: float, **model: Any) -> Recipe:
    phase = replace(
        VOC,
        batch_size=scale.ssd_batch,
        base_batch=scale.ssd_batch,
        base_lr=rate,
        precision=scale.precision,
        channels_last=scale.precision == "bf16",  # on a GPU, where it is faster and has not crashed
        workers=scale.workers,
        eval_every=1_000_000,
    )
    return Recipe("reproduce", "", (phase,), "ssd", {"width": scale.ssd_width, **model})


def _scratchdet1(scale: Scale) -> list[Trial]:
    """The rows of Table 1 that start from random weights; the learning rates are the paper's whatever the batch."""
    figures = {
        "none": (67.6, None, None),
        "head": (71.0, 75.6, None),
        "backbone": (72.8, 77.8, 78.0),
        "both": (71.8, 77.3, 78.7),
    }
    labels = {"none": "no BN", "head": "BN in head", "backbone": "BN in backbone", "both": "BN in both"}
    trials = []
    for place, values in figures.items():
        norm, head_norm, _ = PLACES[place]
        for (key, rate), value in zip(RATES.items(), values, strict=True):
            recipe = _ssd(scale, rate, backbone="vgg16", norm=norm, head_norm=head_norm)
            trials.append(Trial(f"{place}_{key}", f"{labels[place]}, {rate:g}", recipe, paper={"map": value}))
    return trials


def _scratchdet2(scale: Scale) -> list[Trial]:
    """The ten first layers of Table 2."""
    rows = zip(TABLE2, scratchdet_table2().rows, strict=True)
    return [
        Trial(
            name,
            row.method,
            _ssd(scale, 0.05, backbone=name, extras="residual"),
            paper={"map": row.ap, "fps": row.fps},
        )
        for name, row in rows
    ]


EXPERIMENTS = {
    "direct/table1": Experiment("batch size and resolution of direct pre-training", "1", "time", _table1),
    "direct/table2": Experiment("batch normalisation in fine-tuning", "2", "steps", _table2),
    "direct/table5": Experiment("which parts of the pre-trained detector are loaded", "5", "steps", _table5),
    "direct/table8": Experiment("other detectors", "8", "time", _table8),
    "direct/scratch": Experiment("from scratch against direct pre-training, for the same time", "3", "time", _scratch),
    "scratchdet/table1": Experiment(
        "where batch normalisation is, and the learning rate", "1", "steps", _scratchdet1, "voc"
    ),
    "scratchdet/table2": Experiment("the first layer of ResNet-18", "2", "steps", _scratchdet2, "voc"),
}
