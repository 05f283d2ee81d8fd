"""RTMDet and RTMDet-Ins by direct pre-training: detectors of today from random weights, low-resolution first.

The constants of the optimiser are RTMDet's (arXiv 2212.07784); the two phases are those of direct pre-training.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from directdet.recipes.recipe import Phase, Recipe

# Settings of the network that differ between the sizes. RTMDet has no nano; ours is tiny with two thirds of its width.
SIZES: dict[str, dict[str, Any]] = {
    "nano": {"backbone": "cspnext_tiny", "width": 16, "fpn_channels": 64},
    "tiny": {"backbone": "cspnext_tiny", "fpn_channels": 96},
    "s": {"backbone": "cspnext_s", "fpn_channels": 128},
    "m": {"backbone": "cspnext_m", "fpn_channels": 192, "neck_blocks": 2, "exp_distances": True},
    "l": {"backbone": "cspnext_l", "fpn_channels": 256, "neck_blocks": 3, "exp_distances": True},
}
_PAPER = "RTMDet, Table 6 and mmdet's configuration"
SOURCES = {
    "optimizer": f"{_PAPER}: AdamW",
    "base_lr": "ours, 0.002 for a step; RTMDet has 0.004 for 256 images",
    "base_batch": "ours: the batch, which follows the data",
    "batch_size": "follows the data, see recipes/fit.py",
    "epochs": "follows the data, see recipes/fit.py",
    "warmup_iterations": "follows the data, see recipes/fit.py",
    "eval_every": "follows the data, see recipes/fit.py",
    "weight_decay": f"{_PAPER}: 0.05",
    "norm_weight_decay": f"{_PAPER}: none on normalisations",
    "bias_weight_decay": f"{_PAPER}: none on biases",
    "finetune.scale": f"{_PAPER}: 0.5 to 2.0 for tiny and s, 0.1 to 2.0 for m and l",
    "finetune.size": f"{_PAPER}: 640x640; smaller where objects are large, see recipes/fit.py",
    "finetune.base_lr": "ours: with fixed BN, pre-training's rate loses what was learnt",
    "finetune.norm": "direct pre-training, section 3.4: statistics and affine parameters fixed",
    "pretrain.size": "ours: 0.7 of fine-tuning's; direct pre-training has 448 for (1333, 800)",
    "pretrain.schedule": f"{_PAPER}: flat, then a cosine from half way on",
    "finetune.schedule": "ours: a cosine of its own, where the paper's only schedule ends",
    "final_lr": f"{_PAPER}: 5 %",
    "ema": f"{_PAPER}: 0.9998",
    "ema_warmup": f"{_PAPER}: as in its code",
    "precision": "ours: bf16 where the device computes in it; what it costs in AP is in docs/results.md",
    "colour": f"{_PAPER}: hue, saturation and value",
    "pretrain.mosaic": f"{_PAPER}: the first stage, on every image; none on little data",
    "pretrain.mixup": f"{_PAPER}: on every image; half of them for tiny; none on little data",
    "model": "RTMDet: widths and depths of each size",
    "model.candidates": "ours: mmdet lets 30000 pairs of a level into NMS",
    "model.detections": "ours: COCO's evaluation counts 100; mmdet keeps 300",
}
TUNE_LR = 0.001
# Settings that RTMDet-Ins does not have.
BOXES_ONLY = ("exp_distances",)


def rtmdet(size: str) -> Recipe:
    """RTMDet of a size: "nano", "tiny", "s", "m" or "l"."""
    summary = f"RTMDet-{size}, a real-time detector: pre-trained at 320x320, fine-tuned at 640x640"
    return Recipe(f"rtmdet_{size}", summary, phases(size), "rtmdet", SIZES[size], sources=SOURCES, fit=True)


def rtmdet_ins(size: str) -> Recipe:
    """RTMDet-Ins of a size, trained as RTMDet is."""
    summary = f"RTMDet-Ins-{size}, boxes and masks in real time: pre-trained at 320x320, fine-tuned at 640x640"
    model = {name: value for name, value in SIZES[size].items() if name not in BOXES_ONLY}
    sources = {**SOURCES, "model.mask_slots": "ours: mmdet computes the masks of all positive points"}
    return Recipe(f"rtmdet_ins_{size}", summary, phases(size), "rtmdet_ins", model, sources=sources, fit=True)


def phases(size: str) -> tuple[Phase, Phase]:
    """Pre-training and fine-tuning of a size."""
    scale = (0.1, 2.0) if size in ("m", "l") else (0.5, 2.0)
    pretrain = Phase(
        name="pretrain",
        resize="direct",
        size=(320, 320),
        scale=scale,
        batch_size=16,
        epochs=100,
        optimizer="adamw",
        base_lr=0.002,
        base_batch=16,
        weight_decay=0.05,
        norm_weight_decay=False,
        bias_weight_decay=False,
        schedule="flat-cosine",
        ema=0.9998,
        colour="hsv",
        mosaic=1.0,
        mixup=0.5 if size in ("nano", "tiny") else 1.0,
        warmup_iterations=100,
        warmup_factor=0.01,
        precision="auto",
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
        base_lr=TUNE_LR,
        mosaic=0.0,
        mixup=0.0,
        norm="fixed",
        eval_every=5,
    )
    return pretrain, tune


def demo() -> Recipe:
    """What `directdet demo` trains: RTMDet-Ins-nano in minutes on two CPU cores."""
    nano = rtmdet_ins("nano")
    changes: dict[str, Any] = {"batch_size": 8, "base_batch": 8, "scale": (0.8, 1.2), "ema_warmup": 200}
    changes |= {"mosaic": 0.0, "mixup": 0.0}
    nano = nano.with_phase("pretrain", size=(128, 128), eval_size=(192, 192), epochs=20, eval_every=10, **changes)
    nano = nano.with_phase("finetune", size=(192, 192), epochs=6, eval_every=3, **changes)
    return replace(
        nano,
        name="demo",
        summary="what `directdet demo` trains: RTMDet-Ins-nano on a synthetic dataset, in minutes",
        sources={"pretrain": "ours: RTMDet-Ins-nano's, in little time", "finetune": "ours: as in pretrain"},
        fit=False,
    )


RTMDET_RECIPES: dict[str, Callable[[], Recipe]] = {
    **{f"rtmdet_{size}": partial(rtmdet, size) for size in SIZES},
    **{f"rtmdet_ins_{size}": partial(rtmdet_ins, size) for size in SIZES},
    "demo": demo,
}
