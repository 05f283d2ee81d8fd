"""A loaded network with its preprocessing and classes: images in, detections out, in any runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from directdet.common.errors import UserError
from directdet.data.formats.values import is_number
from directdet.infer.decode import check_raw, to_detections
from directdet.infer.detections import Detections
from directdet.infer.network_input import NetworkInput
from directdet.infer.pictures import check_picture
from directdet.infer.preprocess import Placement, Preprocess

USUAL_SCORE = 0.3  # the least score to keep where nothing says what suits the model


def _is_score(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


class Backend(Protocol):
    """One loaded network.

    Attributes:
        runtime: its name, a key of `runtimes.names.TITLES`.
        info: what actually runs: at least provider, device, precision, versions.
        input: the input it takes.
    """

    runtime: str
    info: dict[str, Any]
    input: NetworkInput

    def run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """Run a batch: returns num, boxes, scores, labels[, masks] once they are on the host.

        Any number of threads may call it at the same time, so whatever its calls share is its own matter.
        """
        ...


@runtime_checkable
class AnySizeBackend(Backend, Protocol):
    """A network that is not built for one size of its input."""

    def at_size(self, size: tuple[int, int]) -> Backend:
        """The network with the same weights for inputs of `size` (height, width); ValueError if it takes no such."""
        ...


class Predictor:
    """A network with its preprocessing and class names: images in, `Detections` out."""

    def __init__(
        self,
        backend: Backend,
        preprocess: Preprocess,
        classes: Sequence[str],
        category_ids: Sequence[int],
        source: str = "model",
        meta: dict[str, Any] | None = None,
    ) -> None:
        self.backend = backend
        self.preprocess = preprocess
        self.classes = tuple(classes)
        self.category_ids = tuple(int(number) for number in category_ids)
        self.source = source
        self.meta = meta or {}
        canvas = backend.input.canvas
        if preprocess.fixed and canvas is not None and canvas != tuple(preprocess.size):
            raise UserError(
                f"{source}: the network takes {canvas[0]}x{canvas[1]} pixels (H x W), but its preprocessing gives "
                f"{preprocess.size[0]}x{preprocess.size[1]}; export again"
            )

    def at_scale(self, scale: float) -> Predictor:
        """This detector, of the same weights, with pictures `scale` times as large on its canvas; itself at scale 1.

        Raises:
            UserError: the network takes one size, or none such.
        """
        if scale == 1:
            return self
        if not isinstance(self.backend, AnySizeBackend):
            raise UserError(f"{self.source}: scale {scale:g}: this model takes one size; give the run or a checkpoint")
        preprocess, backend = self.preprocess.at_scale(scale), self.backend
        if preprocess.fixed:
            try:
                backend = self.backend.at_size(preprocess.size)
            except ValueError as error:
                raise UserError(f"{self.source}: scale {scale:g}: {error}") from None
        return Predictor(backend, preprocess, self.classes, self.category_ids, self.source, self.meta)

    @property
    def suggested_score(self) -> float | None:
        """The least score to keep that the export found best; None where it found none."""
        score = self._suggested("score")
        return float(score) if _is_score(score) else None

    @property
    def usual_score(self) -> float:
        """The least score to keep unless another is asked for: the suggested one, else `USUAL_SCORE`."""
        return USUAL_SCORE if self.suggested_score is None else self.suggested_score

    @property
    def usual_scores(self) -> float | tuple[float, ...]:
        """`usual_score`, or one for each class where the export found that better: as a `score`, what to keep unless
        another is asked for."""
        own = self._suggested("per_class")
        scores = own if isinstance(own, dict) and self.suggested_score is not None else {}
        scores = {name: float(score) for name, score in scores.items() if name in self.classes and _is_score(score)}
        return tuple(scores.get(name, self.usual_score) for name in self.classes) if scores else self.usual_score

    def _suggested(self, name: str) -> Any:
        """A value of meta.json's suggested_score, unchecked; None without."""
        suggested = self.meta.get("suggested_score")
        return suggested.get(name) if isinstance(suggested, dict) else None

    @property
    def runtime(self) -> str:
        """Name of the runtime: onnxruntime, openvino, tensorrt, tensorrt-rtx or torch."""
        return self.backend.runtime

    @property
    def info(self) -> dict[str, Any]:
        """What actually runs: provider, device, precision, threads, library versions."""
        return self.backend.info

    def describe(self) -> dict[str, Any]:
        """Plain values for reports."""
        return {
            "source": self.source,
            "runtime": self.runtime,
            **self.info,
            "size": [int(edge) for edge in self.preprocess.size],
            "fixed_size": self.preprocess.fixed,
            "batch": self.backend.input.batch,
            "max_batch": self.backend.input.max_batch,
            "input": self.backend.input.dtype,
            "classes": len(self.classes),
            "recipe": self.meta.get("recipe"),
        }

    def run(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the network alone.

        Args:
            batch: the result of `prepare`. If the network needs more images, it is filled up with blank ones, whose
                results are discarded.

        Returns:
            num int32 [B, 1], boxes float32 [B, K, 4] in canvas pixels, scores [B, K], labels int32 [B, K] and, for mask
            models, masks float32 [B, K, 28, 28].

        Raises:
            UserError: the network does not take this size or returns something unexpected.
        """
        network, count = self.backend.input, len(batch)
        if batch.dtype != network.dtype:
            raise UserError(f"{self.source}: the network takes {network.dtype}, got {batch.dtype}; use prepare()")
        canvas = network.canvas_of(batch)
        if network.canvas is not None and network.canvas != canvas:
            raise UserError(
                f"{self.source}: the network takes {network.canvas[0]}x{network.canvas[1]} pixels (H x W), "
                f"got {canvas[0]}x{canvas[1]}"
            )
        if network.max_batch is not None and count > network.max_batch:
            sizes = f"batches of {'' if network.batch else 'up to '}{network.max_batch}"
            raise UserError(f"{self.source}: the network takes {sizes}, got {count}; use a smaller batch")
        if count < network.min_batch:
            blank = np.zeros((network.min_batch - count, *batch.shape[1:]), batch.dtype)
            batch = np.concatenate([batch, blank])
        outputs = check_raw(self.backend.run(np.ascontiguousarray(batch)), len(batch), self.source)
        return outputs if len(batch) == count else tuple(value[:count] for value in outputs)

    def prepare(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, list[Placement]]:
        """The network's input for images, and their placements; all images must get the same canvas.

        The batch is float32 [B, C, H, W], normalised, or uint8 [B, H, W, C] if the network's graph normalises.

        Raises:
            UserError: one of them is no such image.
            ValueError: the images get canvases of different sizes.
        """
        for image in images:
            check_picture(image, self.preprocess)
        shapes = {self.preprocess.canvas(self.preprocess.place(*image.shape[:2])) for image in images}
        if len(shapes) != 1:
            raise ValueError(f"these images get canvases of different sizes {sorted(shapes)}; prepare them one by one")
        batch = self.backend.input.empty(len(images), shapes.pop())
        prepare = self.preprocess.letterbox if self.backend.input.channels_last else self.preprocess
        return batch, [prepare(image, out=row)[1] for image, row in zip(images, batch, strict=True)]

    def __call__(self, image: np.ndarray) -> Detections:
        """Detect objects in one image, uint8 [h, w, 3] BGR as OpenCV reads it, or as the model's own format says.

        Raises:
            UserError: it is something else, such as a path, None, or an empty crop; the message says what to give.
        """
        batch, placements = self.prepare([image])
        return self.decode(self.run(batch), 0, placements[0])

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detections of each image, in order. Consecutive images with the same canvas share a batch if possible."""
        found: list[Detections] = []
        for group in self._groups(images):
            batch, placements = self.prepare(group)
            raw = self.run(batch)
            found.extend(self.decode(raw, index, placement) for index, placement in enumerate(placements))
        return found

    def decode(self, raw: Sequence[np.ndarray], index: int, placement: Placement) -> Detections:
        """`to_detections`, with errors that name this model."""
        try:
            found = to_detections(raw, index, placement)
        except UserError as error:
            raise UserError(f"{self.source}: {error}") from None
        if len(found) and int(found.labels.max()) >= len(self.classes):
            raise UserError(f"{self.source}: label {found.labels.max()}, but {len(self.classes)} classes; export again")
        found.classes, found.category_ids = self.classes, self.category_ids
        return found

    def _groups(self, images: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Groups of consecutive images with the same canvas, no larger than the network's maximum batch."""
        groups: list[list[np.ndarray]] = []
        last, limit = None, self.backend.input.max_batch
        for image in images:
            check_picture(image, self.preprocess)
            shape = self.preprocess.canvas(self.preprocess.place(*image.shape[:2]))
            full = limit is not None and groups and len(groups[-1]) >= limit
            if shape != last or full:
                groups.append([])
            groups[-1].append(image)
            last = shape
        return groups
