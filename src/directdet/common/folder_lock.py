"""One command at a time in an output folder."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from directdet.common.errors import UserError
from directdet.common.files import require_writable

try:
    import fcntl
except ImportError:  # Windows: two commands in one folder are the user's own affair there
    fcntl = None

LOCK_FILE = ".directdet.lock"
_MOST_READ = 300  # characters of a lock file
_held: set[int] = set()  # file descriptors


def _let_go_in_child() -> None:
    """A forked worker must not keep the lock of a main process that was killed."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def hold_folder(folder: str | os.PathLike[str], command: str, beside: bool = False) -> Iterator[None]:
    """Keep other commands out of ``folder`` inside this block; a missing folder is made.

    The system releases the lock when the process ends, however it ends: the file that a killed process leaves does not
    lock anything, and the next command removes it.

    Args:
        folder: the output folder.
        command: what writes there, for the error of the other command: "train".
        beside: put the file beside the folder, which is then not made, instead of inside.

    Raises:
        UserError: another command is writing there, on this machine or, where the file system passes locks on, on
            another one.
    """
    target = Path(folder)
    require_writable(target, folder=True)
    whole = Path(os.path.abspath(target))  # "." has no name
    path = whole.with_name(f".{whole.name[:64]}{LOCK_FILE}") if beside else whole / LOCK_FILE
    made = [one for one in (path.parent, *path.parent.parents) if not one.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path)
    except BlockingIOError:
        raise UserError(f"{target}: {_holder(path)} is writing here; wait for it, or choose another --out") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error
    if descriptor is not None:
        _held.add(descriptor)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        words = f"directdet {command} (process {os.getpid()} on {socket.gethostname()}, since {now})"
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            os.truncate(path, 0)
            os.write(descriptor, words.encode(errors="replace"))
    try:
        yield
    finally:
        if descriptor in _held:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held; whoever waits for it then finds that it is not this file any more
            os.close(descriptor)
            _held.discard(descriptor)
        with contextlib.suppress(OSError):  # one in which something was written
            for one in made:
                one.rmdir()


def _take(path: Path) -> int | None:
    """The open and locked file; None where the system or the file system has no locks.

    Raises BlockingIOError if it is held.
    """
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)  # the holder removed it in the meantime


def _holder(path: Path) -> str:
    """Who holds the lock, as it wrote."""
    with contextlib.suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="replace")[:_MOST_READ].strip()
        if text:
            return text
    return "another command"
