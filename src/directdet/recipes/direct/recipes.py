"""The recipes of the direct pre-training paper, with their sources.

Direct pre-training at low resolution with live batch normalisation, then fine-tuning at full resolution with batch
normalisation totally fixed; and the baselines that the paper compares it with. "The paper", its sections and tables
mean this paper here. Which recipe trains which row of its tables is in table_rows.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from directdet.recipes.direct.phases import (
    CASCADE_R50,
    FASTER_R50,
    MASK_R50,
    MULTI_SCALE,
    RETINANET_R50,
    baseline,
    direct_recipe,
    finetune,
    montage,
    pretrain,
    scratch,
)
from directdet.recipes.direct.sources import SHORT_EDGES
from directdet.recipes.recipe import PARTS, Init, Part, Phase, Recipe


@dataclass(frozen=True)
class Variant:
    """One setting of Mask R-CNN R50-FPN: a description, and what direct_recipe() takes."""

    words: str
    phases: tuple[Phase, ...]
    init: Init = "random"
    model: dict[str, Any] = field(default_factory=dict)


def _mask_rcnn() -> dict[str, Callable[[], Recipe]]:
    """Mask R-CNN R50-FPN in every setting of Tables 1 to 7 and 10, by the end of its name."""
    two = "direct pre-training {}, fine-tuning {}"

    def pair(p: int, f: int, note: str = "", parts: tuple[Part, ...] = PARTS, **changes: Any) -> Variant:
        words = two.format(f"P{p}x", f"{f}x") + note
        return Variant(words, (pretrain(p), finetune(f, parts=parts, **changes)))

    def grid(batch: int, length: int) -> Variant:
        words = two.format(f"P3x at {length} with {batch} images per GPU", "1x")
        return Variant(words, (pretrain(3, batch, length), finetune()))

    stitched = replace(pretrain(), resize="edges", size=(800, 1333), shrink=2.0)
    dropblock = replace(pretrain(), name="scratch", size=(640, 640), epochs=36, milestones=(24, 33), norm="sync")
    dropblock = replace(dropblock, eval_size=(640, 640), eval_fixed=True)
    settings = {
        "": pair(1, 1),
        "_p1x_2x": pair(1, 2),
        "_p2x_1x": pair(2, 1),
        "_p2x_2x": pair(2, 2),
        "_p3x_1x": pair(3, 1),
        "_p3x_2x": pair(3, 2),
        "_p4x_1x": pair(4, 1),
        "_p1x_2x_affine": pair(1, 2, " with affine BN", norm="affine"),
        "_p1x_2x_sync": pair(1, 2, " with SyncBN", norm="sync"),
        "_p1x_2x_ms": pair(1, 2, " multi-scale", short_edges=MULTI_SCALE),
        "_p4x_1x_backbone": pair(4, 1, ", loading only the backbone", PARTS[:1]),
        "_p4x_1x_fpn": pair(4, 1, ", loading backbone and FPN", PARTS[:2]),
        "_p4x_1x_rpn": pair(4, 1, ", loading backbone, FPN and RPN", PARTS[:3]),
        "_p4x_1x_box": pair(4, 1, ", loading all but the mask head", PARTS[:4]),
        "_p3x_1x_b2": grid(2, 448),
        "_p3x_1x_b4": grid(4, 448),
        "_p3x_1x_b4_320": grid(4, 320),
        "_p3x_1x_b4_640": grid(4, 640),
        "_stitcher": Variant(two.format("P1x in Stitcher style", "1x"), (stitched, finetune())),
        "_montage_1x": Variant("Montage pre-training, fine-tuning 1x", (montage(), finetune(parts=PARTS[:1]))),
        "_imagenet_1x": Variant("from ImageNet, 1x", (baseline(),), "imagenet"),
        "_imagenet_1x_4conv1fc": Variant(
            "from ImageNet, 1x, with the box head of the other rows of Table 7",
            (baseline(),),
            "imagenet",
            {"box_convs": 4},
        ),
        "_imagenet_2x": Variant("from ImageNet, 2x", (baseline(2),), "imagenet"),
        "_imagenet_2x_fixed": Variant("from ImageNet, 2x with fixed BN", (baseline(2, norm="fixed"),), "imagenet"),
        "_imagenet_2x_ms": Variant(
            "from ImageNet, 2x multi-scale", (baseline(2, short_edges=MULTI_SCALE),), "imagenet"
        ),
        "_scratch_bn_4x": Variant("from scratch with plain BN, 4x", (scratch(4, "live"),)),
        "_scratch_sync_6x": Variant("from scratch with SyncBN, 6x", (scratch(6, "sync"),)),
        "_scratch_sync_3x_ms": Variant(
            "from scratch with SyncBN, 3x multi-scale", (scratch(3, "sync", short_edges=MULTI_SCALE),)
        ),
        "_scratch_gn_6x": Variant("from scratch with GN, 6x", (scratch(6, "live"),), model={"norm": "gn"}),
        "_dropblock_3x": Variant("DropBlock-style training: 640x640 throughout, SyncBN, 3x", (dropblock,)),
    }
    sources = {
        "_stitcher": {
            "pretrain.resize": "section 3.2: Stitcher style",
            "pretrain.scale": "not used: it is the ImageNet style's",
            "pretrain.epochs": "section 3.2 gives none: the 40.0 of its ImageNet style are those of P1x + 1x",
            "pretrain.size": "section 3.2: (1333, 800), then divided by n",
            "pretrain.shrink": "section 3.2 does not give its n; 2 is ours, the nearest to 448x448 in pixels",
            "pretrain.batch_size": "section 3.2: 8 images per GPU",
        },
        "_dropblock_3x": {
            "scratch.resize": "section 7.2: ImageNet style",
            "scratch.scale": "section 3.2: alpha in (0.8, 1.2)",
            "scratch.epoch_batch": "section 3.1: fixed steps K; 12 epochs of 2 images per GPU are 88k steps",
            "scratch.repeat": "section 3.1: 1x is 88k steps, and Table 10's 3.32 days are 1.1 s for each of 264k",
            "scratch.warmup_factor": "as in direct pre-training: from 1 %",
            "scratch.norm_weight_decay": "as in direct pre-training: none",
            "scratch.size": "section 7.2: 640x640 in the whole training",
            "scratch.eval_size": "section 7.2: 640x640 throughout; it gives no size of its own for the evaluation",
            "scratch.eval_fixed": "ours: the canvas of training",
            "scratch.batch_size": "section 7.2: 8 images per GPU",
            "scratch.norm": "section 7.2: SyncBN",
            "scratch.epochs": "Table 10: 3x",
            "scratch.milestones": "ours, at 2/3 and 11/12: the paper gives none",
            "scratch.base_lr": "linear scaling rule: 0.08 for 64 images",
        },
        "_scratch_gn_6x": {
            "model.norm": "Table 3: group normalisation, 32 groups, in backbone, pyramid and heads",
            "model.box_convs": "section 4.1: 4conv1fc box head; here group normalisation is in it, too",
        },
        "_scratch_sync_3x_ms": {"scratch.short_edges": SHORT_EDGES},
        "_p1x_2x_affine": {"finetune.norm": "Table 2: affine"},
        "_p1x_2x_sync": {"finetune.norm": "Table 2: SyncBN; stem and stage 1 stay fixed"},
        "_p1x_2x_ms": {"finetune.short_edges": SHORT_EDGES},
        "_imagenet_2x_ms": {"finetune.short_edges": SHORT_EDGES},
        "_imagenet_1x_4conv1fc": {
            "model.box_convs": "Table 7: as fast as Direct, so of its head, not of mmdet's two layers"
        },
        "_imagenet_2x_fixed": {"finetune.norm": "Table 2: fixed"},
    }
    for end in ("_p4x_1x_backbone", "_p4x_1x_fpn", "_p4x_1x_rpn", "_p4x_1x_box"):
        sources[end] = {"finetune.parts": "Table 5"}
    for end in ("_p3x_1x_b2", "_p3x_1x_b4", "_p3x_1x_b4_320", "_p3x_1x_b4_640"):
        sources[end] = dict.fromkeys(("pretrain.size", "pretrain.batch_size"), "Table 1") | {
            "pretrain.repeat": "section 3.1: fixed steps, whatever the batch"
        }
    return {
        f"mask_rcnn_r50_fpn{end}": partial(
            MASK_R50,
            f"mask_rcnn_r50_fpn{end}",
            f"Mask R-CNN R50-FPN: {variant.words}",
            variant.phases,
            variant.init,
            sources=sources.get(end),
            **variant.model,
        )
        for end, variant in settings.items()
    }


def _retinanet() -> dict[str, Callable[[], Recipe]]:
    """RetinaNet of Table 8. The authors pre-trained it at half the learning rate of the other detectors."""
    sources = {
        "pretrain.base_lr": "authors' code: 0.04 for 64 images",
        "pretrain.warmup_iterations": "authors' code: 1000",
        "finetune.base_lr": "authors' code: 0.02 for 16 images (mmdet's own RetinaNet: 0.01)",
    }
    slow_pretrain = replace(pretrain(), base_lr=0.01, warmup_iterations=1000)
    name, label = "retinanet_r50_fpn", "RetinaNet R50-FPN"
    mmdet = {"finetune.base_lr": "mmdet: 0.01 for 16 images"}
    baseline_1x = baseline(base_lr=0.01)
    return {
        name: partial(
            RETINANET_R50,
            name,
            f"{label}: direct pre-training P1x, fine-tuning 1x",
            (slow_pretrain, finetune()),
            sources=sources,
        ),
        f"{name}_imagenet_1x": partial(
            RETINANET_R50,
            f"{name}_imagenet_1x",
            f"{label}: from ImageNet, 1x",
            (baseline_1x,),
            "imagenet",
            sources=mmdet,
        ),
    }


def _swin() -> dict[str, Callable[[], Recipe]]:
    """Mask R-CNN Swin-T of Table 8: AdamW, mixed precision; its layer normalisation is never fixed (section 4.7)."""
    sources = {
        "optimizer": "section 7.1: AdamW, betas 0.9 and 0.999",
        "momentum": "authors' code: beta1 0.9",
        "weight_decay": "authors' code: 0.05",
        "norm_weight_decay": "authors' code: none for normalisation layers and position biases",
        "channels_last": "ours: a transformer's tokens already have their channels last",
        "pretrain.norm": "section 4.7: layer normalisation, live",
        "pretrain.norm_weight_decay": "authors' code: none for normalisation layers and position biases",
        "precision": "section 7.1: mixed precision (apex O1 there, fp16 autocast here)",
        "pretrain.base_lr": "authors' code: 4e-4 for 64 images",
        "finetune.base_lr": "authors' code: 1e-4 for 16 images",
        "finetune.norm": "section 4.7: layer normalisation stays active",
        "finetune.frozen_stages": "authors' code: none",
    }
    adamw = {
        "optimizer": "adamw",
        "base_lr": 1e-4,
        "weight_decay": 0.05,
        "norm_weight_decay": False,
        "precision": "fp16",
        "channels_last": False,
    }
    tune = finetune(norm="live", frozen_stages=-1, **adamw)
    swin = partial(direct_recipe, detector="rcnn", backbone="swin_t", masks=True, sources=sources)
    name, label = "mask_rcnn_swin_t_fpn", "Mask R-CNN Swin-T-FPN"
    pair = (replace(pretrain(), **adamw), tune)
    return {
        name: partial(swin, name, f"{label}: direct pre-training P1x, fine-tuning 1x", pair),
        f"{name}_imagenet_1x": partial(
            swin,
            f"{name}_imagenet_1x",
            f"{label}: from ImageNet, 1x",
            (tune,),
            "imagenet",
            sources={**sources, "model.box_convs": "ours: 4conv1fc, the head in the row it is compared with"},
            box_convs=4,
        ),
    }


def _two_stage(name: str, label: str, make: Callable[..., Recipe], **model: Any) -> dict[str, Callable[[], Recipe]]:
    """A detector in P1x + 1x and from ImageNet in 1x, as Table 8 compares them."""
    pair = (pretrain(), finetune())
    return {
        name: partial(make, name, f"{label}: direct pre-training P1x, fine-tuning 1x", pair, **model),
        f"{name}_imagenet_1x": partial(
            make, f"{name}_imagenet_1x", f"{label}: from ImageNet, 1x", (baseline(),), "imagenet", **model
        ),
    }


def _less_data() -> dict[str, Callable[[], Recipe]]:
    """Table 9: a tenth of COCO, and VOC 2007 + 2012. Schedules in iterations."""

    def by_steps(phase: Phase, iterations: int, **changes: Any) -> Phase:
        drops = (iterations * 2 // 3, iterations * 8 // 9)
        evaluations = {"eval_every": iterations // 7500}  # about ten: a pass over a tenth of COCO takes 740 steps
        same = {"fixed_batch": True, "repeat": 1}
        return replace(phase, iterations=iterations, milestones=drops, **same, **evaluations, **changes)

    by_iterations = {
        f"{phase}.{key}": "the length is given in iterations"
        for phase in ("pretrain", "finetune")
        for key in ("epochs", "repeat", "epoch_batch")
    }
    by_iterations |= {
        "fixed_batch": "the length is given in iterations: each takes as many images on any number of GPUs",
        "pretrain.base_batch": "section 3.3: 8 images on each of 8 GPUs",
    }
    coco = {
        "pretrain.base_lr": "section 3.4: 0.02 for 2 images on each of 8 GPUs, scaled linearly: 0.08 for 64 images",
        "data_fraction": "section 4.8: 1/10 of COCO, 11.8k images",
        "finetune.base_lr": "section 4.8: 0.04",
        "finetune.gamma": "section 4.8: 0.02",
        "iterations": "Table 9",
        "finetune.milestones": "ours: at 2/3 and 8/9, as mmdet's 1x; the paper gives none",
        **by_iterations,
    }
    tenth = partial(MASK_R50, data_fraction=0.1, sources=coco)
    settings = {"base_lr": 0.04, "gamma": 0.02}
    of_64 = replace(pretrain(), base_lr=0.08, base_batch=64, fixed_batch=True, repeat=1, eval_every=30)
    pretrain_60k = replace(of_64, iterations=60_000)
    voc = {
        **by_iterations,
        "finetune.size": "mmdet, VOC: (1000, 600)",
        "pretrain.eval_size": "mmdet, VOC: (1000, 600)",
        "finetune.base_lr": "mmdet, VOC: 0.01 for 16 images",
        "finetune.iterations": "Table 9: 12.4k; mmdet's 4 epochs of a 3 times repeated dataset",
        "finetune.milestones": "mmdet, VOC: after the third of four epochs",
        "finetune.warmup_iterations": "mmdet, VOC: none",
        "finetune.warmup_factor": "not used: there is no warm-up",
        "pretrain.iterations": "Table 9: 93k",
        "pretrain.base_lr": "linear scaling rule from fine-tuning's 0.01 for 16 images: 0.04 for 64 images",
        "best_by": "mmdet, VOC: mAP by the 11-point rule of VOC 2007",
    }
    tune = finetune(
        size=(600, 1000),
        base_lr=0.01,
        fixed_batch=True,
        iterations=12_400,
        milestones=(9_300,),
        warmup_iterations=0,
        best_by="mAP_11point",
        eval_every=3,
    )
    pretrain_93k = replace(of_64, base_lr=0.04, iterations=93_000, eval_size=(600, 1000), best_by="mAP_11point")
    from_imagenet = replace(tune, norm="affine")
    recipes = {
        "mask_rcnn_r50_fpn_coco10_imagenet": partial(
            tenth,
            summary="Mask R-CNN R50-FPN on a tenth of COCO: from ImageNet, 60k iterations",
            phases=(by_steps(baseline(), 60_000, **settings),),
            init="imagenet",
        ),
        "mask_rcnn_r50_fpn_coco10": partial(
            tenth,
            summary="Mask R-CNN R50-FPN on a tenth of COCO: pre-training 60k, fine-tuning 30k iterations",
            phases=(pretrain_60k, by_steps(finetune(), 30_000, **settings)),
        ),
        "faster_rcnn_r50_fpn_voc_imagenet": partial(
            FASTER_R50,
            summary="Faster R-CNN R50-FPN on VOC 2007 + 2012: from ImageNet, 12.4k iterations",
            phases=(from_imagenet,),
            init="imagenet",
            sources=voc,
        ),
        "faster_rcnn_r50_fpn_voc": partial(
            FASTER_R50,
            summary="Faster R-CNN R50-FPN on VOC 2007 + 2012: pre-training 93k, fine-tuning 12.4k iterations",
            phases=(pretrain_93k, tune),
            sources=voc,
        ),
    }
    return {name: partial(recipe, name=name) for name, recipe in recipes.items()}


_OTHER_BACKBONES = {
    "mask_rcnn_r18_fpn": ("Mask R-CNN R18-FPN", "rcnn", {"backbone": "resnet18", "masks": True}),
    "mask_rcnn_r101_fpn": ("Mask R-CNN R101-FPN", "rcnn", {"backbone": "resnet101", "masks": True}),
    "faster_rcnn_r18_fpn": ("Faster R-CNN R18-FPN", "rcnn", {"backbone": "resnet18", "masks": False}),
    "faster_rcnn_r101_fpn": ("Faster R-CNN R101-FPN", "rcnn", {"backbone": "resnet101", "masks": False}),
    "cascade_mask_rcnn_r50_fpn": ("Cascade Mask R-CNN R50-FPN", "cascade", {"backbone": "resnet50", "masks": True}),
}

DIRECT_RECIPES: dict[str, Callable[[], Recipe]] = {
    **_mask_rcnn(),
    **_two_stage("faster_rcnn_r50_fpn", "Faster R-CNN R50-FPN", FASTER_R50),
    **_two_stage("cascade_rcnn_r50_fpn", "Cascade R-CNN R50-FPN", CASCADE_R50),
    **_retinanet(),
    **_swin(),
    **_less_data(),
    **{
        name: partial(
            direct_recipe,
            name,
            f"{label}: direct pre-training P1x, fine-tuning 1x",
            (pretrain(), finetune()),
            detector=detector,
            **model,
        )
        for name, (label, detector, model) in _OTHER_BACKBONES.items()
    },
}
