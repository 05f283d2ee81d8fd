"""`Detector(path)`: a detector in one line, for notebooks and servers."""

from __future__ import annotations

from pathlib import Path

from directdet.infer.predictor import Predictor
from directdet.infer.runtimes.load import load


class Detector(Predictor):
    """A trained or exported model, ready: `Detector("ARTEFACT")(image_bgr)` gives `Detections`.

    `detect_batch(images)` takes several images. One detector serves one thread at a time.

    Args:
        path, runtime, device, threads, precision: as `load` takes them.

    Raises:
        UserError: there is nothing to load, it is broken, or the runtime cannot run it here.
    """

    def __init__(
        self,
        path: str | Path,
        runtime: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        precision: str | None = None,
    ) -> None:
        parts = load(path, runtime, device, threads, precision)
        super().__init__(parts.backend, parts.preprocess, parts.classes, parts.category_ids, parts.source, parts.meta)
