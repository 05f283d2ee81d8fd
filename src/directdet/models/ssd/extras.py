"""The layers after SSD's backbone that make its four coarser maps: 19x19 -> 10, 5, 3, 1 at 300 pixels.

They belong to the backbone subnetwork (ScratchDet, section 3.1: "truncated VGGNet-16 with several additional
convolution blocks"), and are normalised with it.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from directdet.models.backbones.dsod import dense_extras
from directdet.models.parts.layers import NORMS, ConvNorm, ExtraLayers, Norm, scaled

# Stride and padding of the 3x3 convolution that makes one map of another.
STEPS = {"halve": (2, 1), "shrink": (1, 0), "keep": (1, 1)}


def size_after(size: int, step: str) -> int:
    """Side of the map that such a step makes of one of side `size`; below 1 if there is none."""
    stride, padding = STEPS[step]
    return (size + 2 * padding - 3) // stride + 1


class Reduction(nn.Module):
    """1x1 to half the channels, then the 3x3 that makes the next map: a block of the original SSD."""

    def __init__(self, in_channels: int, channels: int, step: str, norm: Norm | None):
        super().__init__()
        stride, padding = STEPS[step]
        self.reduce = ConvNorm(in_channels, max(channels // 2, 1), 1, norm)
        self.conv = ConvNorm(max(channels // 2, 1), channels, 3, norm, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.reduce(x))


class Residual(nn.Module):
    """A block of ScratchDet's extra layers (section 3.2 and Figure 8): 3x3 with the stride and 3x3, beside a 1x1 with
    the stride.

    Both branches are normalised, added up, and the ReLU comes last, as in the authors' PyTorch code. Where the 3x3
    takes its whole window for one cell ("shrink"), the shortcut sees that window's mean: our choice, as no code of
    theirs makes the 1x1 map that the paper has.
    """

    def __init__(self, in_channels: int, channels: int, step: str, norm: Norm | None):
        super().__init__()
        stride, padding = STEPS[step]
        self.step = step
        self.conv1 = ConvNorm(in_channels, channels, 3, norm, stride=stride, padding=padding)
        self.conv2 = ConvNorm(channels, channels, 3, norm, relu=False)
        self.shortcut = ConvNorm(in_channels, channels, 1, norm, stride=stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        beside = F.avg_pool2d(x, 3, stride=1) if self.step == "shrink" else x
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(beside))


class Extras(ExtraLayers):
    """Blocks in a row: forward(coarsest map of the backbone [N, C, H, W]) -> the output of each block, finest first.

    `channels` tells each one's; map_sizes(19) gives [10, 5, 3, 1].
    """

    def __init__(
        self,
        block: type[Reduction] | type[Residual],
        in_channels: int,
        channels: list[int],
        steps: tuple[str, ...],
        norm: Norm | None,
    ):
        super().__init__()
        inputs = [in_channels, *channels[:-1]]
        self.blocks = nn.ModuleList(block(*sizes, norm) for sizes in zip(inputs, channels, steps, strict=True))
        self.channels, self.steps = channels, steps

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def map_sizes(self, size: int) -> list[int]:
        """Side of every map for an input of side `size`; below 1 where the input is too small."""
        sizes = []
        for step in self.steps:
            size = size_after(size, step)
            sizes.append(size)
        return sizes


def ssd_extras(in_channels: int, width: int | None = None, norm: str = "bn", last_map_3x3: bool = False) -> Extras:
    """conv8 to conv11 of the original SSD300, scaled to a backbone whose stem has `width` channels (64).

    Raises ValueError for last_map_3x3, which it has not.
    """
    if last_map_3x3:
        raise ValueError('last_map_3x3 is of extras="residual"')
    channels = [scaled(count, width) for count in (512, 256, 256, 256)]
    return Extras(Reduction, in_channels, channels, ("halve", "halve", "shrink", "shrink"), NORMS[norm])


def residual_extras(in_channels: int, width: int | None = None, norm: str = "bn", last_map_3x3: bool = False) -> Extras:
    """Four residual blocks of 128 channels (for a stem of 64; see `width` of ssd_extras).

    last_map_3x3: the last block keeps its 3x3, as the authors' PyTorch code does.
    """
    steps = ("halve", "halve", "halve", "keep" if last_map_3x3 else "shrink")
    return Extras(Residual, in_channels, [scaled(128, width)] * 4, steps, NORMS[norm])


# Each makes a module like Extras: forward, channels and map_sizes.
EXTRAS: dict[str, Callable[..., ExtraLayers]] = {"ssd": ssd_extras, "residual": residual_extras, "dsod": dense_extras}
