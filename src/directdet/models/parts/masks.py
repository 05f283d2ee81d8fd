"""Masks inside boxes, as every detector gives and learns them."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from directdet.models.parts.boxes import can_look

MASK_SIZE = 28  # cells of a mask along each side of its box
AT_A_TIME = 10  # detections of each image whose masks are computed together where a graph loops


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


def masks_of_detections(
    compute: Callable[..., Tensor], scores: Tensor, detections: Sequence[Tensor], loops: bool = False
) -> Tensor:
    """The masks [N, K, 28, 28] of detections, best first; 0 for those without a score.

    There is room for K detections, of which most pictures have a few. Where Python may look at the scores, only their
    masks are computed. An exported graph that `loops` computes them for AT_A_TIME detections of each image at a time,
    until the image with most has all of its own; others compute all K: a GPU would wait for each look.

    Args:
        compute: the masks [N, M, 28, 28] of the given columns [N, M, ...] of `detections`.
        scores: [N, K].
        detections: what the masks depend on, each [N, K, ...].
    """
    used, room = (scores > 0).sum(1).amax(0), scores.shape[1]
    if loops and torch.compiler.is_exporting():
        masks = _in_turn(compute, used, room, detections)
    elif can_look(scores):
        some = int(used)
        masks = compute(*(values[:, :some] for values in detections))
        masks = F.pad(masks, (0, 0, 0, 0, 0, room - some))
    else:
        masks = compute(*detections)
    return masks * (scores > 0)[..., None, None]


def _in_turn(compute: Callable[..., Tensor], used: Tensor, room: int, detections: Sequence[Tensor]) -> Tensor:
    """`masks_of_detections` of the first `used` of `room` columns, as a loop of the graph; later ones may be zero."""
    images, blocks = detections[0].shape[0], -(-room // AT_A_TIME)

    def body(block: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        column = torch.arange(AT_A_TIME, device=block.device) + block * AT_A_TIME
        column = column.clamp(max=room - 1)
        found = compute(*(values.index_select(1, column) for values in detections))
        here = torch.arange(blocks, device=block.device) == block
        return block + 1, torch.where(here[None, :, None, None, None], found[:, None], masks)

    first = torch.zeros((), dtype=torch.int64, device=used.device)
    none = torch.zeros((images, blocks, AT_A_TIME, MASK_SIZE, MASK_SIZE), device=used.device)
    _, masks = torch.while_loop(lambda block, masks: block * AT_A_TIME < used, body, (first, none))
    return masks.flatten(1, 2)[:, :room]
