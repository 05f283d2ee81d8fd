"""The mask loss of the positive RoIs of a whole batch, packed into a fixed number of slots."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from directdet.models.parts.masks import project_masks
from directdet.models.parts.targets import RandomKeys, Targets, loss_normaliser, weigh
from directdet.models.two_stage.config import TwoStageConfig


class MaskSlots(NamedTuple):
    """M mask RoIs.

    Attributes:
        rois: [M, 4].
        image: [M], the index of each RoI's image in the batch.
        labels: [M], 1..classes.
        filled: [M], False for empty slots.
        mask_targets: [M, 28, 28], 0 or 1.
        dropped: the number of positive RoIs that did not get a slot, a scalar.
        weights: [M], of the losses; None: all are 1.
    """

    rois: Tensor
    image: Tensor
    labels: Tensor
    filled: Tensor
    mask_targets: Tensor
    dropped: Tensor
    weights: Tensor | None = None


@torch.no_grad()
def pack_masks(
    config: TwoStageConfig,
    targets: Targets,
    rois: Tensor,
    labels: Tensor,
    positive: Tensor,
    objects: Tensor,
    draw: RandomKeys,
) -> MaskSlots:
    """Pack the positives of sampled RoIs [N, K, 4] with labels, positive and objects [N, K] into slots."""
    if targets.masks is None:
        raise ValueError("the mask loss needs targets with masks")
    images, per_image = positive.shape
    # Positives are in the first slots of each image (see sample), so only those are considered.
    per_image = min(per_image, int(config.roi_samples * config.roi_positive_fraction))
    candidates = positive[:, :per_image].reshape(-1)
    keys = torch.where(candidates, draw(candidates.shape, candidates.device), -1.0)
    key, index = torch.topk(keys, min(images * config.mask_slots, candidates.shape[0]))
    filled = key >= 0
    image = torch.div(index, per_image, rounding_mode="floor")
    rois, labels = rois[:, :per_image].reshape(-1, 4)[index], labels[:, :per_image].reshape(-1)[index]
    objects = objects[:, :per_image].reshape(-1)[index]
    mask_targets = project_masks(targets.masks[image, objects], targets.boxes[image, objects], rois)
    weights = None if targets.weights is None else targets.weights[image, objects]
    return MaskSlots(rois, image, labels, filled, mask_targets, candidates.sum() - filled.sum(), weights)


def mask_loss(logits: Tensor, slots: MaskSlots) -> Tensor:
    """Binary cross-entropy of mask logits [M, 28, 28], averaged over the filled slots."""
    loss = F.binary_cross_entropy_with_logits(logits, slots.mask_targets, reduction="none").mean((1, 2))
    return (weigh(loss, slots.weights) * slots.filled).sum() / loss_normaliser(slots.filled)
