"""The losses of RTMDet-Ins, with static shapes: those of RTMDet, and dice of the positive points' masks.

mmdet computes the mask of every positive point over the whole picture. Here it is that of at most `mask_slots` points
of an image, drawn anew in every step, and each at a grid of places in its object's box and a little around it, where
the deployed form looks for it. What a mask says far from its box is never asked.
"""

import torch
from torch import Tensor

from directdet.models.parts.boxes import take
from directdet.models.parts.masks import MASK_SIZE, project_masks
from directdet.models.parts.targets import RandomKeys, Targets, loss_normaliser, object_weights, random_keys, weigh
from directdet.models.rtmdet.assign import Assigned
from directdet.models.rtmdet.loss import point_losses
from directdet.models.rtmdet_ins.masks import grid, mask_logits
from directdet.models.rtmdet_ins.network import InsMaps, RTMDetIns

MASK_WEIGHT = 2.0
EPSILON = 5e-6  # mmdet's, in each sum of squares
# Points beyond each side of the box, at the distance of those in it: a seventh of the side, as detected boxes err.
AROUND = MASK_SIZE // 7


def rtmdet_ins_losses(
    model: RTMDetIns, raw: InsMaps, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses "class", "box" and "mask" (scalars to be summed), and the number of positive points."""
    losses, found = point_losses(model.config, raw, targets)
    losses["mask"] = MASK_WEIGHT * mask_loss(model, raw, targets, found, draw)
    return losses, {"positives": found.positive.sum()}


def mask_loss(model: RTMDetIns, raw: InsMaps, targets: Targets, found: Assigned, draw: RandomKeys) -> Tensor:
    """The mean dice loss of the masks of some positive points, 0 if there are none."""
    if targets.masks is None:
        raise ValueError("the mask loss needs targets with masks")
    with torch.no_grad():
        keys = torch.where(found.positive, draw(found.positive.shape, found.positive.device), -1.0)
        key, index = torch.topk(keys, min(model.config.mask_slots, keys.shape[1]), dim=1)
        filled, objects = key >= 0, take(found.objects, index)
        boxes = take(targets.boxes, objects)
        wanted = wanted_masks(take(targets.masks.flatten(2), objects).unflatten(2, targets.masks.shape[2:]), boxes)
    x, y = grid(boxes, MASK_SIZE, AROUND)
    logits = mask_logits(raw.prototypes, model.strides[0], take(raw.kernels, index), raw.points[index], x, y)
    weights = object_weights(targets, objects, filled)
    loss = weigh(dice_loss(torch.sigmoid(logits).flatten(2), wanted.flatten(2)), weights)
    return (loss * filled).sum() / loss_normaliser(filled)


def wanted_masks(masks: Tensor, boxes: Tensor) -> Tensor:
    """Masks [N, K, S, S] inside boxes [N, K, 4] at the points of `grid`, AROUND the box included, 0 or 1."""
    side = (boxes[..., 2:] - boxes[..., :2]) * (AROUND / MASK_SIZE)
    larger = torch.cat([boxes[..., :2] - side, boxes[..., 2:] + side], -1)
    wanted = project_masks(masks.flatten(0, 1), boxes.flatten(0, 1), larger.flatten(0, 1), MASK_SIZE + 2 * AROUND)
    return wanted.unflatten(0, boxes.shape[:2])


def dice_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - 2 |AB| / (|A|^2 + |B|^2) of values [..., P] in 0..1 -> [...] (V-Net, arXiv 1606.04797)."""
    squares = found.square().sum(-1) + wanted.square().sum(-1) + 2 * EPSILON
    return 1 - 2 * (found * wanted).sum(-1) / squares
