"""The log of a run: one JSON object per line, and TensorBoard events."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

from torch.utils.tensorboard import SummaryWriter

from directdet.common.errors import UserError
from directdet.common.files import write_text_atomic


class RunLog:
    """Appends rows to FOLDER/log.jsonl and their numbers to TensorBoard; a context manager.

    Args:
        folder: of the phase.
        phase: its name, written into every row.
        resume_step: the step that the run continues from, which drops the rows after it; None starts a new log.
        enabled: False writes nothing; for all processes but the main one.
    """

    def __init__(self, folder: Path, phase: str, resume_step: int | None, enabled: bool = True):
        self.phase = phase
        self._outputs = _open(folder, resume_step) if enabled else None

    def write(self, kind: str, step: int, numbers: dict) -> None:
        """One row: {"kind", "phase", "step", **numbers}; nested dictionaries become TensorBoard groups."""
        if self._outputs is None:
            return
        file, board = self._outputs
        try:
            self._append(file, board, kind, step, numbers)
        except OSError as error:
            raise UserError(f"{file.name}: cannot be written: {error.strerror or error}") from error

    def _append(self, file: TextIO, board: SummaryWriter, kind: str, step: int, numbers: dict) -> None:
        file.write(json.dumps({"kind": kind, "phase": self.phase, "step": step, **numbers}) + "\n")
        file.flush()
        for name, value in numbers.items():
            for key, number in value.items() if isinstance(value, dict) else [(kind, value)]:
                if isinstance(number, (int, float)):
                    board.add_scalar(f"{name}/{key}", number, step)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for output in self._outputs or ():
            with contextlib.suppress(OSError):  # a full disk, which writing has told of
                output.close()


def _open(folder: Path, resume_step: int | None) -> tuple[TextIO, SummaryWriter]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.jsonl"
    rows = _rows_until(path, resume_step) if resume_step is not None else []
    write_text_atomic(path, "".join(rows))
    purge = None if resume_step is None else resume_step + 1
    return path.open("a", encoding="utf-8"), SummaryWriter(str(folder / "tensorboard"), purge_step=purge)


def _rows_until(path: Path, step: int) -> list[str]:
    """The rows up to the step that a run is resumed from: the work after it was lost, and is done again."""
    if not path.is_file():
        return []
    return [line for line, row in _rows(path) if row["step"] <= step]


def read_log(path: Path) -> list[dict]:
    """The rows of a log.jsonl; without the last line if the run was killed while it was written."""
    return [row for _, row in _rows(path)]


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    """Every line with its row, up to the first line that is incomplete."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line)
            row["step"]
        except (ValueError, KeyError, TypeError):
            return
        yield line, row
