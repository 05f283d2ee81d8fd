"""The training criterion of Cascade R-CNN, static in shape: every stage has as many RoI slots as the first.

Each stage samples among the boxes that the one before it made of its own sample, and the objects' boxes. Where an
object's box was sampled, what was made of it is left out (as in mmdet): the box itself is among the candidates again.
"""

from functools import partial

from torch import Tensor

from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import RandomKeys, Targets, random_keys
from directdet.models.two_stage.cascade import STAGE_WEIGHTS, Cascade, refine
from directdet.models.two_stage.loss import (
    class_and_box_loss,
    pool_sampled,
    sample_rois,
    sampled_mask_loss,
    training_proposals,
)
from directdet.models.two_stage.rpn import rpn_losses


def cascade_losses(
    model: Cascade, raw: RawMaps, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses by name (scalars to be added up), and counts to watch (scalars without gradient).

    Losses: rpn_class, rpn_box and, for each stage i of 1..3 and already times its weight, class<i>, box<i> and, with
    masks, mask<i>. Counts: positives, the positive RoIs that stage 1 sampled in the batch, and mask_dropped, how many
    of all stages' found no mask slot.
    """
    config = model.config
    losses = rpn_losses(config, raw, targets, draw)
    boxes, real = training_proposals(config, raw, targets)
    counts: dict[str, Tensor] = {}
    for stage, weight in enumerate(config.stage_loss_weights):
        iou, name = config.stage_positive_ious[stage], stage + 1
        rois = sample_rois(config, boxes, real, targets, iou, STAGE_WEIGHTS[stage], draw)
        logits, deltas = model.boxes_of(stage, pool_sampled(model, raw, rois))
        class_loss, regression = class_and_box_loss(logits, deltas, rois, config.smooth_l1_beta)
        losses |= {f"class{name}": weight * class_loss, f"box{name}": weight * regression}
        counts.setdefault("positives", rois.positive.sum())
        if config.masks:
            mask, missed = sampled_mask_loss(model, raw, targets, rois, draw, partial(model.masks_of, stage))
            losses[f"mask{name}"] = weight * mask
            counts["mask_dropped"] = counts.get("mask_dropped", 0) + missed
        # Boxes are chosen, not learnt, so nothing flows back through them.
        boxes, real = refine(stage, rois.boxes, deltas.detach(), targets.sizes), rois.filled & ~rois.own
    return losses, counts
