"""Detect on images, folders and patterns: annotated pictures, and a COCO file or JSON lines. Any number of images."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console

from directdet.common.errors import UserError
from directdet.common.files import require_writable, write_bytes_atomic, write_pieces_atomic
from directdet.infer.draw import draw
from directdet.infer.predict.pipeline import PipelineResult, run_pipeline
from directdet.infer.predict.progress import counting
from directdet.infer.predict.sources import Images, find_images, read_bgr
from directdet.infer.predict.stages import (
    Group,
    Shot,
    batch_size,
    coco_categories,
    detection_stages,
    grouped,
    one_opencv_thread,
    select,
)
from directdet.infer.predict.writers import LinesWriter, read_lines, write_coco
from directdet.infer.predictor import Predictor

RESULTS_FILES = {"coco": "detections.json", "jsonl": "detections.jsonl"}
PART_FILE = "detections.part.jsonl"  # what is done so far; its first line says with which settings
_FAILURES_KEPT = 100


@dataclass
class PredictSummary:
    """What `predict` did.

    Attributes:
        n_images: images detected on, those of an earlier, resumed run included.
        n_detections: detections written.
        seconds: wall time.
        out: the folder written to.
        results_file: the JSON file in it.
        n_skipped: images that could not be read.
        n_resumed: images that an earlier run had been through.
        failures: one line for each of the first 100 images that could not be read.
        pipeline: times of the stages.
    """

    n_images: int
    n_detections: int
    seconds: float
    out: Path
    results_file: Path
    n_skipped: int = 0
    n_resumed: int = 0
    failures: list[str] = field(default_factory=list)
    pipeline: PipelineResult = field(default_factory=PipelineResult)


def predict(
    detector: Predictor,
    source: str | Path,
    out: str | Path,
    score: float = 0.0,
    pictures: bool = True,
    progress: bool = True,
    classes: Sequence[str] | None = None,
    results: str = "coco",
    batch: int | None = None,
    resume: bool = False,
) -> PredictSummary:
    """Detect on every image of `source` and write the results into the folder `out`.

    `out` gets the annotated pictures under the images' own names (subfolders kept) and the results. `detections.json`
    is a COCO file with "images" (id, file_name, width, height), "categories", and "annotations" in COCO's results
    format (image_id, category_id, bbox, score, segmentation), best first within each image. `detections.jsonl` has a
    line for each image: image_id, file_name, width, height, and these annotations as "detections"; of an image that
    could not be read, "error" instead. Memory does not grow with the number of images.

    While it runs, results are in `detections.part.jsonl`; after an interrupt, `resume` goes on from there.

    Args:
        source: see `sources.find_images`.
        score: detections below it are left out.
        pictures: write the annotated pictures too.
        progress: show a progress bar.
        classes: names of the only classes wanted.
        results: "coco" or "jsonl".
        batch: images per batch; None: what the network takes, or 1.
        resume: go on with what an interrupted run of the same settings left in `out`.

    Raises:
        UserError: no images or none that can be read; `out` cannot be written, holds an interrupted run, or holds the
            source images, which would be overwritten. A broken image among good ones is only reported and skipped.
    """
    start = time.perf_counter()
    images = find_images(source)
    out = Path(out)
    selection, size = select(detector, score, classes), batch_size(detector, batch)
    require_writable(out, folder=True)
    if pictures:
        _refuse_overwriting(images, out)
    is_new = not out.exists()
    console = Console(stderr=True)
    settings = {"model": detector.source, "source": str(source), "score": score, "pictures": pictures}
    settings |= {"classes": None if classes is None else sorted(classes)}
    summary = PredictSummary(0, 0, 0.0, out, out / RESULTS_FILES[results])
    journal = _Journal(out / PART_FILE, settings, images, resume, summary)
    with journal, one_opencv_thread(detector), counting("detecting", len(images), console, progress) as advance:
        advance(summary.n_resumed)

        def write(group: Group) -> None:
            for shot in group.shots:
                if shot.picture is not None:
                    write_bytes_atomic(out / images.name(shot.source[1]), shot.picture)
                journal.add(shot.line)
                # Among others a broken image is worth a line of its own; the only one gets it below.
                if "error" in shot.line and len(images) > 1:
                    console.print(f"skipped: {shot.line['error']}", style="yellow", markup=False, soft_wrap=True)
            advance(len(group.shots))

        def finish(shot: Shot) -> None:
            if pictures:
                drawn = draw(shot.image, shot.found, detector.classes, crops=shot.crops)
                shot.picture = _encode(drawn, images.name(shot.source[1]))
            shot.image = shot.crops = None

        shots = _read(images, summary.n_resumed)
        stages = detection_stages(detector, selection, lambda shot: _note(shot, detector), finish)
        summary.pipeline = run_pipeline(grouped(shots, detector, size), stages, write)
    done = summary.n_images + summary.n_skipped
    if summary.pipeline.failure is None and not summary.pipeline.interrupted:
        if not summary.n_images:
            journal.remove(folder_too=is_new)
            only = f"{source}: none of its {len(images)} images can be read"
            raise UserError(summary.failures[0] if len(images) == 1 else only)
        journal.publish(summary.results_file, results, detector)
    elif not done:
        journal.remove(folder_too=is_new)
    else:
        note = f"{done} of {len(images)} images are done; --resume goes on with them"
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    summary.pipeline.raise_failure()
    summary.seconds = time.perf_counter() - start
    return summary


class _Journal:
    """The results so far, on disk: a line with the settings, then one for each image in order.

    Raises:
        UserError: an interrupted run is there and `resume` is not asked for, or it was run otherwise.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], images: Images, resume: bool, summary: PredictSummary
    ) -> None:
        self._path, self._summary = path, summary
        there = path.is_file() and any(True for _ in islice(read_lines(path), 1, None))
        if there and not resume:
            count = sum(1 for _ in read_lines(path)) - 1
            raise UserError(
                f"{path}: an interrupted run has been through {count} images; --resume goes on, or remove the file"
            )
        if there:
            self._take_up(settings, images)
        self._lines = LinesWriter(path, append=there)
        if not there:
            self._lines.write(settings)

    def _take_up(self, settings: dict[str, Any], images: Images) -> None:
        """Count what is done and check that it belongs to these settings and images."""
        _cut_half_line(self._path)
        lines = read_lines(self._path)
        before = next(lines)
        for key, value in settings.items():
            if before.get(key) != value:
                raise UserError(
                    f"{self._path}: was begun with {key} {before.get(key)!r}, not {value!r}; give that, or remove it"
                )
        listed = iter(images)
        for line in lines:
            path = next(listed, None)
            if path is None or path.as_posix() != line["file_name"]:
                raise UserError(
                    f"{self._path}: the images have changed since ({line['file_name']} came at this place); remove it "
                    "to begin again"
                )
            self._count(line)
            self._summary.n_resumed += 1

    def add(self, line: dict[str, Any]) -> None:
        """Note what came of one image."""
        self._lines.write(line)
        self._count(line)

    def _count(self, line: dict[str, Any]) -> None:
        summary = self._summary
        if "error" in line:
            summary.n_skipped += 1
            if len(summary.failures) < _FAILURES_KEPT:
                summary.failures.append(line["error"])
        else:
            summary.n_images += 1
            summary.n_detections += len(line["detections"])

    def publish(self, target: Path, results: str, detector: Predictor) -> None:
        """Make the results file of it, and remove it."""
        if results == "coco":
            write_coco(target, lambda: islice(read_lines(self._path), 1, None), coco_categories(detector))
        else:
            with self._path.open("rb") as stream:
                write_pieces_atomic(target, islice(stream, 1, None))
        self._path.unlink()

    def remove(self, folder_too: bool) -> None:
        """Leave nothing behind."""
        self._path.unlink(missing_ok=True)
        if folder_too and not any(self._path.parent.iterdir()):
            self._path.parent.rmdir()

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()


def _cut_half_line(path: Path) -> None:
    """Take away what a killed process wrote of its last line."""
    with path.open("rb+") as stream:
        end = 0
        for line in stream:
            if not line.endswith(b"\n"):
                break
            end += len(line)
        stream.truncate(end)


def _read(images: Images, done: int) -> Iterator[Shot]:
    """Every image after the first `done`, as a shot whose source is (its number from 1, its path[, the error])."""
    for number, path in enumerate(images, start=1):
        if number <= done:
            continue
        try:
            yield Shot((number, path), read_bgr(path))
        except UserError as error:
            line = {"image_id": number, "file_name": path.as_posix(), "error": str(error)}
            yield Shot((number, path), None, line=line)


def _note(shot: Shot, detector: Predictor) -> None:
    """Make the line of an image."""
    number, path = shot.source
    height, width = shot.image.shape[:2]
    found = shot.found.to_coco(number, detector.category_ids, shot.crops)
    about = {"image_id": number, "file_name": path.as_posix(), "width": width, "height": height}
    shot.line = {**about, "detections": found}


def _refuse_overwriting(images: Images, out: Path) -> None:
    """UserError if a picture to be written would replace one of the images."""
    folder = Path(os.path.realpath(out))
    if not folder.exists():
        return
    for path in images:
        target = out / images.name(path)
        clash = target if target.exists() and target.samefile(path) else None
        real = Path(os.path.realpath(path))
        if clash is None and real.is_relative_to(folder) and (images.root / real.relative_to(folder)).is_file():
            clash = real
        if clash is not None:
            raise UserError(f"{out}: would overwrite the source image {clash.name}; choose another output folder")


def _encode(image: np.ndarray, name: Path) -> bytes:
    """The picture in the format its name asks for."""
    done, content = cv2.imencode(name.suffix.lower(), image)
    if not done:
        raise UserError(f"{name}: this OpenCV cannot write {name.suffix}; convert the image first")
    return content.tobytes()
