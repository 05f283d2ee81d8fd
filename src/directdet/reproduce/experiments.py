"""The comparisons of both papers, scaled down: the rows of each table, and the recipe that each row trains.

A row keeps the paper's structure (phases, batch sizes, normalisation, what is loaded), and takes its image sizes and
its network from a Scale and its length from a budget, so that rows can be compared with each other within minutes. The
results are not the paper's AP.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from directdet.recipes.published import scratchdet_table2
from directdet.recipes.recipe import PARTS, Norm, Phase, Recipe
from directdet.recipes.scratchdet import PLACES, RATES, TABLE2_BACKBONES, VOC_PHASE
from directdet.reproduce.scales import Scale

SHARED = "shared"  # folder of the pre-training that all rows of a comparison share
AT_THE_END = 1_000_000  # epochs between evaluations: more than there are


@dataclass(frozen=True)
class Trial:
    """One row of a comparison.

    Attributes:
        key: the name of its folder.
        label: what it is.
        recipe: what it trains; the lengths of its phases are set later.
        shares_pretrain: it starts from the pre-training that all rows share, and trains only its last phase.
        paper: the paper's figures, or None if the paper has no such row; a figure of None is the paper's "NaN".
        needs_imagenet: it starts from ImageNet weights.
    """

    key: str
    label: str
    recipe: Recipe
    shares_pretrain: bool = False
    paper: Mapping[str, float | None] | None = None
    needs_imagenet: bool = False


@dataclass(frozen=True)
class Experiment:
    """A comparison.

    Attributes:
        title: what it compares.
        table: the key of the paper's table in recipes.table_rows.TABLES.
        equal: what all rows get the same of: "time" or "steps".
        trials: makes the rows, for a Scale.
        metric: "coco" is COCO's AP, "voc" VOC's mAP by the 11-point rule.
    """

    title: str
    table: str
    equal: Literal["time", "steps"]
    trials: Callable[[Scale], list[Trial]] = field(repr=False)
    metric: Literal["coco", "voc"] = "coco"


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
        eval_every=AT_THE_END,
    )
    return replace(phase, **changes)


def scratch(scale: Scale, norm: Norm = "live") -> Phase:
    """Training from random weights at the full size, scaled."""
    return finetune(scale, name="scratch", norm=norm, frozen_stages=-1, norm_weight_decay=False)


def _recipe(
    scale: Scale, phases: tuple[Phase, ...], detector: str = "rcnn", masks: bool = True, **model: Any
) -> Recipe:
    settings = {**scale.models[detector], **model}
    name = "rcnn" if detector == "swin" else detector
    if name != "retinanet":
        settings["masks"] = masks
    return Recipe("reproduce", "", phases, name, settings)


def _direct_table1(scale: Scale) -> list[Trial]:
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


def _direct_table2(scale: Scale) -> list[Trial]:
    def row(norm: Norm, label: str, box: float, mask: float, seconds: float) -> Trial:
        recipe = _recipe(scale, (pretrain(scale), finetune(scale, norm=norm)))
        paper = {"box_ap": box, "mask_ap": mask, "s_per_iter": seconds}
        return Trial(norm, label, recipe, shares_pretrain=True, paper=paper)

    return [
        row("affine", "Direct, affine", 37.8, 33.9, 0.479),
        row("sync", "Direct, SyncBN", 37.9, 34.0, 0.483),
        row("fixed", "Direct, fixed", 40.4, 36.1, 0.424),
    ]


def _direct_table5(scale: Scale) -> list[Trial]:
    figures = ((39.0, 34.7), (39.4, 35.2), (39.3, 35.1), (41.7, 36.8), (41.7, 37.3))
    labels = ("Backbone", "+ FPN", "+ RPN", "+ box head", "+ mask head")
    trials = []
    for number, (label, (box, mask)) in enumerate(zip(labels, figures, strict=True), 1):
        recipe = _recipe(scale, (pretrain(scale), finetune(scale, parts=PARTS[:number])))
        paper = {"box_ap": box, "mask_ap": mask}
        trials.append(Trial(PARTS[number - 1], label, recipe, shares_pretrain=True, paper=paper))
    return trials


def _direct_table8(scale: Scale) -> list[Trial]:
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


def _direct_scratch(scale: Scale) -> list[Trial]:
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
        VOC_PHASE,
        batch_size=scale.ssd_batch,
        base_batch=scale.ssd_batch,
        base_lr=rate,
        precision=scale.precision,
        channels_last=scale.precision == "bf16",  # on a GPU, where it is faster; on CPUs it has crashed
        workers=scale.workers,
        eval_every=AT_THE_END,
    )
    return Recipe("reproduce", "", (phase,), "ssd", {"width": scale.ssd_width, **model})


def _scratchdet_table1(scale: Scale) -> list[Trial]:
    """The rows of Table 1 that start from random weights, at the paper's learning rates whatever the batch."""
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


def _scratchdet_table2(scale: Scale) -> list[Trial]:
    """The ten first layers of Table 2."""
    rows = zip(TABLE2_BACKBONES, scratchdet_table2().rows, strict=True)
    return [
        Trial(
            name,
            row.method,
            _ssd(scale, 0.05, backbone=name, extras="residual"),
            paper={"map": row.ap, "fps": row.fps},
        )
        for name, row in rows
    ]


# By paper and table. direct/scratch takes rows of the paper's Tables 1 and 3.
EXPERIMENTS = {
    "direct/table1": Experiment(
        "batch size and resolution of direct pre-training", "direct/table1", "time", _direct_table1
    ),
    "direct/table2": Experiment("batch normalisation in fine-tuning", "direct/table2", "steps", _direct_table2),
    "direct/table5": Experiment(
        "which parts of the pre-trained detector are loaded", "direct/table5", "steps", _direct_table5
    ),
    "direct/table8": Experiment("other detectors", "direct/table8", "time", _direct_table8),
    "direct/scratch": Experiment(
        "from scratch against direct pre-training, for the same time", "direct/table3", "time", _direct_scratch
    ),
    "scratchdet/table1": Experiment(
        "where batch normalisation is, and the learning rate", "scratchdet/table1", "steps", _scratchdet_table1, "voc"
    ),
    "scratchdet/table2": Experiment(
        "the first layer of ResNet-18", "scratchdet/table2", "steps", _scratchdet_table2, "voc"
    ),
}
