"""Recipes: functions that return frozen dataclasses. Every constant of a paper stands here once, with its source.

A recipe has two phases: direct pre-training at low resolution with live batch normalisation, and fine-tuning at high
resolution with batch normalisation totally fixed. The second is made from the first with dataclasses.replace.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Phase:
    """One phase of training.

    Attributes:
        resize: "direct": resize by alpha in `scale`, crop or pad to `size` (paper section 3.2); "edges": short and long
            edge, `size` = (short, long), padded to a multiple of 32.
        size: pixels, see resize.
        scale: the range of alpha.
        batch_size: images per device.
        epochs, repeat: passes over the dataset are epochs * repeat; evaluation and milestones count epochs.
        max_steps: stop after so many steps, whatever the epochs say; None: no such limit.
        base_lr, base_batch: the linear scaling rule: learning rate = base_lr * images per step / base_batch.
        norm_weight_decay: whether weight decay applies to the normalisations' affine parameters.
        milestones, gamma: epochs after which the learning rate is multiplied by gamma; none: constant.
        warmup_iterations, warmup_factor: the learning rate rises linearly from factor * lr.
        norm: "live" or "fixed" (statistics and affine parameters, Table 2).
        frozen_stages: -1 none; 0 the stem; n the stem and the first n stages.
        clip_norm: the gradient's largest L2 norm, or None.
        precision: "fp32" or "bf16" (autocast).
        eval_size: as `size`; evaluation resizes by edges, or onto a fixed canvas where eval_fixed.
        eval_every: epochs between evaluations, the last epoch being always evaluated; 0: none at all.
    """

    name: str
    resize: str
    size: tuple[int, int]
    scale: tuple[float, float] = (0.8, 1.2)
    batch_size: int = 2
    epochs: int = 12
    repeat: int = 1
    max_steps: int | None = None
    optimizer: str = "sgd"
    base_lr: float = 0.02
    base_batch: int = 16
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_weight_decay: bool = True
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_iterations: int = 500
    warmup_factor: float = 0.001
    norm: str = "live"
    frozen_stages: int = -1
    clip_norm: float | None = None
    precision: str = "fp32"
    channels_last: bool = True
    workers: int = 2
    eval_size: tuple[int, int] = (800, 1333)
    eval_fixed: bool = False
    eval_every: int = 1


@dataclass(frozen=True)
class Recipe:
    """A named recipe. `model` holds the settings of models.rcnn.RCNNConfig that differ from its defaults (the paper's);
    `sources` says where constants come from; `paper` what the paper reached with it, in words."""

    name: str
    summary: str
    pretrain: Phase
    finetune: Phase
    model: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    paper: str = ""

    def phases(self) -> tuple[Phase, Phase]:
        return self.pretrain, self.finetune


PAPER = "Rethinking Training from Scratch for Object Detection"
PAPER_SOURCES = {
    "pretrain.size": "section 3.3: 448x448, chosen from Table 1 and Figure 2",
    "pretrain.scale": "section 3.2: alpha in (0.8, 1.2)",
    "pretrain.batch_size": "section 3.3: 8 images per GPU",
    "pretrain.base_lr": "section 3.4: 0.02 for 2 images on each of 8 GPUs, scaled linearly (0.08 for 8)",
    "pretrain.epochs": "authors' code: 12 epochs of a 4 times repeated dataset = 88k iterations (P1x)",
    "pretrain.repeat": "authors' code: RepeatDataset(times=4)",
    "pretrain.milestones": "section 4.1: the learning rate is not reduced while pre-training",
    "pretrain.warmup_iterations": "authors' code: linear, 500 iterations",
    "pretrain.warmup_factor": "authors' code: from 1 %",
    "pretrain.norm": "section 3.4: plain BN, statistics of the images on one GPU",
    "pretrain.norm_weight_decay": "authors' code: norm_decay_mult = 0",
    "pretrain.eval_size": "authors' code: validation at (1333, 800) in both phases",
    "finetune.size": "section 3.2: (1333, 800)",
    "finetune.batch_size": "section 3.4: 2 images per GPU",
    "finetune.base_lr": "section 3.4: 0.02 for 2 images on each of 8 GPUs",
    "finetune.epochs": "section 4.1: 1x = 12 epochs",
    "finetune.milestones": "mmdet 1x schedule: after epochs 8 and 11",
    "finetune.warmup_factor": "mmdet 1x schedule: from 0.1 %",
    "finetune.norm": "section 3.4, Table 2: statistics and affine parameters fixed",
    "finetune.frozen_stages": "authors' code froze stem and stage 1 too, the paper does not say so; -1 trains all",
    "model.mask_slots": "ours: packs the mask RoIs of a batch; 128 an image holds all that are sampled",
    "model.box_convs": "section 4.1: 4conv1fc box head, without normalisation",
    "momentum": "mmdet schedule: 0.9",
    "weight_decay": "mmdet schedule: 1e-4",
}


def _paper_phases() -> tuple[Phase, Phase]:
    pretrain = Phase(
        name="pretrain",
        resize="direct",
        size=(448, 448),
        batch_size=8,
        epochs=12,
        repeat=4,
        norm_weight_decay=False,
        warmup_factor=0.01,
        precision="fp32",
        workers=4,
    )
    finetune = replace(
        pretrain,
        name="finetune",
        resize="edges",
        size=(800, 1333),
        batch_size=2,
        repeat=1,
        norm_weight_decay=True,
        milestones=(8, 11),
        warmup_factor=0.001,
        norm="fixed",
        frozen_stages=1,
    )
    return pretrain, finetune


def mask_rcnn_r50_fpn() -> Recipe:
    pretrain, finetune = _paper_phases()
    return Recipe(
        "mask_rcnn_r50_fpn",
        "Mask R-CNN, ResNet-50-FPN, 4conv1fc: the paper's direct pre-training P1x and fine-tuning 1x",
        pretrain,
        finetune,
        {"backbone": "resnet50", "masks": True},
        PAPER_SOURCES,
        "Table 3: 40.0 box AP, 35.8 mask AP on COCO val2017, 1.26 days on 8 RTX 2080 Ti",
    )


def faster_rcnn_r50_fpn() -> Recipe:
    pretrain, finetune = _paper_phases()
    return Recipe(
        "faster_rcnn_r50_fpn",
        "Faster R-CNN, ResNet-50-FPN, 4conv1fc: the paper's direct pre-training P1x and fine-tuning 1x",
        pretrain,
        finetune,
        {"backbone": "resnet50", "masks": False},
        PAPER_SOURCES,
        "Table 8: 39.3 box AP on COCO val2017",
    )


def mask_rcnn_r18_fpn() -> Recipe:
    recipe = mask_rcnn_r50_fpn()
    return replace(
        recipe,
        name="mask_rcnn_r18_fpn",
        summary="Mask R-CNN, ResNet-18-FPN, 4conv1fc: the same two phases with the smaller backbone",
        model={"backbone": "resnet18", "masks": True},
        paper="",
    )


def faster_rcnn_r18_fpn() -> Recipe:
    recipe = faster_rcnn_r50_fpn()
    return replace(
        recipe,
        name="faster_rcnn_r18_fpn",
        summary="Faster R-CNN, ResNet-18-FPN, 4conv1fc: the same two phases with the smaller backbone",
        model={"backbone": "resnet18", "masks": False},
        paper="",
    )


SLIM_SOURCES = {
    "model": "ours: slim and with small RoI budgets, for CPUs",
    "pretrain": "the paper's phase, scaled down by us for small datasets on CPUs",
    "finetune": "the paper's phase, scaled down by us for small datasets on CPUs",
}


def mask_rcnn_r18_slim() -> Recipe:
    """For a few hundred images and a CPU: half the width, few RoIs, half an hour or so."""
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
        eval_size=(224, 224),
        eval_fixed=True,
        eval_every=25,
    )
    finetune = replace(
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
        eval_size=(448, 448),
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
        "mask_slots": 8,
        "candidates": 300,
    }
    return Recipe(
        "mask_rcnn_r18_slim",
        "Mask R-CNN, slim ResNet-18-FPN: a small dataset, learnt from scratch on a CPU in half an hour",
        pretrain,
        finetune,
        model,
        SLIM_SOURCES,
    )


def demo() -> Recipe:
    """What `directdet demo` trains: minutes on two CPU cores."""
    slim = mask_rcnn_r18_slim()
    pretrain = replace(slim.pretrain, size=(128, 128), epochs=12, eval_size=(192, 192), eval_every=4)
    finetune = replace(slim.finetune, size=(192, 192), epochs=4, milestones=(3,), eval_size=(192, 192), eval_every=2)
    return Recipe(
        "demo",
        "what `directdet demo` trains: a slim Mask R-CNN on a synthetic dataset, in minutes",
        pretrain,
        finetune,
        {**slim.model, "anchor_scale": 6.0, "train_proposals": 128, "roi_samples": 48, "mask_slots": 12},
        SLIM_SOURCES,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        mask_rcnn_r50_fpn,
        faster_rcnn_r50_fpn,
        mask_rcnn_r18_fpn,
        faster_rcnn_r18_fpn,
        mask_rcnn_r18_slim,
        demo,
    )
}
