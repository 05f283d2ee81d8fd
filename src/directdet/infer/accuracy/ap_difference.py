"""The AP of two detectors on the same pictures, and how far their difference goes with the choice of the pictures.

On few pictures the AP moves by a fifth of a point when two near-equal scores change places, so that no fixed limit is
right for every val set. The pictures themselves tell: they are drawn again with replacement, the same ones for both
sides, and the differences of the AP spread. What one picture does spreads as far as it moves the AP; what a wrong graph
does to many pictures in the same direction spreads far less than it moves the AP. (A paired bootstrap: Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from directdet.data.records import Dataset, Record
from directdet.infer.accuracy.coco_ap import evaluated
from directdet.infer.accuracy.score_curves import RECALLS
from directdet.infer.detections import Detections

DRAWS = 100
NORMAL_95 = 1.96  # standard deviations on either side of the mean that hold 95% of a normal distribution
LEAST = 10  # pictures: draws of fewer repeat each other so often that their spread says little
Found = Sequence[tuple[int, Detections]]
KINDS: dict[str, Literal["bbox", "segm"]] = {"box": "bbox", "mask": "segm"}  # pycocotools' names


@dataclass(frozen=True)
class Difference:
    """Two models' AP on the same pictures.

    Attributes:
        name: "box" or "mask", whose AP it is.
        one, other: the AP of each, 0 to 1; -1 without objects.
        spread: the standard deviation of their difference over draws of the pictures.
        pictures: how many there are.
    """

    name: str
    one: float
    other: float
    spread: float
    pictures: int

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "not told apart": whether the difference is beyond 95% of what the draws do to it."""
        difference = self.one - self.other
        if self.pictures < LEAST or abs(difference) <= NORMAL_95 * self.spread:
            return "not told apart"
        return "better" if difference > 0 else "worse"

    def words(self, one: str, other: str) -> str:
        """The verdict and its reasons in a sentence; `one` and `other` name the models."""
        if min(self.one, self.other) < 0:
            return f"{one} and {other} are not told apart: there are no objects"
        start = {"not told apart": f"{one} and {other} are not told apart by {self.pictures} pictures"}
        verdict = start.get(self.verdict, f"{one} is {self.verdict} than {other}, as {self.pictures} pictures tell")
        difference, reach = 100 * (self.one - self.other), 100 * NORMAL_95 * self.spread
        few = f"; fewer than {LEAST} never do" if self.pictures < LEAST else ""
        return (
            f"{verdict}{few}: {self.name} AP {100 * self.one:.1f} against {100 * self.other:.1f}, a difference of "
            f"{difference:+.1f} points, 95% interval {difference - reach:+.1f} to {difference + reach:+.1f}"
        )


def average_precisions(found: Found, dataset: Dataset, records: Sequence[Record]) -> dict[str, float]:
    """AP, 0 to 1 (-1 without objects), by "box" and, where detections and data have masks, "mask".

    Args:
        found: (image id, detections with the dataset's labels) of each record.
    """
    once = np.ones((1, len(records)))
    return {name: float(weighted_ap(found, dataset, records, name, once)[0]) for name in _kinds(dataset, found)}


def _kinds(dataset: Dataset, *sides: Found) -> list[str]:
    """What AP there is of all the sides' detections."""
    masks = dataset.has_masks and all(detections.masks is not None for side in sides for _, detections in side)
    return ["box", "mask"] if masks else ["box"]


def spread_of_difference(
    expected: Found, found: Found, dataset: Dataset, records: Sequence[Record], name: str
) -> float:
    """The standard deviation, over the draws of the pictures, of the difference of the AP by `name`, a key of KINDS."""
    drawn = drawn_pictures(len(records))
    ours, theirs = (weighted_ap(side, dataset, records, name, drawn) for side in (expected, found))
    return _spread(ours, theirs)


def _spread(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The standard deviation of the difference of two APs over the draws, of those that drew some object."""
    valid = ours >= 0
    return float(np.std((theirs - ours)[valid])) if valid.any() else 0.0


def compare(one: Found, other: Found, dataset: Dataset, records: Sequence[Record]) -> tuple[Difference, ...]:
    """The AP of two models on the same pictures, and whether these tell them apart: of boxes, and of masks if any."""
    weights = np.concatenate([np.ones((1, len(records))), drawn_pictures(len(records))])
    differences = []
    for name in _kinds(dataset, one, other):
        ours, theirs = (weighted_ap(side, dataset, records, name, weights) for side in (one, other))
        spread = _spread(ours[1:], theirs[1:])
        differences.append(Difference(name, float(ours[0]), float(theirs[0]), spread, len(records)))
    return tuple(differences)


def drawn_pictures(count: int) -> np.ndarray:
    """How often each of `count` pictures is drawn, [DRAWS, count]; always the same draws."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    return drawn.astype(np.float64)


def weighted_ap(
    found: Found, dataset: Dataset, records: Sequence[Record], name: str, weights: np.ndarray
) -> np.ndarray:
    """COCO's AP [B] for each row of `weights` [B, N], which say how often each picture counts; -1 without objects.

    hotcoco or pycocotools match detections with objects; only their last step, from matches to precision, is done
    here, as they have no weights.
    """
    place = {record.image_id: number for number, record in enumerate(records)}
    per_class = []
    for cells in evaluated(found, dataset, records, KINDS[name]):
        per_class.append(_class_ap([(place[cell["image_id"]], cell) for cell in cells], weights))
    values = np.stack(per_class)
    known = ~np.isnan(values)
    mean = np.where(known, values, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    return np.where(known.any(0), mean, -1.0)


def _class_ap(rows: list[tuple[int, dict]], weights: np.ndarray) -> np.ndarray:
    """AP [B] of one class, over its IoU thresholds; NaN where the drawn pictures have no object of it."""
    if not rows:
        return np.full(len(weights), np.nan)
    objects = np.zeros(len(weights))
    for number, cell in rows:
        objects += weights[:, number] * np.count_nonzero(np.asarray(cell["gtIgnore"]) == 0)
    scores = np.concatenate([cell["dtScores"] for _, cell in rows])
    order = np.argsort(-scores, kind="mergesort")
    picture = np.concatenate([np.full(len(cell["dtScores"]), number) for number, cell in rows])[order]
    matched = np.concatenate([cell["dtMatches"] for _, cell in rows], axis=1)[:, order] > 0
    ignored = np.concatenate([cell["dtIgnore"] for _, cell in rows], axis=1)[:, order].astype(bool)
    drawn = weights[:, picture]  # [B, D]
    found = np.zeros(len(weights))
    apart = np.arange(len(weights))[:, None] * (objects.max() + 2)  # in one search for all rows, more than is found
    needed = (_least_found(objects) + apart).ravel()
    for right, wrong in zip(matched & ~ignored, ~matched & ~ignored, strict=True):
        true, false = np.cumsum(drawn * right, axis=1), np.cumsum(drawn * wrong, axis=1)
        precision = true / np.maximum(true + false, np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        precision = np.append(precision, np.zeros((len(weights), 1)), axis=1)  # of recalls that are not reached
        places = np.searchsorted((true + apart).ravel(), needed).reshape(len(weights), -1)
        places -= true.shape[1] * np.arange(len(weights))[:, None]
        found += np.take_along_axis(precision, places, axis=1).mean(axis=1)
    return np.where(objects > 0, found / len(matched), np.nan)


def _least_found(objects: np.ndarray) -> np.ndarray:
    """How many of `objects` [B], whole numbers, must be found to reach each of RECALLS in floating point, [B, 101]."""
    count = np.maximum(objects, 1)[:, None]
    least = np.ceil(RECALLS * count)
    least -= (least - 1) / count >= RECALLS
    return least + (least / count < RECALLS)
