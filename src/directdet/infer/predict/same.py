"""What makes two things the same: their content, not the path they are found at."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from directdet.common.errors import UserError
from directdet.data.image import read_bytes
from directdet.data.inside.paths import split_path
from directdet.infer.predictor import Predictor

# What of meta.json decides about detections; the rest tells how the artefact was made.
_DECIDES = ("files", "classes", "category_ids", "preprocess", "input")


class Origin:
    """What a result is made from.

    Args:
        place: its path, or what stands for it.
        content: returns the digest of its content, which may take long; None: only the place tells it from others.
        folder: a folder in the same place is the same, whatever is in it now, and so is one of the same content.
    """

    def __init__(self, place: str, content: Callable[[], str] | None, folder: bool = False) -> None:
        self.place, self._content, self._folder = place, content, folder

    @cached_property
    def digest(self) -> str | None:
        return None if self._content is None else self._content()

    def is_that(self, place: str, digest: str | None) -> bool:
        """Whether a result of an earlier run was made from this."""
        if place == self.place and (self._folder or digest is None or self._content is None):
            return True
        return digest is not None and digest == self.digest


def origin_of(source: str | Path, pictures: Callable[[], Iterable[tuple[str, Path]]] | None = None) -> Origin:
    """The origin of a source: a file, a camera, a stream, or, with `pictures` (names and paths), many of them.

    The address of a stream may hold a password, so that only its digest is kept.
    """
    text = str(source)
    if "://" in text:
        return Origin("stream " + hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16], None)
    if text.isdecimal() and not Path(text).exists():
        return Origin(text, None)
    place = os.path.realpath(text)
    if pictures is not None:
        return Origin(place, lambda: list_digest((name, file_digest(path)) for name, path in pictures()), folder=True)
    return Origin(place, (lambda: file_digest(Path(place))) if os.path.isfile(place) else None)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a picture inside one; "" for one that cannot be read, which is like no other."""
    try:
        if split_path(path) is not None:
            return hashlib.sha256(read_bytes(path)).hexdigest()
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, UserError):
        return ""


def list_digest(files: Iterable[tuple[str, str]]) -> str:
    """Digest of files, given as their names and digests, in order."""
    digest = hashlib.sha256()
    for name, content in files:
        digest.update(json.dumps([name, content]).encode())
    return digest.hexdigest()


def model_digest(detector: Predictor) -> str:
    """Digest of a loaded model's content: of what decides about its detections.

    Raises:
        UserError: the checkpoint has gone.
    """
    if "files" in detector.meta:
        decides = {name: detector.meta.get(name) for name in _DECIDES}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    path = Path(detector.source)
    if not path.is_file():
        return detector.source  # made in this process
    digest = file_digest(path)
    if not digest:
        raise UserError(f"{path}: cannot be read any more")
    return digest
