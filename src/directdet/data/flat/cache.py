"""Read annotations kept in a file, which all processes map into memory instead of reading the annotations again.

A file lies in the user's cache folder, one for each annotation file, and is written for large ones only. It is a line
of JSON that says what follows, then the arrays as they are in memory. It counts only if the content of the annotations
is what it was (a SHA-256 of it is kept), its own is what was written (another one is at its end), and this version of
directdet wrote it; else it is as if there were none. DIRECTDET_CACHE names another folder, or says "off".
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from directdet import __version__
from directdet.common.errors import UserError
from directdet.common.files import write_pieces_atomic
from directdet.common.urls import absolute
from directdet.data.flat.columns import TYPES, Columns

VARIABLE = "DIRECTDET_CACHE"
# Another version may read the same annotations differently; the number is for changes between versions.
_FORMAT = f"directdet {__version__} annotations 2"
_ALIGNED = 64  # where arrays begin, in bytes
_BLOCK = 2**20
_ELEMENTS = 2**17  # of an array that are written at once
_LONGEST_HEADER = 2**28
_DIGEST = hashlib.sha256().digest_size

_refused: set[Path] = set()  # folders that could not be written, told once in a process


class KeptColumns(Columns):
    """Columns that lie in a file: another process is sent its name."""

    file: Path
    digest: bytes  # at the end of the file
    about: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.file, self.digest)


def cache_folder() -> Path | None:
    """Where annotations are kept; None if they are not."""
    given = os.environ.get(VARIABLE, "")
    if given.lower() in ("off", "0"):
        return None
    if given:
        return Path(given)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no home folder
        return None
    return Path(base) / "directdet" / "annotations"


def cache_file(*names: object) -> Path | None:
    """The file for what these names stand for, such as an annotation file and its folder of pictures."""
    folder = cache_folder()
    if folder is None:
        return None
    both = json.dumps([(str(name), absolute(str(name))) for name in names])  # messages have it as it was given
    return folder / f"{hashlib.sha256(both.encode()).hexdigest()[:32]}.bin"


def digest_of(file: Path) -> str | None:
    """A SHA-256 of a file's content; None if it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def keep(file: Path, about: dict[str, Any], columns: Columns) -> KeptColumns | None:
    """Write columns and what else is to be known about them (JSON values); returns them mapped, None if it failed."""
    if file.parent in _refused:
        return None
    try:
        write_pieces_atomic(file, _pieces(about, columns))
    except UserError as error:
        _refused.add(file.parent)
        print(f"note: annotations are not cached: {error} ({VARIABLE}=off turns it off)", file=sys.stderr)
        return None
    return _map(file)


def find(file: Path) -> KeptColumns | None:
    """What was kept in a file, mapped into memory; None if it is not there or not whole."""
    try:
        return _map(file) if _is_whole(file) else None
    except OSError:
        return None


def _pieces(about: dict[str, Any], columns: Columns) -> Iterator[bytes]:
    layout: dict[str, tuple[int, list[int]]] = {}
    place = 0
    for name, array in columns.arrays():
        layout[name] = (place, list(array.shape))
        place += -(-array.nbytes // _ALIGNED) * _ALIGNED
    header = json.dumps({"format": _FORMAT, "order": sys.byteorder, "about": about, "arrays": layout, "bytes": place})
    digest = hashlib.sha256()
    for piece in _content(header.encode(), columns):
        digest.update(piece)
        yield piece
    yield digest.digest()


def _content(header: bytes, columns: Columns) -> Iterator[bytes]:
    yield header + b" " * (-(len(header) + 1) % _ALIGNED) + b"\n"
    for _, array in columns.arrays():
        yield from (array.reshape(-1)[start : start + _ELEMENTS].tobytes() for start in range(0, array.size, _ELEMENTS))
        yield b"\0" * (-array.nbytes % _ALIGNED)


def _is_whole(file: Path) -> bool:
    """Whether a file ends in the digest of what stands before."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        left = os.fstat(stream.fileno()).st_size - _DIGEST
        while left > 0:
            block = stream.read(min(left, _BLOCK))
            if not block:
                return False
            digest.update(block)
            left -= len(block)
        return stream.read() == digest.digest()


def _map(file: Path) -> KeptColumns | None:
    try:
        with open(file, "rb") as stream:
            line = stream.readline(_LONGEST_HEADER)
            header = json.loads(line)
            if header["format"] != _FORMAT or header["order"] != sys.byteorder:
                return None
            length = len(line) + header["bytes"] + _DIGEST
            if os.fstat(stream.fileno()).st_size != length:
                return None
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        arrays = {}
        for name, kind in TYPES.items():
            place, shape = header["arrays"][name]
            array = np.frombuffer(mapped, kind, int(np.prod(shape)), len(line) + place)
            arrays[name] = array.reshape(shape)
        columns = KeptColumns(**arrays)
        object.__setattr__(columns, "file", file)
        object.__setattr__(columns, "digest", mapped[-_DIGEST:])
        object.__setattr__(columns, "about", header["about"])
        return columns
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):  # not a file of ours
        return None


def _again(file: Path, digest: bytes) -> KeptColumns:
    """What another process of the same run has found whole already."""
    columns = _map(file)
    if columns is None or columns.digest != digest:
        raise UserError(f"{file}: the cached annotations were removed or replaced in the meantime; start again")
    return columns
