"""The detections of several looks at one picture, put together: of tiles, sizes, and the mirrored picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from directdet.data.formats.values import is_number
from directdet.infer.detections import Detections

COVERED = 0.5  # the share of a cut box that another has to cover to stand for it
NMS = 0.5  # the IoU of boxes of one object in two looks, where the model has no threshold of its own


def joined(found: Sequence[Detections]) -> Detections:
    """The detections of all, one after the other."""

    def all_of(name: str) -> np.ndarray:
        return np.concatenate([getattr(one, name) for one in found])

    with_masks = {"masks": all_of("masks"), "mask_boxes": all_of("mask_boxes")} if found[0].masks is not None else {}
    return replace(found[0], boxes=all_of("boxes"), scores=all_of("scores"), labels=all_of("labels"), **with_masks)


def merged(found: Detections, cut: np.ndarray, nms: float, slack: float = 0.0) -> Detections:
    """One detection an object, of those of all looks in pixels of the picture; the highest scores first.

    Whole boxes suppress each other as in NMS, by score. A cut box gives way to a box of its class that covers most of
    it, the largest of the cut ones last; that box then has the higher of both scores, since the tile saw more than the
    whole picture shows.

    Args:
        cut: bool [K, 2], boxes that end at an inner edge of their tile: at its left or right, at its top or bottom.
        nms: the IoU above which the lower of two whole boxes is left out.
        slack: what covers a cut box counts as larger by so many pixels on both sides across which the box is cut: the
            whole picture is coarse, and without it a strip that a tile cuts off a large object would stay.
    """
    boxes, labels = found.boxes.astype(np.float64), found.labels
    scores = found.scores.astype(np.float64).copy()
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    is_cut = np.asarray(cut.any(axis=1))
    order = np.lexsort((np.where(is_cut, -areas, -scores), is_cut))
    more = np.concatenate([-slack * cut, slack * cut], axis=1)
    kept: list[int] = []
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        # What is kept of this class, in front; large pictures have tens of thousands of boxes.
        taken, there, count = np.empty_like(rows), np.empty((len(rows), 4), order="F"), 0
        for row in rows.tolist():
            others = there[:count]
            common = _common(boxes[row], others)
            if not is_cut[row]:
                covered = common > nms * (areas[row] + areas[taken[:count]] - common)
            else:
                covered = _common(boxes[row], others + more[row]) >= COVERED * areas[row]
                if covered.any():  # by the slack, also by what only stands beside it
                    best = taken[np.argmax(np.where(covered, common, -1.0))]
                    scores[best] = max(scores[best], scores[row])
            if not covered.any():
                taken[count], there[count] = row, boxes[row]
                count += 1
        kept += taken[:count].tolist()
    best_first = np.array(sorted(kept, key=lambda row: -scores[row]), np.int64)
    return replace(found[best_first.tolist()], scores=scores[best_first].astype(np.float32))


def _common(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The areas that a box [4] has in common with others [K, 4]."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return np.maximum(width, 0) * np.maximum(height, 0)


def nms_of(meta: dict[str, Any]) -> float:
    """The model's own threshold, as an artefact ("thresholds") or a checkpoint has it; else `NMS`."""
    for part in (meta.get("thresholds"), meta.get("model_config")):
        value = part.get("nms") if isinstance(part, dict) else None
        if is_number(value) and 0 <= value <= 1:
            return float(value)
    return NMS
