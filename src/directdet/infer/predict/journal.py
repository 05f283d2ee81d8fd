"""The results of a run on pictures, as far as it got, in a file that an interrupted run leaves to be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from directdet.common.errors import UserError
from directdet.common.files import write_pieces_atomic
from directdet.common.json_files import check_json
from directdet.common.settings import ZeroOrMore
from directdet.infer.predict.pipeline import PipelineResult
from directdet.infer.predict.same import file_digest, list_digest
from directdet.infer.predict.sources import Images
from directdet.infer.predict.writers import LINES_FIX, LinesWriter, encoded, read_lines, write_coco, write_results

PART_FILE = "detections.part.jsonl"  # the results so far; its first line holds the settings
_FAILURES_KEPT = 100
# Settings that are digests: what else a run was started with, in words.
_CONTENT = {"model": "another model, or another version of it", "ids": "the ids of other annotations"}


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
        n_empty: images in which nothing was found.
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
    n_empty: int = 0
    n_resumed: int = 0
    failures: list[str] = field(default_factory=list)
    pipeline: PipelineResult = field(default_factory=PipelineResult)


class Journal:
    """The results so far, on disk: a line with the settings, then one for each image in order.

    A line holds the digest of its image's content, by which an image is known again; the results leave it out.

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
            if before.get(key) == value:
                continue
            if key in _CONTENT:
                raise UserError(f"{self._path}: was started with {_CONTENT[key]}; use that, or remove the file")
            raise UserError(
                f"{self._path}: was started with {key} {before.get(key)!r}, not {value!r}; use that, or remove it"
            )
        listed, moved = iter(images), False
        for number, line in enumerate(lines, start=2):
            _check_line(line, f"{self._path}: line {number}")
            path = next(listed, None)
            name = line["file_name"]
            if path is None or path.name != Path(name).name or line.get("name") != images.name(path).as_posix():
                what = "is not at its place any more"
            elif line.get("digest") != file_digest(path):
                what = "is not the same any more"
            else:
                moved |= path.as_posix() != name
                self._count(line)
                self._summary.n_resumed += 1
                continue
            raise UserError(
                f"{self._path}: the images have changed since the interrupted run ({name} {what}); remove the file to "
                "start again"
            )
        if moved:  # the same images by another path
            self._rename(before, images)

    def _rename(self, settings: dict[str, Any], images: Images) -> None:
        """Give the finished images the paths that they have now."""
        lines = islice(read_lines(self._path), 1, None)
        renamed = ({**line, "file_name": path.as_posix()} for line, path in zip(lines, images, strict=False))
        write_pieces_atomic(self._path, (encoded(line) for line in chain([settings], renamed)))

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
            summary.n_empty += not line["detections"]

    def _results(self) -> Iterator[dict[str, Any]]:
        """The lines of the images, without what only the journal needs."""
        for line in islice(read_lines(self._path), 1, None):
            yield {key: value for key, value in line.items() if key not in ("name", "digest")}

    def _labels(self) -> Iterator[dict[str, Any]]:
        """The lines of the images in which something was found, named as below their folder."""
        for line in islice(read_lines(self._path), 1, None):
            if line.get("detections"):
                yield {**line, "file_name": line["name"]}

    def digest(self) -> str:
        """Digest of all images, as `same.origin_of` computes it."""
        lines = islice(read_lines(self._path), 1, None)
        return list_digest((line["name"], line["digest"]) for line in lines)

    def publish(self, target: Path, results: str, categories: list[dict[str, Any]] | None) -> None:
        """Convert the journal into the results file, and remove it.

        Args:
            results: "coco", "jsonl", or "dataset": COCO with the names of images below their folder, and without
                those in which nothing was found.
            categories: in COCO's format, for a COCO file that says all; None: only the list of results that
                pycocotools loads beside the annotations whose ids they have.
        """
        if results == "jsonl":
            write_pieces_atomic(target, (encoded(line) for line in self._results()))
        elif results == "dataset":
            write_coco(target, self._labels, categories or [])
        elif categories is None:
            write_results(target, self._results)
        else:
            write_coco(target, self._results, categories)
        self._path.unlink()

    def remove(self, folder_too: bool) -> None:
        """Remove the journal, and with `folder_too` its folder if that is empty."""
        self._path.unlink(missing_ok=True)
        if folder_too and not any(self._path.parent.iterdir()):
            self._path.parent.rmdir()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()


@dataclass(frozen=True)
class _Line:
    """The results of one image; those that could not be read have "error" alone."""

    image_id: int
    file_name: str
    name: str
    digest: str | None = None
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
