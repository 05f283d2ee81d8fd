"""The extra layers that compute SSD's coarser maps after the backbone, down to a single cell.

At 300 pixels 19x19 -> 10, 5, 3, 1; at 512, 32x32 -> 16, 8, 4, 2, 1, as in the published SSD512.

They belong to the backbone subnetwork (ScratchDet, section 3.1: "truncated VGGNet-16 with several additional
convolution blocks"), and are normalised with it.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from directdet.common.settings import SettingError
from directdet.models.backbones.dsod import dense_extras
from directdet.models.parts.layers import NORMS, ConvNorm, ExtraLayers, Norm, scaled

# Kernel, stride and padding of the convolution that computes the next map. "whole" makes one cell of 2x2 (SSD512).
STEPS = {"halve": (3, 2, 1), "shrink": (3, 1, 0), "keep": (3, 1, 1), "whole": (4, 1, 1)}


def size_after(size: int, step: str) -> int:
    """Side of the map after a step from a map of side `size`."""
    kernel, stride, padding = STEPS[step]
    return (size + 2 * padding - kernel) // stride + 1


def steps_to_one(size: int, shrunk: tuple[int, ...]) -> tuple[str, ...]:
    """The steps from a map of side `size` to a single cell: maps are halved, but those of the sides `shrunk` lose their
    border, and 2x2 become one.
    """
    steps = []
    while size > 1:
        steps.append("shrink" if size in shrunk else "whole" if size == 2 else "halve")
        size = size_after(size, steps[-1])
    return tuple(steps)


class Reduction(nn.Module):
    """A block of the original SSD: a 1x1 convolution to half the channels, then the one for the next map."""

    def __init__(self, in_channels: int, channels: int, step: str, norm: Norm | None):
        super().__init__()
        kernel, stride, padding = STEPS[step]
        self.reduce = ConvNorm(in_channels, max(channels // 2, 1), 1, norm)
        self.conv = ConvNorm(max(channels // 2, 1), channels, kernel, norm, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.reduce(x))


class Residual(nn.Module):
    """A block of ScratchDet's extra layers (section 3.2 and Figure 8): two 3x3 convolutions and a 1x1 shortcut.

    The first 3x3 and the shortcut have the stride. Both branches are normalised and added, followed by the ReLU, as in
    the authors' PyTorch code. Where a single cell is computed of 3x3 ("shrink", unpadded) or of 2x2 ("whole", 4x4), the
    shortcut takes their mean: our choice, since none of their code computes the 1x1 map described in the paper.
    """

    def __init__(self, in_channels: int, channels: int, step: str, norm: Norm | None):
        super().__init__()
        kernel, stride, padding = STEPS[step]
        self.window = {"shrink": 3, "whole": 2}.get(step)
        self.conv1 = ConvNorm(in_channels, channels, kernel, norm, stride=stride, padding=padding)
        self.conv2 = ConvNorm(channels, channels, 3, norm, relu=False)
        self.shortcut = ConvNorm(in_channels, channels, 1, norm, stride=stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut_input = x if self.window is None else F.avg_pool2d(x, self.window, stride=1)
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
        """Side of each map, for a first input of side `size`."""
        sizes = []
        for step in self.steps:
            size = size_after(size, step)
            sizes.append(size)
        return sizes


def ssd_extras(
    in_channels: int, width: int | None = None, norm: str = "bn", last_map_3x3: bool = False, size: int = 19
) -> Extras:
    """conv8 and on of the original SSD, scaled to a backbone whose stem has `width` channels (64).

    Args:
        size: side of the map that they continue: 19 for SSD300 (conv8 to conv11), 32 for SSD512 (conv8 to conv12).

    Raises:
        ValueError: last_map_3x3, which these layers do not support.
    """
    if last_map_3x3:
        raise ValueError('last_map_3x3 requires extras="residual"')
    steps = steps_to_one(size, shrunk=(5, 3))
    channels = [scaled(count, width) for count in (512, *[256] * (len(steps) - 1))]
    return Extras(Reduction, in_channels, channels, steps, NORMS[norm])


def residual_extras(
    in_channels: int, width: int | None = None, norm: str = "bn", last_map_3x3: bool = False, size: int = 19
) -> Extras:
    """Residual blocks of 128 channels (for a stem of 64; see `width` and `size` of ssd_extras): four at 300 pixels.

    last_map_3x3: the last block keeps the size 3x3, as in the authors' PyTorch code.

    Raises:
        SettingError: last_map_3x3, but the map before the last is not 3x3 at this size.
    """
    steps = steps_to_one(size, shrunk=(3,))
    if last_map_3x3:
        if steps[-1:] != ("shrink",):
            raise SettingError("model.last_map_3x3: true needs a map of 3x3, which model.size=300 and 320 have")
        steps = (*steps[:-1], "keep")
    return Extras(Residual, in_channels, [scaled(128, width)] * len(steps), steps, NORMS[norm])


# Builders of the extra layers by name.
EXTRAS: dict[str, Callable[..., ExtraLayers]] = {"ssd": ssd_extras, "residual": residual_extras, "dsod": dense_extras}
