"""ResNet trunks for SSD300 with different roots: every backbone of ScratchDet's section 4.2.2 and Table 2.

The root is everything before the residual stages: convolutions and a max-pool. With every root, the detector's first
two maps are 38x38 and 19x19 at 300x300 (caption of Figure 3): the outputs, after the ReLU, of the stage that reaches
stride 8 and of the last stage. Channels and size of each map for 18 layers, with the maps used for detection in
brackets:

    name            root                 pool      stage 1   stage 2      stage 3      stage 4
    resnet18        7x7/2        64@150  3x3/2 75  64@75     [128@38]     256@19       [512@19], dilated
    resnet18_a      7x7/2        64@150  none      64@150    128@75       [256@38]     [512@19]
    resnet18_b      7x7/1        64@300  3x3/2 150 64@150    128@75       [256@38]     [512@19]
    root_resnet18   3x3/1, x3    64@300  2x2/2 150 64@150    128@75       [256@38]     [512@19]
    resnet18_s2_*   3x3/2, x1-3  64@150  2x2/2 75  as resnet18
    resnet18_s1_*   3x3/1, x1-5  64@300  2x2/2 150 as root_resnet18

The first line is the layout of SSD's own ResNet-101 (its authors' script; "the truncated ResNet in the original SSD"):
its root reduces the image to a quarter, and the stages would halve it three more times, but only two maps are needed.
So the last stage keeps its size, and its later convolutions are dilated by 2. All other stages keep ResNet's strides.
After 3x3 convolutions the max-pool is 2x2, as in the Root-ResNets released by ScratchDet's authors; after 7x7 it is
ResNet's. The blocks are post-activation, as in their PyTorch code.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from directdet.common.settings import SettingError
from directdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from directdet.models.parts.layers import NORMS, PUBLISHED_WIDTH
from directdet.models.parts.norm import conv_norm


class SSDResNet(ResNet):
    """forward(images [N, 3, H, W]) -> {"s8": [N, C, H/8, W/8], "s16": [N, C, H/16, W/16]}, sides rounded up.

    Parameter names are torchvision's, with conv2, bn2, ... for additional layers of the root, so that the ImageNet
    weights of ResNet-18, -34 and -101 can be loaded.

    Args:
        norm: "bn", "gn" or "none"; without normalisation the convolutions have biases.
        kernel: kernel size of the root's convolutions, 7 or 3.
        convs: number of the root's convolutions, 1 to 5.
        stride: stride of the first convolution, 1 or 2.
        pool: whether a max-pool follows the root's convolutions.

    Raises:
        SettingError: the root would leave the map as large as the image.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        width: int = PUBLISHED_WIDTH,
        norm: str = "bn",
        kernel: int = 7,
        convs: int = 1,
        stride: int = 2,
        pool: bool = True,
    ):
        if stride == 1 and not pool:
            raise SettingError("a root must halve the image: give it stride 2 or a max-pool")
        kind = NORMS[norm] or nn.Identity
        super().__init__(block, depths, width, kind)
        self.root_convs = convs
        for index in range(1, convs + 1):
            shape = (3, width, kernel, stride) if index == 1 else (width, width, kernel, 1)
            setattr(self, f"conv{index}", nn.Conv2d(*shape, padding=kernel // 2, bias=False))
            setattr(self, f"bn{index}", kind(width))
        if not pool:
            self.maxpool = nn.Identity()
        elif kernel != 7:
            self.maxpool = nn.MaxPool2d(2, ceil_mode=True)  # rounds up, like all other layers here
        if stride == 2 and pool:
            remove_last_halving(self._stages()["layer4"])
        tapped = {"s8": 2 if stride == 2 and pool else 3, "s16": 4}
        self.taps = {f"layer{stage}": name for name, stage in tapped.items()}
        self.channels = {name: width * 2 ** (stage - 1) * block.expansion for name, stage in tapped.items()}
        self.strides = {"s8": 8, "s16": 16}
        if NORMS[norm] is None:
            add_biases(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = images
        for conv, norm in self._root():
            x = F.relu(conv_norm(conv, norm, x))
        x = self.maxpool(x)
        maps = {}
        for name, stage in self._stages().items():
            x = stage(x)
            if name in self.taps:
                maps[self.taps[name]] = x
        return maps

    def stages(self) -> list[list[nn.Module]]:
        """The modules of stage 0 (root), 1, ..., used to freeze the first n stages."""
        return [[module for pair in self._root() for module in pair], *([stage] for stage in self._stages().values())]

    def _root(self) -> list[tuple[nn.Conv2d, nn.Module]]:
        return [(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in range(1, self.root_convs + 1)]

    def _stages(self) -> dict[str, nn.Module]:
        return {f"layer{stage}": getattr(self, f"layer{stage}") for stage in range(1, 5)}


def remove_last_halving(stage: nn.Module) -> None:
    """Make a stage of stride 2 keep the size of its map ("a trous").

    The 3x3 convolutions after the one that loses its stride are dilated by 2, so they see the same inputs as before: at
    every second position the output of the stage is unchanged.
    """
    for conv in stage.modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        if conv.stride == (2, 2):
            conv.stride = (1, 1)
        elif conv.kernel_size == (3, 3):
            conv.dilation = conv.padding = (2, 2)


def add_biases(module: nn.Module) -> None:
    """Give every convolution in `module` a bias, for networks without normalisation layers."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels))


def build(
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, int, int, int],
    root: dict[str, Any],
    width: int | None = None,
    norm: str = "bn",
    imagenet: str | None = None,
) -> SSDResNet:
    """Build a trunk; `width` is the number of channels of the root (64), `norm` "bn", "gn" or "none"."""
    trunk = SSDResNet(block, depths, width or PUBLISHED_WIDTH, norm, **root)
    trunk.imagenet = imagenet
    return trunk


DEPTHS = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}
RESNET_ROOT: dict[str, Any] = {"kernel": 7, "convs": 1, "stride": 2, "pool": True}
ROOT_BLOCK: dict[str, Any] = {"kernel": 3, "convs": 3, "stride": 1, "pool": True}

SSD_RESNETS: dict[str, Callable[..., SSDResNet]] = {
    **{name: partial(build, *depth, RESNET_ROOT, imagenet=name) for name, depth in DEPTHS.items()},
    "resnet18_a": partial(build, *DEPTHS["resnet18"], RESNET_ROOT | {"pool": False}),
    "resnet18_b": partial(build, *DEPTHS["resnet18"], RESNET_ROOT | {"stride": 1}),
    **{f"root_{name}": partial(build, *DEPTHS[name], ROOT_BLOCK) for name in ("resnet18", "resnet34")},
    **{
        f"resnet18_s{stride}_{convs}x3x3": partial(
            build, *DEPTHS["resnet18"], ROOT_BLOCK | {"convs": convs, "stride": stride}
        )
        for stride, convs in ((2, 1), (2, 2), (2, 3), (1, 1), (1, 2), (1, 4), (1, 5))
    },
}
