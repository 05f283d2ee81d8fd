"""PASCAL VOC's average precision at IoU 0.5: the 11-point rule of VOC 2007, and the area rule used since VOC 2010.

As in the VOC development kit, a detection is assigned to the object of its class with the highest IoU. It is a true
positive if that IoU is high enough and no detection with a higher score has matched the object; a second match is a
false positive. Detections on objects marked difficult are ignored, and those objects need not be found. Crowd regions,
which VOC does not have, are ignored by COCO's rule: a false positive with at least half of its area in one is ignored.

The kit counts both end pixels of a box and starts at 1; our boxes start at 0 and end after the last pixel. A VOC box
has the same side lengths in both, hence the same IoU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from directdet.data.records import Record
from directdet.infer.detections import Detections

OVERLAP = 0.5


@dataclass(frozen=True)
class VOCPrecision:
    """AP of each class by both rules, 0 to 1; -1 for a class without objects (other than difficult ones)."""

    eleven_point: list[float]
    area: list[float]

    def means(self) -> dict[str, float]:
        """mAP by both rules, over the classes that have objects; -1 if none has."""
        return {"mAP_11point": _mean(self.eleven_point), "mAP_area": _mean(self.area)}

    def per_class(self) -> dict[str, list[float]]:
        """The lists by the name of their rule."""
        return {"11point": self.eleven_point, "area": self.area}


def voc_precision(
    found: Iterable[tuple[int, Detections]], records: Iterable[Record], classes: int, overlap: float = OVERLAP
) -> VOCPrecision:
    """VOC AP of detections, given as (image id, detections with the dataset's labels, 0 to classes - 1).

    Args:
        found: at most one entry per image; an image without entry has no detections.
        records: the images that were processed; detections on others are left out.
        overlap: the least IoU of a match.
    """
    by_image = dict(found)
    objects, first = np.zeros(classes, np.int64), 0
    kinds = (np.float32, np.int64, bool, bool, np.int64)
    columns = [[np.zeros(0, kind)] for kind in kinds]  # score, label, hit, ignored, target
    for record in records:
        objects += np.bincount(record.labels[~(record.difficult | record.crowd)], minlength=classes)
        detections = by_image.get(record.image_id)
        if detections is not None and len(detections):
            hits, ignored, targets = _match(detections, record, overlap)
            rows = (detections.scores, detections.labels, hits, ignored, targets + first)
            for column, values in zip(columns, rows, strict=True):
                column.append(values)
        first += len(record.boxes)
    return _score(objects, *(np.concatenate(column) for column in columns))


def _match(detections: Detections, record: Record, overlap: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each detection on its own, regardless of the others, [K] each: (whether it matches an object that counts, whether
    it is ignored if it is not a match, the object with the highest IoU)."""
    count = len(detections)
    if not len(record.boxes):
        return np.zeros(count, bool), np.zeros(count, bool), np.zeros(count, np.int64)
    same = detections.labels[:, None] == record.labels[None]
    iou, covered = _overlaps(detections.boxes.astype(np.float64), record.boxes.astype(np.float64))
    iou = np.where(same & ~record.crowd, iou, -1.0)
    target = iou.argmax(axis=1)
    enough = iou[np.arange(count), target] >= overlap
    in_crowd = (same & record.crowd & (covered >= overlap)).any(axis=1)
    difficult = record.difficult[target]
    return enough & ~difficult, enough & difficult | in_crowd, target


def _overlaps(boxes: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[K, 4] and [G, 4] xyxy -> (IoU, the share of each box that the object covers), [K, G] both."""
    sides = np.minimum(boxes[:, None, 2:], objects[None, :, 2:]) - np.maximum(boxes[:, None, :2], objects[None, :, :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    areas, others = ((value[:, 2:] - value[:, :2]).prod(axis=-1) for value in (boxes, objects))
    tiny = np.finfo(np.float64).tiny  # a box without area has IoU 0
    return shared / np.maximum(areas[:, None] + others - shared, tiny), shared / np.maximum(areas[:, None], tiny)


def _score(
    objects: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    hits: np.ndarray,
    ignored: np.ndarray,
    targets: np.ndarray,
) -> VOCPrecision:
    """AP of each class from the detections of all images; `objects` [C] counts objects, `targets` numbers them."""
    order = np.argsort(-scores, kind="stable")  # equal scores keep the order of the images
    rows = order[hits[order]]
    best = np.zeros(len(order), bool)
    best[rows[np.unique(targets[rows], return_index=True)[1]]] = True  # the first match of each object
    order = order[(best | ~ignored)[order]]
    labels, best = labels[order], best[order]
    eleven_point, area = [], []
    for label, count in enumerate(objects.tolist()):
        right = np.cumsum(best[labels == label])
        eleven_point.append(_eleven_points(right, count) if count else -1.0)
        area.append(_area(right, count) if count else -1.0)
    return VOCPrecision(eleven_point, area)


def _envelope(right: np.ndarray) -> np.ndarray:
    """[n] true positives among the first detections -> the highest precision there or later, [n]."""
    return np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]


def _eleven_points(right: np.ndarray, count: int) -> float:
    """Mean of the highest precision at recall >= 0, 0.1, ..., 1; 0 where that recall is not reached."""
    # In integers, so that e.g. 3 of 10 reach recall 0.3 regardless of rounding.
    places = np.searchsorted(10 * right, np.arange(11) * count)
    return float(np.append(_envelope(right), 0.0)[places].sum() / 11)


def _area(right: np.ndarray, count: int) -> float:
    """The area under the precision-recall envelope."""
    return float((_envelope(right) * np.diff(right, prepend=0)).sum() / count)


def _mean(values: list[float]) -> float:
    kept = [value for value in values if value >= 0]
    return sum(kept) / len(kept) if kept else -1.0
