"""DSOD300: SSD on a densely connected trunk (Shen et al., ICCV 2017), ScratchDet's example for the effect of BN.

The layers follow the authors' code (`DSOD300_V3_Body`); at 300x300:

    stem             3x3/2 64, 3x3 64, 3x3 128, each followed by norm and ReLU                   128@150
    dense block 1    2x2 max-pool; 6 layers (1x1 192, 3x3 48); 1x1 416                           416@75
    dense block 2    2x2 max-pool; 8 layers; 1x1 800                                             [800@38]
    dense block 3    2x2 max-pool; 8 layers; 1x1 1184                                            1184@19
    dense block 4    8 layers; 1x1 256; plus 256 down-sampled from [800@38]                      [512@19]
    dense extras     half learned, half the previous map, down-sampled      [512@10], [256@5], [256@3], [256@1]

Outside the stem, normalisation and ReLU precede each convolution (pre-activation), so the maps used for detection (in
brackets) are raw convolution outputs and contain negative values. All pooling layers round sizes up.

The last map: halving 3x3 gives 2x2, which is what the authors' layers produce, although their comments, their priors
(step 300) and ScratchDet (section 3.2) say 1x1. Here the last layer has no padding and covers all of the 3x3,
which gives 1x1. Of 2x2 (inputs of 193 to 256 pixels), padding leaves one cell, and it is padded.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from directdet.models.backbones.backbone import Backbone
from directdet.models.parts.layers import NORMS, PUBLISHED_WIDTH, ConvNorm, ExtraLayers, Norm, max_pool_2x2, scaled
from directdet.models.parts.norm import conv_norm

LAYERS = (6, 8, 8, 8)  # per dense block


class Transition(nn.Module):
    """Normalisation, ReLU and a 1x1 convolution: [N, in, H, W] -> [N, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm | None):
        super().__init__()
        self.norm = nn.Identity() if norm is None else norm(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=norm is None)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(x)))


class DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution, each preceded by norm and ReLU: [N, in, H, W] -> [N, out, H/stride, W/stride].

    Parameter names are those of torchvision's DenseNet.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        norm: Norm | None,
        *,
        stride: int = 1,
        padding: int = 1,
    ):
        super().__init__()
        kind, bias = norm or nn.Identity, norm is None
        self.norm1, self.conv1 = kind(in_channels), nn.Conv2d(in_channels, hidden, 1, bias=bias)
        self.norm2, self.conv2 = kind(hidden), nn.Conv2d(hidden, out_channels, 3, stride, padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(conv_norm(self.conv1, self.norm2, F.relu(self.norm1(x)))))


class DenseBlock(nn.ModuleList):
    """Dense layers, each taking the outputs of all previous ones: [N, in, H, W] -> [N, in + layers * growth, H, W]."""

    def __init__(self, layers: int, in_channels: int, growth: int, norm: Norm | None):
        super().__init__(DenseLayer(in_channels + i * growth, 4 * growth, growth, norm) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = torch.cat([x, layer(x)], 1)
        return x


class DSOD(Backbone):
    """A backbone: forward(images [N, 3, H, W]) -> {"s8": [N, 800, H/8, W/8], "s16": [N, 512, H/16, W/16]}.

    Map sizes round up (300: 38 and 19). `width` is the number of channels of the first convolution; all other layers
    scale with it. Without normalisation (ScratchDet's DSOD without BatchNorm, section 4.2.1) convolutions have biases.
    """

    block1: nn.Module
    block2: nn.Module
    block3: nn.Module
    block4: nn.Module
    transition1: nn.Module
    transition2: nn.Module
    transition3: nn.Module
    transition4: nn.Module

    def __init__(self, width: int = PUBLISHED_WIDTH, norm: Norm | None = nn.BatchNorm2d):
        super().__init__()
        growth, half, channels = scaled(48, width), scaled(256, width), 2 * width
        self.stem = nn.Sequential(
            ConvNorm(3, width, 3, norm, stride=2), ConvNorm(width, width, 3, norm), ConvNorm(width, channels, 3, norm)
        )
        fine = 0
        for number, layers in enumerate(LAYERS, 1):
            setattr(self, f"block{number}", DenseBlock(layers, channels, growth, norm))
            channels += layers * growth
            outputs = half if number == len(LAYERS) else channels
            setattr(self, f"transition{number}", Transition(channels, outputs, norm))
            fine = outputs if number == 2 else fine
        self.down = Transition(fine, half, norm)
        self.channels = {"s8": fine, "s16": 2 * half}
        self.strides = {"s8": 8, "s16": 16}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.transition1(self.block1(max_pool_2x2(self.stem(images))))
        fine = self.transition2(self.block2(max_pool_2x2(x)))
        pooled = max_pool_2x2(fine)
        x = self.transition4(self.block4(self.transition3(self.block3(pooled))))
        return {"s8": fine, "s16": torch.cat([x, self.down(pooled)], 1)}

    def stages(self) -> list[list[nn.Module]]:
        """The modules of stage 0 (stem), 1, ..., 4 (dense blocks), used to freeze the first n stages."""
        blocks = [[getattr(self, f"block{i}"), getattr(self, f"transition{i}")] for i in range(1, 1 + len(LAYERS))]
        return [[self.stem], *blocks[:-1], [*blocks[-1], self.down]]


class DenseExtras(ExtraLayers):
    """DSOD's dense prediction: forward(the backbone's coarser map [N, C, H, W]) -> four maps, finest first.

    Half of each map's channels are learned from the previous map (1x1, then 3x3 with stride 2); the other half are that
    map, max-pooled to half its size and projected by a 1x1. `channels` lists the channels of each map;
    map_sizes(19) is [10, 5, 3, 1].

    `size` is the side of the map that they continue. The last layer is padded where the map before is 2x2.
    """

    def __init__(self, in_channels: int, halves: list[int], norm: Norm | None, size: int = 19):
        super().__init__()
        self.channels = [2 * half for half in halves]
        inputs = [in_channels, *self.channels[:-1]]
        for _ in halves[:-1]:
            size = -(-size // 2)
        self.pads_last = size == 2
        paddings = [1] * (len(halves) - 1) + [int(self.pads_last)]
        self.learned = nn.ModuleList(
            DenseLayer(count, half, half, norm, stride=2, padding=padding)
            for count, half, padding in zip(inputs, halves, paddings, strict=True)
        )
        self.down = nn.ModuleList(Transition(count, half, norm) for count, half in zip(inputs, halves, strict=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for number, (learned, down) in enumerate(zip(self.learned, self.down, strict=True), 1):
            covers = number == len(self.down) and not self.pads_last
            pooled = F.max_pool2d(x, 3, stride=2) if covers else max_pool_2x2(x)
            x = torch.cat([learned(x), down(pooled)], 1)
            maps.append(x)
        return maps

    def map_sizes(self, size: int) -> list[int]:
        """Side of each map for an input of side `size`; the last is below 1 if the input is too small."""
        sizes = []
        for _ in self.channels[:-1]:
            size = -(-size // 2)
            sizes.append(size)
        return [*sizes, 1 if self.pads_last else (size - 3) // 2 + 1]


def dsod(width: int | None = None, norm: str = "bn") -> DSOD:
    """DSOD300's trunk; `width` is the stem's number of channels (64), `norm` "bn", "gn" or "none"."""
    return DSOD(width or PUBLISHED_WIDTH, NORMS[norm])


def dense_extras(
    in_channels: int, width: int | None = None, norm: str = "bn", last_map_3x3: bool = False, size: int = 19
) -> DenseExtras:
    """DSOD300's four coarser maps, with 512, 256, 256 and 256 channels for a stem of `width` 64; as many at any size.

    Raises:
        ValueError: last_map_3x3, which DSOD does not have.
    """
    if last_map_3x3:
        raise ValueError('last_map_3x3 requires extras="residual"')
    return DenseExtras(in_channels, [scaled(half, width) for half in (256, 128, 128, 128)], NORMS[norm], size)
