"""SSD's detection head subnetwork: for each map, one convolution for boxes and one for classes."""

from functools import partial

import torch
from torch import Tensor, nn

from directdet.models.parts.layers import ConvNorm, Norm
from directdet.models.parts.pyramid import flatten_map


class SSDHead(nn.Module):
    """forward(maps, finest first) -> class logits [N, A, 1 + classes] and deltas [N, A, 4], float32, in the order of
    the priors.

    Each prediction is a 3x3 convolution with normalisation `norm` ("none", "bn" or "gn") and no ReLU (ScratchDet,
    section 3.1, and the authors' code).
    """

    def __init__(self, channels: list[int], priors: list[int], num_classes: int, norm: str):
        super().__init__()
        self.outputs = num_classes + 1
        levels = list(zip(channels, priors, strict=True))
        self.classes = nn.ModuleList(_predictor(inputs, count, self.outputs, norm) for inputs, count in levels)
        self.boxes = nn.ModuleList(_predictor(inputs, count, 4, norm) for inputs, count in levels)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits = [flatten_map(layer(x), self.outputs) for layer, x in zip(self.classes, maps, strict=True)]
        deltas = [flatten_map(layer(x), 4) for layer, x in zip(self.boxes, maps, strict=True)]
        return torch.cat(logits, 1), torch.cat(deltas, 1)


def _predictor(in_channels: int, priors: int, outputs: int, norm: str) -> ConvNorm:
    norms: dict[str, Norm | None] = {
        "none": None,
        "bn": nn.BatchNorm2d,
        # One group per prior: with one per channel, a map of a single cell would always be normalised to 0.
        "gn": partial(nn.GroupNorm, priors),
    }
    return ConvNorm(in_channels, priors * outputs, 3, norms[norm], relu=False)
