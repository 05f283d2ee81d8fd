"""Whether a score threshold for each class is better than one for all, decided on pictures that neither was fitted on.

The pictures are split in two halves. On each, the threshold for all and those of the classes are fitted, as those with
the best F1 of all and of the class, and F1 of all detections is taken on the other half. That is what the threshold for
all is best at, so that the comparison leans towards it: the mean of the classes' F1 would be what only one side was
fitted to, and would say little about what a user sees of frequent classes. Thresholds of classes that are alike differ
by chance and are mostly worse on the other half; `MARGIN` on both halves leaves few that are better by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from directdet.infer.accuracy.matches import Matches
from directdet.infer.accuracy.score_curves import score_curve

LEAST = 10  # objects in each half of a class that may have a threshold of its own
MARGIN = 0.01  # of F1, on each half


@dataclass(frozen=True)
class ClassScores:
    """Thresholds of the classes that have `LEAST` objects in each half, and what they gain.

    Attributes:
        scores: by label, fitted on all pictures; the other classes keep the one for all.
        f1, common_f1: F1 on each half, 0 to 1, with thresholds fitted on the other: with them, with the one for all.
    """

    scores: dict[int, float]
    f1: tuple[float, ...]
    common_f1: tuple[float, ...]

    @property
    def help(self) -> bool:
        """Whether they are better than the one for all by `MARGIN` or more, on both halves."""
        return all(own - common >= MARGIN for own, common in zip(self.f1, self.common_f1, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: whether they help, and F1 on the halves."""
        return {"help": self.help, "held_out_f1": {"common": list(self.common_f1), "per_class": list(self.f1)}}


def class_scores(matches: Matches, classes: int, image_ids: Sequence[int]) -> ClassScores | None:
    """The thresholds of the classes; None for a single class, or where none has enough objects or nothing is found.

    Args:
        image_ids: of the records that the matches count. In their order, every second one is in the second half.
    """
    second = np.argsort(np.argsort(image_ids)) % 2 == 1
    halves = matches.of(~second), matches.of(second)
    enough = np.flatnonzero(np.min([half.counts(classes) for half in halves], axis=0) >= LEAST)
    if classes < 2 or not len(enough):
        return None
    f1, common_f1 = [], []
    for own, other in (halves, halves[::-1]):
        common = score_curve(own, classes).threshold
        if common is None:
            return None
        least = np.full(classes, common)
        common_f1.append(_f1(other, least))
        for label, score in _fitted(own, classes, enough).items():
            least[label] = score
        f1.append(_f1(other, least))
    return ClassScores(_fitted(matches, classes, enough), tuple(f1), tuple(common_f1))


def suggested_score(matches: Matches, classes: Sequence[str], image_ids: Sequence[int]) -> dict[str, Any] | None:
    """What an artefact carries: `ScoreCurve.suggestion` and, where thresholds of the classes help, those by name as
    "per_class" and F1 on each half as "held_out_f1"; None where nothing is found. `image_ids`: see `class_scores`."""
    common, own = score_curve(matches, len(classes)).suggestion, class_scores(matches, len(classes), image_ids)
    if common is None or own is None or not own.help:
        return common
    per_class = {classes[label]: score for label, score in own.scores.items()}
    return {**common, "per_class": per_class, "held_out_f1": own.to_dict()["held_out_f1"]}


def _fitted(matches: Matches, classes: int, labels: np.ndarray) -> dict[int, float]:
    """The threshold with the best F1 of each class; none for one of which nothing is found."""
    found = {int(label): score_curve(matches, classes, int(label)).threshold for label in labels}
    return {label: score for label, score in found.items() if score is not None}


def _f1(matches: Matches, least: np.ndarray) -> float:
    """F1 of all detections with at least the score of their class, float64 [C]."""
    kept = ~matches.ignored & (matches.score >= least[matches.label])
    right = np.count_nonzero(kept & matches.correct)
    return 2 * right / max(np.count_nonzero(kept) + np.count_nonzero(matches.object_counts), 1)
