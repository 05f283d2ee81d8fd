"""The last layers of a mask head with a 1x1 convolution in place of the transposed one, for deployment.

A transposed convolution with kernel and stride 2 has no overlaps: its output at each of four places is a 1x1
convolution of its own. ReLU and the 1x1 convolution that follow do not mix places, so these are put side by side only
at the very end, for the mask of one class. Runtimes have fast 1x1 convolutions, and slow transposed ones.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor


class FlatMaskPredictor(nn.Module):
    """forward(features [K, C, h, w]) -> logits [K, 1 + classes, 2h, 2w], as `predictor` computes them.

    Every place has layers of its own: to cut their common map apart would cost as much as a convolution.
    """

    def __init__(self, predictor: MaskRCNNPredictor):
        super().__init__()
        layers: Any = predictor  # torchvision's own layers, whose types it does not tell
        up, self.mask_fcn_logits = layers.conv5_mask, layers.mask_fcn_logits
        weights = up.weight.detach().permute(2, 3, 1, 0).flatten(0, 1)  # [2 rows * 2 columns, channels, C]
        self.convs = nn.ModuleList(_pointwise(weight, up.bias.detach()) for weight in weights)

    def places(self, features: Tensor) -> list[Tensor]:
        """Logits of each of the four places: features [K, C, h, w] -> four of [K, 1 + classes, h, w]."""
        return [self.mask_fcn_logits(torch.relu(conv(features))) for conv in self.convs]

    def forward(self, features: Tensor) -> Tensor:
        return _together(self.places(features))

    def of_class(self, features: Tensor, labels: Tensor) -> Tensor:
        """The logits of each RoI's label [K] (1..classes): features [K, C, h, w] -> float32 [K, 2h, 2w]."""
        index = labels.reshape(-1, 1, 1, 1).expand(-1, 1, *features.shape[2:])
        return _together([torch.gather(place, 1, index).float() for place in self.places(features)]).squeeze(1)


def _pointwise(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A 1x1 convolution with weight [out, in] and bias [out]."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    conv.weight, conv.bias = nn.Parameter(weight[:, :, None, None].contiguous()), nn.Parameter(bias.clone())
    return conv


def _together(places: list[Tensor]) -> Tensor:
    """Four of [K, M, h, w], rows before columns -> [K, M, 2h, 2w]."""
    maps, height, width = places[0].shape[1:]
    rows = [torch.stack(pair, -1) for pair in (places[:2], places[2:])]  # [K, M, h, w, 2]
    return torch.stack(rows, 3).reshape(-1, maps, 2 * height, 2 * width)


def flatten_mask_predictors(network: nn.Module) -> None:
    """Replace every mask predictor of a network by its flat form, in place."""
    for owner in list(network.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, MaskRCNNPredictor):
                setattr(owner, name, FlatMaskPredictor(child))
