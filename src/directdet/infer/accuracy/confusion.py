"""Which class is taken for which: the confusion matrix of a detector at a score threshold."""

from __future__ import annotations

import numpy as np

from directdet.infer.accuracy.matches import IOU, Matches, box_iou


def confusion_matrix(matches: Matches, classes: int, threshold: float) -> np.ndarray:
    """int64 [C + 1, C + 1]: rows are the objects' classes, columns those of the detections of at least `threshold`.

    The last row is background: detections that found nothing; the last column objects that nothing found. First
    detections find objects of their own class by COCO's rules, so that the diagonal holds the true positives. Those
    left then take, highest score first, the object of another class that is left and has the highest IoU, if that is at
    least 0.5. Objects that do not count, and what found them, are left out.
    """
    above = matches.score >= threshold
    table = np.zeros((classes + 1, classes + 1), np.int64)
    right = above & matches.correct
    np.add.at(table, (matches.label[right], matches.label[right]), 1)
    free = matches.object_counts & ~matches.taken(above)
    objects = _by_picture(matches.object_picture)
    left = np.flatnonzero(above & (matches.target < 0))
    for row in left[np.argsort(-matches.score[left], kind="mergesort")]:
        near = objects.get(int(matches.picture[row]), left[:0])
        near = near[free[near] & (matches.object_label[near] != matches.label[row])]
        iou = box_iou(matches.box[row][None], matches.object_box[near], np.zeros(len(near), bool))[0]
        if iou.max(initial=0.0) >= IOU:
            chosen = near[iou.argmax()]
            free[chosen] = False
            table[matches.object_label[chosen], matches.label[row]] += 1
        else:
            table[classes, matches.label[row]] += 1
    table[:classes, classes] += np.bincount(matches.object_label[free], minlength=classes)
    return table


def _by_picture(pictures: np.ndarray) -> dict[int, np.ndarray]:
    """The places of each picture's rows; they are next to each other."""
    numbers, starts = np.unique(pictures, return_index=True)
    order = np.argsort(starts)
    groups = np.split(np.arange(len(pictures)), starts[order][1:])
    return dict(zip(numbers[order].tolist(), groups, strict=False))
