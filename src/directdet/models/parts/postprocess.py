"""The end that every deployed detector shares: candidates in, so many detections out.

A deployed detector is a module for one input size, from normalised images [N, 3, H, W] to detections; evaluation while
training runs this same module. Its operations have static shapes and need no plugin: no NonMaxSuppression, RoiAlign,
NonZero, If or Loop. Its outputs are num [N, 1] int32 and, for K = config.detections (or fewer if there are not so many
candidates), boxes [N, K, 4] in pixels of the canvas, scores [N, K], labels [N, K] int32 (0..C-1) and, with masks, masks
[N, K, 28, 28], probabilities inside each box. Best first; rows from num on are zero.
"""

from typing import Protocol

import torch
from torch import Tensor

from directdet.models.parts.boxes import is_larger_than, nms_mask, take

MIN_SIDE = 1e-2  # pixels; smaller detections are dropped, as in torchvision
OUTPUTS = ("num", "boxes", "scores", "labels", "masks")


class HasThresholds(Protocol):
    """The settings of every detector's configuration that decide about detections."""

    @property
    def masks(self) -> bool: ...

    @property
    def score_threshold(self) -> float: ...

    @property
    def nms(self) -> float: ...

    @property
    def detections(self) -> int: ...


def output_names(config: HasThresholds) -> tuple[str, ...]:
    """Names of what a deployed detector of this configuration returns, in order."""
    return OUTPUTS if config.masks else OUTPUTS[:-1]


def choose(config: HasThresholds, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """NMS within each class: clipped boxes [N, M, 4], scores [N, M] and labels [N, M], best first, to the best K.

    Rows that are not detections have score 0.
    """
    valid = (scores > config.score_threshold) & is_larger_than(boxes, MIN_SIDE)
    keep = nms_mask(boxes, valid, config.nms, labels)
    scores, index = torch.topk(torch.where(keep, scores, -1.0), min(config.detections, scores.shape[1]), dim=1)
    chosen = scores > 0
    boxes = take(boxes, index) * chosen.unsqueeze(-1)
    return boxes, scores.clamp(min=0), torch.where(chosen, take(labels, index), 0)


def packed(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `choose` returned as num, boxes, scores, labels."""
    return (scores > 0).sum(1, keepdim=True, dtype=torch.int32), boxes, scores, labels.to(torch.int32)


def best_pairs(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best (anchor, class) pairs of logits [N, A, C]: their logits, anchors and classes [N, K], best first.

    K is `count`, or A * C if there are no more pairs. Ranked by logit, not by probability: confident ones all round
    to 1. The best `count` pairs lie within the `count` anchors of the best single pairs, so that two small top-k do
    for a large one (80 classes at 800x1344: twelve million pairs). That also keeps the pairs' numbers where the
    division is exact: exported, it is one of float32.
    """
    anchors, classes = logits.shape[1:]
    _, index = torch.topk(logits.amax(-1), min(count, anchors), dim=1)
    logits, pair = torch.topk(take(logits, index).flatten(1), min(count, index.shape[1] * classes), dim=1)
    row = torch.div(pair, classes, rounding_mode="floor")
    return logits, take(index, row), pair - row * classes
