"""`Detector(path)`: a detector in one line of code, for notebooks and servers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

from directdet.common.devices import device_name
from directdet.common.errors import UserError
from directdet.infer.detections import Detections
from directdet.infer.network_input import NetworkInput
from directdet.infer.pictures import Order, PictureLike, is_picture, to_array
from directdet.infer.predict.options import PredictOptions, Selection
from directdet.infer.predictor import Backend, Predictor
from directdet.infer.runtimes.load import load


class Detector(Predictor):
    """A trained or exported model, ready to run: `Detector("ARTEFACT")("photo.jpg")` returns `Detections`.

    Any number of threads may use one detector at the same time, and each gets the results of its own pictures. ONNX
    Runtime works on several calls at once; OpenVINO, TensorRT and torch take them one after the other. A detector is
    pickled by its path: another process opens the model anew. `close()`, or the end of a `with` block, gives back what
    it holds.

    Args:
        path, runtime, threads, precision: see `load`.
        device: see `load`; a number is the GPU of that number.

    Raises:
        UserError: there is no model at this path, it is broken, or the runtime cannot run it here.
    """

    def __init__(
        self,
        path: str | Path,
        runtime: str = "auto",
        device: str | int = "auto",
        threads: int | None = None,
        precision: str | None = None,
    ) -> None:
        place = device_name(device, "gpu") or str(device)  # what is none is refused by the runtime, in its own words
        parts = load(path, runtime, place, threads, precision)
        super().__init__(parts.backend, parts.preprocess, parts.classes, parts.category_ids, parts.source, parts.meta)
        self._opened = (os.path.abspath(path), runtime, place, threads, precision)

    @overload
    def __call__(
        self,
        image: PictureLike,
        *,
        score: float | Sequence[float] = 0.0,
        classes: Sequence[str] | None = None,
        order: Order = "bgr",
    ) -> Detections: ...
    @overload
    def __call__(
        self,
        image: list[Any] | tuple[Any, ...],
        *,
        score: float | Sequence[float] = 0.0,
        classes: Sequence[str] | None = None,
        order: Order = "bgr",
    ) -> list[Detections]: ...
    @overload
    def __call__(
        self,
        image: Iterable[PictureLike],
        *,
        score: float | Sequence[float] = 0.0,
        classes: Sequence[str] | None = None,
        order: Order = "bgr",
    ) -> Iterator[Detections]: ...
    def __call__(
        self,
        image: PictureLike | Iterable[PictureLike],
        *,
        score: float | Sequence[float] = 0.0,
        classes: Sequence[str] | None = None,
        order: Order = "bgr",
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Detect objects in a picture, a list of pictures, or as many as a generator gives.

        Args:
            image: the path of an image file, a file opened with mode "rb", a picture of PIL, or an array: uint8
                [h, w, 3], unless the model takes other channels. A list or tuple of such gives a list; a generator
                gives an iterator, which reads as many pictures ahead as the network takes in a batch. Photos in files
                are turned as a viewer shows them, and boxes are in the pixels of the turned photo; pixels of PIL and of
                arrays are taken as they are.
            score: leave out what has a lower score; one for all classes, or one for each. What the export found best is
                `usual_scores`. A model has a threshold of its own, below which it returns nothing.
            classes: names of the only classes to return; None: all.
            order: of the channels of an array, "bgr" as OpenCV reads it or "rgb".

        Raises:
            UserError: no picture, one that cannot be read, no such class, or the detector is closed; the message says
                what to give.
        """
        keep = PredictOptions(score, classes).selection(self)
        given: Any = image  # an open file is an Iterable as well
        if is_picture(given) or not isinstance(given, Iterable):
            return keep(super().__call__(to_array(given, self.preprocess, order)))
        found = self._each(given, keep, order)
        return list(found) if isinstance(image, (list, tuple)) else found

    def _each(self, pictures: Iterable[PictureLike], keep: Selection, order: Order) -> Iterator[Detections]:
        rest, size = iter(pictures), self._batch_size()
        while group := [to_array(picture, self.preprocess, order) for picture in islice(rest, size)]:
            yield from map(keep, self.detect_batch(group))

    def _batch_size(self) -> int:
        """The number of pictures that the network usually takes at once."""
        shapes = self.meta.get("shapes")
        batch = shapes.get("batch", {}) if isinstance(shapes, dict) else {}
        return self.backend.input.batch or int(batch.get("opt", 1))

    def close(self) -> None:
        """Give the model's memory and threads back. Calls that are running end as usual; later ones are refused."""
        backend = self.backend
        self.backend = _closed(backend, self.source)
        end = getattr(backend, "close", None)
        if end is not None:
            end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Detector, self._opened


def _closed(backend: Backend, source: str) -> Any:
    """What a detector has in the place of its network once it is closed."""
    return _Closed(backend.runtime, backend.info, source)


@dataclass(frozen=True)
class _Closed:
    runtime: str
    info: dict[str, Any]
    source: str

    @property
    def input(self) -> NetworkInput:
        raise UserError(f"{self.source}: this detector was closed; open it again with Detector(path)")
