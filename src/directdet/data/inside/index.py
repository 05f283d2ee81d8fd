"""Where each member of a tar lies, in flat arrays, which are kept in the user's cache folder for large tars.

A kept index counts if the tar has the size and times that it had, and its own SHA-256 is right.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from directdet import __version__
from directdet.common.errors import UserError
from directdet.common.files import write_bytes_atomic
from directdet.data.flat.cache import cache_file

_FORMAT = f"directdet {__version__} tar 1"
_DIGEST = hashlib.sha256().digest_size


class Index:
    """Members of a tar by name: they take little memory, which forked workers share.

    Args:
        names: bytes [n], sorted, UTF-8 with halves of surrogate pairs.
        places: int64 [n, 2], (offset, size) of each.
    """

    def __init__(self, names: np.ndarray, places: np.ndarray) -> None:
        self._names, self._places = names, places

    @classmethod
    def of(cls, members: Sequence[tuple[str, int, int]]) -> Index:
        """Of (name, offset, size) of each member."""
        names = np.array([name.encode("utf-8", "surrogateescape") for name, _, _ in members] or [b""])
        order = np.argsort(names, kind="stable")
        places = np.array([member[1:] for member in members] or [(0, 0)], np.int64)
        return cls(names[order], places[order])

    def find(self, name: str) -> tuple[int, int] | None:
        """(offset, size) of a member; None if there is none of this name."""
        wanted = np.array(name.encode("utf-8", "surrogateescape"))
        place = int(np.searchsorted(self._names, wanted))
        if not name or place == len(self._names) or self._names[place] != wanted:
            return None
        offset, size = self._places[place].tolist()
        return offset, size

    def keep(self, tar: Path, state: Sequence[Any]) -> None:
        """Write it to the cache folder, if there is one that can be written."""
        file = cache_file("tar", tar)
        if file is None:
            return
        stream = io.BytesIO()
        np.save(stream, np.array(json.dumps([_FORMAT, list(state)]).encode()), allow_pickle=False)
        np.save(stream, self._names, allow_pickle=False)
        np.save(stream, self._places, allow_pickle=False)
        content = stream.getvalue()
        try:
            write_bytes_atomic(file, hashlib.sha256(content).digest() + content)
        except UserError:  # that nothing can be kept is told with the annotations
            return

    @classmethod
    def kept(cls, tar: Path, state: Sequence[Any]) -> Index | None:
        """What was kept of a tar in this state; None if there is nothing, or it is not whole."""
        file = cache_file("tar", tar)
        try:
            content = file.read_bytes() if file is not None else b""
            if content[:_DIGEST] != hashlib.sha256(content[_DIGEST:]).digest():
                return None
            stream = io.BytesIO(content[_DIGEST:])
            about, names, places = (np.load(stream, allow_pickle=False) for _ in range(3))
            return cls(names, places) if json.loads(about.item()) == [_FORMAT, list(state)] else None
        except (OSError, ValueError):
            return None
