"""The losses of Cascade R-CNN, with static shapes: every stage has the same number of RoI slots.

Each stage samples from the refined boxes of the previous stage and the ground-truth boxes. Boxes that were refined from
a ground-truth box are excluded (as in mmdet), since that box itself is a candidate again.
"""

from functools import partial

from torch import Tensor

from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import RandomKeys, Targets, random_keys
from directdet.models.two_stage.cascade import STAGE_WEIGHTS, Cascade, refine
from directdet.models.two_stage.loss import (
    class_and_box_loss,
    sample_rois,
    sampled_mask_loss,
    training_proposals,
)
from directdet.models.two_stage.network import BOX_BINS
from directdet.models.two_stage.rpn import rpn_losses


def cascade_losses(
    model: Cascade, raw: RawMaps, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses by name (scalars to be summed), and counts to monitor (scalars without gradient).

    Losses: rpn_class, rpn_box and, for stages i = 1..3 and multiplied by the stage's weight, class<i>, box<i> and, with
    masks, mask<i>. Counts: positives, the positive RoIs sampled in stage 1; nms_undecided, see training_proposals; and
    mask_dropped, the positive RoIs of all stages that did not get a mask slot.
    """
    config = model.config
    losses = rpn_losses(config, raw, targets, draw)
    boxes, valid, undecided = training_proposals(config, raw, targets)
    counts: dict[str, Tensor] = {"nms_undecided": undecided}
    rows = model.rows(raw.features)
    for stage, weight in enumerate(config.stage_loss_weights):
        iou, name = config.stage_positive_ious[stage], stage + 1
        rois = sample_rois(config, boxes, valid, targets, iou, STAGE_WEIGHTS[stage], draw)
        logits, deltas = model.predict_boxes(stage, model.pool_batch(rows, rois.boxes, BOX_BINS))
        class_loss, regression = class_and_box_loss(logits, deltas, rois, config.smooth_l1_beta)
        losses |= {f"class{name}": weight * class_loss, f"box{name}": weight * regression}
        counts.setdefault("positives", rois.positive.sum())
        if config.masks:
            mask, dropped = sampled_mask_loss(model, rows, targets, rois, draw, partial(model.predict_masks, stage))
            losses[f"mask{name}"] = weight * mask
            counts["mask_dropped"] = counts.get("mask_dropped", 0) + dropped
        # No gradient flows through the boxes of the next stage.
        boxes, valid = refine(stage, rois.boxes, deltas.detach(), targets.sizes), rois.filled & ~rois.ground_truth
    return losses, counts
