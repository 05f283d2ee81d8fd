"""JSON lines, written as results arrive, and COCO files made of them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from directdet.common.errors import UserError
from directdet.common.files import write_pieces_atomic
from directdet.common.json_files import read_json_lines

LINES_FIX = "remove the file to start again"


def replace(temporary: Path, target: Path) -> None:
    """Put a file at its place once it is on the disk."""
    try:
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error


class LinesWriter:
    """JSON lines; each is complete on disk as soon as it is written, or is not there at all."""

    def __init__(self, path: Path, append: bool = False) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer: what a full disk did not take would be written, and fail, once more on closing.
            self._stream = path.open("ab" if append else "wb", buffering=0)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error

    def write(self, value: Any) -> None:
        """Add one line."""
        content = memoryview(encoded(value))
        end = self._stream.tell()
        try:
            while content:
                content = content[self._stream.write(content) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._stream.truncate(end)  # the part of the line that still had room
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file.

        Raises:
            UserError: the file system could not keep what was written.
        """
        try:
            self._stream.close()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}") from error


def encoded(value: Any) -> bytes:
    """A line of JSON as UTF-8. Bytes of a file name that are not UTF-8 become JSON's escapes, \\udc80 to \\udcff, which
    Python reads back as the same name."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, one at a time, without an incomplete last line of a killed process.

    Raises:
        UserError: it cannot be read, or a line is damaged.
    """
    return (value for _, _, value in read_json_lines(path, LINES_FIX))


def write_coco(path: Path, lines: Callable[[], Iterator[dict[str, Any]]], categories: Sequence[dict[str, Any]]) -> None:
    """Write a COCO file from lines of one image each, atomically and in constant memory.

    Args:
        lines: returns them afresh on every call: image_id, file_name, width, height, detections. Lines without
            detections (unreadable images) are left out.
        categories: in COCO's format.
    """

    def pieces() -> Iterator[str]:
        yield '{"images": ['
        images = (line for line in lines() if "detections" in line)
        fields = ("file_name", "width", "height", "orientation")
        yield from _joined(
            {"id": line["image_id"], **{name: line[name] for name in fields if name in line}} for line in images
        )
        yield f'], "categories": {json.dumps(list(categories), ensure_ascii=False)}, "annotations": ['
        entries = enumerate((entry for line in lines() for entry in line.get("detections", ())), start=1)
        yield from _joined(_annotation(number, entry) for number, entry in entries)
        yield "]}\n"

    write_pieces_atomic(path, (piece.encode("utf-8", "backslashreplace") for piece in pieces()))


def _annotation(number: int, entry: dict[str, Any]) -> dict[str, Any]:
    """A result as an annotation: with what pycocotools asks of one."""
    return {"id": number, **entry, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}


def write_results(path: Path, lines: Callable[[], Iterator[dict[str, Any]]]) -> None:
    """Write the list of COCO results that pycocotools' `loadRes` takes, from the lines of `write_coco`."""
    pieces = chain(["["], _joined(entry for line in lines() for entry in line.get("detections", ())), ["]\n"])
    write_pieces_atomic(path, (piece.encode() for piece in pieces))


def _joined(values: Iterator[Any]) -> Iterator[str]:
    for number, value in enumerate(values):
        yield (", " if number else "") + json.dumps(value, ensure_ascii=False, allow_nan=False)
