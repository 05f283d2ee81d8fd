"""The network of Montage pre-training, from pictures of four samples to the classes of every cell.

Zhou et al., "Cheaper Pre-training Lunch: An Efficient Paradigm for Object Detection", ECCV 2020 (arXiv 2004.12178),
section 3.3; "the paper" here.
"""

from typing import Any

import torch
from torch import Tensor, nn

from directdet.models.backbones.backbone import Backbone
from directdet.models.parts.network import Network


class MontageNet(Network):
    """A detector's backbone, and a 1x1 convolution on its coarsest map in place of the detector.

    forward(images [N, C, H, W], normalised) -> logits [N, classes + 1, H/s, W/s], sizes rounded up; s is the stride of
    the map. The last class is the background.

    Attributes:
        config: the detector's, for whose fine-tuning the backbone is trained.
        cells: bool [4, H/s, W/s], which cells belong to each region: those whose centre lies in it.
        label_weights: float32 [4, H/s, W/s], the share that the label of each region has in the target of a cell: the
            w of the paper's equation 2. They change while it is trained, see fields.py, and are kept with the weights.
    """

    cells: Tensor
    label_weights: Tensor

    def __init__(self, config: Any, backbone: Backbone, regions: Tensor, side: int):
        """`regions` [4, 4] are xyxy in pixels of montages of `side` x `side`."""
        super().__init__()
        self.config, self.backbone = config, backbone
        self.level = max(backbone.strides, key=lambda name: backbone.strides[name])
        count = -(-side // backbone.strides[self.level])
        centres = (torch.arange(count) + 0.5) * side / count
        self.regions = regions
        self.register_buffer("cells", inside(regions, centres), persistent=False)
        self.register_buffer("label_weights", self.cells.float())
        self.classifier = nn.Conv2d(backbone.channels[self.level], config.num_classes + 1, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)  # ours

    def features(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] -> the backbone's coarsest map [N, D, H/s, W/s]."""
        return self.backbone(images)[self.level]

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def inside(regions: Tensor, places: Tensor) -> Tensor:
    """Which points of the grid of `places` [P] x `places` lie in each of R regions [R, 4]: bool [R, P, P]."""
    x1, y1, x2, y2 = regions.to(places)[:, :, None].unbind(1)
    columns, rows = (places >= x1) & (places < x2), (places >= y1) & (places < y2)
    return rows[:, :, None] & columns[:, None, :]
