"""Files inside tar files: ``FOLDER/train-000000.tar/0001.jpg`` names the member 0001.jpg of that tar.

Where a member's bytes lie is read once from the headers; then it is one read at its place, by any process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from directdet.common.errors import UserError
from directdet.common.urls import shown
from directdet.data.inside.files import known_state, read_part, reader
from directdet.data.inside.index import Index

KEPT = 2**24  # bytes of a tar from which on its index is kept: less is read in no time

_LONGEST_NAME = 1024  # bytes
_BLOCK = 512
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"S": "a sparse file"}
_EXTRA = (b"x", b"g", b"L", b"K")  # headers that are about the next member, or all
_LONGEST_EXTRA = 2**20
_AGAIN = "copy it again, or write it anew"


@dataclass(frozen=True)
class Member:
    """A plain file in a tar: its path there, where its bytes lie, and, if they were wanted, the bytes."""

    name: str
    offset: int
    size: int
    content: bytes | None = None


def read_member(file: Path, name: str, most: int = -1) -> bytes:
    """The content of a member, or its first ``most`` bytes.

    Raises:
        UserError: the tar cannot be read or has no such member.
    """
    place = find_member(file, name)
    if place is None:
        raise UserError(f"{shown(file)}: no member {name!r} in it; {_AGAIN}")
    offset, size = place
    wanted = size if most < 0 else min(size, most)
    content = read_part(file, offset, wanted)
    if len(content) < wanted:
        raise UserError(f"{shown(file)}: member {name!r} goes on beyond the end of the file; {_AGAIN}")
    return content


def find_member(file: Path, name: str) -> tuple[int, int] | None:
    """(offset, size) in bytes of a member; None if there is none of this name.

    Raises:
        UserError: the tar cannot be read.
    """
    return _index(file).find(name)


def list_members(file: Path, wanted: Callable[[Member], bool] = lambda member: False) -> list[Member]:
    """The plain files in a tar, in its order, with the content of those that are ``wanted``; folders are left out.

    Raises:
        UserError: it is missing, compressed, cut short or damaged, or a member is a link or another thing that is no
            plain file, has a name that points out of it, or one that another has.
    """
    state, members = known_state(file), list(_members(file, wanted))
    index = Index.of([(member.name, member.offset, member.size) for member in members])
    _indices[str(file)] = (state, index)
    if state[0] >= KEPT:
        index.keep(file, state)
    return members


# By tar, with its state at that time: what was replaced since is read anew.
_indices: dict[str, tuple[tuple[int, int, int], Index]] = {}


def _index(file: Path) -> Index:
    state, known = known_state(file), _indices.get(str(file))
    if known is not None and known[0] == state:
        return known[1]
    kept = Index.kept(file, state)
    if kept is None:
        list_members(file)
    else:
        _indices[str(file)] = (state, kept)
    return _indices[str(file)][1]


def _members(file: Path, wanted: Callable[[Member], bool]) -> Iterator[Member]:
    with reader(file) as read:
        start = read(0, 8)
        for magic, name in _MAGIC.items():
            if start.startswith(magic):
                raise UserError(
                    f"{shown(file)}: is compressed ({name}); unpack it to a plain tar: pictures are read in place"
                )
        for member in _walk(shown(file), read, known_state(file)[0]):
            yield replace(member, content=read(member.offset, member.size)) if wanted(member) else member


def _walk(file: str, read: Callable[[int, int], bytes], length: int) -> Iterator[Member]:
    """The members, header by header (POSIX.1-2001's ustar and pax, and GNU's long names)."""
    seen: set[str] = set()
    at, name = 0, ""
    given: dict[str, Any] = {}
    while True:
        header = read(at, _BLOCK)
        if len(header) < _BLOCK:
            raise UserError(f"{file}: has no end, so it was cut short after {name or 'its beginning'!r}; {_AGAIN}")
        if not any(header):
            return
        size, kind = _number(header[124:136]), header[156:157]
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32 or size is None:
            raise UserError(
                f"{file}: not a tar file, or damaged at byte {at}, after {name or 'its beginning'!r}; {_AGAIN}"
            )
        if kind not in _EXTRA:
            size, name = given.get("size", size), given.get("path", _name(header))
        if at + _BLOCK + size > length:
            raise UserError(
                f"{file}: member {_short(name)} ends at byte {at + _BLOCK + size}, but the file has {length}: it was "
                f"cut short; {_AGAIN}"
            )
        if kind in _EXTRA:
            given |= _extra(file, kind, read(at + _BLOCK, min(size, _LONGEST_EXTRA + 1)))
        elif kind != b"5":  # a folder
            plain = _plain(file, name, kind, given)
            if plain in seen:
                raise UserError(f"{file}: two members are called {_short(plain)}; give each its own name")
            seen.add(plain)
            yield Member(plain, at + _BLOCK, size)
        given = given if kind in _EXTRA else {}
        at += _BLOCK + -(-size // _BLOCK) * _BLOCK


def _number(text: bytes) -> int | None:
    """A number of a header, octal or GNU's binary; None if it is none, or negative."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    digits = text.strip(b" \0")
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else None


def _name(header: bytes) -> str:
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    whole = prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name  # GNU has other things there
    return whole.decode("utf-8", "surrogateescape")


def _extra(file: str, kind: bytes, content: bytes) -> dict[str, Any]:
    """What an extra header says of the next member: its path and size, where they do not fit the usual one."""
    if len(content) > _LONGEST_EXTRA:
        raise UserError(f"{file}: an extended header has more than {_LONGEST_EXTRA} bytes; {_AGAIN}")
    if kind == b"L":
        return {"path": content.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    if kind in (b"K", b"g"):  # the name of a link, which is refused; what holds for all, such as a comment
        return {}
    found: dict[str, Any] = {}
    while content.strip(b"\0"):
        length, _, _ = content.partition(b" ")
        count = int(length) if length.isdigit() and len(length) < 9 else 0
        key, equals, value = content[len(length) + 1 : count - 1].partition(b"=")
        if not equals or content[count - 1 : count] != b"\n":
            raise UserError(f"{file}: an extended header is damaged; {_AGAIN}")
        if key == b"path":
            found["path"] = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            found["size"] = int(value) if value.isdigit() and len(value) < 20 else 2**62
        elif key.startswith(b"GNU.sparse"):
            found["sparse"] = True
        content = content[count:]
    return found


def _plain(file: str, name: str, kind: bytes, given: dict[str, Any]) -> str:
    """The name of a member that is a plain file, as a path below the tar."""
    if kind not in (b"0", b"\0", b"7") or given.get("sparse"):
        what = _KINDS.get(kind, "a sparse file" if given.get("sparse") else "no plain file")
        raise UserError(
            f"{file}: member {_short(name)} is {what}; write the tar with plain files alone (tar -h follows links)"
        )
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or "\0" in name or not path.name:
        raise UserError(f"{file}: member {_short(name)} may point outside; write the tar with paths inside its folder")
    if len(name.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
        raise UserError(f"{file}: member {_short(name)} has more than {_LONGEST_NAME} bytes; give it a shorter name")
    return str(path)


def _short(name: str) -> str:
    return repr(name if len(name) < 200 else name[:200] + "...")
