"""Post-processing shared by all deployed detectors: from candidates to a fixed number of detections.

A deployed detector is a module for one input size that turns normalised images [N, 3, H, W] into detections; evaluation
during training runs the same module. Its operations have static shapes and need no plugins: no NonMaxSuppression,
RoiAlign, NonZero or If. A Loop lets NMS go on where more than a few sweeps are needed.

With K = config.detections (or the number of candidates, if smaller), the outputs are

    num [N, 1] int32: number of detections; later rows are zero
    boxes [N, K, 4]: xyxy in pixels of the canvas, best detection first
    scores [N, K]
    labels [N, K] int32: 0..C-1
    masks [N, K, 28, 28], if the detector has masks: probabilities inside each box
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from directdet.models.parts.boxes import best_first, is_larger_than, nms_mask, take

MIN_SIDE = 1e-2  # pixels; smaller detections are dropped, as in torchvision
OUTPUTS = ("num", "boxes", "scores", "labels", "masks")


class Looping(nn.Module):
    """A deployed form with work that follows the number of detections.

    Attributes:
        loops: its exported graph does that work in a loop, not for as many detections as there is room for.
    """

    loops = False


class HasThresholds(Protocol):
    """The part of every detector's configuration that post-processing uses."""

    @property
    def masks(self) -> bool: ...

    @property
    def score_threshold(self) -> float: ...

    @property
    def nms(self) -> float: ...

    @property
    def detections(self) -> int: ...


def output_names(config: HasThresholds) -> tuple[str, ...]:
    """Names of the outputs of a deployed detector with this configuration, in order."""
    return OUTPUTS if config.masks else OUTPUTS[:-1]


def select_detections(
    config: HasThresholds, boxes: Tensor, scores: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """NMS per class, then the best K = config.detections.

    Clipped boxes [N, M, 4], scores [N, M] and labels [N, M], best first -> the same with K instead of M columns;
    columns without a detection have score 0.
    """
    return select_rows(config, boxes, scores, labels)[:3]


def select_rows(
    config: HasThresholds, boxes: Tensor, scores: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`select_detections`, and which of the M each of the K is, int64 [N, K]; of no meaning where the score is 0."""
    valid = (scores > config.score_threshold) & is_larger_than(boxes, MIN_SIDE)
    keep = nms_mask(boxes, valid, config.nms, labels)
    scores, index = best_first(torch.where(keep, scores, -1.0), min(config.detections, scores.shape[1]))
    chosen = scores > 0
    boxes = take(boxes, index) * chosen.unsqueeze(-1)
    return boxes, scores.clamp(min=0), torch.where(chosen, take(labels, index), 0), index


def pack_detections(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of `select_detections` as the outputs num, boxes, scores and labels."""
    return (scores > 0).sum(1, keepdim=True, dtype=torch.int32), boxes, scores, labels.to(torch.int32)


def log_odds(logits: Tensor) -> Tensor:
    """log(p / (1 - p)) of the softmax p of logits [..., C], to rank by and, through a sigmoid, to score with.

    Confident probabilities all round to 1, so that the order of equal ones would decide which box survives NMS, and
    runtimes order them differently. 1 - p is summed from the other classes, as the difference would round to 0 as well.
    """
    top = logits.amax(-1, keepdim=True)
    is_top = logits == top
    terms = torch.exp(logits - top)
    ties = is_top.to(logits.dtype).sum(-1, keepdim=True)
    rest = torch.where(is_top, 0.0, terms).sum(-1, keepdim=True)
    others = torch.where(is_top, rest + (ties - 1), rest + ties - terms)
    return (logits - top) - torch.log(others.clamp(min=torch.finfo(logits.dtype).tiny))


def best_pairs(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best (anchor, class) pairs of logits [N, A, C]: their logits, anchors and classes [N, K], best first.

    K is `count`, or A * C if there are fewer pairs. Pairs are ranked by logit, not by probability, because confident
    probabilities all round to 1. The best `count` pairs belong to the `count` anchors with the highest maximum, so two
    small top-k replace a large one (80 classes at 800x1344: twelve million pairs). This also keeps the pair indices
    small enough for exact division, which is done in float32 in an exported graph.
    """
    anchors, classes = logits.shape[1:]
    _, index = best_first(logits.amax(-1), min(count, anchors))
    logits, pair = best_first(take(logits, index).flatten(1), min(count, index.shape[1] * classes))
    row = torch.div(pair, classes, rounding_mode="floor")
    return logits, take(index, row), pair - row * classes
