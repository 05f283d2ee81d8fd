"""The weights that layers start from: those of the papers' code, also where a layer is torchvision's.

The direct pre-training paper's code is mmdet's: Xavier for feature pyramids and fully connected layers, Kaiming by the
number of outputs for the convolutions of box and mask heads, and small normal values for the last layers and for the
heads of RPN and RetinaNet. ScratchDet uses Xavier throughout (section 4.1). All biases start at 0, except RetinaNet's
for the classes.
"""

import torch
from torch import nn


@torch.no_grad()
def init_xavier(module: nn.Module) -> None:
    """Xavier uniform for all convolutions and fully connected layers, biases 0.

    Uses fan-in and fan-out, as in Glorot's paper, mmdet and torchvision's SSD; Caffe's "xavier" filler uses fan-in
    only.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            _zero_bias(layer)


@torch.no_grad()
def init_head(module: nn.Module) -> None:
    """A box or mask head: Kaiming normal by fan-out for (transposed) convolutions, Xavier for the rest, biases 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            _zero_bias(layer)
        elif isinstance(layer, nn.Linear):
            init_xavier(layer)


@torch.no_grad()
def init_normal(module: nn.Module, std: float) -> None:
    """Normal values of this standard deviation for all convolutions and fully connected layers, biases 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=std)
            _zero_bias(layer)


def _zero_bias(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
