"""Layers of single-shot detectors: a convolution with its normalisation, and L2 normalisation."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from directdet.models.parts.norm import GROUPS, conv_norm

Norm = Callable[[int], nn.Module]
PUBLISHED_WIDTH = 64  # stem channels of every backbone that SSD was published with


def group_norm(channels: int) -> nn.GroupNorm:
    """norm.group_norm with at least two channels per group: on a 1x1 map, a single channel always becomes 0."""
    groups = math.gcd(GROUPS, channels)
    return nn.GroupNorm(max(groups // 2, 1) if groups == channels else groups, channels)


NORMS: dict[str, Norm | None] = {"bn": nn.BatchNorm2d, "gn": group_norm, "none": None}


def scaled(channels: int, width: int | None) -> int:
    """Scale `channels` of a published layer to a network whose stem has `width` channels (None: the published 64)."""
    return max(channels * (width or PUBLISHED_WIDTH) // PUBLISHED_WIDTH, 1)


class ConvNorm(nn.Module):
    """Convolution, normalisation and ReLU: [N, C, H, W] -> [N, C', H', W'].

    Args:
        norm: builds the normalisation for a number of channels. None: no normalisation; the convolution has a bias.
        padding: None: the padding that keeps the size of the map at stride 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        norm: Norm | None,
        *,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        relu: bool = True,
    ):
        super().__init__()
        padding = dilation * (kernel // 2) if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=norm is None)
        self.norm = nn.Identity() if norm is None else norm(out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = conv_norm(self.conv, self.norm, x)
        return F.relu(x) if self.relu else x


class ExtraLayers(nn.Module):
    """The layers that compute SSD's coarser maps: forward(coarsest backbone map [N, C, H, W]) -> maps, finest first.

    Attributes:
        channels: number of channels of each map.
    """

    channels: list[int]

    def map_sizes(self, size: int) -> list[int]:
        """Side of each map for an input of side `size`; below 1 if the input is too small."""
        raise NotImplementedError


class L2Norm(nn.Module):
    """Scales each cell's channel vector to length 1, then each channel by a learned factor.

    Introduced by ParseNet. SSD (section 3.1) applies it to conv4_3, whose values are larger than those of the other
    maps in a network without normalisation.
    """

    def __init__(self, channels: int, initial_scale: float = 20.0):
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), initial_scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale[:, None, None] * F.normalize(x.float())  # squares overflow in float16


def max_pool_2x2(x: Tensor) -> Tensor:
    """2x2 max-pool with stride 2, sizes rounded up: [N, C, H, W] -> [N, C, H/2, W/2]."""
    return F.max_pool2d(x, 2, ceil_mode=True)
