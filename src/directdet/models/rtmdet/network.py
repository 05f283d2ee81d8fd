"""The RTMDet network, from images to raw maps.

Lyu et al., "RTMDet: An Empirical Study of Designing Real-Time Object Detectors", arXiv 2212.07784, with the settings of
mmdet's configurations, which serve as the reference in tests.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from directdet.models.backbones.builders import build_backbone
from directdet.models.backbones.resnet import NORMS
from directdet.models.parts.network import Network
from directdet.models.rtmdet.config import PointConfig, RTMDetConfig
from directdet.models.rtmdet.head import RTMDetHead
from directdet.models.rtmdet.neck import CSPPAFPN

LEVELS = ("c3", "c4", "c5")


class PointMaps(NamedTuple):
    """The outputs of the network for a batch, before post-processing. A is the number of points over all levels.

    Attributes:
        features: the neck's maps, finest first, each [N, C, H, W].
        logits: [N, A, classes], one independent sigmoid per class.
        distances: [N, A, 4], from a point to the left, top, right and bottom side of its box, in pixels.
        points: [A, 3], x and y in pixels, and the stride of the level.
    """

    features: list[Tensor]
    logits: Tensor
    distances: Tensor
    points: Tensor


class HasPoints(Protocol):
    """The part of a network's outputs that boxes are made of; see PointMaps and InsMaps."""

    @property
    def logits(self) -> Tensor: ...

    @property
    def distances(self) -> Tensor: ...

    @property
    def points(self) -> Tensor: ...


class PointNetwork(Network):
    """Backbone and PAFPN on c3 to c5, of strides 8, 16 and 32: what RTMDet and RTMDet-Ins have in common.

    Attributes:
        strides: of the neck's maps.
    """

    def __init__(self, config: PointConfig):
        super().__init__()
        self.config = config
        self.backbone = build_backbone(("pyramid",), config.backbone, config.width, config.norm, config.in_channels)
        self.backbone.keep_levels(LEVELS)
        channels, norm = [self.backbone.channels[level] for level in LEVELS], NORMS[config.norm]
        self.strides = [self.backbone.strides[level] for level in LEVELS]
        self.neck = CSPPAFPN(channels, config.fpn_channels, config.neck_blocks, norm)

    def parts(self) -> dict[str, tuple[str, ...]]:
        return {"backbone": ("backbone",), "fpn": ("neck",), "box": ("head",)}

    def features(self, images: Tensor) -> list[Tensor]:
        """The neck's maps of images [N, 3, H, W], finest first."""
        levels = self.backbone(images)
        return self.neck([levels[name] for name in LEVELS])

    def points(self, size: tuple[int, int]) -> Tensor:
        """The points [A, 3] of images of `size` (height, width): the top left corners of the cells, row by row."""
        device = next(self.parameters()).device
        found = []
        for stride in self.strides:
            y = torch.arange(0, size[0], stride, dtype=torch.float32, device=device)
            x = torch.arange(0, size[1], stride, dtype=torch.float32, device=device)
            y, x = torch.meshgrid(y, x, indexing="ij")
            found.append(torch.stack([x, y, torch.full_like(x, stride)], -1).reshape(-1, 3))
        return torch.cat(found)


class RTMDet(PointNetwork):
    """A head without objectness on the three maps.

    forward(images [N, 3, H, W], normalised, H and W multiples of 32) -> PointMaps.
    """

    config: RTMDetConfig

    def __init__(self, config: RTMDetConfig):
        super().__init__(config)
        self.head = RTMDetHead(
            config.fpn_channels,
            config.num_classes,
            config.head_convs,
            self.strides,
            NORMS[config.norm],
            config.exp_distances,
        )

    def class_layers(self) -> tuple[str, ...]:
        return ("head.classes.last",)

    def forward(self, images: Tensor, points: Tensor | None = None) -> PointMaps:
        features = self.features(images)
        logits, distances = self.head(features)
        height, width = images.shape[2:]
        return PointMaps(features, logits, distances, self.points((height, width)) if points is None else points)


def boxes_of(distances: Tensor, points: Tensor) -> Tensor:
    """The boxes [..., 4] at `distances` [..., 4] from `points` [..., 3]."""
    centres = points[..., :2]
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], -1)
