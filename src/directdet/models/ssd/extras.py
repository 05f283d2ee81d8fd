"""The extra layers that compute SSD's four coarser maps after the backbone: 19x19 -> 10, 5, 3, 1 at 300 pixels.

They belong to the backbone subnetwork (ScratchDet, section 3.1: "truncated VGGNet-16 with several additional
convolution blocks"), and are normalised with it.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from directdet.models.backbones.dsod import dense_extras
from directdet.models.parts.layers import NORMS, ConvNorm, ExtraLayers, Norm, scaled

# Stride and padding of the 3x3 convolution that computes the next map.
STEPS = {"halve": (2, 1), "shrink": (1, 0), "keep": (1, 1)}


def size_after(size: int, step: str) -> int:
    """Side of the map after a step from a map of side `size`; below 1 if it would be empty."""
    stride, padding = STEPS[step]
    return (size + 2 * padding - 3) // stride + 1


class Reduction(nn.Module):
    """A block of the original SSD: a 1x1 convolution to half the channels, then the 3x3 that computes the next map."""

    def __init__(self, in_channels: int, channels: int, step: str, norm: Norm | None):
        super().__init__()
        stride, padding = STEPS[step]
        self.reduce = ConvNorm(in_channels, max(channels // 2, 1), 1, norm)
        self.conv = ConvNorm(max(channels // 2, 1), channels, 3, norm, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.reduce(x))


class Residual(nn.Module):
    """A block of ScratchDet's extra layers (section 3.2 and Figure 8): two 3x3 convolutions and a 1x1 shortcut.

    The first 3x3 and the shortcut have the stride. Both branches are normalised and added, followed by the ReLU, as in
    the authors' PyTorch code. If the 3x3 is unpadded ("shrink"), the shortcut takes the mean of its window: our choice,
    since none of their code computes the 1x1 map described in the paper.
    """

    def __init__(self, in_channels: int, channels: int, step: str, norm: Norm | None):
        super().__init__()
        stride, padding = STEPS[step]
        self.step = step
        self.conv1 = ConvNorm(in_channels, channels, 3, norm, stride=stride, padding=padding)
        self.conv2 = ConvNorm(channels, channels, 3, norm, relu=False)
        self.shortcut = ConvNorm(in_channels, channels, 1, norm, stride=stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut_input = F.avg_pool2d(x, 3, stride=1) if self.step == "shrink" else x
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(shortcut_input))


class Extras(ExtraLayers):
    """A sequence of blocks: forward(coarsest backbone map [N, C, H, W]) -> the output of each block, finest first.

    `channels` lists the channels of each map; map_sizes(19) is [10, 5, 3, 1].
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
        """Side of each map for an input of side `size`; below 1 if the input is too small."""
        sizes = []
        for step in self.steps:
            size = size_after(size, step)
            sizes.append(size)
        return sizes


def ssd_extras(in_channels: int, width: int | None = None, norm: str = "bn", last_map_3x3: bool = False) -> Extras:
    """conv8 to conv11 of the original SSD300, scaled to a backbone whose stem has `width` channels (64).

    Raises:
        ValueError: last_map_3x3, which these layers do not support.
    """
    if last_map_3x3:
        raise ValueError('last_map_3x3 requires extras="residual"')
    channels = [scaled(count, width) for count in (512, 256, 256, 256)]
    return Extras(Reduction, in_channels, channels, ("halve", "halve", "shrink", "shrink"), NORMS[norm])


def residual_extras(in_channels: int, width: int | None = None, norm: str = "bn", last_map_3x3: bool = False) -> Extras:
    """Four residual blocks of 128 channels (for a stem of 64; see `width` of ssd_extras).

    last_map_3x3: the last block keeps the size 3x3, as in the authors' PyTorch code.
    """
    steps = ("halve", "halve", "halve", "keep" if last_map_3x3 else "shrink")
    return Extras(Residual, in_channels, [scaled(128, width)] * 4, steps, NORMS[norm])


# Builders of the extra layers by name.
EXTRAS: dict[str, Callable[..., ExtraLayers]] = {"ssd": ssd_extras, "residual": residual_extras, "dsod": dense_extras}
