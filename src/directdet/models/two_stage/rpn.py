"""Region proposals: their losses, and the best boxes of every level, thinned by NMS and padded to a fixed number."""

import torch
import torch.nn.functional as F
from torch import Tensor

from directdet.models.parts.boxes import (
    box_loss,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    is_larger_than,
    nms_mask,
    pairwise_iou,
    take,
)
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import RandomKeys, Targets, match, sample, shared_count
from directdet.models.two_stage.config import TwoStageConfig
from directdet.models.two_stage.network import RPN_WEIGHTS

MIN_SIDE = 1e-3  # pixels
TRAINING_BLOCK = 256
NOT_KEPT = -1e9  # below any logit


def propose(
    raw: RawMaps, sizes: Tensor, pre_nms: int, count: int, threshold: float, one_graph: bool
) -> tuple[Tensor, Tensor]:
    """Proposals of a batch: boxes [N, count, 4], best first, and which of them are real [N, count]; fewer than `count`
    columns if there are not so many anchors. Rows that are not real are zero.

    sizes [N, 2]: height and width to clip to. With one_graph the levels are padded to pre_nms and thinned in a single
    NMS, the smaller graph, which is exported; otherwise level by level in blocks, faster for training's numbers.
    """
    boxes, scores, valid, start = [], [], [], 0
    for number in raw.level_sizes:
        stop, kept = start + number, min(pre_nms, number)
        score, index = torch.topk(raw.logits[:, start:stop], kept, dim=1)
        box = decode_boxes(take(raw.deltas[:, start:stop], index), raw.anchors[start:stop][index], RPN_WEIGHTS)
        box = clip_boxes(box, sizes)
        boxes.append(box)
        scores.append(score)
        valid.append(is_larger_than(box, MIN_SIDE))
        start = stop
    if one_graph:
        keep = _thin_together(boxes, valid, threshold)
    else:
        keep = torch.cat(
            [nms_mask(b, v, threshold, block=TRAINING_BLOCK) for b, v in zip(boxes, valid, strict=True)], 1
        )
    all_boxes = torch.cat(boxes, 1)
    # Ranked by logit, not by probability: confident ones all round to 1, and ties are broken by chance.
    score = torch.where(keep, torch.cat(scores, 1), NOT_KEPT)
    score, index = torch.topk(score, min(count, score.shape[1]), dim=1)
    real = score > NOT_KEPT
    return torch.where(real.unsqueeze(-1), take(all_boxes, index), 0.0), real  # not a product: 0 * NaN is NaN


def _thin_together(boxes: list[Tensor], valid: list[Tensor], threshold: float) -> Tensor:
    """NMS of all levels at once: each level one row of a batch, padded to the longest -> mask [N, sum of lengths]."""
    longest, images = max(b.shape[1] for b in boxes), boxes[0].shape[0]
    stacked = torch.stack([F.pad(b, (0, 0, 0, longest - b.shape[1])) for b in boxes], 1).flatten(0, 1)
    filled = torch.stack([F.pad(v, (0, longest - v.shape[1])) for v in valid], 1).flatten(0, 1)
    keep = nms_mask(stacked, filled, threshold).reshape(images, len(boxes), longest)
    return torch.cat([keep[:, level, : b.shape[1]] for level, b in enumerate(boxes)], 1)


def rpn_losses(config: TwoStageConfig, raw: RawMaps, targets: Targets, draw: RandomKeys) -> dict[str, Tensor]:
    """The losses rpn_class and rpn_box of sampled anchors."""
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
        count = shared_count(filled)
    class_loss = F.binary_cross_entropy_with_logits(take(raw.logits, index), positive.float(), reduction="none")
    regression = box_loss(take(raw.deltas, index), wanted, config.rpn_smooth_l1_beta)
    return {"rpn_class": (class_loss * filled).sum() / count, "rpn_box": (regression * positive).sum() / count}
