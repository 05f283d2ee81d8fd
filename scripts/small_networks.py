"""Small detectors, trained for a minute each on made pictures: enough to detect, so that a changed export shows."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from directdet.data.synthetic import make_synthetic
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.recipe import Phase, Recipe
from directdet.train.run import train

SIDE = 128  # of the canvas, pixels
SSD = (300, 300)  # the smallest size that its extra layers allow
TRAIN, VAL = 200, 60  # pictures
PHASE = Phase(
    name="scratch",
    resize="direct",
    size=(SIDE, SIDE),
    batch_size=8,
    epochs=10,
    base_lr=0.02,
    base_batch=8,
    milestones=(8, 9),
    warmup_iterations=50,
    warmup_factor=0.01,
    clip_norm=10.0,
    norm_weight_decay=False,
    workers=0,
    eval_size=(SIDE, SIDE),
    eval_fixed=True,
    eval_every=0,
)
WARP: Mapping[str, Any] = {"resize": "warp", "std": (1.0, 1.0, 1.0), "channels_last": False, "weight_decay": 5e-4}
BACKBONE: Mapping[str, Any] = {"backbone": "resnet18", "width": 16}
TWO_STAGE: Mapping[str, Any] = {
    **BACKBONE,
    "fpn_channels": 32,
    "box_features": 128,
    "mask_channels": 32,
    "mask_convs": 2,
    "anchor_scale": 5.0,
    "train_pre_nms": 300,
    "train_proposals": 128,
    "test_pre_nms": 200,
    "test_proposals": 100,
    "roi_samples": 48,
    "mask_slots": 12,
    "candidates": 200,
}


@dataclass(frozen=True)
class Small:
    """A detector, its settings, and what its phase has that others have not."""

    detector: str
    model: Mapping[str, Any]
    phase: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, name: str) -> Recipe:
        return Recipe(name, "small", (replace(PHASE, **self.phase),), self.detector, dict(self.model))


SMALL = {
    "mask_rcnn": Small("rcnn", {**TWO_STAGE, "box_convs": 2}, {"epochs": 14, "milestones": (11, 13)}),
    "faster_rcnn": Small("rcnn", {**TWO_STAGE, "box_convs": 0, "masks": False}),
    "cascade_mask_rcnn": Small("cascade", TWO_STAGE),
    "retinanet": Small(
        "retinanet",
        {**BACKBONE, "fpn_channels": 32, "head_convs": 2, "test_pre_nms": 200, "candidates": 200},
        {"base_lr": 0.01},
    ),
    "ssd": Small("ssd", {"backbone": "resnet18", "width": 16}, {**WARP, "size": SSD, "eval_size": SSD}),
}


def made_data(folder: Path) -> Path:
    """The made pictures in `folder`, which are made once."""
    if not (folder / "annotations" / "instances_val2017.json").is_file():
        make_synthetic(folder, TRAIN, VAL, (SIDE * 3 // 4, SIDE), seed=0)
    return folder


def trained(name: str, seed: int, folder: Path) -> Path:
    """The checkpoint of a small detector, trained in `folder` unless it lies there already."""
    out = folder / f"{name}-{seed}"
    checkpoint = out / "scratch" / "checkpoints" / "last.pt"
    if checkpoint.is_file() and (found := load_checkpoint(checkpoint))["step"] >= found["steps"]:
        return checkpoint
    recipe = SMALL[name].recipe(name)
    with contextlib.redirect_stdout(io.StringIO()):
        train(recipe, made_data(folder / "data"), out, resume=checkpoint.is_file(), device="cpu", seed=seed)
    return checkpoint
