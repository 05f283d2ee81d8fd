"""SSD300 trained from scratch (ScratchDet): the network, from images to raw maps.

Zhu et al., "ScratchDet: Training Single-Shot Object Detectors from Scratch", and Liu et al., "SSD: Single Shot MultiBox
Predictor", whose network it is with other normalisation, backbones and extra layers.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from directdet.models.backbones.builders import SSD_BACKBONES
from directdet.models.parts.layers import NORMS, L2Norm, start_xavier
from directdet.models.parts.pyramid import RawMaps
from directdet.models.ssd.extras import EXTRAS
from directdet.models.ssd.head import SSDHead
from directdet.models.ssd.priors import PRIORS_PER_CELL, SIDES, map_steps, prior_boxes


@dataclass(frozen=True)
class SSDConfig:
    """Everything that defines the network and its training targets. Defaults are ScratchDet's best VGG-16 (Table 1).

    Attributes:
        num_classes: object classes, background not counted.
        width: channels of the backbone's stem; None is the published network. The extra layers are as much slimmer.
        norm: of the backbone subnetwork, extra layers included: "bn", "gn", or "none" (the original SSD).
        head_norm: the detection head subnetwork is normalised too: by group normalisation with norm="gn", else by
            batch normalisation.
        extras: "ssd", conv8 to conv11 of the original, or "residual", ScratchDet's blocks.
        size: side of the square input, pixels.
        priors: "voc" or "coco", the sides of the prior boxes.
        last_map_3x3: the last map of extras="residual" is 3x3, as in the authors' PyTorch code, and not 1x1.
        l2_norm: conv4_3 is L2-normalised, as in the original SSD; ScratchDet took that out.
        positive_iou: priors are positive from this IoU on, and so is the best prior of each object.
        negative_ratio: negatives that count for each positive, the hardest of its image.
        candidates: (prior, class) pairs that enter NMS at a time, best first; see deploy.choose_in_rounds.
    """

    masks: ClassVar[bool] = False

    num_classes: int
    backbone: str = "vgg16"
    width: int | None = None
    norm: str = "bn"
    head_norm: bool = True
    extras: str = "ssd"
    size: int = 300
    priors: str = "voc"
    last_map_3x3: bool = False
    l2_norm: bool = False
    positive_iou: float = 0.5
    negative_ratio: int = 3
    score_threshold: float = 0.01
    nms: float = 0.45
    candidates: int = 400
    detections: int = 200


class SSD(nn.Module):
    """Backbone, extra layers and the predictions beside each of six maps: 38, 19, 10, 5, 3 and 1 cells a side at 300.

    forward(images [N, 3, size, size], normalised) -> RawMaps with logits [N, A, 1 + classes], class 0 background, and
    deltas in units of the variances 0.1, 0.1, 0.2, 0.2; A is 8732 at 300.

    While batch normalisation is live, a batch needs two images at least: the last map is a single cell.
    """

    fewest_live_images = 2  # see above

    def __init__(self, config: SSDConfig):
        super().__init__()
        for name, known in {"backbone": SSD_BACKBONES, "norm": NORMS, "extras": EXTRAS, "priors": SIDES}.items():
            if getattr(config, name) not in known:
                raise ValueError(f"unknown {name} {getattr(config, name)!r}; there are {', '.join(known)}")
        self.config = config
        self.backbone = SSD_BACKBONES[config.backbone](config.width, config.norm)
        fine, coarse = (self.backbone.channels[level] for level in ("s8", "s16"))
        self.l2_norm = L2Norm(fine) if config.l2_norm else nn.Identity()
        self.extras = EXTRAS[config.extras](coarse, config.width, config.norm, config.last_map_3x3)
        head_norm = "none" if not config.head_norm else "gn" if config.norm == "gn" else "bn"
        self.head = SSDHead([fine, coarse, *self.extras.channels], PRIORS_PER_CELL, config.num_classes, head_norm)
        sizes = [-(-config.size // self.backbone.strides[level]) for level in ("s8", "s16")]
        sizes += self.extras.map_sizes(sizes[-1])
        if min(sizes) < 1:
            raise ValueError(f"size {config.size} is too small for extras={config.extras!r}: a map would be empty")
        self.strides = map_steps(config.size, sizes)
        self.level_sizes = [side * side * count for side, count in zip(sizes, PRIORS_PER_CELL, strict=True)]
        self.register_buffer("priors", prior_boxes(config.priors, config.size, sizes), persistent=False)
        start_xavier(self)

    def forward(self, images: Tensor, anchors: Tensor | None = None) -> RawMaps:
        check_input(self.config, tuple(images.shape[2:]))
        levels = self.backbone(images)
        features = [self.l2_norm(levels["s8"]), levels["s16"], *self.extras(levels["s16"])]
        logits, deltas = self.head(features)
        return RawMaps(features, logits, deltas, self.priors if anchors is None else anchors, self.level_sizes)

    def conv_norm_pairs(self) -> list[tuple[nn.Module, str, str]]:
        """(owner, convolution, normalisation) of the whole network, extra layers and head too."""
        return [pair for part in (self.backbone, self.extras, self.head) for pair in part.conv_norm_pairs()]


def check_input(config: SSDConfig, size: tuple[int, int]) -> None:
    """ValueError unless `size` (height, width) is the square that the network and its priors are made for."""
    if size != (config.size, config.size):
        raise ValueError(f"this SSD takes {config.size}x{config.size} inputs only, not {size[0]}x{size[1]}")
