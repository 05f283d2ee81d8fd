"""The training criterion of Faster and Mask R-CNN, static in shape: no loop over images, boolean index or host wait.

An image without objects is no special case: its rows are masked. The losses are mmdet's, as the paper used them: each
is summed over what was sampled in the whole batch and divided by the number of samples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import box_loss, encode_boxes, pairwise_iou, take
from .rcnn import BOX_BINS, BOX_WEIGHTS, MASK_BINS, MASK_SIZE, RCNN, RPN_WEIGHTS, RawMaps
from .rcnn_proposals import propose
from .roi_pool import pool_rois
from .targets import RandomKeys, Targets, match, random_keys, sample


def rcnn_losses(
    model: RCNN, raw: RawMaps, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses by name (scalars to be added up), and counts to watch (scalars without gradient).

    Losses: rpn_class, rpn_box, class, box and, with masks, mask. Counts: positives, the positive RoIs sampled in the
    batch, and mask_dropped, how many of them found no mask slot.
    """
    losses = _rpn_losses(model, raw, targets, draw)
    rois, labels, box_targets, filled, positive, objects = _sample_rois(model, raw, targets, draw)
    losses |= _box_losses(model, raw, rois, labels, box_targets, filled, positive)
    counts = {"positives": positive.sum()}
    if model.config.masks:
        losses["mask"], counts["mask_dropped"] = _mask_loss(model, raw, targets, rois, labels, positive, objects, draw)
    return losses, counts


def _rpn_losses(model: RCNN, raw: RawMaps, targets: Targets, draw: RandomKeys) -> dict[str, Tensor]:
    config = model.config
    with torch.no_grad():
        anchors = raw.anchors.expand(targets.boxes.shape[0], -1, -1)  # [N, A, 4]
        objects, assigned = match(
            pairwise_iou(anchors, targets.boxes),
            targets.valid,
            config.rpn_positive_iou,
            config.rpn_negative_iou,
            config.rpn_min_positive_iou,
        )
        positives = int(config.rpn_samples * config.rpn_positive_fraction)
        index, filled, positive = sample(assigned, config.rpn_samples, positives, draw)
        matched = take(targets.boxes, take(objects, index))
        wanted = encode_boxes(matched, raw.anchors[index], RPN_WEIGHTS)
    count = filled.sum().clamp(min=1)
    class_loss = F.binary_cross_entropy_with_logits(take(raw.logits, index), positive.float(), reduction="none")
    regression = box_loss(take(raw.deltas, index), wanted, config.smooth_l1_beta)
    return {"rpn_class": (class_loss * filled).sum() / count, "rpn_box": (regression * positive).sum() / count}


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
    count = filled.sum().clamp(min=1)
    deltas = take(deltas, labels[:, None]).squeeze(1)  # the deltas of the RoI's own class
    class_loss = F.cross_entropy(logits, labels, reduction="none")
    regression = box_loss(deltas, wanted.reshape(-1, 4), model.config.smooth_l1_beta)
    return {"class": (class_loss * filled).sum() / count, "box": (regression * positive).sum() / count}


def _mask_loss(
    model: RCNN,
    raw: RawMaps,
    targets: Targets,
    rois: Tensor,
    labels: Tensor,
    positive: Tensor,
    objects: Tensor,
    draw: RandomKeys,
) -> tuple[Tensor, Tensor]:
    """Mask loss over the positives of the whole batch, packed into a fixed number of slots; how many were left out."""
    if targets.masks is None:
        raise ValueError("a mask criterion needs targets with masks")
    images, per_image = positive.shape
    # Positives lie in each image's first slots (see sample), so only those are looked at.
    per_image = min(per_image, int(model.config.roi_samples * model.config.roi_positive_fraction))
    fits = positive[:, :per_image].reshape(-1)
    keys = torch.where(fits, draw(fits.shape, fits.device), -1.0)
    key, index = torch.topk(keys, min(images * model.config.mask_slots, fits.shape[0]))
    filled = key >= 0
    image = torch.div(index, per_image, rounding_mode="floor")
    rois, labels = rois[:, :per_image].reshape(-1, 4)[index], labels[:, :per_image].reshape(-1)[index]
    objects = objects[:, :per_image].reshape(-1)[index]
    pooled = pool_rois(raw.features[:4], model.strides[:4], rois, image, MASK_BINS)
    logits = model.masks_of(pooled, labels)  # [M, 28, 28]
    with torch.no_grad():
        wanted = project_masks(targets.masks[image, objects], targets.boxes[image, objects], rois)
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((1, 2))
    dropped = fits.sum() - filled.sum()
    return (loss * filled).sum() / filled.sum().clamp(min=1), dropped


def project_masks(masks: Tensor, boxes: Tensor, rois: Tensor) -> Tensor:
    """The part of each object's mask that its RoI sees: masks [M, S, S] inside boxes [M, 4] -> [M, 28, 28] of 0 and 1.

    Sampled bilinearly at the centres of the RoI's 28x28 cells and thresholded at a half; outside the box it is 0.
    """
    centre = (torch.arange(MASK_SIZE, dtype=rois.dtype, device=rois.device) + 0.5) / MASK_SIZE

    def axis(low: int, high: int) -> Tensor:
        position = rois[:, low, None] + centre * (rois[:, high] - rois[:, low])[:, None]
        side = (boxes[:, high] - boxes[:, low]).clamp(min=1e-3)
        return (position - boxes[:, low, None]) / side[:, None] * 2 - 1  # [M, 28]

    x, y = axis(0, 2), axis(1, 3)
    grid = torch.stack([x[:, None, :].expand(-1, MASK_SIZE, -1), y[:, :, None].expand(-1, -1, MASK_SIZE)], -1)
    sampled = F.grid_sample(masks[:, None].float(), grid, mode="bilinear", align_corners=False)
    return (sampled.squeeze(1) >= 0.5).float()
