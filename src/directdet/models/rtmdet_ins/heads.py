"""The heads of RTMDet-Ins: classes and boxes, a small network for each point's mask, and the maps that it looks at."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from directdet.models.parts.csp import ConvSiLU
from directdet.models.parts.layers import Norm
from directdet.models.parts.start import init_normal
from directdet.models.rtmdet.head import PRIOR, LevelConvs, Tower
from directdet.models.rtmdet_ins.masks import PARAMETERS, PROTOTYPES, random_kernel

STD = 0.01  # of the weights of all layers but the last of the prototypes, as in mmdet
DISTANCE = 1.0  # strides from a point to each side of its box before training, as in mmdet


class RTMDetInsHead(nn.Module):
    """forward(maps) -> logits [N, A, classes], and distances [N, A, 4] to the sides of a box, left, top, right, bottom.

    Distances are in pixels and not negative. Classes and boxes share their convolutions: mmdet's published models do,
    though the paper draws two branches (its count of parameters fits one). mmdet computes them twice, we once.
    """

    def __init__(self, channels: int, classes: int, convs: int, strides: list[int], norm: Norm):
        super().__init__()
        self.strides = strides
        self.tower = Tower(channels, convs, len(strides), norm)
        self.classes = LevelConvs(channels, classes, len(strides))
        self.boxes = LevelConvs(channels, 4, len(strides))
        init_normal(self, STD)
        for name, parameter in self.named_parameters():
            if name.startswith("classes.") and name.endswith("bias"):
                nn.init.constant_(parameter, -math.log((1 - PRIOR) / PRIOR))
            elif name.startswith("boxes.") and name.endswith("bias"):
                nn.init.constant_(parameter, DISTANCE)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        maps = self.tower(maps)
        distances = [F.relu(raw) * stride for raw, stride in zip(self.boxes(maps), self.strides, strict=True)]
        return torch.cat(self.classes(maps), 1), torch.cat(distances, 1)


class KernelHead(nn.Module):
    """forward(maps) -> the parameters [N, A, 169] of each point's mask; see masks.mask_logits.

    Each level has convolutions of its own, as in mmdet. The biases start at the weights of a random small network
    (mmdet: at zero, where every mask is even and hardly has a gradient).
    """

    def __init__(self, channels: int, convs: int, levels: int, norm: Norm):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(*(ConvSiLU(channels, channels, 3, norm) for _ in range(convs))) for _ in range(levels)
        )
        self.last = LevelConvs(channels, PARAMETERS, levels)
        init_normal(self, STD)
        start = random_kernel()
        with torch.no_grad():
            for conv in self.last.children():
                assert isinstance(conv, nn.Conv2d) and conv.bias is not None
                conv.bias.copy_(start)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat(self.last([convs(x) for convs, x in zip(self.convs, maps, strict=True)]), 1)


class PrototypeHead(nn.Module):
    """forward(maps, finest first) -> prototypes [N, 8, H, W] at the finest map's size, float32.

    The coarser maps are up-sampled bilinearly and fused with the finest by a 1x1 convolution.
    """

    def __init__(self, channels: int, convs: int, levels: int, norm: Norm):
        super().__init__()
        self.fuse = nn.Conv2d(levels * channels, channels, 1)
        self.convs = nn.Sequential(*(ConvSiLU(channels, channels, 3, norm) for _ in range(convs)))
        self.last = nn.Conv2d(channels, PROTOTYPES, 1)
        init_normal(self, STD)
        init_normal(self.last, 1 / math.sqrt(channels))  # ours: values near 1; mmdet has STD

    def forward(self, maps: list[Tensor]) -> Tensor:
        fine = maps[0]
        raised = [F.interpolate(x, scale_factor=2.0**step, mode="bilinear") for step, x in enumerate(maps[1:], 1)]
        return self.last(self.convs(self.fuse(torch.cat([fine, *raised], 1)))).float()
