"""Training targets of a batch, padded to the same number of objects, and their assignment and sampling.

All operations have static shapes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from directdet.models.parts.boxes import pairwise_iou, take


class Targets(NamedTuple):
    """Objects of N images, padded to G each.

    Attributes:
        boxes: [N, G, 4], xyxy in pixels of the padded canvas.
        labels: [N, G], 0..C-1.
        valid: [N, G] bool, False for padding.
        sizes: [N, 2], height and width of each image on the canvas, in pixels.
        masks: [N, G, S, S] uint8, each object's mask inside its box; or None.
        padded: [N, 2], height and width of each image as padded by itself, in pixels: anchors beyond lie in the padding
            that only the other images of the batch ask for. None: the whole canvas.
        weights: [N, G], what the losses of each object are multiplied by, 0..1; None: all are 1. What the losses are
            divided by does not depend on it.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    sizes: Tensor
    masks: Tensor | None = None
    padded: Tensor | None = None
    weights: Tensor | None = None


# Draws the keys by which random sampling sorts: (shape, device) -> uniform in [0, 1).
RandomKeys = Callable[[torch.Size, torch.device], Tensor]


def random_keys(shape: torch.Size, device: torch.device) -> Tensor:
    """The default RandomKeys: keys from torch.rand."""
    return torch.rand(shape, device=device)


def object_weights(targets: Targets, objects: Tensor, positive: Tensor) -> Tensor | None:
    """The weight [N, K] of the object of each of K positives, 1 for all others; None: all are 1.

    Args:
        objects: [N, K], the row of `targets`; of no meaning where not `positive` [N, K].
    """
    return None if targets.weights is None else torch.where(positive, take(targets.weights, objects), 1.0)


def weigh(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Losses [..., K] or [..., K, C] times weights [..., K]; None: as they are."""
    if weights is None:
        return losses
    return losses * (weights if weights.dim() == losses.dim() else weights.unsqueeze(-1))


def match(
    iou: Tensor, valid: Tensor, positive_iou: float, negative_iou: float, min_positive_iou: float | None
) -> tuple[Tensor, Tensor]:
    """Assign objects to boxes.

    iou [N, A, G], valid [N, G] -> index of each box's object [N, A], and 1 (positive), 0 (negative) or -1 (ignored)
    [N, A]. Images without objects have only negatives.

    Args:
        positive_iou: boxes are positive from this IoU with an object.
        negative_iou: boxes are negative below this IoU with every object.
        min_positive_iou: the best boxes of an object are also positive from this IoU, for the object they overlap most
            (torchvision's rule; mmdet assigns them to the object whose best box they are). None: they are not.
    """
    iou = torch.where(valid[:, None], iou, -1.0)
    best, index = iou.max(-1)
    assigned = torch.where(best >= positive_iou, 1, torch.where(best < negative_iou, 0, -1))
    if min_positive_iou is not None:
        best_of_object = iou.amax(1, keepdim=True)  # [N, 1, G]
        rescued = ((iou == best_of_object) & (best_of_object > 0) & (best_of_object >= min_positive_iou)).any(-1)
        assigned = torch.where(rescued, 1, assigned)
    return index, assigned


def match_boxes(
    boxes: Tensor,
    targets: Targets,
    positive_iou: float,
    negative_iou: float,
    min_positive_iou: float | None = None,
    usable: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`match` for boxes [N, A, 4] and the objects of `targets`, by their IoU; those not `usable` [N, A] are ignored."""
    iou = pairwise_iou(boxes, targets.boxes)
    if usable is not None:
        iou = torch.where(usable[..., None], iou, -1.0)
    index, assigned = match(iou, targets.valid, positive_iou, negative_iou, min_positive_iou)
    return index, assigned if usable is None else torch.where(usable, assigned, -1)


def usable_anchors(anchors: Tensor, targets: Targets, cross_border: bool = True) -> Tensor | None:
    """Which anchors [N, A, 4] take part in training, [N, A]; None: all.

    Left out are those whose cell lies in padding that only other images of the batch ask for (mmdet's valid flags)
    and, unless `cross_border`, those that cross the border of their image (Faster R-CNN, section 3.3).
    """
    usable = None
    if targets.padded is not None:
        limit = targets.padded.flip(-1)[:, None]  # [N, 1, 2]: width, height
        # Half a pixel: an anchor is centred on the corner of its cell up to rounding.
        usable = ((anchors[..., :2] + anchors[..., 2:]) * 0.5 + 0.5 < limit).all(-1)
    if not cross_border:
        inside = (anchors[..., :2] >= 0).all(-1) & (anchors[..., 2:] <= targets.sizes.flip(-1)[:, None]).all(-1)
        usable = inside if usable is None else usable & inside
    return usable


def sample(assigned: Tensor, total: int, positives: int, draw: RandomKeys) -> tuple[Tensor, Tensor, Tensor]:
    """Randomly sample up to `positives` positives per image and fill up to `total` with negatives.

    assigned [N, A] in {1, 0, -1} -> index [N, K], filled [N, K], positive [N, K] with K = min(total, A). Positives come
    first, so they all lie in the first `positives` slots; slots that are not filled have to be masked.
    """
    keys = draw(assigned.shape, assigned.device)
    total, positives = min(total, assigned.shape[1]), min(positives, assigned.shape[1])
    value, index = torch.topk(torch.where(assigned == 1, keys, -1.0), positives, dim=1)
    chosen = torch.zeros_like(keys).scatter(1, index, (value >= 0).to(keys.dtype))
    priority = torch.where(chosen > 0, 2.0, torch.where(assigned == 0, keys, -1.0))
    priority, index = torch.topk(priority, total, dim=1)
    return index, priority >= 0, priority > 1


# What loss_normaliser() returns next, or where it notes its counts; None outside the two functions that set them.
_GIVEN: ContextVar[Iterator[Tensor] | None] = ContextVar("given", default=None)
_NOTED: ContextVar[list[Tensor] | None] = ContextVar("noted", default=None)


def loss_normaliser(mask: Tensor) -> Tensor:
    """The number by which a summed loss is divided: the count of set elements of `mask`, at least 1.

    Weights instead of a mask are added up. With several processes it is their mean. Since gradients are averaged over
    processes, training on several processes is then equivalent to one process with all their batches, however unevenly
    the objects are distributed. The same holds for the batches that one step accumulates; see whole_step_counts().
    """
    given, noted = _GIVEN.get(), _NOTED.get()
    if given is not None:
        return next(given)
    count, processes = mask.sum().float(), 1
    if dist.is_initialized() and dist.get_world_size() > 1:
        processes = dist.get_world_size()
        dist.all_reduce(count)
        count /= processes
    if noted is not None:
        noted.append(count)
    return count.clamp(min=1 / processes)


@contextmanager
def note_counts() -> Iterator[list[Tensor]]:
    """Within it, loss_normaliser() adds each count to the list that is returned."""
    noted: list[Tensor] = []
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


@contextmanager
def whole_step_counts(counts: list[Tensor]) -> Iterator[None]:
    """Within it, the losses are divided by these counts, in the order in which loss_normaliser() is called.

    A step that accumulates gradients divides the losses of each of its batches by the mean counts of all of them, so
    that it is the same as a step with all their images at once.
    """
    token = _GIVEN.set(iter(counts))
    try:
        yield
    finally:
        _GIVEN.reset(token)
