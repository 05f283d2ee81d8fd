"""Direct pre-training's comparisons whose rows get equal time or steps: Tables 1, 2, 5 and 8, and a part of 3.

A row keeps the paper's structure (phases, batch sizes, normalisation, what is loaded), and takes its image sizes and
its network from a Scale and its length from a budget.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from directdet.recipes.recipe import PARTS, Norm, Phase, Recipe
from directdet.reproduce.scales import Scale
from directdet.reproduce.tables.trials import AT_THE_END, Trial


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


def scaled_recipe(
    scale: Scale, phases: tuple[Phase, ...], detector: str = "rcnn", masks: bool = True, **model: Any
) -> Recipe:
    """A recipe of the scale's network; `detector` is a key of Scale.models, `model` changes its settings."""
    settings = {**scale.models[detector], **model}
    name = "rcnn" if detector == "swin" else detector
    if name != "retinanet":
        settings["masks"] = masks
    return Recipe("reproduce", "", phases, name, settings)


def from_imagenet(scale: Scale, key: str, label: str, paper: Mapping[str, float | None], **changes: Any) -> Trial:
    """A row that fine-tunes a backbone of ImageNet; `changes` are fields of Phase."""
    recipe = scaled_recipe(scale, (finetune(scale, **{"norm": "affine", **changes}),))
    return Trial(key, label, replace(recipe, init="imagenet"), paper=paper, needs_imagenet=True)


def batch_and_length(scale: Scale, batch: int, length: int, paper: Mapping[str, float | None] | None = None) -> Trial:
    """A row that pre-trains with that batch at that length in pixels of the paper."""
    label = f"Direct, {scale.length(length)}, batch {batch} (paper: {length})"
    recipe = scaled_recipe(scale, (pretrain(scale, batch, length), finetune(scale)))
    return Trial(f"direct_{length}_b{batch}", label, recipe, paper=paper)


def table1(scale: Scale) -> list[Trial]:
    """Batch and resolution of the pre-training."""

    def direct(batch: int, length: int, box: float, mask: float, cost: float) -> Trial:
        return batch_and_length(scale, batch, length, {"box_ap": box, "mask_ap": mask, "days": cost})

    return [
        direct(2, 448, 39.3, 35.1, 0.84),
        direct(4, 448, 40.6, 36.3, 1.37),
        direct(8, 448, 41.5, 37.0, 1.76),
        direct(4, 320, 39.9, 35.7, 1.11),
        direct(4, 640, 41.1, 36.8, 1.76),
        from_imagenet(scale, "imagenet", "ImageNet", {"box_ap": 38.2, "mask_ap": 34.7}),
        Trial(
            "scratch_bn",
            "Scratch (BN), batch 2",
            scaled_recipe(scale, (scratch(scale),)),
            paper={"box_ap": 36.1, "mask_ap": 32.4, "days": 2.16},
        ),
    ]


def table2(scale: Scale) -> list[Trial]:
    """Batch normalisation in fine-tuning."""

    def row(norm: Norm, label: str, box: float, mask: float, seconds: float) -> Trial:
        recipe = scaled_recipe(scale, (pretrain(scale), finetune(scale, norm=norm)))
        paper = {"box_ap": box, "mask_ap": mask, "s_per_iter": seconds}
        return Trial(norm, label, recipe, shares_pretrain=True, paper=paper)

    def imagenet(norm: Norm, box: float, mask: float, seconds: float) -> Trial:
        paper = {"box_ap": box, "mask_ap": mask, "s_per_iter": seconds}
        return from_imagenet(scale, f"imagenet_{norm}", f"ImageNet, {norm}", paper, norm=norm)

    return [
        imagenet("affine", 39.2, 35.4, 0.479),
        imagenet("fixed", 38.7, 35.1, 0.424),
        row("affine", "Direct, affine", 37.8, 33.9, 0.479),
        row("sync", "Direct, SyncBN", 37.9, 34.0, 0.483),
        row("fixed", "Direct, fixed", 40.4, 36.1, 0.424),
    ]


def table5(scale: Scale) -> list[Trial]:
    """Which parts are loaded."""
    figures = ((39.0, 34.7), (39.4, 35.2), (39.3, 35.1), (41.7, 36.8), (41.7, 37.3))
    labels = ("Backbone", "+ FPN", "+ RPN", "+ box head", "+ mask head")
    trials = []
    for number, (label, (box, mask)) in enumerate(zip(labels, figures, strict=True), 1):
        recipe = scaled_recipe(scale, (pretrain(scale), finetune(scale, parts=PARTS[:number])))
        paper = {"box_ap": box, "mask_ap": mask}
        trials.append(Trial(PARTS[number - 1], label, recipe, shares_pretrain=True, paper=paper))
    return trials


def table8(scale: Scale) -> list[Trial]:
    """Other detectors."""
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
            return scaled_recipe(scale, phases, detector, masks)

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


def against_scratch(scale: Scale) -> list[Trial]:
    """Direct pre-training against both baselines from scratch."""
    direct = scaled_recipe(scale, (pretrain(scale), finetune(scale)))
    return [
        Trial("direct", "Direct, then fixed BN", direct, paper={"box_ap": 41.5, "mask_ap": 37.0, "days": 1.52}),
        Trial(
            "scratch_bn",
            "Scratch (BN)",
            scaled_recipe(scale, (scratch(scale),)),
            paper={"box_ap": 36.1, "mask_ap": 32.4, "days": 2.16},
        ),
        Trial(
            "scratch_gn",
            "Scratch (GN)",
            scaled_recipe(scale, (scratch(scale),), norm="gn"),
            paper={"box_ap": 41.1, "mask_ap": 36.5, "days": 2.35},
        ),
    ]


def montage(scale: Scale) -> list[Trial]:
    """Montage pre-training of the backbone at half the length, as 224 is half of 448 pixels, in as large batches."""
    direct, bn, _ = against_scratch(scale)
    side = scale.length(224)
    phase = replace(
        pretrain(scale),
        name="montage",
        size=(side, side),
        scale=(0.8, 1.5),
        base_lr=0.8,
        base_batch=512,
        schedule="cosine",
        final_lr=0.0,
        warmup_factor=0.25,
        norm_weight_decay=True,
        eval_size=None,
    )
    recipe = scaled_recipe(scale, (phase, finetune(scale, parts=PARTS[:1])))
    paper = {"box_ap": 38.4, "days": 2.75}
    return [direct, Trial("montage", "Montage, then fixed BN", recipe, paper=paper), bn]
