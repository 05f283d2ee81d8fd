"""The losses of SSD, with static shapes: no loop over images, no boolean indexing, no waiting for the host.

Softmax cross-entropy over classes and background, and smooth L1 for the boxes of positive priors; both are summed over
the batch and divided by its number of positives. Of each image's negatives only the hardest contribute, negative_ratio
for every positive, so an image without objects contributes nothing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from directdet.models.parts.boxes import box_loss, encode_boxes, pairwise_iou, take
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import RandomKeys, Targets, loss_normaliser, object_weights, random_keys, weigh
from directdet.models.ssd.network import SSD

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # 1 / (0.1, 0.1, 0.2, 0.2), SSD's variances
SMOOTH_L1_BETA = 1.0


def ssd_losses(
    model: SSD, raw: RawMaps, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses "class" and "box" (scalars to be summed), and the number of positive priors. `draw` is not used."""
    config = model.config
    with torch.no_grad():
        priors = raw.anchors.expand(targets.boxes.shape[0], -1, -1)  # [N, A, 4]
        objects, positive = match_priors(pairwise_iou(priors, targets.boxes), targets.valid, config.positive_iou)
        labels = torch.where(positive, take(targets.labels, objects) + 1, 0)
        delta_targets = encode_boxes(take(targets.boxes, objects), priors, DELTA_WEIGHTS)
        count, weights = loss_normaliser(positive), object_weights(targets, objects, positive)
    entropy = F.cross_entropy(raw.logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    class_loss = (weigh(entropy, weights) * positive).sum() + hard_negatives(entropy, positive, config.negative_ratio)
    regression = weigh(box_loss(raw.deltas, delta_targets, SMOOTH_L1_BETA), weights)
    losses = {"class": class_loss / count, "box": (regression * positive).sum() / count}
    return losses, {"positives": positive.sum()}


def match_priors(iou: Tensor, valid: Tensor, positive_iou: float) -> tuple[Tensor, Tensor]:
    """iou [N, A, G], valid [N, G] -> index of each prior's object [N, A], and which priors are positive [N, A].

    A prior is assigned to the object it overlaps most, and is positive from positive_iou. But the best prior of an
    object is always positive and assigned to that object; if it is the best prior of several objects, to the last of
    them (torchvision's SSDMatcher; Caffe's gives the other objects their next best priors).
    """
    iou = torch.where(valid[:, None], iou, -1.0)
    best, objects = iou.max(-1)
    images, priors, padded = iou.shape
    # Padding objects write to an extra column. "amax" selects the last object.
    rows = torch.where(valid, iou.max(1).indices, priors)
    numbers = torch.arange(padded, device=iou.device).expand(images, -1)
    owner = torch.full((images, priors + 1), -1, device=iou.device).scatter_reduce(1, rows, numbers, "amax")[:, :-1]
    owned = owner >= 0
    return torch.where(owned, owner, objects), owned | (best >= positive_iou)


def hard_negatives(entropy: Tensor, positive: Tensor, ratio: int) -> Tensor:
    """The sum of the `ratio` * (number of positives) largest negative losses of each image -> scalar.

    entropy [N, A]: cross-entropy of each prior; positive [N, A]. If there are fewer negatives, each counts once
    (torchvision then counts positives twice).
    """
    hardest = torch.where(positive, 0.0, entropy).sort(1, descending=True).values  # a cross-entropy is not negative
    rank = torch.arange(entropy.shape[1], device=entropy.device)
    return (hardest * (rank < ratio * positive.sum(1, keepdim=True))).sum()
