"""The pieces that single-shot detectors are made of: a convolution with its normalisation, and how they start."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from directdet.models.parts.norm import GROUPS, conv_norm

Norm = Callable[[int], nn.Module]
PUBLISHED_WIDTH = 64  # channels of the stem of every backbone that SSD was published with


def group_norm(channels: int) -> nn.GroupNorm:
    """norm.group_norm, but with two channels a group at least: a single cell's own mean leaves nothing of it."""
    groups = math.gcd(GROUPS, channels)
    return nn.GroupNorm(max(groups // 2, 1) if groups == channels else groups, channels)


NORMS: dict[str, Norm | None] = {"bn": nn.BatchNorm2d, "gn": group_norm, "none": None}


def scaled(channels: int, width: int | None) -> int:
    """`channels` of a published layer in a network whose stem has `width` channels (None: the published ones)."""
    return max(channels * (width or PUBLISHED_WIDTH) // PUBLISHED_WIDTH, 1)


class ConvNorm(nn.Module):
    """`conv`, `norm` and a ReLU: [N, C, H, W] -> [N, C', H', W'].

    norm: makes the normalisation of so many channels, or None: then the convolution has a bias instead. Without
    `padding` it is padded so that stride 1 keeps the map's size.
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
    """The layers that make SSD's coarser maps: forward(coarsest backbone map [N, C, H, W]) -> maps, finest first.

    channels: of each map.
    """

    channels: list[int]

    def map_sizes(self, size: int) -> list[int]:
        """Side of every map for an input of side `size`; below 1 where the input is too small."""
        raise NotImplementedError


class L2Norm(nn.Module):
    """Every cell's vector of channels to length 1, times a learned scale of each channel (ParseNet; SSD, section 3.1).

    SSD evens out conv4_3 with it, whose values are larger than those of the other maps where nothing is normalised.
    """

    def __init__(self, channels: int, start: float = 20.0):
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale[:, None, None] * F.normalize(x.float())  # squares of half numbers overflow


def start_xavier(module: nn.Module) -> None:
    """Xavier's uniform initialisation of all convolutions, biases 0 (ScratchDet, section 4.1).

    Glorot's own, over both fans, as torchvision's SSD has it; Caffe's filler of that name counts the inputs alone.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
