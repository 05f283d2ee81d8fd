"""The files that hold pictures, on disk or at an address that fsspec knows (s3://, hf://, https://, memory://, ...).

Of an address, parts are read where they are; nothing is stored. A file there is taken as the same one until the set is
opened again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from directdet.common.errors import MissingLibraryError, UserError
from directdet.common.urls import shown, url_of

State = tuple[int, int, int]
_BLOCK = 2**22  # bytes that are read ahead at an address
_TIMES = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "last_modified", "last_commit", "created")
_states: dict[str, State] = {}  # of addresses


def state_of(file: Path) -> State:
    """(size, time of change, time of any change to its entry) of a file, by which it is known again.

    Of an address, what the server says instead of times is a number, too.

    Raises:
        UserError: it cannot be found.
        MissingLibraryError: a library for its address is not installed.
    """
    if url_of(file) is None:
        try:
            state = os.stat(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
        return state.st_size, state.st_mtime_ns, state.st_ctime_ns
    with _at(file) as (system, path):
        about: dict[str, Any] = system.info(path)
    size = about.get("size")
    if not isinstance(size, int):
        raise UserError(f"{shown(file)}: the server does not say its size, so no part of it can be read; copy it here")
    told = repr([about.get(name) for name in _TIMES])
    found = (size, int.from_bytes(hashlib.sha256(told.encode()).digest()[:6], "big"), 0)
    _states[str(file)] = found
    return found


def known_state(file: Path) -> State:
    """:func:`state_of`, but of an address as it was when it was asked last."""
    known = _states.get(str(file))
    return state_of(file) if known is None else known


def read_part(file: Path, start: int, count: int) -> bytes:
    """``count`` bytes from ``start`` on, fewer where the file ends; errors as :func:`state_of`."""
    if url_of(file) is None:
        try:
            with open(file, "rb", buffering=0) as stream:
                stream.seek(start)
                content = b""
                while len(content) < count and (block := stream.read(count - len(content))):
                    content += block
                return content
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
    if count <= 0:
        return b""
    with _at(file) as (system, path):
        content = bytes(system.cat_file(path, start=start, end=start + count))
    if len(content) > count:
        raise UserError(f"{shown(file)}: the server sends the whole file where a part is asked for; copy the set here")
    return content


def read_all(file: Path) -> bytes:
    """The content of a file at an address; errors as :func:`state_of`."""
    with _at(file) as (system, path):
        return bytes(system.cat_file(path))


def is_there(file: Path) -> bool:
    """Whether there is such a file; errors as :func:`state_of`, but for one that is not there."""
    if url_of(file) is None:
        return file.is_file()
    with _at(file) as (system, path):
        try:  # not `isfile`, to which a server that cannot be reached is like a file that is not there
            return system.info(path)["type"] == "file"
        except FileNotFoundError as error:
            if _failure(error) is error:
                return False
            raise


def names_in(folder: Path, ending: str) -> list[str]:
    """The sorted names of what lies in a folder and ends so; none if there is no such folder."""
    if url_of(folder) is None:
        return sorted(file.name for file in folder.glob(f"*{ending}"))
    with _at(folder) as (system, path):
        found: list[str] = system.ls(path, detail=False)
    return sorted(name for one in found if (name := one.rstrip("/").rpartition("/")[2]).endswith(ending))


@contextmanager
def reader(file: Path) -> Iterator[Callable[[int, int], bytes]]:
    """A function of start and count that reads a file from its beginning to its end; as :func:`read_part`."""
    if url_of(file) is None:
        try:
            with open(file, "rb", buffering=0) as stream:

                def from_disk(start: int, count: int) -> bytes:
                    stream.seek(start)
                    return stream.read(count)

                yield from_disk
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
        return
    length = known_state(file)[0]
    begin, block = 0, b""

    def from_address(start: int, count: int) -> bytes:
        nonlocal begin, block
        count = min(count, length - start)
        if start < begin or start + count > begin + len(block):
            begin, block = start, read_part(file, start, min(max(count, _BLOCK), length - start))
        return block[start - begin : start - begin + count]

    yield from_address


@contextmanager
def _at(file: Path) -> Iterator[tuple[Any, str]]:
    """The file system of an address, and the path in it; what goes wrong there is told in one line."""
    url = shown(file)
    try:
        import fsspec
    except ImportError as error:
        raise MissingLibraryError(f"{url}: needs fsspec ({error}); pip install 'directdet[remote]'") from None
    try:
        yield fsspec.core.url_to_fs(url)  # made anew in each process, else known
    except UserError:
        raise
    except ImportError as error:
        raise MissingLibraryError(f"{url}: {error}; pip install the library that it names") from None
    except Exception as error:  # of a server, a protocol or credentials, anything
        failure = _failure(error)
        if isinstance(failure, FileNotFoundError):
            raise UserError(f"{url}: not found; check the address") from None
        reason = " ".join(f"{type(failure).__name__}: {failure}".split())[:200]
        raise UserError(f"{url}: cannot be read: {reason}") from None


def _failure(error: Exception) -> BaseException:
    """What went wrong: of HTTP, fsspec says that a file is not found if its server cannot be reached or fails, too."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None:
        return error
    unreachable = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    status = getattr(cause, "status", None)
    failed = isinstance(status, int) and (status >= 500 or status == 429)
    return cause if unreachable or failed or isinstance(cause, TimeoutError) else error
