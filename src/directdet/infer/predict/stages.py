"""The pipeline stages that images and videos share: prepare, device, decode, draw."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import cv2
import numpy as np

from directdet.infer.detections import Detections
from directdet.infer.predict.options import Selection
from directdet.infer.predictor import Predictor
from directdet.infer.preprocess import Placement
from directdet.infer.tiled import TiledDetector

Source = TypeVar("Source")  # where an image comes from: a path, a frame


@dataclass
class Item(Generic[Source]):
    """One image on its way through the stages.

    Attributes:
        source: where the image comes from.
        image: uint8 [h, w, 3] BGR, or None where it could not be read.
        found, crops: the objects in it and their masks in its pixels, once "decode" has run.
        line: the results to be written.
        annotated: the image with its detections drawn, uint8 [h, w, 3] BGR.
        encoded: the same as the bytes of an image file.
        stream: which of several videos it is of.
    """

    source: Source
    image: np.ndarray | None
    found: Detections | None = None
    crops: list[tuple[int, int, np.ndarray]] | None = None
    line: dict[str, Any] = field(default_factory=dict)
    annotated: np.ndarray | None = None
    encoded: bytes | None = None
    stream: int = 0


@dataclass
class Batch(Generic[Source]):
    """Images that go through the network together, in order."""

    items: list[Item[Source]]
    placements: list[Placement] = field(default_factory=list)
    inputs: np.ndarray | None = None
    outputs: Sequence[np.ndarray] = ()

    @property
    def readable(self) -> list[tuple[Item[Source], np.ndarray]]:
        """The items that could be read, each with its image."""
        return [(item, item.image) for item in self.items if item.image is not None]


def make_batches(items: Iterable[Item[Source]], detector: Predictor, size: int) -> Iterator[Batch[Source]]:
    """Batches of at most `size` consecutive items whose images get the same canvas; unreadable ones are included.

    A batch is yielded as soon as it is full, and an incomplete one before an error of `items` is passed on.
    """
    batch: list[Item[Source]] = []
    canvas = None
    try:
        for item in items:
            if item.image is not None:
                own = detector.preprocess.canvas(detector.preprocess.place(*item.image.shape[:2]))
                if canvas not in (None, own):
                    yield Batch(batch)
                    batch = []
                canvas = own
            batch.append(item)
            if len(batch) >= size:
                yield Batch(batch)
                batch, canvas = [], None
    except Exception:
        if batch:
            yield Batch(batch)
        raise
    if batch:
        yield Batch(batch)


def detection_stages(
    detector: Predictor,
    selection: Selection,
    describe: Callable[[Item[Source], np.ndarray, Detections], None],
    finish: Callable[[Item[Source], np.ndarray, Detections], None],
) -> list[tuple[str, Callable[[Batch[Source]], Batch[Source]]]]:
    """Stages of `pipeline.run_pipeline` for batches: prepare (not of tiles, which are many), device, decode, draw.

    Args:
        describe: called in "decode" for each readable item, its image and its objects, to write the item's `line`.
        finish: called in "draw", likewise, to draw and encode.
    """

    def tiled(batch: Batch[Source]) -> Batch[Source]:
        for item, image in batch.readable:
            item.found = detector(image)
        return batch

    def prepare(batch: Batch[Source]) -> Batch[Source]:
        if readable := batch.readable:
            batch.inputs, batch.placements = detector.prepare([image for _, image in readable])
        return batch

    def device(batch: Batch[Source]) -> Batch[Source]:
        if batch.inputs is not None:
            batch.outputs = detector.run(batch.inputs)
            batch.inputs = None
        return batch

    def decode(batch: Batch[Source]) -> Batch[Source]:
        for index, (item, image) in enumerate(batch.readable):
            if item.found is None:
                item.found = detector.decode(batch.outputs, index, batch.placements[index])
            found = selection(item.found)
            item.found, item.crops = found, found.mask_crops()
            describe(item, image, found)
        batch.outputs = ()
        return batch

    def draw(batch: Batch[Source]) -> Batch[Source]:
        for item, image in batch.readable:
            if item.found is not None:
                finish(item, image, item.found)
        return batch

    last = [("decode", decode), ("draw", draw)]
    if isinstance(detector, TiledDetector):
        return [("device", tiled), *last]
    return [("prepare", prepare), ("device", device), *last]


def coco_categories(detector: Predictor) -> list[dict[str, Any]]:
    """The detector's classes as COCO's list of categories."""
    pairs = zip(detector.category_ids, detector.classes, strict=True)
    return [{"id": category, "name": name} for category, name in pairs]


@contextlib.contextmanager
def one_opencv_thread(detector: Predictor) -> Iterator[None]:
    """Limit OpenCV to one thread if the network runs on the CPU, where the two would compete for the cores."""
    before = cv2.getNumThreads()
    if str(detector.info.get("device", "cpu")).lower().startswith("cpu"):
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
