"""What a detector gets right and wrong on a dataset, beyond its AP: everything that a report shows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from directdet.data.records import Dataset, Record
from directdet.infer.accuracy.ap_difference import Found
from directdet.infer.accuracy.class_scores import ClassScores, class_scores
from directdet.infer.accuracy.confusion import confusion_matrix
from directdet.infer.accuracy.error_types import BACKGROUND, CLASS, NEAR, ErrorType, error_types, kinds, missed
from directdet.infer.accuracy.matches import Matches, match
from directdet.infer.accuracy.score_curves import (
    CalibrationBin,
    ScoreCurve,
    calibration,
    precision_by_recall,
    score_curve,
)

WORST, DOUBTS = 24, 24
CONFIDENT = 0.5  # the least score of a detection that makes a label doubtful, if the threshold is lower
FALLBACK = 0.5  # the threshold where none can be suggested


@dataclass(frozen=True)
class Case:
    """One detection or object in a picture.

    Attributes:
        picture: the place of the picture among the records.
        box: xyxy in pixels.
        label: of the detection or, if there is none, of the object.
        score: None of an object.
        instead: the object's label where the detection's differs.
    """

    picture: int
    box: tuple[float, float, float, float]
    label: int
    score: float | None = None
    instead: int | None = None


@dataclass(frozen=True)
class BadPicture:
    """A picture with errors: its place among the records, its wrong detections and missed objects."""

    picture: int
    wrong: int
    missed: int


@dataclass(frozen=True, eq=False)
class Analysis:
    """What a report shows of a detector on a dataset; everything at IoU 0.5, of boxes.

    Attributes:
        matches, kind: the matches, and the kind of each detection (`error_types.kinds`).
        threshold: the score with the best F1, or `FALLBACK` if nothing is found at any; `suggested` says which.
        overall, per_class: curves by score.
        class_scores: what thresholds of the classes gain, or None.
        precision: [C, 101], by recall; -1 for a class without objects.
        confusion: [C + 1, C + 1] at the threshold.
        errors: at the threshold, with what they cost.
        bins, calibration_error: how often detections are right by score.
        worst: pictures with the most errors at the threshold, at most `WORST`.
        unlabelled: confident detections with nothing near them; other_class: confident detections on an object of
            another class; unfound: objects that no detection of any score comes near, the largest first. At most
            `DOUBTS` each.
    """

    matches: Matches
    kind: np.ndarray
    threshold: float
    suggested: bool
    overall: ScoreCurve
    per_class: list[ScoreCurve]
    class_scores: ClassScores | None
    precision: np.ndarray
    confusion: np.ndarray
    errors: list[ErrorType]
    bins: list[CalibrationBin]
    calibration_error: float | None
    worst: list[BadPicture]
    unlabelled: list[Case]
    other_class: list[Case]
    unfound: list[Case]

    def to_dict(self, dataset: Dataset, records: Sequence[Record]) -> dict[str, Any]:
        """Plain values for JSON, with names of classes and pictures."""
        names = dataset.classes

        def case(one: Case) -> dict[str, Any]:
            instead = None if one.instead is None else names[one.instead]
            picture = {"image_id": records[one.picture].image_id, "file": records[one.picture].path.name}
            return {**picture, "box": list(one.box), "class": names[one.label], "score": one.score, "labelled": instead}

        return {
            "suggested": self.overall.suggestion,
            "suggested_per_class": dict(zip(names, (curve.suggestion for curve in self.per_class), strict=True)),
            "class_scores": self.class_scores and self.class_scores.to_dict(),
            "confusion": self.confusion.tolist(),
            "errors": [asdict(one) for one in self.errors],
            "calibration": {"error": self.calibration_error, "bins": [asdict(one) for one in self.bins]},
            "worst": [
                {"image_id": records[one.picture].image_id, "file": records[one.picture].path.name}
                | {"wrong": one.wrong, "missed": one.missed}
                for one in self.worst
            ],
            "doubtful_labels": {
                "nothing_labelled": [case(one) for one in self.unlabelled],
                "other_class": [case(one) for one in self.other_class],
                "never_found": [case(one) for one in self.unfound],
            },
        }


def analyse(found: Found, dataset: Dataset, records: Sequence[Record] | None = None) -> Analysis:
    """The analysis of detections, given as (image id, detections with the dataset's labels).

    Args:
        found: at most one entry per image; an image without entry has no detections.
        dataset: gives the classes. records: the images that were processed; None: all of the dataset.
    """
    records = dataset.records if records is None else records
    classes = len(dataset.classes)
    matches = match(found, records)
    kind = kinds(matches)
    overall = score_curve(matches, classes)
    threshold = FALLBACK if overall.threshold is None else overall.threshold
    bins, error = calibration(matches)
    confident = matches.score >= max(threshold, CONFIDENT)
    return Analysis(
        matches=matches,
        kind=kind,
        threshold=threshold,
        suggested=overall.threshold is not None,
        overall=overall,
        per_class=[score_curve(matches, classes, label) for label in range(classes)],
        class_scores=class_scores(matches, classes, [record.image_id for record in records]),
        precision=precision_by_recall(matches, classes),
        confusion=confusion_matrix(matches, classes, threshold),
        errors=error_types(matches, classes, threshold),
        bins=bins,
        calibration_error=error,
        worst=_worst(matches, kind, threshold),
        unlabelled=_detections(matches, confident & (kind == BACKGROUND) & (matches.touched < NEAR)),
        other_class=_detections(matches, confident & (kind == CLASS)),
        unfound=_unfound(matches),
    )


def _worst(matches: Matches, kind: np.ndarray, threshold: float) -> list[BadPicture]:
    """The most errors first; of equal ones, where most of what is there is wrong."""
    above = matches.score >= threshold
    lost = missed(matches, kind, above)
    size = 1 + max(matches.picture.max(initial=-1), matches.object_picture.max(initial=-1))
    wrong = np.bincount(matches.picture[above & (matches.target < 0)], minlength=size)
    left = np.bincount(matches.object_picture[lost], minlength=size)
    right = np.bincount(matches.picture[above & matches.correct], minlength=size)
    order = np.lexsort((right, -(wrong + left)))[:WORST]
    return [
        BadPicture(int(place), int(wrong[place]), int(left[place])) for place in order if wrong[place] + left[place]
    ]


def _detections(matches: Matches, rows: np.ndarray) -> list[Case]:
    """The highest scores first."""
    places = np.flatnonzero(rows)
    cases = []
    for place in places[np.argsort(-matches.score[places], kind="mergesort")][:DOUBTS]:
        other = int(matches.other_object[place])
        instead = (
            int(matches.object_label[other]) if matches.target[place] < 0 and matches.other[place] >= NEAR else None
        )
        where = int(matches.picture[place]), _corners(matches.box[place])
        cases.append(Case(*where, int(matches.label[place]), float(matches.score[place]), instead))
    return cases


def _unfound(matches: Matches) -> list[Case]:
    """Objects that count, without a detection of any class and score at IoU 0.1 or more."""
    near = np.zeros(len(matches.object_label), bool)
    near[matches.target[matches.target >= 0]] = True
    near[matches.same_object[matches.same >= NEAR]] = True
    near[matches.other_object[matches.other >= NEAR]] = True
    places = np.flatnonzero(matches.object_counts & ~near)
    boxes = matches.object_box[places]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return [
        Case(int(matches.object_picture[place]), _corners(matches.object_box[place]), int(matches.object_label[place]))
        for place in places[np.argsort(-area, kind="mergesort")][:DOUBTS]
    ]


def _corners(box: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in box)
    return x0, y0, x1, y1
