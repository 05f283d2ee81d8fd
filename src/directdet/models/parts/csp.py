"""Cross-stage-partial layers of RTMDet's backbone and neck (Lyu et al., arXiv 2212.07784, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from directdet.models.parts.layers import Norm
from directdet.models.parts.norm import conv_norm


class ConvSiLU(nn.Module):
    """Convolution, normalisation and SiLU: [N, C, H, W] -> [N, C', H / stride, W / stride], sizes rounded up."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, norm: Norm, *, stride: int = 1, groups: int = 1
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(conv_norm(self.conv, self.norm, x))


class CSPBlock(nn.Module):
    """A 3x3, a 5x5 depthwise and a 1x1 convolution, with or without a shortcut: [N, C, H, W] -> the same."""

    def __init__(self, channels: int, norm: Norm, shortcut: bool):
        super().__init__()
        self.conv = ConvSiLU(channels, channels, 3, norm)
        self.depthwise = ConvSiLU(channels, channels, 5, norm, groups=channels)
        self.pointwise = ConvSiLU(channels, channels, 1, norm)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.pointwise(self.depthwise(self.conv(x)))
        return out + x if self.shortcut else out


class ChannelAttention(nn.Module):
    """Scales each channel by a factor in 0..1, computed from the means of all channels: [N, C, H, W] -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class CSPLayer(nn.Module):
    """Half of the channels pass through `blocks` blocks, half do not: [N, C, H, W] -> [N, C', H, W].

    Args:
        shortcut: whether each block adds its input to its output.
        attention: whether a ChannelAttention comes before the last convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        norm: Norm,
        *,
        shortcut: bool = False,
        attention: bool = False,
    ):
        super().__init__()
        half = out_channels // 2
        self.main = ConvSiLU(in_channels, half, 1, norm)
        self.short = ConvSiLU(in_channels, half, 1, norm)
        self.blocks = nn.Sequential(*(CSPBlock(half, norm, shortcut) for _ in range(blocks)))
        self.attention = ChannelAttention(2 * half) if attention else nn.Identity()
        self.final = ConvSiLU(2 * half, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.blocks(self.main(x)), self.short(x)], 1)
        return self.final(self.attention(joined))


class SPP(nn.Module):
    """Spatial pyramid pooling: max-pools of 5x5, 9x9 and 13x13 beside the map itself: [N, C, H, W] -> the same."""

    def __init__(self, channels: int, norm: Norm):
        super().__init__()
        self.reduce = ConvSiLU(channels, channels // 2, 1, norm)
        self.final = ConvSiLU(channels // 2 * 4, channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.reduce(x)]
        for _ in range(3):  # two 5x5 in a row are a 9x9, and three a 13x13, with fewer comparisons
            maps.append(F.max_pool2d(maps[-1], 5, stride=1, padding=2))
        return self.final(torch.cat(maps, 1))
