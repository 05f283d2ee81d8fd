"""Anchor boxes of a feature pyramid."""

import torch
from torch import Tensor


def level_anchors(height: int, width: int, stride: int, shapes: Tensor) -> Tensor:
    """Anchors [height * width * A, 4] of one level, in pixels, ordered by row, column, shape.

    shapes [A, 2]: the (scale, ratio) of each anchor. An anchor has area (scale * stride)^2 and height / width = ratio,
    and is centred on the top left corner of its cell (mmdet's anchors, which the paper used; torchvision rounds their
    sides to whole pixels).
    """
    scale, root, device = shapes[:, 0], shapes[:, 1].sqrt(), shapes.device
    half_height, half_width = 0.5 * scale * stride * root, 0.5 * scale * stride / root
    cell = torch.stack([-half_width, -half_height, half_width, half_height], -1)  # [A, 4]
    y = torch.arange(height, dtype=torch.float32, device=device) * stride
    x = torch.arange(width, dtype=torch.float32, device=device) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    corners = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (corners + cell).reshape(-1, 4)


def anchor_shapes(scales: tuple[float, ...], ratios: tuple[float, ...]) -> Tensor:
    """(scale, ratio) of each anchor of a cell, [ratios * scales, 2]: all scales of one ratio, then of the next."""
    return torch.tensor([(scale, ratio) for ratio in ratios for scale in scales])
