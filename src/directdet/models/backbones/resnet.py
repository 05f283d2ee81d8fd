"""ResNet-18, ResNet-50 and ResNet-101 backbones ("pytorch" style: the stride sits on the 3x3), of any width.

Parameter names are torchvision's, so its weights can be loaded and it serves as the reference in tests.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from directdet.models.backbones.backbone import Backbone
from directdet.models.parts.layers import Norm
from directdet.models.parts.norm import conv_norm, group_norm


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class Shortcut(nn.Sequential):
    """A convolution and its normalisation, named 0 and 1 as in torchvision."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module):
        super().__init__(conv, norm)

    def forward(self, input: Tensor) -> Tensor:
        conv: Any = self[0]
        return conv_norm(conv, self[1], input)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, norm: Norm):
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, planes, 3, stride), norm(planes)
        self.conv2, self.bn2 = _conv(planes, planes, 3), norm(planes)
        self.downsample = _shortcut(in_channels, planes, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(conv_norm(self.conv1, self.bn1, x))
        out = conv_norm(self.conv2, self.bn2, out)
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, norm: Norm):
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, planes, 1), norm(planes)
        self.conv2, self.bn2 = _conv(planes, planes, 3, stride), norm(planes)
        self.conv3, self.bn3 = _conv(planes, planes * 4, 1), norm(planes * 4)
        self.downsample = _shortcut(in_channels, planes * 4, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(conv_norm(self.conv1, self.bn1, x))
        out = F.relu(conv_norm(self.conv2, self.bn2, out))
        out = conv_norm(self.conv3, self.bn3, out)
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> Shortcut | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return Shortcut(_conv(in_channels, out_channels, 1, stride), norm(out_channels))


class ResNet(Backbone):
    """A backbone: forward(images [N, 3, H, W]) -> {"c2": [N, C, H/4, W/4], ..., "c5": [N, C, H/32, W/32]}.

    Weights are initialised as in the paper's pre-training: Kaiming for the convolutions, 1 and 0 for the normalisations
    (residual branches are not zero-initialised, as in the authors' code).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        width: int = 64,
        norm: Norm = nn.BatchNorm2d,
        imagenet: str | None = None,
    ):
        super().__init__()
        self.imagenet = imagenet
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), norm(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for stage, depth in enumerate(depths):
            planes, blocks = width * 2**stage, []
            for index in range(depth):
                blocks.append(block(channels, planes, 2 if stage and index == 0 else 1, norm))
                channels = planes * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        levels = range(2, 2 + len(depths))
        self.channels = {f"c{level}": width * 2 ** (level - 2) * block.expansion for level in levels}
        self.strides = {f"c{level}": 2**level for level in levels}
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.maxpool(F.relu(conv_norm(self.conv1, self.bn1, images)))
        levels = {}
        for stage, name in enumerate(self.channels):
            x = getattr(self, f"layer{stage + 1}")(x)
            levels[name] = x
        return levels

    def from_torchvision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if not name.startswith("fc.")}

    def stages(self) -> list[list[nn.Module]]:
        """The modules of stage 0 (stem), 1, ..., used to freeze the first n stages."""
        return [[self.conv1, self.bn1], *([getattr(self, f"layer{i + 1}")] for i in range(len(self.channels)))]


def resnet18(width: int | None = None, norm: str = "bn") -> ResNet:
    """ResNet-18; `width` is the stem's number of channels (64), `norm` "bn" or "gn"."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width or 64, NORMS[norm], "resnet18")


def resnet50(width: int | None = None, norm: str = "bn") -> ResNet:
    """ResNet-50; `width` is the stem's number of channels (64), `norm` "bn" or "gn"."""
    return ResNet(Bottleneck, (3, 4, 6, 3), width or 64, NORMS[norm], "resnet50")


def resnet101(width: int | None = None, norm: str = "bn") -> ResNet:
    """ResNet-101; `width` is the stem's number of channels (64), `norm` "bn" or "gn"."""
    return ResNet(Bottleneck, (3, 4, 23, 3), width or 64, NORMS[norm], "resnet101")


NORMS: dict[str, Norm] = {"bn": nn.BatchNorm2d, "gn": group_norm}
