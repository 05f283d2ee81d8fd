"""Masks inside boxes, as every detector gives and learns them."""

import torch
import torch.nn.functional as F
from torch import Tensor

MASK_SIZE = 28  # cells of a mask along each side of its box


def project_masks(masks: Tensor, boxes: Tensor, rois: Tensor, size: int = MASK_SIZE) -> Tensor:
    """Crop each object's mask to its RoI: masks [M, S, S] inside boxes [M, 4] -> [M, size, size], 0 or 1.

    The masks are sampled bilinearly at the centres of the RoI's size x size cells and thresholded at 0.5; outside its
    box a mask is 0.
    """
    centre = (torch.arange(size, dtype=rois.dtype, device=rois.device) + 0.5) / size

    def axis(low: int, high: int) -> Tensor:
        position = rois[:, low, None] + centre * (rois[:, high] - rois[:, low])[:, None]
        side = (boxes[:, high] - boxes[:, low]).clamp(min=1e-3)
        return (position - boxes[:, low, None]) / side[:, None] * 2 - 1  # [M, size]

    x, y = axis(0, 2), axis(1, 3)
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], -1)
    sampled = F.grid_sample(masks[:, None].float(), grid, mode="bilinear", align_corners=False)
    return (sampled.squeeze(1) >= 0.5).float()
