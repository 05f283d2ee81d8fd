"""The training criterion of SSD, static in shape: no loop over images, boolean index or host wait.

Softmax over classes and background, and smooth L1 for the boxes of positive priors; both are summed over the batch and
divided by the number of its positives. Of each image's negatives the hardest count, negative_ratio for every positive:
an image without objects has none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from directdet.models.parts.boxes import box_loss, encode_boxes, pairwise_iou, take
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import RandomKeys, Targets, random_keys, shared_count
from directdet.models.ssd.network import SSD

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # 1 / (0.1, 0.1, 0.2, 0.2), SSD's variances
BETA = 1.0  # of smooth L1


def ssd_losses(
    model: SSD, raw: RawMaps, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses class and box (scalars to be added up), and the count of positive priors. Nothing is drawn."""
    config = model.config
    with torch.no_grad():
        priors = raw.anchors.expand(targets.boxes.shape[0], -1, -1)  # [N, A, 4]
        objects, positive = match_priors(pairwise_iou(priors, targets.boxes), targets.valid, config.positive_iou)
        labels = torch.where(positive, take(targets.labels, objects) + 1, 0)
        wanted = encode_boxes(take(targets.boxes, objects), priors, DELTA_WEIGHTS)
        count = shared_count(positive)
    entropy = F.cross_entropy(raw.logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    class_loss = (entropy * positive).sum() + hard_negatives(entropy, positive, config.negative_ratio)
    regression = box_loss(raw.deltas, wanted, BETA)
    losses = {"class": class_loss / count, "box": (regression * positive).sum() / count}
    return losses, {"positives": positive.sum()}


def match_priors(iou: Tensor, valid: Tensor, positive_iou: float) -> tuple[Tensor, Tensor]:
    """iou [N, A, G], valid [N, G] -> the object of each prior [N, A], and which priors are positive [N, A].

    A prior goes to the object that it overlaps most, and is positive from positive_iou on. But the best prior of an
    object is that object's, whatever their IoU; where it is the best of several, of the last of them (torchvision's
    SSDMatcher; Caffe's gives the other objects their next best priors).
    """
    iou = torch.where(valid[:, None], iou, -1.0)
    best, objects = iou.max(-1)
    images, priors, padded = iou.shape
    # Padding writes to a column of its own. The largest number is the last object's.
    rows = torch.where(valid, iou.max(1).indices, priors)
    numbers = torch.arange(padded, device=iou.device).expand(images, -1)
    owner = torch.full((images, priors + 1), -1, device=iou.device).scatter_reduce(1, rows, numbers, "amax")[:, :-1]
    owned = owner >= 0
    return torch.where(owned, owner, objects), owned | (best >= positive_iou)


def hard_negatives(entropy: Tensor, positive: Tensor, ratio: int) -> Tensor:
    """The sum of each image's `ratio` * positives largest losses [N, A] outside `positive` [N, A].

    Should there be fewer negatives, all count, once (torchvision then counts positives twice).
    """
    hardest = torch.where(positive, 0.0, entropy).sort(1, descending=True).values  # a cross-entropy is not negative
    rank = torch.arange(entropy.shape[1], device=entropy.device)
    return (hardest * (rank < ratio * positive.sum(1, keepdim=True))).sum()
