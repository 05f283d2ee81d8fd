"""The losses of RetinaNet, with static shapes: no sampling, no loop over images, no waiting for the host.

All anchors contribute except those between the negative and the positive IoU and those in the padding of a batch. Both
losses are summed over the batch and divided by its number of positives, as in mmdet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from directdet.models.parts.boxes import box_loss, encode_boxes, take
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import (
    RandomKeys,
    Targets,
    loss_normaliser,
    match_boxes,
    object_weights,
    random_keys,
    usable_anchors,
    weigh,
)
from directdet.models.retinanet.network import RetinaNet

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
MIN_POSITIVE_IOU = 0.0  # the best anchor of an object is positive, however small the overlap


def retinanet_losses(
    model: RetinaNet, raw: RawMaps, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses "class" and "box" (scalars to be summed), and the number of positive anchors. `draw` is not used."""
    config = model.config
    with torch.no_grad():
        anchors = raw.anchors.expand(targets.boxes.shape[0], -1, -1)  # [N, A, 4]
        usable = usable_anchors(anchors, targets)
        objects, assigned = match_boxes(
            anchors, targets, config.positive_iou, config.negative_iou, MIN_POSITIVE_IOU, usable
        )
        positive = assigned == 1
        labels = torch.where(positive, take(targets.labels, objects), -1)
        delta_targets = encode_boxes(take(targets.boxes, objects), anchors, DELTA_WEIGHTS)
        count, weights = loss_normaliser(positive), object_weights(targets, objects, positive)
    class_loss = weigh(focal_loss(raw.logits, labels, config.focal_alpha, config.focal_gamma).sum(-1), weights)
    regression = weigh(box_loss(raw.deltas, delta_targets, config.smooth_l1_beta), weights)
    losses = {"class": (class_loss * (assigned >= 0)).sum() / count, "box": (regression * positive).sum() / count}
    return losses, {"positives": positive.sum()}


def focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss [..., C] of logits [..., C]; labels [...] are 0..C-1, or -1 where there is no object.

    With z the logit of the wrong answer and p = sigmoid(z), a term is -log(1 - p) * p^gamma. Both factors are computed
    from one softplus, as log(p) = z - softplus(z): this stores three maps for the backward pass, and is finite for all
    z.
    """
    present = labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
    wrong = torch.where(present, -logits, logits)
    entropy = F.softplus(wrong)  # binary cross-entropy
    loss = entropy * torch.exp(gamma * (wrong - entropy))
    return torch.where(present, alpha * loss, (1 - alpha) * loss)
