"""The RTMDet-Ins network, from images to raw maps.

Lyu et al., arXiv 2212.07784, section 3.4, with the settings of mmdet's configurations, which serve as the reference in
tests.
"""

from typing import NamedTuple

from torch import Tensor

from directdet.models.backbones.resnet import NORMS
from directdet.models.rtmdet.config import RTMDetInsConfig
from directdet.models.rtmdet.network import PointNetwork
from directdet.models.rtmdet_ins.heads import KernelHead, PrototypeHead, RTMDetInsHead


class InsMaps(NamedTuple):
    """The outputs of the network for a batch, before post-processing. A is the number of points over all levels.

    Attributes:
        features: the neck's maps, finest first, each [N, C, H, W].
        logits: [N, A, classes], one independent sigmoid per class.
        distances: [N, A, 4], from a point to the left, top, right and bottom side of its box, in pixels.
        points: [A, 3], x and y in pixels, and the stride of the level.
        kernels: [N, A, 169], the parameters of each point's mask; see masks.mask_logits.
        prototypes: [N, 8, H / 8, W / 8].
    """

    features: list[Tensor]
    logits: Tensor
    distances: Tensor
    points: Tensor
    kernels: Tensor
    prototypes: Tensor


class RTMDetIns(PointNetwork):
    """Boxes and, at each point, a small network that draws the mask of the object from shared prototypes.

    forward(images [N, 3, H, W], normalised, H and W multiples of 32) -> InsMaps.
    """

    config: RTMDetInsConfig

    def __init__(self, config: RTMDetInsConfig):
        super().__init__(config)
        channels, norm = config.fpn_channels, NORMS[config.norm]
        self.head = RTMDetInsHead(channels, config.num_classes, config.head_convs, self.strides, norm)
        self.kernels = KernelHead(channels, config.head_convs, len(self.strides), norm)
        self.prototypes = PrototypeHead(channels, config.mask_convs, len(self.strides), norm)

    def parts(self) -> dict[str, tuple[str, ...]]:
        return {**super().parts(), "mask": ("kernels", "prototypes")}

    def class_layers(self) -> tuple[str, ...]:
        return ("head.classes",)

    def forward(self, images: Tensor, points: Tensor | None = None) -> InsMaps:
        features = self.features(images)
        logits, distances = self.head(features)
        height, width = images.shape[2:]
        points = self.points((height, width)) if points is None else points
        return InsMaps(features, logits, distances, points, self.kernels(features), self.prototypes(features))
