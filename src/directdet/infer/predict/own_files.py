"""Which files of an output folder were written by earlier runs: nobody else's file is ever replaced.

Every run notes what it writes in `.directdet-files.jsonl`, a line for each file: its name in the folder, the source it
was made from with the digest of that (null if it has none), and a digest of its own content, or null while it is being
written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from directdet.common.errors import UserError
from directdet.infer.predict.same import Origin

RECORD = ".directdet-files.jsonl"
_END = 1 << 20  # bytes of a large file's start and of its end that are digested
_GONE = "gone"
_Known = tuple[tuple[str, str | None], list[str | None]]  # the place and digest of a source, digests of the file


class OwnFiles:
    """The files of one output folder. A file may be replaced if an earlier run made it from the same source, and if
    nobody has changed it since.

    Args:
        folder: the output folder; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / RECORD

    def claim(self, targets: Iterable[tuple[Path | str, Callable[[], Origin]]]) -> None:
        """Check that files may be written, before a run begins. Memory grows with the record if a target exists.

        Args:
            targets: names in the folder, each with what returns its source; called if the file exists.

        Raises:
            UserError: a file of this name is there that no run has made from this source, or that was changed.
        """
        known: dict[str, _Known] | None = None
        for name, source in targets:
            path = self._folder / name
            if not os.path.lexists(path):
                continue
            known = self._read() if known is None else known
            earlier, digests = known.get(Path(name).as_posix(), (None, []))
            origin = source()
            if earlier is None:
                reason = "was not written by directdet"
            elif not origin.is_that(*earlier):
                was = " as it was before" if earlier[0] == origin.place else ""
                reason = f"is the result of {earlier[0]}{was}"
            elif None not in digests and _digest_file(path) not in digests:
                reason = "was changed since directdet wrote it"
            else:
                continue
            raise UserError(f"{path}: would be overwritten, but it {reason}; choose another output folder or move it")

    def started(self, name: Path | str, source: Origin) -> None:
        """Note a file before it is written bit by bit."""
        self._note(name, source, None)

    def written(self, name: Path | str, source: Origin, content: bytes | None = None) -> None:
        """Note a file: with its content, before it is written; without, when it is complete (or is gone)."""
        path = self._folder / name
        if content is not None:
            digest = _digest(len(content), content[:_END], content[-_END:])
        else:
            digest = _digest_file(path) if path.is_file() else _GONE
        self._note(name, source, digest)

    def _note(self, name: Path | str, source: Origin, digest: str | None) -> None:
        about = {"file": Path(name).as_posix(), "source": source.place, "made_from": source.digest, "digest": digest}
        line = json.dumps(about) + "\n"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as stream:  # one write, so that the lines of two runs do not mix
                stream.write(line.encode())
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {error.strerror or error}") from error

    def _read(self) -> dict[str, _Known]:
        """Of each name the source, and the digests that the file may have: None allows any.

        A file is noted before it replaces an earlier one, so that a killed run may have left either.
        """
        known: dict[str, _Known] = {}
        try:
            with self._path.open("rb") as stream:
                for content in stream:
                    try:
                        line = json.loads(content)
                        name, digest = line["file"], line["digest"]
                        source = line["source"], line.get("made_from")  # older lines do not have the latter
                        texts = isinstance(name, str) and isinstance(source[0], str)
                        if not (texts and all(isinstance(value, str | None) for value in (source[1], digest))):
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
