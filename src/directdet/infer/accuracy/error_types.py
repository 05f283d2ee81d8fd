"""What kind of error each wrong detection is, and what each kind costs: the definitions of TIDE (arXiv 2008.08115).

A detection that found nothing is, in this order: a localisation error if the IoU with an object of its class is at
least 0.1 but below 0.5; a class error if the IoU with an object of another class is at least 0.5; a duplicate if the
IoU with an object of its class that another detection found is at least 0.5; background if no IoU reaches 0.1; else
class and place are both wrong. An object is missed if no detection found it and no error of place or class is on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from directdet.infer.accuracy.matches import IOU, Matches
from directdet.infer.accuracy.score_curves import class_precision

NEAR = 0.1  # IoU
# Of a detection; RIGHT is also that of one that is ignored.
RIGHT, LOCALISATION, CLASS, BOTH, DUPLICATE, BACKGROUND = range(6)
ERRORS = {
    "localisation": LOCALISATION,
    "class": CLASS,
    "both": BOTH,
    "duplicate": DUPLICATE,
    "background": BACKGROUND,
}


@dataclass(frozen=True)
class ErrorType:
    """One kind of error.

    Attributes:
        name: a key of `ERRORS`, or "missed".
        count: errors among the detections above the threshold; of "missed", objects.
        costs: by how much AP50 (0 to 1) would rise if all of them, at any score, were mended: a wrong place or class
            put right (or removed where the object was found anyway), the other detections removed, missed objects left
            out. None without objects.
    """

    name: str
    count: int
    costs: float | None


def kinds(matches: Matches) -> np.ndarray:
    """The kind of each detection, int64 [D]: RIGHT, LOCALISATION, ..."""
    same, other = matches.same, matches.other
    wrong = matches.target < 0
    near = (same >= NEAR) & (same < IOU)
    nothing = np.maximum(same, other) < NEAR
    return np.select(
        [~wrong, near, other >= IOU, same >= IOU, nothing],
        [RIGHT, LOCALISATION, CLASS, DUPLICATE, BACKGROUND],
        BOTH,
    )


def missed(matches: Matches, kind: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The objects that the detections `rows` (bool [D]) missed, bool [G]; `kind` is the result of `kinds`."""
    left = matches.object_counts & ~matches.taken(rows)
    left[matches.same_object[rows & (kind == LOCALISATION)]] = False
    left[matches.other_object[rows & (kind == CLASS)]] = False
    return left


def error_types(matches: Matches, classes: int, threshold: float) -> list[ErrorType]:
    """How many errors of each kind there are above `threshold`, and what each kind costs."""
    kind, above = kinds(matches), matches.score >= threshold
    everything = np.ones(len(above), bool)
    counts, kept = matches.counts(classes), ~matches.ignored
    before = _mean_ap(matches.score[kept], matches.label[kept], matches.correct[kept], counts)

    def cost(after: float | None) -> float | None:
        return None if before is None or after is None else after - before

    found = []
    for name, number in ERRORS.items():
        rows = kind == number
        after = _mended(matches, rows & kept, counts, number)
        found.append(ErrorType(name, int((rows & above).sum()), cost(after)))
    lost = missed(matches, kind, everything)
    fewer = counts - np.bincount(matches.object_label[lost], minlength=classes)
    after = _mean_ap(matches.score[kept], matches.label[kept], matches.correct[kept], counts, fewer)
    return [*found, ErrorType("missed", int(missed(matches, kind, above).sum()), cost(after))]


def _mended(matches: Matches, rows: np.ndarray, counts: np.ndarray, number: int) -> float | None:
    """AP50 with the detections `rows`, all of this kind, mended."""
    right, label = matches.correct.copy(), matches.label.copy()
    kept = ~matches.ignored & ~rows
    if number in (LOCALISATION, CLASS):
        objects = matches.same_object if number == LOCALISATION else matches.other_object
        free = ~matches.taken(np.ones(len(rows), bool))
        places = np.flatnonzero(rows)
        places = places[free[objects[places]]]
        places = places[np.argsort(-matches.score[places], kind="mergesort")]
        places = places[np.unique(objects[places], return_index=True)[1]]  # the highest score of each object
        kept[places] = right[places] = True
        label[places] = matches.object_label[objects[places]]
    return _mean_ap(matches.score[kept], label[kept], right[kept], counts)


def _mean_ap(
    scores: np.ndarray, labels: np.ndarray, right: np.ndarray, counts: np.ndarray, fewer: np.ndarray | None = None
) -> float | None:
    """Mean AP50 of the classes with objects, None without any. `fewer`: the objects that are still to be found; a class
    that has none left has an AP of 1."""
    values = []
    for label in np.flatnonzero(counts):
        count = int((counts if fewer is None else fewer)[label])
        rows = labels == label
        values.append(class_precision(scores[rows], right[rows], count).mean() if count else 1.0)
    return float(np.mean(values)) if values else None
