"""Detect on any number of images: annotated images, and a COCO file or JSON lines."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from directdet.common.errors import UserError
from directdet.common.files import require_writable, write_bytes_atomic, write_pieces_atomic
from directdet.common.json_files import check_json
from directdet.common.settings import ZeroOrMore
from directdet.common.terminal import terminal
from directdet.infer.detections import Detections
from directdet.infer.draw import draw
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.own_files import OwnFiles, identity
from directdet.infer.predict.pipeline import PipelineResult, run_pipeline
from directdet.infer.predict.progress import progress_bar
from directdet.infer.predict.sources import Images, find_images, read_bgr
from directdet.infer.predict.stages import (
    Batch,
    Item,
    coco_categories,
    detection_stages,
    make_batches,
    one_opencv_thread,
)
from directdet.infer.predict.writers import LINES_FIX, LinesWriter, read_lines, write_coco
from directdet.infer.predictor import Predictor

RESULTS_FILES = {"coco": "detections.json", "jsonl": "detections.jsonl"}
PART_FILE = "detections.part.jsonl"  # the results so far; its first line holds the settings
_FAILURES_KEPT = 100

Numbered = tuple[int, Path]  # an image: its number from 1, its path


@dataclass
class PredictSummary:
    """What `predict` did.

    Attributes:
        n_images: images processed, including those of an earlier, resumed run.
        n_detections: detections written.
        seconds: wall time.
        out: the output folder.
        results_file: the JSON file in it.
        n_skipped: images that could not be read.
        n_resumed: images that an earlier run had already processed.
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
    options: PredictOptions | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
) -> PredictSummary:
    """Detect on every image of `source` and write the results into the folder `out`.

    `out` receives the annotated images under their own names (keeping subfolders) and the results. `detections.json`
    is a COCO file with "images" (id, file_name, width, height), "categories", and "annotations" in COCO's results
    format (image_id, category_id, bbox, score, segmentation), best first within each image. `detections.jsonl` has a
    line for each image: image_id, file_name, width, height, and these annotations as "detections"; for an image that
    could not be read, "error" instead. Memory use does not grow with the number of images.

    During the run, results are in `detections.part.jsonl`; after an interruption, `resume` continues from there.

    Args:
        source: see `sources.find_images`.
        options: what to detect and what to write; None: the defaults.
        resume: continue what an interrupted run with the same settings left in `out`.
        progress: show a progress bar.

    Raises:
        UserError: no images or none that can be read; `out` cannot be written, contains an interrupted run, or contains
            files that would be overwritten: the source images, or what no earlier run made from this source. A broken
            image among others is only reported and skipped.
    """
    start = time.perf_counter()
    options = options or PredictOptions()
    images = find_images(source)
    out = Path(out)
    selection, size = options.selection(detector), options.batch_size(detector)
    require_writable(out, folder=True)
    results = options.results or "coco"
    if options.pictures:
        _refuse_overwriting(images, out)
    own = OwnFiles(out)
    pictures = ((images.name(path), identity(path)) for path in images) if options.pictures else ()
    own.claim(chain([(RESULTS_FILES[results], identity(source))], pictures))
    is_new = not out.exists()
    console = terminal(stderr=True)
    settings = {"model": detector.source, "source": str(source), "score": options.score, "pictures": options.pictures}
    settings |= {"classes": None if options.classes is None else sorted(options.classes)}
    summary = PredictSummary(0, 0, 0.0, out, out / RESULTS_FILES[results])
    journal = _Journal(out / PART_FILE, settings, images, resume, summary)
    with journal, one_opencv_thread(detector), progress_bar("detecting", len(images), console, progress) as advance:
        advance(summary.n_resumed)

        def write(batch: Batch[Numbered]) -> None:
            for item in batch.items:
                if item.encoded is not None:
                    name = images.name(item.source[1])
                    own.written(name, identity(item.source[1]), item.encoded)
                    write_bytes_atomic(out / name, item.encoded)
                journal.add(item.line)
                # A broken image among others is reported here; a single one is reported as the error below.
                if "error" in item.line and len(images) > 1:
                    console.print(f"skipped: {item.line['error']}", style="yellow", markup=False, soft_wrap=True)
            advance(len(batch.items))

        def describe(item: Item[Numbered], image: np.ndarray, found: Detections) -> None:
            number, path = item.source
            height, width = image.shape[:2]
            entries = found.to_coco(number, detector.category_ids, item.crops)
            about = {"image_id": number, "file_name": path.as_posix(), "width": width, "height": height}
            item.line = {**about, "detections": entries}

        def finish(item: Item[Numbered], image: np.ndarray, found: Detections) -> None:
            if options.pictures:
                drawn = draw(image, found, detector.classes, crops=item.crops)
                item.encoded = _encode(drawn, images.name(item.source[1]))
            item.image = item.crops = None

        items = _read(images, summary.n_resumed)
        stages = detection_stages(detector, selection, describe, finish)
        summary.pipeline = run_pipeline(make_batches(items, detector, size), stages, write)
    done = summary.n_images + summary.n_skipped
    if summary.pipeline.failure is None and not summary.pipeline.interrupted:
        if not summary.n_images:
            journal.remove(folder_too=is_new)
            only = f"{source}: none of its {len(images)} images can be read"
            raise UserError(summary.failures[0] if len(images) == 1 else only)
        own.started(summary.results_file.name, identity(source))
        journal.publish(summary.results_file, results, detector)
        own.written(summary.results_file.name, identity(source))
    elif not done:
        journal.remove(folder_too=is_new)
    else:
        note = f"{done} of {len(images)} images are done; --resume continues with the rest"
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    summary.pipeline.raise_failure()
    summary.seconds = time.perf_counter() - start
    return summary


class _Journal:
    """The results so far, on disk: a line with the settings, then one for each image in order.

    Raises:
        UserError: there is an interrupted run but `resume` is False, or it had other settings or images.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], images: Images, resume: bool, summary: PredictSummary
    ) -> None:
        self._path, self._summary = path, summary
        exists = path.is_file() and any(True for _ in islice(read_lines(path), 1, None))
        if exists and not resume:
            count = sum(1 for _ in read_lines(path)) - 1
            raise UserError(
                f"{path}: an interrupted run has processed {count} images; continue with --resume, or remove the file"
            )
        if exists:
            self._resume(settings, images)
        self._lines = LinesWriter(path, append=exists)
        if not exists:
            self._lines.write(settings)

    def _resume(self, settings: dict[str, Any], images: Images) -> None:
        """Count the finished images and check that they belong to these settings and images."""
        _remove_partial_line(self._path)
        lines = read_lines(self._path)
        before = next(lines, {})
        for key, value in settings.items():
            if before.get(key) != value:
                raise UserError(
                    f"{self._path}: was started with {key} {before.get(key)!r}, not {value!r}; use that, or remove it"
                )
        listed = iter(images)
        for number, line in enumerate(lines, start=2):
            _check_line(line, f"{self._path}: line {number}")
            path = next(listed, None)
            if path is None or path.as_posix() != line["file_name"]:
                raise UserError(
                    f"{self._path}: the images have changed since the interrupted run ({line['file_name']} is not at "
                    "its place any more); remove the file to start again"
                )
            self._count(line)
            self._summary.n_resumed += 1

    def add(self, line: dict[str, Any]) -> None:
        """Write the results of one image."""
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
        """Convert the journal into the results file, and remove it."""
        if results == "coco":
            write_coco(target, lambda: islice(read_lines(self._path), 1, None), coco_categories(detector))
        else:
            with self._path.open("rb") as stream:
                write_pieces_atomic(target, islice(stream, 1, None))
        self._path.unlink()

    def remove(self, folder_too: bool) -> None:
        """Remove the journal, and with `folder_too` its folder if that is empty."""
        self._path.unlink(missing_ok=True)
        if folder_too and not any(self._path.parent.iterdir()):
            self._path.parent.rmdir()

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()


@dataclass(frozen=True)
class _Line:
    """The results of one image; those that could not be read have "error" alone."""

    image_id: int
    file_name: str
    width: ZeroOrMore = 0
    height: ZeroOrMore = 0
    detections: tuple[dict, ...] | None = None
    error: str | None = None


def _check_line(line: dict[str, Any], where: str) -> None:
    """UserError unless the results file can be made of a line."""
    found = check_json(line, _Line, where, LINES_FIX)
    if (found.detections is None) == (found.error is None) or not (
        "error" in line or {"width", "height"} <= line.keys()
    ):
        raise UserError(f"{where}: has neither detections nor an error, or both; {LINES_FIX}")


def _remove_partial_line(path: Path) -> None:
    """Remove an incomplete last line, which a killed process leaves."""
    with path.open("rb+") as stream:
        end = 0
        for line in stream:
            if not line.endswith(b"\n"):
                break
            end += len(line)
        stream.truncate(end)


def _read(images: Images, done: int) -> Iterator[Item[Numbered]]:
    """Every image after the first `done`; for an unreadable one, `line` has the error."""
    for number, path in enumerate(images, start=1):
        if number <= done:
            continue
        try:
            yield Item((number, path), read_bgr(path))
        except UserError as error:
            line = {"image_id": number, "file_name": path.as_posix(), "error": str(error)}
            yield Item((number, path), None, line=line)


def _refuse_overwriting(images: Images, out: Path) -> None:
    """UserError if an annotated image would replace one of the source images."""
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
    """The image in the file format of its name."""
    done, content = cv2.imencode(name.suffix.lower(), image)
    if not done:
        raise UserError(f"{name}: this OpenCV cannot write {name.suffix}; convert the image first")
    return content.tobytes()
