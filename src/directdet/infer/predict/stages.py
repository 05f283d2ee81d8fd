"""The stages that images and videos share: prepare, device, draw."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from directdet.common.errors import UserError
from directdet.infer.detections import Detections
from directdet.infer.predictor import Predictor
from directdet.infer.preprocess import Placement


@dataclass
class Shot:
    """One picture on its way through the stages.

    Attributes:
        source: the caller's own: a path, a frame.
        image: uint8 [h, w, 3] BGR, or None where it could not be read.
        found, crops: the objects in it and their masks in its pixels, once "decode" has run.
        line: what is to be written about it.
        picture: the annotated image, or its bytes in a file.
    """

    source: Any
    image: np.ndarray | None
    found: Detections | None = None
    crops: list[tuple[int, int, np.ndarray]] | None = None
    line: dict[str, Any] = field(default_factory=dict)
    picture: Any = None


@dataclass
class Group:
    """Pictures that go through the network together, in order."""

    shots: list[Shot]
    placements: list[Placement] = field(default_factory=list)
    batch: Any = None
    raw: Sequence[np.ndarray] = ()

    @property
    def readable(self) -> list[Shot]:
        """Those with an image."""
        return [shot for shot in self.shots if shot.image is not None]


@dataclass(frozen=True)
class Selection:
    """Which detections are wanted: a least score and, where `labels` is not None, some classes."""

    score: float = 0.0
    labels: tuple[int, ...] | None = None

    def __call__(self, found: Detections) -> Detections:
        """The wanted ones."""
        return found.above(self.score, self.labels)


def select(detector: Predictor, score: float = 0.0, classes: Sequence[str] | None = None) -> Selection:
    """The detections of at least `score`, of `classes` by name (None: all).

    Raises:
        UserError: the detector knows no class of this name.
    """
    if classes is None:
        return Selection(score)
    labels = []
    for name in classes:
        if name not in detector.classes:
            near = difflib.get_close_matches(name, detector.classes, n=1, cutoff=0.5)
            known = ", ".join(detector.classes[:10]) + (" ..." if len(detector.classes) > 10 else "")
            hint = f"did you mean {near[0]!r}?" if near else f"this model knows {known}"
            raise UserError(f"classes: no class {name!r}; {hint}")
        labels.append(detector.classes.index(name))
    return Selection(score, tuple(labels))


def batch_size(detector: Predictor, wanted: int | None) -> int:
    """Images per batch: what was asked for, else what the network takes.

    Raises:
        UserError: the network does not take so many.
    """
    backend = detector.backend
    limit = backend.batch or getattr(backend, "max_batch", None)
    if wanted is not None and limit is not None and wanted > limit:
        raise UserError(f"batch: {wanted}; {detector.source} takes {limit} at most; export it with a larger batch")
    return wanted or backend.batch or 1


def grouped(shots: Iterable[Shot], detector: Predictor, size: int) -> Iterator[Group]:
    """Neighbours whose images get the same canvas, at most `size` together; those without an image go along.

    A group is given as soon as it is full, and what is there when `shots` fails is given before its error.
    """
    group: list[Shot] = []
    canvas = None
    try:
        for shot in shots:
            if shot.image is not None:
                mine = detector.preprocess.canvas(detector.preprocess.place(*shot.image.shape[:2]))
                if canvas not in (None, mine):
                    yield Group(group)
                    group = []
                canvas = mine
            group.append(shot)
            if len(group) >= size:
                yield Group(group)
                group, canvas = [], None
    except Exception:
        if group:
            yield Group(group)
        raise
    if group:
        yield Group(group)


def detection_stages(
    detector: Predictor,
    selection: Selection,
    note: Callable[[Shot], None],
    finish: Callable[[Shot], None],
) -> list[tuple[str, Callable[[Group], Group]]]:
    """Stages of `pipeline.run_pipeline` for `Group`s: prepare, device, decode, draw.

    Args:
        note: called in "decode" for each shot whose objects were `found`, to make its results of them.
        finish: called in "draw" after that, to draw and encode.
    """

    def prepare(group: Group) -> Group:
        if readable := group.readable:
            group.batch, group.placements = detector.prepare([shot.image for shot in readable])
        return group

    def device(group: Group) -> Group:
        if group.placements:
            group.raw = detector.run(group.batch)
            group.batch = None
        return group

    def decode(group: Group) -> Group:
        for index, shot in enumerate(group.readable):
            shot.found = selection(detector.decode(group.raw, index, group.placements[index]))
            shot.crops = shot.found.mask_crops()
            note(shot)
        group.raw = ()
        return group

    def draw(group: Group) -> Group:
        for shot in group.readable:
            finish(shot)
        return group

    return [("prepare", prepare), ("device", device), ("decode", decode), ("draw", draw)]


def coco_categories(detector: Predictor) -> list[dict[str, Any]]:
    """COCO's list of the detector's classes."""
    pairs = zip(detector.category_ids, detector.classes, strict=True)
    return [{"id": category, "name": name} for category, name in pairs]


@contextlib.contextmanager
def one_opencv_thread(detector: Predictor) -> Iterator[None]:
    """OpenCV works in one thread where the network runs on the processor's cores: the two would fight over them."""
    before = cv2.getNumThreads()
    if str(detector.info.get("device", "cpu")).lower().startswith("cpu"):
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
