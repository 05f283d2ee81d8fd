"""Reading the long lists of a large JSON file piece by piece: as a whole, 446 MB become 3 GB of Python objects.

A file is ``{..., "images": [{...}, ...], "annotations": [{...}, ...], ...}``. Where the lists begin is searched for,
and then proved: what stands before, between and behind them must be valid JSON when each list is replaced by its place.
Lists are cut at ``},{``, and every piece must be valid JSON; a cut inside a text or an inner list is none.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

import orjson

_BLOCK = 2**22  # bytes of a piece
_LONGEST = 2**26  # of a single entry, and of all that is not in the lists
_BETWEEN = re.compile(rb"\}\s*,\s*(?=\{)")
_END = re.compile(rb"\}\s*\](?=\s*[,}])")
_EMPTY = re.compile(rb"\s*\]")


@dataclass(frozen=True)
class Piece:
    """Some entries of a list; ``exactly`` reads them again, with integers of more than 64 bits as such."""

    entries: list[Any]
    exactly: Callable[[], list[Any]]


@contextmanager
def without_collection() -> Iterator[None]:
    """Leave out Python's search for cyclic garbage: of parsed JSON there is none, and it takes longer than parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class UnusualJSON(Exception):
    """The file is to be read as a whole: it may be fine, or not JSON at all."""


class JSONLists:
    """The lists of a file, which must all be there.

    Attributes:
        digest: a SHA-256 of the file's content.

    Raises:
        UnusualJSON: a list is not there, or more than once.
        OSError: the file cannot be read.
    """

    def __init__(self, file: Path, names: Sequence[str]) -> None:
        self._file, self._names = file, tuple(names)
        self._starts, self.digest = _search(file, names)
        self._ends: dict[str, int] = {}

    def pieces(self, name: str) -> Iterator[Piece]:
        """The entries of a list, some thousand at a time; UnusualJSON if one cannot be read."""
        start = self._starts[name]
        with open(self._file, "rb") as stream:
            stream.seek(start)
            for text, place in _pieces(stream, start):
                self._ends[name] = place
                yield Piece(_parse(text), partial(_parse_exactly, text))

    def prove(self) -> None:
        """Check what is in the file besides the lists, each of which must have been read to its end.

        Raises:
            UnusualJSON: the lists are not those of the outermost object.
        """
        parts: list[bytes] = []
        place = 0
        with open(self._file, "rb") as stream:
            for name, start in sorted(self._starts.items(), key=lambda one: one[1]):
                if start < place or start - place > _LONGEST:
                    raise UnusualJSON
                stream.seek(place)
                parts += [stream.read(start - place), b"%d]" % start]
                place = self._ends[name]
            stream.seek(place)
            parts.append(stream.read(_LONGEST))
            if stream.read(1):
                raise UnusualJSON
        try:
            found = json.loads(b"".join(parts))
        except (ValueError, RecursionError):
            raise UnusualJSON from None
        if not isinstance(found, dict) or any(found.get(name) != [start] for name, start in self._starts.items()):
            raise UnusualJSON


def _parse(content: bytes) -> list[Any]:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return _parse_exactly(content)  # the standard library reads NaN, too


def _parse_exactly(content: bytes) -> list[Any]:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise UnusualJSON from None


def _search(file: Path, names: Sequence[str]) -> tuple[dict[str, int], str]:
    """Where each list begins, behind its bracket, and the digest of all that was searched."""
    key = re.compile(rb'"(%s)"\s*:\s*\[' % b"|".join(re.escape(name.encode()) for name in names))
    starts: dict[str, int] = {}
    digest = hashlib.sha256()
    place, tail = 0, b""
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            searched = tail + block
            for match in key.finditer(searched):
                found = place - len(tail) + match.end()
                name = match[1].decode()
                if starts.setdefault(name, found) != found:
                    raise UnusualJSON
            tail, place = searched[-256:], place + len(block)
    if len(starts) < len(names):
        raise UnusualJSON
    return starts, digest.hexdigest()


def _pieces(stream: BufferedReader, place: int) -> Iterator[tuple[bytes, int]]:
    """Valid pieces of the list that begins here, and where each ends in the file: the last one behind its bracket."""
    kept = b""
    while True:
        block = stream.read(_BLOCK)
        kept += block
        if empty := _EMPTY.match(kept):
            yield b"[]", place + empty.end()
            return
        if end := _END.search(kept):
            yield b"[" + kept[: end.end()], place + end.end()
            return
        cuts = list(_BETWEEN.finditer(kept, max(0, len(kept) - _BLOCK // 8)))
        if cuts:
            cut = cuts[-1]
            yield b"[" + kept[: cut.start() + 1] + b"]", place + cut.end()
            place += cut.end()
            kept = kept[cut.end() :]
        elif not block or len(kept) > _LONGEST:
            raise UnusualJSON
