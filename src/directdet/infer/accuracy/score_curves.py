"""Precision, recall and F1 by score at IoU 0.5, the score threshold that suits, and whether scores say how often they
are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from directdet.infer.accuracy.matches import Matches

RECALLS = np.linspace(0.0, 1.0, 101)  # of COCO's precision
SCORES = np.arange(1, 1000) / 1000  # the thresholds that are tried: short numbers, to be typed
BINS = 10


@dataclass(frozen=True, eq=False)
class ScoreCurve:
    """What is right and found at each threshold of `SCORES`, at IoU 0.5.

    Attributes:
        precision, recall, f1: float64 [len(SCORES)], 0 to 1; a precision of nothing is 1. F1 is 0 without objects.
        best: the place of the best F1, in the middle of the widest range of thresholds that reach it; None where no
            threshold finds anything.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    best: int | None

    @property
    def threshold(self) -> float | None:
        """The suggested score threshold, or None."""
        return None if self.best is None else float(SCORES[self.best])

    @property
    def suggestion(self) -> dict[str, float] | None:
        """The suggested threshold as "score", and the precision, recall and f1 that it gives, or None."""
        if self.best is None:
            return None
        values = {"score": SCORES, "precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {name: float(value[self.best]) for name, value in values.items()}


@dataclass(frozen=True)
class CalibrationBin:
    """Detections with scores from `low` on: how many, their mean score, and the share of them that is right."""

    low: float
    detections: int
    mean_score: float
    right: float


def class_precision(scores: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """COCO's interpolated precision [101] at `RECALLS`.

    Args:
        scores, right: float [n] and bool [n] of the detections that are not ignored; equal scores stay in their order.
        count: objects, at least 1.
    """
    right = right[np.argsort(-scores, kind="mergesort")]
    true, false = np.cumsum(right, dtype=np.float64), np.cumsum(~right, dtype=np.float64)
    precision = true / (true + false + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return at_recalls(precision, true / count)


def at_recalls(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """The precision [101] at which each of `RECALLS` is reached, 0 where it is not, from both [n] by score."""
    return np.append(precision, 0.0)[np.searchsorted(recall, RECALLS, side="left")]


def precision_by_recall(matches: Matches, classes: int) -> np.ndarray:
    """Precision [C, 101] of each class at `RECALLS` and IoU 0.5; -1 for classes without objects."""
    counts, kept = matches.counts(classes), ~matches.ignored
    right = matches.correct
    table = np.full((classes, len(RECALLS)), -1.0)
    for label in np.flatnonzero(counts):
        rows = kept & (matches.label == label)
        table[label] = class_precision(matches.score[rows], right[rows], int(counts[label]))
    return table


def score_curve(matches: Matches, classes: int, label: int | None = None) -> ScoreCurve:
    """The curve of one class, or of all objects and detections together."""
    rows, counts = ~matches.ignored, matches.counts(classes)
    if label is not None:
        rows = rows & (matches.label == label)
    count = int(counts.sum() if label is None else counts[label])
    scores = matches.score[rows]
    found = len(scores) - np.searchsorted(np.sort(scores), SCORES)
    hits = matches.score[rows & matches.correct]
    right = len(hits) - np.searchsorted(np.sort(hits), SCORES)
    f1 = 2 * right / np.maximum(found + count, 1)
    recall = right / count if count else np.zeros(len(SCORES))
    return ScoreCurve(np.where(found > 0, right / np.maximum(found, 1), 1.0), recall, f1, _best(f1))


def _best(f1: np.ndarray) -> int | None:
    """The middle of the widest range of places that have the highest value; None if that is 0."""
    if f1.max() <= 0:
        return None
    places = np.flatnonzero(f1 == f1.max())
    widest = max(np.split(places, np.flatnonzero(np.diff(places) > 1) + 1), key=len)
    return int(widest[(len(widest) - 1) // 2])


def calibration(matches: Matches) -> tuple[list[CalibrationBin], float | None]:
    """Bins of the score that have detections, and the expected calibration error: the mean distance of score and share,
    weighted by detections; None without any. (Kueppers et al., arXiv 2004.13546, by the score alone.)"""
    kept = ~matches.ignored
    scores, right = matches.score[kept], matches.correct[kept]
    places = np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)
    bins = []
    for place in np.unique(places):
        rows = places == place
        mean, share = float(scores[rows].mean()), float(right[rows].mean())
        bins.append(CalibrationBin(float(place / BINS), int(rows.sum()), mean, share))
    if not bins:
        return [], None
    return bins, sum(one.detections * abs(one.mean_score - one.right) for one in bins) / len(scores)
