"""Which files of an output folder were written by earlier runs: nobody else's file is ever replaced.

Every run notes what it writes in `.directdet-files.jsonl`, a line for each file: its name in the folder, the source it
was made from, and a digest of its content, or null while it is being written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from directdet.common.errors import UserError

RECORD = ".directdet-files.jsonl"
_END = 1 << 20  # bytes of a large file's start and of its end that are digested
_GONE = "gone"


class OwnFiles:
    """The files of one output folder. A file may be replaced if an earlier run made it from the same source, and if
    nobody has changed it since.

    Args:
        folder: the output folder; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / RECORD

    def claim(self, targets: Iterable[tuple[Path | str, str]]) -> None:
        """Check that files may be written, before a run begins. Memory grows with the record if a target exists.

        Args:
            targets: names in the folder, each with its source (`identity`).

        Raises:
            UserError: a file of this name is there that no run has made from this source, or that was changed.
        """
        known: dict[str, tuple[str, list[str | None]]] | None = None
        for name, source in targets:
            path = self._folder / name
            if not os.path.lexists(path):
                continue
            known = self._read() if known is None else known
            earlier, digests = known.get(Path(name).as_posix(), (None, []))
            if earlier is None:
                reason = "was not written by directdet"
            elif earlier != source:
                reason = f"is the result of {earlier}"
            elif None not in digests and _digest_file(path) not in digests:
                reason = "was changed since directdet wrote it"
            else:
                continue
            raise UserError(f"{path}: would be overwritten, but it {reason}; choose another output folder or move it")

    def started(self, name: Path | str, source: str) -> None:
        """Note a file before it is written bit by bit."""
        self._note(name, source, None)

    def written(self, name: Path | str, source: str, content: bytes | None = None) -> None:
        """Note a file: with its content, before it is written; without, when it is complete (or is gone)."""
        path = self._folder / name
        if content is not None:
            digest = _digest(len(content), content[:_END], content[-_END:])
        else:
            digest = _digest_file(path) if path.is_file() else _GONE
        self._note(name, source, digest)

    def _note(self, name: Path | str, source: str, digest: str | None) -> None:
        line = json.dumps({"file": Path(name).as_posix(), "source": source, "digest": digest}) + "\n"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as stream:  # one write, so that the lines of two runs do not mix
                stream.write(line.encode())
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {error.strerror or error}") from error

    def _read(self) -> dict[str, tuple[str, list[str | None]]]:
        """Of each name the source, and the digests that the file may have: None allows any.

        A file is noted before it replaces an earlier one, so that a killed run may have left either.
        """
        known: dict[str, tuple[str, list[str | None]]] = {}
        try:
            with self._path.open("rb") as stream:
                for content in stream:
                    try:
                        line = json.loads(content)
                        name, source, digest = line["file"], line["source"], line["digest"]
                        if not (isinstance(name, str) and isinstance(source, str) and isinstance(digest, str | None)):
                            raise ValueError
                    except (ValueError, TypeError, KeyError, RecursionError):
                        continue  # left incomplete by a killed process, or damaged: that file is then not ours
                    before, digests = known.get(name, (source, []))
                    fresh = digest is None or digest == _GONE or None in digests or before != source
                    known[name] = (source, [digest] if fresh else [*digests[-1:], digest])
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        return known


def identity(source: str | Path) -> str:
    """What tells a source from others: the path of a file, the address of a stream without what may be secret in it."""
    text = str(source)
    if "://" in text:
        return "stream " + hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
    return text if text.isdecimal() and not Path(text).exists() else os.path.realpath(text)


def _digest_file(path: Path) -> str:
    if not path.is_file():
        return "not a file"
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(_END)
            stream.seek(max(0, size - _END))
            return _digest(size, start, stream.read(_END))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _digest(size: int, start: bytes, end: bytes) -> str:
    return hashlib.sha256(b"%d " % size + start + end).hexdigest()[:32]
