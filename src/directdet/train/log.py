"""The log of a run: one JSON object per line."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

from directdet.common.errors import UserError
from directdet.common.files import write_bytes_atomic
from directdet.common.json_files import check_json, read_json_lines
from directdet.common.settings import NotNegative, ZeroOrMore
from directdet.train.watch.callbacks import EvaluationNumbers, StepNumbers

FIX = "remove the line"


@dataclass(frozen=True)
class Row:
    """What every row has."""

    kind: str
    step: ZeroOrMore


@dataclass(frozen=True)
class StepRow:
    """What others than the log itself read of a row about steps."""

    kind: Literal["step"]
    loss: float
    seconds_per_step: NotNegative
    data_seconds: NotNegative
    memory_gib: NotNegative | None = None


@dataclass(frozen=True)
class EvalRow:
    """The same of a row about an evaluation."""

    kind: Literal["eval"]
    bbox: dict[str, float]
    segm: dict[str, float] | None = None
    voc: dict[str, Any] | None = None
    images_per_second: NotNegative | None = None


def step_row(numbers: StepNumbers) -> dict[str, Any]:
    """A row about steps."""
    return {name: value for name, value in asdict(numbers).items() if name != "step" and value is not None}


def evaluation_row(numbers: EvaluationNumbers) -> dict[str, Any]:
    """A row about an evaluation."""
    row: dict[str, Any] = {"epoch": numbers.epoch, "bbox": numbers.bbox, "voc": numbers.voc}
    row["images_per_second"] = numbers.images / max(numbers.seconds, 1e-9)
    return row if numbers.segm is None else {**row, "segm": numbers.segm}


class RunLog:
    """Appends rows to FOLDER/log.jsonl; a context manager.

    Args:
        folder: of the phase.
        phase: its name, written into every row.
        resumed: the step that the run continues from, and the step of its last evaluation: later rows are dropped,
            since that work is done again. None starts a new log.
        enabled: False writes nothing; for all processes but the main one.
    """

    def __init__(self, folder: Path, phase: str, resumed: tuple[int, int] | None, enabled: bool = True):
        self.phase = phase
        self._file = _open(folder, resumed) if enabled else None

    def write(self, kind: str, step: int, numbers: dict[str, Any]) -> None:
        """One row: {"kind", "phase", "step", **numbers}."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"kind": kind, "phase": self.phase, "step": step, **numbers}) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self._file.name}: cannot be written: {error.strerror or error}") from error

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, which writing has told of
                self._file.close()


def _open(folder: Path, resumed: tuple[int, int] | None) -> TextIO:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.jsonl"
    write_bytes_atomic(path, b"".join(_rows_until(path, *resumed)) if resumed is not None else b"")
    return path.open("a", encoding="utf-8")


def _rows_until(path: Path, step: int, evaluated: int) -> Iterator[bytes]:
    """The lines up to the step that a run is resumed from.

    A run that was killed in an evaluation does that again, and so had written its row for nothing.
    """
    if not path.is_file():
        return
    for number, line, value in read_json_lines(path, FIX):
        row = check_json(value, Row, f"{path}: line {number}", FIX)
        if row.step <= (evaluated if row.kind == "eval" else step):
            yield line


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log.jsonl; without the last line if the run was killed while it was written.

    Raises:
        UserError: a line is no row.
    """
    return [row for _, row in _rows(path)]


def read_results(path: Path) -> list[dict[str, Any]]:
    """`read_log`, where the rows also have the fields of StepRow and EvalRow; UserError if one has not."""
    rows: list[dict[str, Any]] = []
    for where, row in _rows(path):
        if row["kind"] == "step":
            check_json(row, StepRow, where, FIX)
        elif row["kind"] == "eval":
            missing = {"AP", "AP50"} - check_json(row, EvalRow, where, FIX).bbox.keys()
            if missing:
                raise UserError(f"{where}: bbox: {min(missing)} is missing; {FIX}")
        rows.append(row)
    return rows


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, _, row in read_json_lines(path, FIX):
        where = f"{path}: line {number}"
        check_json(row, Row, where, FIX)
        yield where, row
