"""RTMDet by direct pre-training: a detector of today from random weights, low-resolution first.

The constants of the optimiser are RTMDet's (arXiv 2212.07784); the two phases are those of direct pre-training.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from directdet.recipes.recipe import Phase, Recipe

# Settings of the network that differ between the sizes.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"backbone": "cspnext_tiny", "fpn_channels": 96},
    "s": {"backbone": "cspnext_s", "fpn_channels": 128},
    "m": {"backbone": "cspnext_m", "fpn_channels": 192, "neck_blocks": 2, "exp_distances": True},
    "l": {"backbone": "cspnext_l", "fpn_channels": 256, "neck_blocks": 3, "exp_distances": True},
}
_PAPER = "RTMDet, Table 6 and mmdet's configuration"
SOURCES = {
    "optimizer": f"{_PAPER}: AdamW",
    "base_lr": f"{_PAPER}: 0.004 for 256 images",
    "base_batch": f"{_PAPER}: 8 GPUs with 32 images each",
    "weight_decay": f"{_PAPER}: 0.05",
    "norm_weight_decay": f"{_PAPER}: none on normalisations",
    "bias_weight_decay": f"{_PAPER}: none on biases",
    "finetune.scale": f"{_PAPER}: 0.5 to 2.0 for tiny and s, 0.1 to 2.0 for m and l",
    "finetune.size": f"{_PAPER}: 640x640",
    "finetune.epochs": f"{_PAPER}: the last 20 of 300 epochs are trained with light augmentation",
    "finetune.norm": "direct pre-training, section 3.4: statistics and affine parameters fixed",
    "pretrain.size": "ours: half of fine-tuning's, as in direct pre-training",
    "pretrain.schedule": f"{_PAPER}: flat, then a cosine from half way on",
    "finetune.schedule": "ours: a cosine of its own, where the paper's only schedule ends",
    "final_lr": f"{_PAPER}: 5 %",
    "ema": f"{_PAPER}: 0.9998",
    "ema_warmup": f"{_PAPER}: as in its code",
    "colour": f"{_PAPER}: hue, saturation and value",
    "pretrain.mosaic": f"{_PAPER}: the first stage, on every image",
    "pretrain.mixup": f"{_PAPER}: on every image; half of them for tiny",
    "model": "RTMDet: widths and depths of each size",
    "model.candidates": "ours: mmdet lets 30000 pairs of a level into NMS",
    "model.detections": "ours: COCO's evaluation counts 100; mmdet keeps 300",
}


def rtmdet(size: str) -> Recipe:
    """RTMDet of a size: "tiny", "s", "m" or "l"."""
    scale = (0.5, 2.0) if size in ("tiny", "s") else (0.1, 2.0)
    pretrain = Phase(
        name="pretrain",
        resize="direct",
        size=(320, 320),
        scale=scale,
        batch_size=16,
        epochs=100,
        optimizer="adamw",
        base_lr=0.004,
        base_batch=256,
        weight_decay=0.05,
        norm_weight_decay=False,
        bias_weight_decay=False,
        schedule="flat-cosine",
        ema=0.9998,
        colour="hsv",
        mosaic=1.0,
        mixup=0.5 if size == "tiny" else 1.0,
        warmup_iterations=100,
        warmup_factor=0.01,
        workers=4,
        eval_fixed=True,
        eval_every=20,
    )
    tune = replace(
        pretrain,
        name="finetune",
        size=(640, 640),
        batch_size=8,
        epochs=20,
        schedule="cosine",
        mosaic=0.0,
        mixup=0.0,
        norm="fixed",
        eval_every=5,
    )
    return Recipe(
        f"rtmdet_{size}",
        f"RTMDet-{size}, a real-time detector: pre-trained at 320x320, fine-tuned at 640x640",
        (pretrain, tune),
        "rtmdet",
        SIZES[size],
        sources=SOURCES,
    )


RTMDET_RECIPES: dict[str, Callable[[], Recipe]] = {f"rtmdet_{size}": partial(rtmdet, size) for size in SIZES}
