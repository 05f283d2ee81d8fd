"""The truncated VGG-16 of SSD: its fully connected layers are convolutions, and the last stride of 32 is not taken."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ssd_layers import NORMS, PUBLISHED_WIDTH, ConvNorm, Norm, conv_norm_pairs

NORM_STATE = ("weight", "bias", "running_mean", "running_var")
GROUPS = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # channels in stems, and convolutions, of conv1 to conv5


class VGG(nn.Module):
    """A backbone: forward(images [N, 3, S, S]) -> {"s8": conv4_3 [N, 8W, S/8, S/8], "s16": fc7 [N, 16W, S/16, S/16]}.

    Maps round up (300: 38 and 19), W is the stem's channels. The convolutions come in the order of torchvision's
    ssd300_vgg16: conv1_1 to conv5_3, fc6 (3x3 with holes, dilation 6), fc7. With a normalisation every one of them has
    it ("BN in the backbone": ScratchDet, section 3.1), without one a bias. `channels` and `strides` tell each map's.
    """

    def __init__(self, width: int = PUBLISHED_WIDTH, norm: Norm | None = nn.BatchNorm2d):
        super().__init__()
        channels = 3
        for number, (factor, depth) in enumerate(GROUPS, 1):
            convs = []
            for _ in range(depth):
                convs.append(ConvNorm(channels, factor * width, 3, norm))
                channels = factor * width
            setattr(self, f"conv{number}", nn.Sequential(*convs))
        self.fc6 = ConvNorm(channels, 2 * channels, 3, norm, dilation=6)
        self.fc7 = ConvNorm(2 * channels, 2 * channels, 1, norm)
        self.channels = {"s8": channels, "s16": 2 * channels}
        self.strides = {"s8": 8, "s16": 16}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.conv1(images)
        for group in (self.conv2, self.conv3, self.conv4):
            x = group(_halved(x))
        fine = x
        x = F.max_pool2d(self.conv5(_halved(x)), 3, stride=1, padding=1)
        return {"s8": fine, "s16": self.fc7(self.fc6(x))}

    def conv_norm_pairs(self) -> list[tuple[nn.Module, str, str]]:
        """(owner, convolution, normalisation) for every convolution; see norm.fold_batch_norm."""
        return conv_norm_pairs(self)

    def from_torchvision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state of torchvision's vgg16, or vgg16_bn for a network with batch normalisation, by the names used here.

        Biases that batch normalisation makes superfluous go into the running means. fc6 and fc7 are every fourth output
        and every third row and column of the classifier's first layers, as in the original SSD; their normalisations,
        which ImageNet's network has not, start at 0 and 1. Empty if `state` is of another network.
        """
        convs = [name for name, value in state.items() if name.startswith("features.") and value.dim() == 4]
        layers = [(f"conv{number}.{i}", layer) for number in range(1, 6) for i, layer in enumerate(self._group(number))]
        if len(convs) != len(layers) or "classifier.0.weight" not in state:
            return {}
        found = {}
        for (name, layer), key in zip(layers, convs, strict=True):
            index = int(key.split(".")[1])
            bias, norm = state[f"features.{index}.bias"], f"features.{index + 1}"
            found[f"{name}.conv.weight"] = state[key]
            if layer.conv.bias is not None:
                found[f"{name}.conv.bias"] = bias
            elif f"{norm}.running_mean" in state:
                found |= {f"{name}.norm.{k}": state[f"{norm}.{k}"] for k in ("weight", "bias", "running_var")}
                found[f"{name}.norm.running_mean"] = state[f"{norm}.running_mean"] - bias
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

    def _group(self, number: int) -> nn.Sequential:
        return getattr(self, f"conv{number}")

    def stages(self) -> list[list[nn.Module]]:
        """The modules of stage 0 (conv1), 1 (conv2), ..., 5 (fc6 and fc7), for freezing the first n stages."""
        return [*([self._group(number + 1)] for number in range(len(GROUPS))), [self.fc6, self.fc7]]


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=True)


def vgg16(width: int | None = None, norm: str = "bn") -> VGG:
    """VGG-16; `width` is the stem's number of channels (64), `norm` "bn", "gn" or "none"."""
    return VGG(width or PUBLISHED_WIDTH, NORMS[norm])
