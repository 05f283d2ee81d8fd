"""What to detect and what to write, for images and videos alike."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from directdet.common.errors import UsageProblem, UserError
from directdet.common.text import shown
from directdet.infer.detections import Detections
from directdet.infer.predictor import Predictor

ResultsFormat = Literal["coco", "jsonl", "dataset"]
_NAMED = 5  # classes whose scores are told one by one


@dataclass(frozen=True)
class PredictOptions:
    """Settings that `predict` and `predict_video` share.

    Attributes:
        score: detections with a lower score are left out; one for all classes, or one for each of the detector's.
        classes: names of the only classes to detect, at least one; None: all.
        batch: images per batch; None: what the network takes, or 1. Live video always has 1.
        pictures: also write the annotated images or video.
        upright: turn pictures as their EXIF orientation says, as viewers show them. Pictures of a dataset are
            taken as stored, because its annotations count the stored pixels, or as its dataset.toml says.
        results: "coco" (one COCO file), "jsonl" (JSON lines), or for images "dataset" (pseudo-labels, which training
            takes); None: "coco" for images, "jsonl" for videos.

    Raises:
        UsageProblem: a value is out of range or not known.
    """

    score: float | Sequence[float] = 0.0
    classes: Sequence[str] | None = None
    batch: int | None = None
    pictures: bool = True
    upright: bool = True
    results: ResultsFormat | None = None

    def __post_init__(self) -> None:
        for score in np.atleast_1d(self.score).tolist():
            if not 0 <= score <= 1:
                raise UsageProblem(f"score: {score}; give a number from 0 to 1")
        if self.batch is not None and self.batch < 1:
            raise UsageProblem(f"batch: {self.batch}; give at least 1")
        if isinstance(self.classes, str):
            raise UsageProblem(f"classes: {self.classes!r}; give a list of names")
        if self.classes is not None and not len(self.classes):
            raise UsageProblem("classes: no names; give at least one, or None for all")
        if self.results not in (None, *get_args(ResultsFormat)):
            raise UsageProblem(f"results: {self.results!r}; choose from {', '.join(get_args(ResultsFormat))}")

    def selection(self, detector: Predictor) -> Selection:
        """The detections of this detector to keep.

        Raises:
            UsageProblem: the detector has no class of this name, or not as many classes as there are scores.
        """
        count = len(detector.classes)
        if np.ndim(self.score) and np.size(self.score) != count:
            raise UsageProblem(f"score: {np.size(self.score)} numbers for {count} classes; give one, or {count}")
        if self.classes is None:
            return Selection(self.score)
        labels = []
        for name in self.classes:
            if name not in detector.classes:
                near = difflib.get_close_matches(name, detector.classes, n=1, cutoff=0.5)
                known = ", ".join(detector.classes[:10]) + (" ..." if len(detector.classes) > 10 else "")
                hint = f"did you mean {near[0]!r}?" if near else f"this model has {known}"
                raise UsageProblem(f"classes: no class {name!r}; {hint}")
            labels.append(detector.classes.index(name))
        return Selection(self.score, tuple(labels))

    def batch_size(self, detector: Predictor) -> int:
        """Images per batch for this detector.

        Raises:
            UserError: the network does not take that many.
        """
        network = detector.backend.input
        limit = network.batch or network.max_batch
        if self.batch is not None and limit is not None and self.batch > limit:
            raise UserError(
                f"batch: {self.batch}; {detector.source} takes {limit} at most; export it with a larger batch"
            )
        return self.batch or network.batch or 1


@dataclass(frozen=True)
class Selection:
    """Keeps the detections with at least ``score``, one for all or one for each label, and, unless it is None, one of
    the ``labels``."""

    score: float | Sequence[float] = 0.0
    labels: tuple[int, ...] | None = None

    def __call__(self, found: Detections) -> Detections:
        return found.above(self.score, self.labels)

    def words(self, classes: Sequence[str]) -> str:
        """The score as text, the classes of these names: "0.3", or "0.4 (cat), 0.7 (dog)"."""
        scores = np.atleast_1d(self.score)
        if not np.ndim(self.score):
            return f"{scores[0]:g}"
        labels = range(len(classes)) if self.labels is None else self.labels
        if len(labels) > _NAMED:
            chosen = scores[list(labels)]
            return f"{chosen.min():g} to {chosen.max():g}, one for each class"
        return ", ".join(f"{scores[label]:g} ({shown(classes[label])})" for label in labels)
