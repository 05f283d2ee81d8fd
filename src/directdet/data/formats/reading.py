"""What the readers of annotation files share: how files are opened, and how faults are collected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from directdet.common.errors import UserError
from directdet.common.urls import url_of
from directdet.data.formats.polygons import near_picture
from directdet.data.inside.files import read_all
from directdet.data.records import Problem, clip_box

# Kinds of entries, the worst first: what is lost with one that cannot be read.
CATEGORY, IMAGE, OBJECT = range(3)
MOST_ERRORS = 1000  # kept of each kind; the others are counted


def read_file(file: Path, what: str) -> bytes:
    """The content of a file, or of one at an address; ``what`` it is goes into the message.

    Raises:
        UserError: it is missing or cannot be read.
    """
    if url_of(file) is not None:
        return read_all(file)
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file}: {what} not found") from None
    except OSError as error:
        raise UserError(f"{file}: {what} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # e.g. a NUL character or half a surrogate pair in the name
        raise UserError(f"{str(file)!r}: not a usable file name: {error}") from None


def read_text(file: Path, what: str) -> str:
    """The text of a UTF-8 file, without the byte order mark that Windows editors write.

    Raises:
        UserError: it is missing, cannot be read, or is not UTF-8.
    """
    try:
        return read_file(file, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: {what} is not UTF-8: {error}; save it as UTF-8") from None


class Faults:
    """What a reader finds wrong: problems that it deals with, and entries that it cannot read and leaves out."""

    def __init__(self) -> None:
        self.picture: str | Path = ""  # the image file whose objects are being read
        self.problems: list[Problem] = []
        self._kept: tuple[list[str], ...] = ([], [], [])
        self._counts = [0, 0, 0]

    def add(self, kind: int, error: UserError) -> None:
        """Note an entry (CATEGORY, IMAGE or OBJECT) that cannot be read."""
        self._counts[kind] += 1
        if len(self._kept[kind]) < MOST_ERRORS:
            self._kept[kind].append(str(error))

    def note(self, problem: Problem) -> None:
        """Note a problem with an object of the picture that is being read."""
        self.problems.append(replace(problem, picture=str(self.picture)))

    def forget(self, kind: int) -> None:
        """Take back all that was added of a kind: it is read again."""
        self._kept[kind].clear()
        self._counts[kind] = 0

    def errors(self) -> tuple[str, ...]:
        """All that was added, the worst kind first; beyond a thousand of a kind only their number."""
        lines: list[str] = []
        for kept, count, name in zip(self._kept, self._counts, ("categories", "images", "objects"), strict=True):
            lines += kept
            if count > len(kept):
                lines.append(f"... and {count - len(kept)} more {name} that cannot be read")
        return tuple(lines)

    def clip(
        self, box: Sequence[float], size: tuple[int, int], file: str, annotation_id: int | None
    ) -> list[float] | None:
        """An xyxy box clipped to its image of ``size`` (width, height), or None if nothing is left."""
        clipped, problem = clip_box(box, *size, file, annotation_id)
        if problem is not None:
            self.note(problem)
        return clipped

    def near(
        self, polygons: list[np.ndarray], size: tuple[int, int], file: str, annotation_id: int | None
    ) -> list[np.ndarray] | None:
        """Polygons (each float64 [2P]) without what is far outside their image; None if nothing is left."""
        near = [near_picture(polygon, *size) for polygon in polygons]
        kept = [polygon for polygon in near if polygon is not None]
        if all(new is old for new, old in zip(near, polygons, strict=True)):
            return kept
        farthest = max(np.concatenate(polygons).tolist(), key=abs)
        message = f"a polygon of the mask has a corner at {farthest:g}, far outside its picture"
        action = "mask cut off there" if kept else "mask left out, box kept"
        self.note(Problem("far-polygon", file, annotation_id, message, action))
        return kept or None
