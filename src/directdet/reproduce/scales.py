"""How small a comparison is: its image sizes, networks and batches."""

from dataclasses import dataclass, field
from typing import Any

from directdet.common.errors import UsageProblem
from directdet.recipes.recipe import Precision


@dataclass(frozen=True)
class Scale:
    """How small a comparison is.

    Attributes:
        full: the (short, long) edge in pixels that takes the place of (800, 1333).
        factor: what the paper's pre-training lengths are multiplied by, then rounded to a multiple of 32.
        models: for each detector, the settings that differ from the paper's.
        base_lr, base_batch, clip_norm, precision, workers: as in Phase.
        ssd_size: side of SSD's square input, in pixels.
        ssd_width: channels of SSD's stem; None for the full width.
        ssd_batch: images per step of SSD.
        vgg_rcnn: of VGG-16 Faster R-CNN, the settings that differ from the paper's; its width is ssd_width.
    """

    name: str
    full: tuple[int, int]
    factor: float
    models: dict[str, dict[str, Any]]
    base_lr: float = 0.02
    base_batch: int = 8
    clip_norm: float | None = 10.0
    precision: Precision = "fp32"
    workers: int = 2
    ssd_size: int = 300
    ssd_width: int | None = None
    ssd_batch: int = 128
    vgg_rcnn: dict[str, Any] = field(default_factory=dict)

    def length(self, paper: int) -> int:
        """A length of the paper in pixels, scaled; at least 64."""
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
_NEAR_ANCHORS = {"anchor_scales": (2.0, 4.0, 8.0)}  # for pictures of a third of the size and less
_SLIM_VGG = {"box_features": 256, **{k: v for k, v in _FEW_ROIS.items() if k != "mask_slots"}, **_NEAR_ANCHORS}
_TINIEST_VGG = {**_SLIM_VGG, "box_features": 16, "train_proposals": 32, "test_proposals": 32, "roi_samples": 16}
SCALES = {
    # Takes seconds and learns nothing: only to check that a comparison runs.
    "smoke": Scale(
        "smoke", (64, 96), 0.15, SMOKE_MODELS, ssd_size=193, ssd_width=8, ssd_batch=2, vgg_rcnn=_TINIEST_VGG
    ),
    "tiny": Scale("tiny", (160, 224), 0.28, SLIM_MODELS, ssd_size=208, ssd_width=8, ssd_batch=8, vgg_rcnn=_SLIM_VGG),
    "small": Scale("small", (320, 448), 0.5, SLIM_MODELS, ssd_width=16, ssd_batch=16, vgg_rcnn=_SLIM_VGG),
    # For a GPU and images of about 360 pixels.
    "medium": Scale("medium", (288, 384), 0.5, R50_MODELS, base_batch=16, precision="bf16", workers=12),
    "paper": Scale("paper", (800, 1333), 1.0, R50_MODELS, base_batch=16, clip_norm=None, workers=4),
}


def choose_scale(name: str | None, on_gpu: bool) -> Scale:
    """The scale of that name; None is "medium" on a GPU and "small" on a CPU.

    Raises:
        UsageProblem: there is no such scale.
    """
    name = name or ("medium" if on_gpu else "small")
    if name not in SCALES:
        raise UsageProblem(f"--scale {name}: unknown; choose one of {', '.join(SCALES)}")
    return SCALES[name]
