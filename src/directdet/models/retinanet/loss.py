"""The training criterion of RetinaNet, static in shape: no sampling, no loop over images, no host wait.

Every anchor takes part, but those that overlap an object neither well nor badly. Both losses are summed over the batch
and divided by the number of its positives, as in mmdet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from directdet.models.parts.boxes import box_loss, encode_boxes, pairwise_iou, take
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import RandomKeys, Targets, match, random_keys, shared_count
from directdet.models.retinanet.network import RetinaNet

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
MIN_POSITIVE_IOU = 0.0  # the best anchor of an object is positive, however little it overlaps


def retinanet_losses(
    model: RetinaNet, raw: RawMaps, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses class and box (scalars to be added up), and the count of positive anchors. Nothing is drawn."""
    config = model.config
    with torch.no_grad():
        anchors = raw.anchors.expand(targets.boxes.shape[0], -1, -1)  # [N, A, 4]
        objects, assigned = match(
            pairwise_iou(anchors, targets.boxes),
            targets.valid,
            config.positive_iou,
            config.negative_iou,
            MIN_POSITIVE_IOU,
        )
        positive = assigned == 1
        labels = torch.where(positive, take(targets.labels, objects), -1)
        wanted = encode_boxes(take(targets.boxes, objects), anchors, DELTA_WEIGHTS)
        count = shared_count(positive)
    class_loss = focal_loss(raw.logits, labels, config.focal_alpha, config.focal_gamma).sum(-1)
    regression = box_loss(raw.deltas, wanted, config.smooth_l1_beta)
    losses = {"class": (class_loss * (assigned >= 0)).sum() / count, "box": (regression * positive).sum() / count}
    return losses, {"positives": positive.sum()}


def focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss [..., C] of logits [..., C]; labels [...] are 0..C-1, or -1 where no class is present.

    With z the logit of being wrong, a term is -log(1 - p) * p^gamma for p = sigmoid(z). Both factors come from one
    softplus, log(p) being z - softplus(z): three maps are kept for the backward pass, and no logit gives infinity.
    """
    own = labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
    wrong = torch.where(own, -logits, logits)
    entropy = F.softplus(wrong)
    loss = entropy * torch.exp(gamma * (wrong - entropy))
    return torch.where(own, alpha * loss, (1 - alpha) * loss)
