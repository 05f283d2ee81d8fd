"""The training criterion of Faster and Mask R-CNN, static in shape: no loop over images, boolean index or host wait.

An image without objects is no special case: its rows are masked. The losses are mmdet's, as the paper used them: each
is summed over what was sampled in the whole batch and divided by the number of samples. Its parts serve every cascade
stage too.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from directdet.models.parts.boxes import box_loss, encode_boxes, pairwise_iou, take
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import RandomKeys, Targets, match, random_keys, sample, shared_count
from directdet.models.two_stage.config import TwoStageConfig
from directdet.models.two_stage.mask_loss import mask_loss, pack_masks
from directdet.models.two_stage.network import BOX_BINS, BOX_WEIGHTS, MASK_BINS, RCNN, TwoStage
from directdet.models.two_stage.rpn import propose, rpn_losses


class SampledRois(NamedTuple):
    """K RoIs of each of N images: boxes [N, K, 4]; labels [N, K], 0 for background; the deltas wanted [N, K, 4]; filled
    and positive [N, K]; the object of each [N, K]; own [N, K], the RoIs that are the objects' boxes themselves."""

    boxes: Tensor
    labels: Tensor
    wanted: Tensor
    filled: Tensor
    positive: Tensor
    objects: Tensor
    own: Tensor


def rcnn_losses(
    model: RCNN, raw: RawMaps, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses by name (scalars to be added up), and counts to watch (scalars without gradient).

    Losses: rpn_class, rpn_box, class, box and, with masks, mask. Counts: positives, the positive RoIs sampled in the
    batch, and mask_dropped, how many of them found no mask slot.
    """
    config = model.config
    losses = rpn_losses(config, raw, targets, draw)
    boxes, real = training_proposals(config, raw, targets)
    rois = sample_rois(config, boxes, real, targets, config.roi_positive_iou, BOX_WEIGHTS, draw)
    logits, deltas = model.boxes_of(pool_sampled(model, raw, rois))
    deltas = take(deltas, rois.labels.reshape(-1, 1)).squeeze(1)  # the deltas of the RoI's own class
    losses["class"], losses["box"] = class_and_box_loss(logits, deltas, rois, config.smooth_l1_beta)
    counts = {"positives": rois.positive.sum()}
    if config.masks:
        losses["mask"], counts["mask_dropped"] = sampled_mask_loss(model, raw, targets, rois, draw, model.masks_of)
    return losses, counts


@torch.no_grad()
def training_proposals(config: TwoStageConfig, raw: RawMaps, targets: Targets) -> tuple[Tensor, Tensor]:
    """Proposals [N, P, 4] to train on, and which of them are real [N, P]."""
    return propose(raw, targets.sizes, config.train_pre_nms, config.train_proposals, config.rpn_nms, one_graph=False)


@torch.no_grad()
def sample_rois(
    config: TwoStageConfig,
    boxes: Tensor,
    real: Tensor,
    targets: Targets,
    positive_iou: float,
    weights: tuple[float, float, float, float],
    draw: RandomKeys,
) -> SampledRois:
    """Sample among candidates [N, P, 4], of which `real` [N, P] count, and the objects' own boxes.

    positive_iou: from this IoU with an object on a RoI is positive, below it negative. weights: see encode_boxes.
    """
    candidates = boxes.shape[1]
    boxes, real = torch.cat([boxes, targets.boxes], 1), torch.cat([real, targets.valid], 1)
    objects, assigned = match(pairwise_iou(boxes, targets.boxes), targets.valid, positive_iou, positive_iou, None)
    assigned = torch.where(real, assigned, -1)
    positives = int(config.roi_samples * config.roi_positive_fraction)
    index, filled, positive = sample(assigned, config.roi_samples, positives, draw)
    rois, objects = take(boxes, index), take(objects, index)
    labels = torch.where(positive, take(targets.labels, objects) + 1, 0)
    wanted = encode_boxes(take(targets.boxes, objects), rois, weights)
    return SampledRois(rois, labels, wanted, filled, positive, objects, index >= candidates)


def pool_sampled(model: TwoStage, raw: RawMaps, rois: SampledRois) -> Tensor:
    """Sampled RoIs -> [N * K, C, 7, 7]."""
    images, per_image = rois.labels.shape
    image = torch.arange(images, device=rois.boxes.device).repeat_interleave(per_image)
    return model.pool(raw.features, rois.boxes.reshape(-1, 4), image, BOX_BINS)


def class_and_box_loss(logits: Tensor, deltas: Tensor, rois: SampledRois, beta: float) -> tuple[Tensor, Tensor]:
    """The two losses of a box head: logits [N * K, 1 + classes], and for each RoI one row of deltas [N * K, 4]."""
    labels, filled, positive = rois.labels.flatten(), rois.filled.flatten(), rois.positive.flatten()
    count = shared_count(filled)
    class_loss = F.cross_entropy(logits, labels, reduction="none")
    regression = box_loss(deltas, rois.wanted.reshape(-1, 4), beta)
    return (class_loss * filled).sum() / count, (regression * positive).sum() / count


def sampled_mask_loss(
    model: TwoStage,
    raw: RawMaps,
    targets: Targets,
    rois: SampledRois,
    draw: RandomKeys,
    masks_of: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The mask loss of the positive RoIs, and how many of them found no slot.

    masks_of: pooled RoIs [M, C, 14, 14] and labels [M] -> logits [M, 28, 28].
    """
    slots = pack_masks(model.config, targets, rois.boxes, rois.labels, rois.positive, rois.objects, draw)
    pooled = model.pool(raw.features, slots.rois, slots.image, MASK_BINS)
    return mask_loss(masks_of(pooled, slots.labels), slots), slots.dropped
