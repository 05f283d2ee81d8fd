"""Paths of pictures inside files: ``FOLDER/train-000000.tar/0001.jpg``, ``FOLDER/train-00000.parquet/17/0001.jpg``."""

from __future__ import annotations

import os
from pathlib import Path

from directdet.common.urls import url_of
from directdet.data.inside.members import find_member, read_member
from directdet.data.inside.rows import has_row, read_row

_KINDS = {".tar": (find_member, read_member), ".parquet": (has_row, read_row)}


def split_path(path: str | os.PathLike[str]) -> tuple[Path, str] | None:
    """(the file, what is meant in it) of a path into a tar or Parquet file, or into a tar at an address; else None."""
    text = os.fspath(path)
    if not any(kind in text for kind in _KINDS):  # most: no call to the system
        return None
    for parent in Path(text).parents:
        if parent.suffix in _KINDS and (url_of(parent) is not None or os.path.isfile(parent)):
            return parent, Path(text).relative_to(parent).as_posix()
    return None


def read_inside(file: Path, name: str, most: int = -1) -> bytes:
    """The content of a picture, or its first ``most`` bytes.

    Raises:
        UserError: the file cannot be read or has no such picture.
        MissingLibraryError: a Parquet file, and pyarrow is not installed.
    """
    return _KINDS[file.suffix][1](file, name, most)


def is_inside(file: Path, name: str) -> bool:
    """Whether a file holds a picture of this name; errors as :func:`read_inside`."""
    return bool(_KINDS[file.suffix][0](file, name))
