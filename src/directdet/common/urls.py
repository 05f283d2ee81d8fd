"""Addresses such as s3://bucket/set, which pass through pathlib: that makes one slash of their two."""

from __future__ import annotations

import os
import re

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)  # two letters at least: one is a drive


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The address that a path was made from; None for the path of a file."""
    found = _URL.fullmatch(os.fspath(path))
    if found is None:
        return None
    return f"{found[1]}://{'/' if found[1] == 'file' else ''}{found[2]}"


def shown(path: str | os.PathLike[str]) -> str:
    """A path or an address, for messages."""
    return url_of(path) or os.fspath(path)


def absolute(path: str | os.PathLike[str]) -> str:
    """An absolute path, or the address that it is."""
    return url_of(path) or os.path.abspath(path)
