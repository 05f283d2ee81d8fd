"""Training targets of a batch, padded to one number of objects, and the static operations that assign and sample."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Targets(NamedTuple):
    """Objects of N images, padded to G each.

    boxes [N, G, 4] xyxy pixels of the padded canvas; labels [N, G] 0..C-1; valid [N, G] bool, False for padding;
    sizes [N, 2] height and width of each image inside the canvas; masks [N, G, S, S] uint8, each object's mask inside
    its own box, or None.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    sizes: Tensor
    masks: Tensor | None = None


# Draws the keys that random sampling sorts by: (shape, device) -> uniform in [0, 1).
RandomKeys = Callable[[torch.Size, torch.device], Tensor]


def random_keys(shape: torch.Size, device: torch.device) -> Tensor:
    """Fresh uniform keys: the ordinary RandomKeys."""
    return torch.rand(shape, device=device)


def match(
    iou: Tensor, valid: Tensor, positive_iou: float, negative_iou: float, min_positive_iou: float | None
) -> tuple[Tensor, Tensor]:
    """Assign objects to boxes.

    iou [N, A, G], valid [N, G] -> the object of each box [N, A], and 1 (positive), 0 (negative) or -1 (ignored) [N, A].
    With min_positive_iou, the best boxes of an object are positive from that IoU on, for the object that they overlap
    most (torchvision's rule; mmdet gives them to the object they were rescued for).
    An image without objects has negatives only.
    """
    iou = torch.where(valid[:, None], iou, -1.0)
    best, index = iou.max(-1)
    assigned = torch.where(best >= positive_iou, 1, torch.where(best < negative_iou, 0, -1))
    if min_positive_iou is not None:
        best_of_object = iou.amax(1, keepdim=True)  # [N, 1, G]
        rescued = ((iou == best_of_object) & (best_of_object > 0) & (best_of_object >= min_positive_iou)).any(-1)
        assigned = torch.where(rescued, 1, assigned)
    return index, assigned


def sample(assigned: Tensor, total: int, positives: int, draw: RandomKeys) -> tuple[Tensor, Tensor, Tensor]:
    """Choose up to `positives` positives and fill up to `total` with negatives, at random.

    assigned [N, A] in {1, 0, -1} -> index [N, K], filled [N, K], positive [N, K] with K = min(total, A). Positives
    come first, so they all lie in the first `positives` slots; slots not filled are to be masked.
    """
    keys = draw(assigned.shape, assigned.device)
    total, positives = min(total, assigned.shape[1]), min(positives, assigned.shape[1])
    value, index = torch.topk(torch.where(assigned == 1, keys, -1.0), positives, dim=1)
    chosen = torch.zeros_like(keys).scatter(1, index, (value >= 0).to(keys.dtype))
    priority = torch.where(chosen > 0, 2.0, torch.where(assigned == 0, keys, -1.0))
    priority, index = torch.topk(priority, total, dim=1)
    return index, priority >= 0, priority > 1


def shared_count(mask: Tensor) -> Tensor:
    """How many of `mask` are set, at least 1; the mean over all processes, where there are several.

    A loss is a sum divided by this. Gradients being averaged over processes, so many processes then learn exactly what
    one with the batches of all of them would, however unevenly objects are spread.
    """
    count = mask.sum().float()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(count)
        count /= dist.get_world_size()
        return count.clamp(min=1 / dist.get_world_size())
    return count.clamp(min=1)
