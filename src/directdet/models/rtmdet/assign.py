"""Dynamic soft label assignment (RTMDet, section 3.3), with static shapes: no loop over images or objects.

Which points learn which object follows from what the network predicts at the time. G is the padded number of objects.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from directdet.models.parts.boxes import pairwise_iou, take
from directdet.models.parts.targets import Targets

IOU_WEIGHT = 3.0
CENTRE_RADIUS = 3.0  # strides
EPSILON = 1e-7


class Assigned(NamedTuple):
    """What each point learns.

    Attributes:
        objects: [N, A], the row of `targets`; of no meaning where there is no object.
        positive: [N, A] bool, whether the point has an object.
        quality: [N, A], IoU of the predicted box with the object, 0 where there is none.
    """

    objects: Tensor
    positive: Tensor
    quality: Tensor


@torch.no_grad()
def assign(logits: Tensor, boxes: Tensor, points: Tensor, targets: Targets, top_ious: int) -> Assigned:
    """Assign the objects of `targets` to points.

    An object takes its k cheapest points, with k the sum of its `top_ious` best IoUs, at least 1. A point that several
    objects take goes to the object for which it is cheapest. Only points inside some object's box can be taken, though
    not only by that object. As 10^distance grows beyond float32 at 41 strides, an object further than that from every
    such point has none.

    Args:
        logits: [N, A, classes]. boxes: the predicted boxes [N, A, 4]. points: [A, 3].
    """
    usable = (points_inside(points, targets.boxes) & targets.valid[..., None]).any(1, keepdim=True)  # [N, 1, A]
    usable = usable & targets.valid[..., None]  # [N, G, A]
    iou = torch.where(usable, pairwise_iou(targets.boxes, boxes), 0.0)
    cost = class_cost(logits, targets.labels, iou) - IOU_WEIGHT * torch.log(iou + EPSILON)
    cost = torch.where(usable, cost + centre_cost(points, centres_of(targets)), torch.inf)
    most = min(top_ious, iou.shape[2])
    wanted = torch.topk(iou, most, dim=2).values.sum(2).int().clamp(min=1)  # [N, G]
    cheapest, index = torch.topk(cost, most, dim=2, largest=False)
    rank = torch.arange(most, device=cost.device)
    chosen = (rank < wanted[..., None]) & torch.isfinite(cheapest)
    taken = torch.zeros(cost.shape, dtype=torch.int32, device=cost.device).scatter(2, index, chosen.int())
    count = taken.sum(1)  # [N, A]
    objects = torch.where(count > 1, cost.argmin(1), taken.argmax(1))
    positive = count > 0
    quality = torch.gather(iou, 1, objects[:, None]).squeeze(1)
    return Assigned(objects, positive, torch.where(positive, quality, 0.0))


def points_inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points [A, 3] lie inside boxes [N, G, 4], not on an edge -> [N, G, A]."""
    x, y = points[:, 0], points[:, 1]
    left, top, right, bottom = boxes.unsqueeze(-1).unbind(2)
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def class_cost(logits: Tensor, labels: Tensor, iou: Tensor) -> Tensor:
    """Quality focal loss of every point as if it had every object -> [N, G, A].

    logits [N, A, C], labels [N, G], iou [N, G, A]. The classes an object is not of cost the same for all objects, so
    they are added up once instead of in a [N, G, A, C] table.
    """
    logits = logits.transpose(1, 2)  # [N, C, A]
    absent = F.softplus(logits) * torch.sigmoid(logits).square()
    row = labels[..., None].expand(-1, -1, logits.shape[2])
    own = torch.gather(logits, 1, row)  # [N, G, A]
    present = (F.softplus(own) - own * iou) * (iou - torch.sigmoid(own)).square()
    return absent.sum(1, keepdim=True) - torch.gather(absent, 1, row) + present


def centres_of(targets: Targets) -> Tensor:
    """The centres [N, G, 2] of the objects' boxes or, where there are masks, of their masks, as in mmdet."""
    boxes, masks = targets.boxes, targets.masks
    if masks is None:
        return (boxes[..., :2] + boxes[..., 2:]) / 2
    inside = masks.float()
    share = (torch.arange(masks.shape[-1], device=masks.device) + 0.5) / masks.shape[-1]
    mass = inside.sum((2, 3))
    x, y = (inside.sum(2) * share).sum(-1), (inside.sum(3) * share).sum(-1)
    middle = torch.where(mass[..., None] > 0, torch.stack([x, y], -1) / mass[..., None].clamp(min=1), 0.5)
    return boxes[..., :2] + middle * (boxes[..., 2:] - boxes[..., :2])


def centre_cost(points: Tensor, centres: Tensor) -> Tensor:
    """10^(distance - 3) of points [A, 3] from `centres` [N, G, 2], in strides -> [N, G, A]."""
    distance = (points[:, :2] - centres[..., None, :]).square().sum(-1).sqrt() / points[:, 2]
    return torch.pow(10.0, distance - CENTRE_RADIUS)


def assigned_boxes(found: Assigned, targets: Targets) -> Tensor:
    """The box [N, A, 4] of each point's object."""
    return take(targets.boxes, found.objects)
