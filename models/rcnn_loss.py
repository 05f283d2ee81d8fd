"""The training criterion of Faster and Mask R-CNN, static in shape: no loop over images, boolean index or host wait.

An image without objects is no special case: its rows are masked. The losses are mmdet's, as the paper used them: each
is summed over what was sampled in the whole batch and divided by the number of samples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import box_loss, encode_boxes, pairwise_iou, take
from .mask_loss import mask_loss, pack_masks
from .pyramid import RawMaps
from .rcnn import BOX_BINS, BOX_WEIGHTS, MASK_BINS, RCNN
from .roi_pool import pool_rois
from .rpn import propose, rpn_losses
from .targets import RandomKeys, Targets, match, random_keys, sample, shared_count


def rcnn_losses(
    model: RCNN, raw: RawMaps, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses by name (scalars to be added up), and counts to watch (scalars without gradient).

    Losses: rpn_class, rpn_box, class, box and, with masks, mask. Counts: positives, the positive RoIs sampled in the
    batch, and mask_dropped, how many of them found no mask slot.
    """
    losses = rpn_losses(model.config, raw, targets, draw)
    rois, labels, box_targets, filled, positive, objects = _sample_rois(model, raw, targets, draw)
    losses |= _box_losses(model, raw, rois, labels, box_targets, filled, positive)
    counts = {"positives": positive.sum()}
    if model.config.masks:
        slots = pack_masks(model.config, targets, rois, labels, positive, objects, draw)
        pooled = pool_rois(raw.features[:4], model.strides[:4], slots.rois, slots.image, MASK_BINS)
        losses["mask"] = mask_loss(model.masks_of(pooled, slots.labels), slots)
        counts["mask_dropped"] = slots.dropped
    return losses, counts


@torch.no_grad()
def _sample_rois(model: RCNN, raw: RawMaps, targets: Targets, draw: RandomKeys) -> tuple[Tensor, ...]:
    """Proposals and the objects themselves, sampled: rois [N, K, 4], labels [N, K] (0 is background), deltas wanted
    [N, K, 4], filled and positive [N, K], and the object of each [N, K]."""
    config = model.config
    boxes, real = propose(
        raw, targets.sizes, config.train_pre_nms, config.train_proposals, config.rpn_nms, one_graph=False
    )
    boxes, real = torch.cat([boxes, targets.boxes], 1), torch.cat([real, targets.valid], 1)
    threshold = config.roi_positive_iou
    objects, assigned = match(pairwise_iou(boxes, targets.boxes), targets.valid, threshold, threshold, None)
    assigned = torch.where(real, assigned, -1)
    positives = int(config.roi_samples * config.roi_positive_fraction)
    index, filled, positive = sample(assigned, config.roi_samples, positives, draw)
    rois, objects = take(boxes, index), take(objects, index)
    labels = torch.where(positive, take(targets.labels, objects) + 1, 0)
    wanted = encode_boxes(take(targets.boxes, objects), rois, BOX_WEIGHTS)
    return rois, labels, wanted, filled, positive, objects


def _box_losses(
    model: RCNN, raw: RawMaps, rois: Tensor, labels: Tensor, wanted: Tensor, filled: Tensor, positive: Tensor
) -> dict[str, Tensor]:
    images, per_image = labels.shape
    image = torch.arange(images, device=rois.device).repeat_interleave(per_image)
    pooled = pool_rois(raw.features[:4], model.strides[:4], rois.reshape(-1, 4), image, BOX_BINS)
    logits, deltas = model.boxes_of(pooled)
    labels, filled, positive = labels.flatten(), filled.flatten(), positive.flatten()
    count = shared_count(filled)
    deltas = take(deltas, labels[:, None]).squeeze(1)  # the deltas of the RoI's own class
    class_loss = F.cross_entropy(logits, labels, reduction="none")
    regression = box_loss(deltas, wanted.reshape(-1, 4), model.config.smooth_l1_beta)
    return {"class": (class_loss * filled).sum() / count, "box": (regression * positive).sum() / count}
