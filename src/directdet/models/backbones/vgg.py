"""VGG-16: SSD's truncated version, with fully connected layers turned into convolutions, and Faster R-CNN's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from directdet.models.backbones.backbone import Backbone
from directdet.models.parts.layers import NORMS, PUBLISHED_WIDTH, ConvNorm, Norm, max_pool_2x2
from directdet.models.parts.start import init_xavier

NORM_STATE = ("weight", "bias", "running_mean", "running_var")
# conv1 to conv5: channels as a multiple of the stem's, number of convolutions
GROUPS = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))


class VGGConvolutions(Backbone):
    """The 13 convolutions conv1_1 to conv5_3; `width` (W) is the number of channels of the stem.

    Each has a normalisation ("BN in the backbone": ScratchDet, section 3.1) or, if `norm` is None, a bias.
    """

    conv1: nn.Sequential
    conv2: nn.Sequential
    conv3: nn.Sequential
    conv4: nn.Sequential
    conv5: nn.Sequential

    def __init__(self, width: int = PUBLISHED_WIDTH, norm: Norm | None = nn.BatchNorm2d):
        super().__init__()
        self.imagenet = "vgg16_bn" if norm is nn.BatchNorm2d else "vgg16"
        channels = 3
        for number, (factor, depth) in enumerate(GROUPS, 1):
            convs = []
            for _ in range(depth):
                convs.append(ConvNorm(channels, factor * width, 3, norm))
                channels = factor * width
            setattr(self, f"conv{number}", nn.Sequential(*convs))

    def conv4_and_5(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, H, W] -> conv4_3 [N, 8W, H/8, W/8] and conv5_3 [N, 8W, H/16, W/16]; sizes round up."""
        x = self.conv1(images)
        for group in (self.conv2, self.conv3, self.conv4):
            x = group(max_pool_2x2(x))
        return x, self.conv5(max_pool_2x2(x))

    def from_torchvision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert the state of torchvision's vgg16, or of vgg16_bn if this network has batch normalisation.

        Biases made redundant by batch normalisation are folded into the running means. Returns an empty dictionary if
        `state` belongs to another network.
        """
        convs = [name for name, value in state.items() if name.startswith("features.") and value.dim() == 4]
        layers = [f"conv{number}.{i}" for number in range(1, 6) for i in range(len(self._group(number)))]
        if len(convs) != len(layers):
            return {}
        found, own = {}, self.state_dict()
        for name, key in zip(layers, convs, strict=True):
            index = int(key.split(".")[1])
            bias, norm = state[f"features.{index}.bias"], f"features.{index + 1}"
            found[f"{name}.conv.weight"] = state[key]
            if f"{name}.conv.bias" in own:
                found[f"{name}.conv.bias"] = bias
            elif f"{norm}.running_mean" in state:
                found |= {f"{name}.norm.{k}": state[f"{norm}.{k}"] for k in ("weight", "bias", "running_var")}
                found[f"{name}.norm.running_mean"] = state[f"{norm}.running_mean"] - bias
        return found

    def _group(self, number: int) -> nn.Sequential:
        return getattr(self, f"conv{number}")

    def stages(self) -> list[list[nn.Module]]:
        """The modules of stage 0 (conv1), 1 (conv2), ..., 4 (conv5), used to freeze the first n stages."""
        return [[self._group(number + 1)] for number in range(len(GROUPS))]


class VGGConv5(VGGConvolutions):
    """A single-map backbone: forward(images [N, 3, H, W]) -> {"c4": conv5_3 [N, 8W, H/16, W/16]}.

    The map is named after its stride, 2^4. Weights use Xavier initialisation (ScratchDet, section 4.1).
    """

    def __init__(self, width: int = PUBLISHED_WIDTH, norm: Norm | None = nn.BatchNorm2d):
        super().__init__(width, norm)
        self.channels, self.strides = {"c4": 8 * width}, {"c4": 16}
        init_xavier(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c4": self.conv4_and_5(images)[1]}


class VGG(VGGConvolutions):
    """A backbone: forward(images [N, 3, S, S]) -> {"s8": conv4_3 [N, 8W, S/8, S/8], "s16": fc7 [N, 16W, S/16, S/16]}.

    Sizes round up (300: 38 and 19). The convolutions are in the order of torchvision's ssd300_vgg16: conv1_1 to
    conv5_3, fc6 (3x3, dilation 6), fc7.
    """

    def __init__(self, width: int = PUBLISHED_WIDTH, norm: Norm | None = nn.BatchNorm2d):
        super().__init__(width, norm)
        channels = 8 * width
        self.fc6 = ConvNorm(channels, 2 * channels, 3, norm, dilation=6)
        self.fc7 = ConvNorm(2 * channels, 2 * channels, 1, norm)
        self.channels = {"s8": channels, "s16": 2 * channels}
        self.strides = {"s8": 8, "s16": 16}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine, x = self.conv4_and_5(images)
        x = F.max_pool2d(x, 3, stride=1, padding=1)
        return {"s8": fine, "s16": self.fc7(self.fc6(x))}

    def from_torchvision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """As VGGConvolutions.from_torchvision, and fc6 and fc7 are subsampled from the classifier's first two layers.

        As in the original SSD, they take every fourth output (and fc7 every fourth input), and fc6 every third row and
        column. Their normalisations, which the ImageNet network does not have, start with mean 0, variance 1 and scale
        1, and the classifier's biases as shifts.
        """
        found = super().from_torchvision(state)
        if not found or "classifier.0.weight" not in state:
            return {}
        for name, key, shape in (
            ("fc6", "classifier.0", (4096, 512, 7, 7)),
            ("fc7", "classifier.3", (4096, 4096, 1, 1)),
        ):
            weight, bias = state[f"{key}.weight"].reshape(shape), state[f"{key}.bias"][::4]
            found[f"{name}.conv.weight"] = weight[::4, :, ::3, ::3] if name == "fc6" else weight[::4, ::4]
            if getattr(self, name).conv.bias is not None:
                found[f"{name}.conv.bias"] = bias
            else:
                zero, one = torch.zeros_like(bias), torch.ones_like(bias)
                found |= {f"{name}.norm.{k}": v for k, v in zip(NORM_STATE, (one, bias, zero, one), strict=True)}
        return found

    def stages(self) -> list[list[nn.Module]]:
        """The modules of stage 0 (conv1), 1 (conv2), ..., 5 (fc6 and fc7), used to freeze the first n stages."""
        return [*super().stages(), [self.fc6, self.fc7]]


def vgg16(width: int | None = None, norm: str = "bn") -> VGG:
    """SSD's VGG-16; `width` is the stem's number of channels (64), `norm` "bn", "gn" or "none"."""
    return VGG(width or PUBLISHED_WIDTH, NORMS[norm])


def vgg16_conv5(width: int | None = None, norm: str = "bn") -> VGGConv5:
    """Faster R-CNN's VGG-16; `width` is the stem's number of channels (64), `norm` "bn", "gn" or "none"."""
    return VGGConv5(width or PUBLISHED_WIDTH, NORMS[norm])
