"""Masks by dynamic convolution, only at the points where they are wanted (RTMDet, section 3.4).

The mask of an object is the output of a small network of three 1x1 convolutions, 8 + 2 -> 8 -> 8 -> 1, whose 169
parameters were predicted at the object's point. Its inputs at a place are 8 prototypes, which all objects share, and
the way from there to the point in units of 8 strides, x and y.

mmdet computes it in all cells of the map, each object with a copy of the prototypes, and interpolates the results. Here
the prototypes are interpolated, at a grid of points in each object's box, and the small network is computed there: the
cost does not grow with the picture, nor is anything of shape [objects, 10, H, W] built. In the middle of a cell both
are the same number; between them they differ as far as the network is not linear.

Interpolation is a matrix product along each axis, with weights max(0, 1 - distance in cells): plain arithmetic in every
runtime, exact at the borders, and a clean gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PROTOTYPES, HIDDEN = 8, 8
INPUTS = 2 + PROTOTYPES
# Weights of the three layers, then their biases, in mmdet's order.
SIZES = (INPUTS * HIDDEN, HIDDEN * HIDDEN, HIDDEN, HIDDEN, HIDDEN, 1)
PARAMETERS = sum(SIZES)
REACH = 8.0  # strides to a unit of the way to the point


def random_kernel() -> Tensor:
    """The parameters [169] of a network with He's initialisation."""
    fans = (INPUTS, HIDDEN, HIDDEN)
    weights = [torch.randn(size) * (2 / fan) ** 0.5 for size, fan in zip(SIZES[:3], fans, strict=True)]
    return torch.cat([*weights, torch.zeros(sum(SIZES[3:]))])


def grid(boxes: Tensor, cells: int, around: int = 0) -> tuple[Tensor, Tensor]:
    """x and y, both [..., cells + 2 * around], in pixels, of the centres of cells x cells parts of each box [..., 4].

    `around` more parts of the same size are added on each of its sides.
    """
    share = (torch.arange(-around, cells + around, dtype=boxes.dtype, device=boxes.device) + 0.5) / cells

    def axis(low: int, high: int) -> Tensor:
        return boxes[..., low, None] + share * (boxes[..., high] - boxes[..., low])[..., None]

    return axis(0, 2), axis(1, 3)


def mask_logits(prototypes: Tensor, stride: int, kernels: Tensor, points: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Mask logits [N, K, P, P] of K objects of each image at the points (x, y), float32.

    Args:
        prototypes: [N, 8, H, W]. The middle of a cell stands for its value; beyond the outermost middles the map goes
            on as it is there, as in mmdet.
        stride: of the prototypes, in pixels.
        kernels: [N, K, 169], the objects' networks.
        points: [N, K, 3], x and y in pixels, and stride of the points that predicted them.
        x: [N, K, P], columns in pixels. y: [N, K, P], rows.
    """
    column, row = _cells(x, stride, prototypes.shape[3]), _cells(y, stride, prototypes.shape[2])
    values = _interpolate(prototypes, row, column)  # [N, K, 8, P * P]
    w1, w2, w3, b1, b2, b3 = kernels.split(SIZES, -1)
    w1, w2, w3 = w1.unflatten(-1, (HIDDEN, INPUTS)), w2.unflatten(-1, (HIDDEN, HIDDEN)), w3.unsqueeze(-2)
    unit = REACH * points[..., 2, None]
    way_x = (points[..., 0, None] - column * stride) / unit  # [N, K, P]
    way_y = (points[..., 1, None] - row * stride) / unit
    along_x = w1[..., 0, None] * way_x[..., None, :] + b1[..., None]  # [N, K, 8, P]
    along_y = w1[..., 1, None] * way_y[..., None, :]
    affine = (along_y[..., :, None] + along_x[..., None, :]).flatten(-2)  # [N, K, 8, P * P]
    hidden = F.relu(torch.matmul(w1[..., 2:], values) + affine)
    hidden = F.relu(torch.matmul(w2, hidden) + b2[..., None])
    return (torch.matmul(w3, hidden) + b3[..., None]).squeeze(-2).unflatten(-1, (x.shape[-1], x.shape[-1])).float()


def _cells(positions: Tensor, stride: int, limit: int) -> Tensor:
    """Positions in pixels as numbers of cells, 0 in the middle of the first, within 0..limit - 1."""
    return (positions / stride - 0.5).clamp(0, limit - 1)


def _interpolate(maps: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Bilinear values of maps [N, C, H, W] at rows and columns [N, K, P], in cells -> [N, K, C, P * P]."""
    images, channels, height, width = maps.shape
    _, objects, count = row.shape
    vertical, horizontal = _weights(row, height), _weights(column, width)
    # One product for all objects of an image: [K * P, H] x [H, C * W].
    lines = torch.matmul(vertical.flatten(1, 2), maps.transpose(1, 2).flatten(2))
    lines = lines.reshape(images, objects, count * channels, width)
    values = torch.matmul(lines, horizontal.transpose(-1, -2)).unflatten(2, (count, channels))
    return values.transpose(2, 3).flatten(3)


def _weights(positions: Tensor, limit: int) -> Tensor:
    """How much of each of `limit` cells there is at positions [..., P] -> [..., P, limit]."""
    cells = torch.arange(limit, dtype=positions.dtype, device=positions.device)
    return F.relu(1 - (positions[..., None] - cells).abs())
