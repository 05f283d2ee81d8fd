"""The region proposal network: its losses, and proposals selected by NMS and padded to a fixed number."""

import torch
import torch.nn.functional as F
from torch import Tensor

from directdet.models.parts.boxes import (
    best_first,
    box_loss,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    is_larger_than,
    nms_mask,
    sweep_boxes,
    take,
)
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import (
    RandomKeys,
    Targets,
    loss_normaliser,
    match_boxes,
    object_weights,
    sample,
    usable_anchors,
    weigh,
)
from directdet.models.two_stage.config import TwoStageConfig
from directdet.models.two_stage.network import RPN_WEIGHTS

MIN_SIDE = 1e-3  # pixels
TRAINING_BLOCK = 256
SUPPRESSED = -1e9  # below any logit


def propose(
    raw: RawMaps,
    sizes: Tensor,
    pre_nms: int,
    count: int,
    threshold: float,
    single_nms: bool,
    wait: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Proposals of a batch: boxes [N, count, 4], best first, which of them are valid [N, count], and `undecided`.

    There are fewer than `count` columns if there are fewer anchors. Boxes that are not valid are zero.

    Args:
        sizes: [N, 2], height and width to clip boxes to.
        pre_nms: boxes per level that enter NMS.
        threshold: IoU of NMS, which runs within each level.
        single_nms: pad all levels to the same length and run NMS once: a smaller graph, used for export. Otherwise run
            it level by level in blocks, which is faster for the numbers of boxes in training.
        wait: False: NMS may leave boxes undecided where it would make a GPU wait; `undecided`, a scalar, is their
            number. See `sweep_boxes`.
    """
    boxes, scores, large, start = [], [], [], 0
    for number in raw.level_sizes:
        stop, kept = start + number, min(pre_nms, number)
        score, index = best_first(raw.logits[:, start:stop], kept)
        box = decode_boxes(take(raw.deltas[:, start:stop], index), raw.anchors[start:stop][index], RPN_WEIGHTS)
        box = clip_boxes(box, sizes)
        boxes.append(box)
        scores.append(score)
        large.append(is_larger_than(box, MIN_SIDE))
        start = stop
    if single_nms:
        keep, undecided = _single_nms(boxes, large, threshold), torch.zeros((), device=sizes.device)
    else:
        levels = [
            sweep_boxes(b, v, threshold, block=TRAINING_BLOCK, wait=wait) for b, v in zip(boxes, large, strict=True)
        ]
        keep, undecided = torch.cat([k for k, _ in levels], 1), torch.stack([u for _, u in levels]).sum()
    all_boxes = torch.cat(boxes, 1)
    # Ranked by logit, not by probability: confident probabilities all round to 1, and the order of ties is arbitrary.
    score = torch.where(keep, torch.cat(scores, 1), SUPPRESSED)
    score, index = best_first(score, min(count, score.shape[1]))
    valid = score > SUPPRESSED
    return (
        torch.where(valid.unsqueeze(-1), take(all_boxes, index), 0.0),
        valid,
        undecided,
    )  # not a product: 0 * NaN is NaN


def _single_nms(boxes: list[Tensor], valid: list[Tensor], threshold: float) -> Tensor:
    """NMS of all levels at once, each level a batch row padded to the longest -> mask [N, sum of lengths]."""
    longest, images = max(b.shape[1] for b in boxes), boxes[0].shape[0]
    stacked = torch.stack([F.pad(b, (0, 0, 0, longest - b.shape[1])) for b in boxes], 1).flatten(0, 1)
    filled = torch.stack([F.pad(v, (0, longest - v.shape[1])) for v in valid], 1).flatten(0, 1)
    keep = nms_mask(stacked, filled, threshold).reshape(images, len(boxes), longest)
    return torch.cat([keep[:, level, : b.shape[1]] for level, b in enumerate(boxes)], 1)


def rpn_losses(config: TwoStageConfig, raw: RawMaps, targets: Targets, draw: RandomKeys) -> dict[str, Tensor]:
    """The losses rpn_class and rpn_box, scalars, of sampled anchors."""
    with torch.no_grad():
        anchors = raw.anchors.expand(targets.boxes.shape[0], -1, -1)  # [N, A, 4]
        objects, assigned = match_boxes(
            anchors,
            targets,
            config.rpn_positive_iou,
            config.rpn_negative_iou,
            config.rpn_min_positive_iou,
            usable_anchors(anchors, targets, config.cross_border_anchors),
        )
        positives = int(config.rpn_samples * config.rpn_positive_fraction)
        index, filled, positive = sample(assigned, config.rpn_samples, positives, draw)
        objects = take(objects, index)
        matched, weights = take(targets.boxes, objects), object_weights(targets, objects, positive)
        delta_targets = encode_boxes(matched, raw.anchors[index], RPN_WEIGHTS)
        count = loss_normaliser(filled)
    class_loss = F.binary_cross_entropy_with_logits(take(raw.logits, index), positive.float(), reduction="none")
    class_loss = weigh(class_loss, weights)
    regression = weigh(box_loss(take(raw.deltas, index), delta_targets, config.rpn_smooth_l1_beta), weights)
    return {"rpn_class": (class_loss * filled).sum() / count, "rpn_box": (regression * positive).sum() / count}
