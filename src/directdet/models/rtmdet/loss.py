"""The losses of RTMDet, with static shapes: no sampling, no loop over images, no waiting for the host.

Every point contributes to the class loss, and the positive ones to the box loss. Both are summed over the batch and
divided by the sum of the positives' IoUs (at least 1), as in mmdet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from directdet.models.parts.boxes import areas, take
from directdet.models.parts.targets import RandomKeys, Targets, loss_normaliser, object_weights, random_keys, weigh
from directdet.models.rtmdet.assign import Assigned, assign, assigned_boxes
from directdet.models.rtmdet.config import PointConfig
from directdet.models.rtmdet.network import HasPoints, PointMaps, RTMDet, boxes_of

BOX_WEIGHT = 2.0
EPSILON = 1e-6  # square pixels


def rtmdet_losses(
    model: RTMDet, raw: PointMaps, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses "class" and "box" (scalars to be summed), and the number of positive points. `draw` is not used."""
    losses, found = point_losses(model.config, raw, targets)
    return losses, {"positives": found.positive.sum()}


def point_losses(config: PointConfig, raw: HasPoints, targets: Targets) -> tuple[dict[str, Tensor], Assigned]:
    """The losses "class" and "box", and what each point learns."""
    boxes = boxes_of(raw.distances, raw.points)
    found = assign(raw.logits, boxes, raw.points, targets, config.top_ious)
    labels = torch.where(found.positive, take(targets.labels, found.objects), -1)
    total = loss_normaliser(found.quality)
    weights = object_weights(targets, found.objects, found.positive)
    class_loss = weigh(quality_focal_loss(raw.logits, labels, found.quality), weights).sum() / total
    box_loss = weigh((1 - giou(boxes, assigned_boxes(found, targets))) * found.quality, weights).sum() / total
    return {"class": class_loss, "box": BOX_WEIGHT * box_loss}, found


def quality_focal_loss(logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
    """Quality focal loss [N, A, C] with beta 2 (Li et al., arXiv 2006.04388).

    logits [N, A, C]; labels [N, A] are 0..C-1, or -1 where there is no object; quality [N, A] is what the score of a
    point's class is to become.
    """
    present = labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
    wanted = torch.where(present, quality.unsqueeze(-1), 0.0)
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return entropy * (wanted - torch.sigmoid(logits)).square()


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU of pairs of boxes [..., 4] -> [...], in -1..1 (Rezatofighi et al., arXiv 1902.09630)."""
    inner = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    outer = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    intersection, hull = inner.clamp(min=0).prod(-1), outer.clamp(min=0).prod(-1).clamp(min=EPSILON)
    union = (areas(boxes) + areas(others) - intersection).clamp(min=EPSILON)
    return intersection / union - (hull - union) / hull
