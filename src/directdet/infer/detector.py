"""`Detector(path)`: a detector in one line of code, for notebooks and servers."""

from __future__ import annotations

from pathlib import Path

from directdet.infer.predictor import Predictor
from directdet.infer.runtimes.load import load


class Detector(Predictor):
    """A trained or exported model, ready to run: `Detector("ARTEFACT")(image_bgr)` returns `Detections`.

    `detect_batch(images)` takes several images. Any number of threads may use one detector at the same time, and each
    gets the results of its own images. ONNX Runtime works on several calls at once; OpenVINO, TensorRT and torch take
    them one after the other.

    Args:
        path, runtime, device, threads, precision: see `load`.

    Raises:
        UserError: there is no model at this path, it is broken, or the runtime cannot run it here.
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
