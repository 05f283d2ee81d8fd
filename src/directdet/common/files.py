"""Atomic writers: a reader sees the old file or the complete new one, never a partly written one."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from directdet.common.errors import UserError

LONGEST_NAME = 255  # bytes, on every file system in use


def write_bytes_atomic(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write ``content`` to ``path`` through a temporary file in the same folder, creating missing folders.

    Raises:
        UserError: the folder or file cannot be written.
    """
    return write_pieces_atomic(path, (content,))


def write_pieces_atomic(path: str | os.PathLike[str], pieces: Iterable[bytes]) -> Path:
    """:func:`write_bytes_atomic` for content that does not have to be in memory all at once."""
    target = Path(path)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name[:64]}.", suffix=".tmp", dir=target.parent)
        with os.fdopen(descriptor, "wb") as stream:
            stream.writelines(pieces)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private to the user; give the new file the permissions that open() would have given it.
        os.chmod(temporary, _ordinary_mode(target))
        os.replace(temporary, target)
    except OSError as error:
        _remove(temporary)
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error
    except BaseException:  # e.g. the user's Ctrl-C: leave no temporary file behind
        _remove(temporary)
        raise
    return target


def write_text_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` as UTF-8 with its newlines unchanged; see :func:`write_bytes_atomic`.

    Halves of surrogate pairs, which names that are not UTF-8 hold, become escapes as in JSON.
    """
    return write_bytes_atomic(path, text.encode("utf-8", "backslashreplace"))


def write_json_atomic(path: str | os.PathLike[str], value: Any, indent: int | None = 2) -> Path:
    """Write ``value`` as JSON; raises ValueError for NaN and infinity, which JSON cannot represent."""
    return write_text_atomic(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def require_writable(path: str | os.PathLike[str], folder: bool = False) -> None:
    """Check in advance that a file or folder ``path`` can be written, so that hours of work do not fail at the end.

    Nothing is created or changed.

    Raises:
        UserError: ``path`` is a folder instead of a file or vice versa, or the nearest existing folder is not writable.
    """
    target = Path(path)
    if target.exists() and target.is_dir() != folder:
        raise UserError(f"{target}: is a {'file; give a folder' if folder else 'folder; give the name of a file'}")
    parent = target if folder else target.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise UserError(f"{target}: cannot be written: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{target}: cannot be written: no permission to create files in {parent}; choose another place")


def is_file_name(name: str) -> bool:
    """Whether a part of a path from a file can be one: no NUL, no halves of surrogate pairs, at most 255 bytes."""
    try:
        return 0 < len(os.fsencode(name)) <= LONGEST_NAME and "\0" not in name
    except UnicodeEncodeError:
        return False


def _ordinary_mode(target: Path) -> int:
    """Permission bits for ``target``: those of the file it replaces, else the default under the umask."""
    with contextlib.suppress(OSError):
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _remove(temporary: str | None) -> None:
    if temporary is not None:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
