"""The losses of Faster and Mask R-CNN, with static shapes: no loop over images, boolean indexing or host waits.

Images without objects need no special case: their rows are masked. The losses are mmdet's, which the paper used: each
is summed over the samples of the whole batch and divided by their number. The functions here also serve the stages of
Cascade R-CNN.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from directdet.models.parts.boxes import box_loss, encode_boxes, take
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.roi_pool import PyramidRows, pool_rois
from directdet.models.parts.targets import (
    RandomKeys,
    Targets,
    loss_normaliser,
    match_boxes,
    object_weights,
    random_keys,
    sample,
    weigh,
)
from directdet.models.two_stage.config import TwoStageConfig
from directdet.models.two_stage.mask_loss import mask_loss, pack_masks
from directdet.models.two_stage.network import BOX_BINS, BOX_WEIGHTS, MASK_BINS, RCNN, TwoStage
from directdet.models.two_stage.rpn import propose, rpn_losses


class SampledRois(NamedTuple):
    """K sampled RoIs of each of N images.

    Attributes:
        boxes: [N, K, 4].
        labels: [N, K], 0 for background.
        delta_targets: [N, K, 4].
        filled: [N, K], False for empty slots.
        positive: [N, K].
        objects: [N, K], the index of each RoI's object.
        ground_truth: [N, K], True for RoIs that are ground-truth boxes.
        weights: [N, K], of the losses; None: all are 1.
    """

    boxes: Tensor
    labels: Tensor
    delta_targets: Tensor
    filled: Tensor
    positive: Tensor
    objects: Tensor
    ground_truth: Tensor
    weights: Tensor | None = None


def rcnn_losses(
    model: RCNN, raw: RawMaps, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses by name (scalars to be summed), and counts to monitor (scalars without gradient).

    Losses: rpn_class, rpn_box, class, box and, with masks, mask. Counts: positives, the positive RoIs sampled in the
    batch; nms_undecided, see training_proposals; and mask_dropped, the positive RoIs that did not get a mask slot.
    """
    config = model.config
    losses = rpn_losses(config, raw, targets, draw)
    boxes, valid, undecided = training_proposals(config, raw, targets)
    rois = sample_rois(config, boxes, valid, targets, config.roi_positive_iou, BOX_WEIGHTS, draw)
    rows = model.rows(raw.features)
    logits, deltas = model.predict_boxes(model.pool_batch(rows, rois.boxes, BOX_BINS))
    deltas = take(deltas, rois.labels.reshape(-1, 1)).squeeze(1)  # the deltas of each RoI's class
    losses["class"], losses["box"] = class_and_box_loss(logits, deltas, rois, config.smooth_l1_beta)
    counts = {"positives": rois.positive.sum(), "nms_undecided": undecided}
    if config.masks:
        losses["mask"], counts["mask_dropped"] = sampled_mask_loss(
            model, rows, targets, rois, draw, model.predict_masks
        )
    return losses, counts


@torch.no_grad()
def training_proposals(config: TwoStageConfig, raw: RawMaps, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Proposals [N, P, 4] for training, which of them are valid [N, P], and how many boxes NMS left undecided.

    Those are kept; there are none on a CPU, and on a GPU only where suppression chains exceed boxes.BOUNDED_SWEEPS.
    """
    return propose(
        raw, targets.sizes, config.train_pre_nms, config.train_proposals, config.rpn_nms, single_nms=False, wait=False
    )


@torch.no_grad()
def sample_rois(
    config: TwoStageConfig,
    boxes: Tensor,
    valid: Tensor,
    targets: Targets,
    positive_iou: float,
    weights: tuple[float, float, float, float],
    draw: RandomKeys,
) -> SampledRois:
    """Sample RoIs from candidate boxes [N, P, 4], where `valid` [N, P], and the ground-truth boxes.

    Args:
        positive_iou: RoIs are positive from this IoU with an object, and negative below.
        weights: see encode_boxes.
    """
    candidates = boxes.shape[1]
    boxes, valid = torch.cat([boxes, targets.boxes], 1), torch.cat([valid, targets.valid], 1)
    objects, assigned = match_boxes(boxes, targets, positive_iou, positive_iou)
    assigned = torch.where(valid, assigned, -1)
    positives = int(config.roi_samples * config.roi_positive_fraction)
    index, filled, positive = sample(assigned, config.roi_samples, positives, draw)
    rois, objects = take(boxes, index), take(objects, index)
    labels = torch.where(positive, take(targets.labels, objects) + 1, 0)
    delta_targets = encode_boxes(take(targets.boxes, objects), rois, weights)
    counting, ground_truth = object_weights(targets, objects, positive), index >= candidates
    return SampledRois(rois, labels, delta_targets, filled, positive, objects, ground_truth, counting)


def class_and_box_loss(logits: Tensor, deltas: Tensor, rois: SampledRois, beta: float) -> tuple[Tensor, Tensor]:
    """The class and box loss of a box head, from logits [N * K, 1 + classes] and deltas [N * K, 4], one row per RoI."""
    labels, filled, positive = rois.labels.flatten(), rois.filled.flatten(), rois.positive.flatten()
    count = loss_normaliser(filled)
    weights = None if rois.weights is None else rois.weights.flatten()
    class_loss = weigh(F.cross_entropy(logits, labels, reduction="none"), weights)
    regression = weigh(box_loss(deltas, rois.delta_targets.reshape(-1, 4), beta), weights)
    return (class_loss * filled).sum() / count, (regression * positive).sum() / count


def sampled_mask_loss(
    model: TwoStage,
    rows: PyramidRows,
    targets: Targets,
    rois: SampledRois,
    draw: RandomKeys,
    predict_masks: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The mask loss of the positive RoIs, and the number of those that did not get a slot.

    predict_masks: pooled RoIs [M, C, 14, 14] and labels [M] -> logits [M, 28, 28].
    """
    slots = pack_masks(model.config, targets, rois.boxes, rois.labels, rois.positive, rois.objects, draw)
    pooled = pool_rois(rows, slots.rois, slots.image, MASK_BINS)
    return mask_loss(predict_masks(pooled, slots.labels), slots), slots.dropped
