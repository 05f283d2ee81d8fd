"""RTMDet's head: a branch for the classes and one for the boxes, with convolutions shared by all levels."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from directdet.models.parts.layers import Norm
from directdet.models.parts.norm import conv_norm
from directdet.models.parts.pyramid import flatten_map

PRIOR = 0.01  # probability of every class before training


class Tower(nn.Module):
    """3x3 convolutions shared by all levels, each normalised and followed by SiLU.

    forward(maps [N, channels, H, W]) -> as many of the same shape. The normalisations are of each level separately,
    since the statistics of the levels differ; folding makes one convolution of each.
    """

    def __init__(self, channels: int, convs: int, levels: int, norm: Norm):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(convs))
        self.norms = nn.ModuleList(nn.ModuleList(norm(channels) for _ in range(convs)) for _ in range(levels))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        found = []
        for x, norms in zip(maps, self.norms, strict=True):
            convs: list[Any] = list(self.convs)
            for conv, norm in zip(convs, norms.children(), strict=True):
                x = F.silu(conv_norm(conv, norm, x))
            found.append(x)
        return found


class Branch(Tower):
    """A tower and a 1x1 convolution for each level.

    forward(maps [N, channels, H, W]) -> [N, H * W, outputs] of each level, float32.
    """

    def __init__(self, channels: int, convs: int, levels: int, outputs: int, norm: Norm):
        super().__init__(channels, convs, levels, norm)
        self.last = LevelConvs(channels, outputs, levels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return self.last(super().forward(maps))


class LevelConvs(nn.ModuleList):
    """A 1x1 convolution of its own for each level: maps [N, channels, H, W] -> [N, H * W, outputs], float32."""

    def __init__(self, channels: int, outputs: int, levels: int):
        super().__init__(nn.Conv2d(channels, outputs, 1) for _ in range(levels))
        self.outputs = outputs

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [flatten_map(conv(x), self.outputs) for conv, x in zip(self, maps, strict=True)]


class RTMDetHead(nn.Module):
    """forward(maps) -> logits [N, A, classes], and distances [N, A, 4] to the sides of a box, left, top, right, bottom.

    Distances are in pixels; without `exp_distances` nothing keeps them from being negative. Weights are initialised
    as in mmdet: standard deviation 0.01, and a probability of 0.01 for every class.
    """

    def __init__(
        self, channels: int, classes: int, convs: int, strides: list[int], norm: Norm, exp_distances: bool = False
    ):
        super().__init__()
        self.strides, self.exp_distances = strides, exp_distances
        self.classes = Branch(channels, convs, len(strides), classes, norm)
        self.boxes = Branch(channels, convs, len(strides), 4, norm)
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.dim() == 4:
                nn.init.normal_(parameter, std=0.01)
            elif ".last." in name:
                nn.init.constant_(parameter, -math.log((1 - PRIOR) / PRIOR) if name.startswith("classes.") else 0.0)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        distances = [
            (raw.exp() if self.exp_distances else raw) * stride
            for raw, stride in zip(self.boxes(maps), self.strides, strict=True)
        ]
        return torch.cat(self.classes(maps), 1), torch.cat(distances, 1)
