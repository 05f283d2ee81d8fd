"""Our own recipes, from neither paper: slim networks for small datasets and CPUs."""

from collections.abc import Callable
from dataclasses import replace

from directdet.recipes.direct.phases import montage
from directdet.recipes.recipe import Phase, Recipe
from directdet.recipes.scratchdet import VOC_PHASE

SLIM_SOURCES = {
    "model": "ours: slim and with small RoI budgets, for CPUs",
    "pretrain": "direct pre-training's phase, scaled down by us for small datasets on CPUs",
    "finetune": "direct pre-training's phase, scaled down by us for small datasets on CPUs",
}


def mask_rcnn_r18_slim() -> Recipe:
    """For a few hundred images and a CPU: half the width and few RoIs; trains in about half an hour."""
    pretrain = Phase(
        name="pretrain",
        resize="direct",
        size=(224, 224),
        scale=(0.8, 1.2),
        batch_size=8,
        epochs=50,
        base_lr=0.02,
        base_batch=8,
        norm_weight_decay=False,
        warmup_iterations=100,
        warmup_factor=0.01,
        clip_norm=10.0,
        precision="auto",
        eval_fixed=True,
        eval_every=25,
    )
    tune = replace(
        pretrain,
        name="finetune",
        resize="edges",
        size=(320, 448),
        batch_size=4,
        epochs=10,
        norm_weight_decay=True,
        milestones=(6, 9),
        warmup_iterations=30,
        norm="fixed",
        eval_every=5,
    )
    model = {
        "backbone": "resnet18",
        "width": 32,
        "fpn_channels": 64,
        "box_features": 256,
        "mask_channels": 64,
        "mask_convs": 2,
        "box_convs": 2,
        "train_pre_nms": 500,
        "train_proposals": 250,
        "test_pre_nms": 300,
        "test_proposals": 200,
        "roi_samples": 64,
        "mask_slots": 16,  # all positives of 64 samples
        "candidates": 300,
    }
    return Recipe(
        "mask_rcnn_r18_slim",
        "Mask R-CNN, slim ResNet-18-FPN: learns a small dataset from scratch on a CPU in half an hour",
        (pretrain, tune),
        model=model,
        sources=SLIM_SOURCES,
    )


def mask_rcnn_r18_slim_montage() -> Recipe:
    """mask_rcnn_r18_slim with Montage pre-training of its backbone in place of the first phase."""
    slim = mask_rcnn_r18_slim()
    phase = replace(
        montage(),
        skip_difficult=False,
        batch_size=16,
        iterations=None,
        epochs=50,
        fixed_batch=False,
        warmup_iterations=100,
        clip_norm=10.0,
        workers=2,
    )
    return replace(
        slim,
        name="mask_rcnn_r18_slim_montage",
        summary="mask_rcnn_r18_slim, its backbone pre-trained by Montage instead of direct pre-training",
        phases=(phase, slim.phase("finetune")),
        sources={
            "model": SLIM_SOURCES["model"],
            "montage": "Zhou et al. (arXiv 2004.12178), scaled down by us for small datasets on CPUs",
            "finetune": SLIM_SOURCES["finetune"],
        },
    )


def retinanet_r18_slim() -> Recipe:
    """The two phases of mask_rcnn_r18_slim for a one-stage detector."""
    slim = mask_rcnn_r18_slim()
    model = {"backbone": "resnet18", "width": 32, "fpn_channels": 64, "head_convs": 2}
    for phase in slim.phases:  # half of Mask R-CNN's, as in the recipes of the paper
        slim = slim.with_phase(phase.name, base_lr=phase.base_lr / 2)
    return replace(
        slim,
        name="retinanet_r18_slim",
        summary="RetinaNet, slim ResNet-18-FPN: learns a small dataset from scratch on a CPU in minutes",
        detector="retinanet",
        model={**model, "test_pre_nms": 300, "candidates": 300},
    )


def ssd300_vgg16_slim() -> Recipe:
    """ScratchDet's SSD300 with batch normalisation in backbone and head, at half the width."""
    phase = replace(
        VOC_PHASE,
        batch_size=16,
        iterations=1200,
        milestones=(900, 1100),
        base_lr=0.02,
        base_batch=16,
        warmup_iterations=100,
        warmup_factor=0.01,
        head_norm_weight_decay=True,
        bias_rate=1.0,
        bias_weight_decay=True,
        clip_norm=10.0,
        workers=2,
        best_by="AP",
        eval_every=40,
    )
    return Recipe(
        "ssd300_vgg16_slim",
        "SSD300, slim VGG-16 with batch normalisation: learns a small dataset from scratch",
        (phase,),
        "ssd",
        {"backbone": "vgg16", "width": 32, "norm": "bn", "head_norm": True},
        sources={
            "model": "ours: slim, for CPUs",
            "scratch": "ScratchDet's phase, scaled down by us for small datasets",
        },
    )


SLIM_RECIPES: dict[str, Callable[[], Recipe]] = {
    "mask_rcnn_r18_slim": mask_rcnn_r18_slim,
    "mask_rcnn_r18_slim_montage": mask_rcnn_r18_slim_montage,
    "retinanet_r18_slim": retinanet_r18_slim,
    "ssd300_vgg16_slim": ssd300_vgg16_slim,
}
