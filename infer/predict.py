"""Detect on images, folders and patterns: annotated pictures and one detections.json."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from ..errors import UserError
from ..files import require_writable, write_bytes_atomic, write_json_atomic
from .draw import draw
from .runtimes import Detector
from .sources import find_images, read_bgr

RESULTS_FILE = "detections.json"


@dataclass
class PredictSummary:
    """What `predict` did.

    Attributes:
        n_images: images detected on.
        n_detections: detections written.
        failures: one line for each image that could not be read; those were skipped.
        seconds: wall time.
        out: the folder written to.
        results_file: the JSON file in it.
    """

    n_images: int
    n_detections: int
    seconds: float
    out: Path
    results_file: Path
    failures: list[str] = field(default_factory=list)


def predict(
    detector: Detector,
    source: str | Path,
    out: str | Path,
    score: float = 0.0,
    pictures: bool = True,
    progress: bool = True,
) -> PredictSummary:
    """Detect on every image of `source` and write the results into the folder `out`.

    `out` gets the annotated pictures under the images' own names (subfolders kept) and `detections.json`: a COCO file
    with "images" (id, file_name, width, height), "categories", and "annotations" in COCO's results format (image_id,
    category_id, bbox, score, segmentation), best first within each image.

    Args:
        source: see `sources.find_images`.
        score: detections below it are left out.
        pictures: write the annotated pictures too.
        progress: show a progress bar.

    Raises:
        UserError: no images or none that can be read; `out` cannot be written, or holds the source images, which
            would be overwritten. A broken image among good ones is only reported and skipped.
    """
    paths = find_images(source)
    out = Path(out)
    require_writable(out, folder=True)
    names = _output_names(paths)
    if pictures:
        _refuse_overwriting(paths, [out / name for name in names], out)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    failures: list[str] = []
    console = Console(stderr=True)
    start = time.perf_counter()
    hidden = not (progress and console.is_terminal)  # a bar that vanishes leaves an empty line in a log file
    steps = track(
        zip(paths, names, strict=True), "detecting", len(paths), console=console, transient=True, disable=hidden
    )
    for number, (path, name) in enumerate(steps, start=1):
        try:
            image = read_bgr(path)
        except UserError as error:
            failures.append(str(error))
            # Among others a broken image is worth a line of its own; if it is the only one, the error below says it.
            if len(paths) > 1:
                console.print(f"skipped: {error}", style="yellow", markup=False, highlight=False, soft_wrap=True)
            continue
        found = detector(image).above(score)
        height, width = image.shape[:2]
        images.append({"id": number, "file_name": path.as_posix(), "width": width, "height": height})
        annotations.extend(found.to_coco(number, detector.category_ids))
        if pictures:
            write_bytes_atomic(out / name, _encode(draw(image, found, detector.classes), name))
    if not images:
        raise UserError(failures[0] if len(paths) == 1 else f"{source}: none of its {len(paths)} images can be read")
    pairs = zip(detector.category_ids, detector.classes, strict=True)
    categories = [{"id": category, "name": name} for category, name in pairs]
    content = {"images": images, "categories": categories, "annotations": annotations}
    results_file = write_json_atomic(out / RESULTS_FILE, content, indent=None)
    seconds = time.perf_counter() - start
    return PredictSummary(len(images), len(annotations), seconds, out, Path(results_file), failures)


def _output_names(paths: list[Path]) -> list[Path]:
    """Relative names that keep files of the same name in different folders apart."""
    resolved = [path.absolute() for path in paths]
    root = Path(os.path.commonpath([path.parent for path in resolved]))
    return [path.relative_to(root) for path in resolved]


def _refuse_overwriting(sources: list[Path], targets: list[Path], out: Path) -> None:
    inputs = {path.resolve() for path in sources}
    clash = next((target for target in targets if target.resolve() in inputs), None)
    if clash is not None:
        raise UserError(f"{out}: would overwrite the source image {clash.name}; choose another output folder")


def _encode(image: np.ndarray, name: Path) -> bytes:
    """The picture in the format its name asks for."""
    done, content = cv2.imencode(name.suffix.lower(), image)
    if not done:
        raise UserError(f"{name}: this OpenCV cannot write {name.suffix}; convert the image first")
    return content.tobytes()
