"""What a run writes about itself: one JSON object a line, and TensorBoard events."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from directdet.common.files import write_text_atomic


class RunLog:
    """Appends rows to log.jsonl and their numbers to TensorBoard; a context manager. Not `kept`, it writes nothing."""

    def __init__(self, folder: Path, phase: str, resume_step: int | None, kept: bool = True):
        self.file = self.board = None
        if not kept:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        rows = _rows_until(path, resume_step) if resume_step is not None else []
        write_text_atomic(path, "".join(rows))
        self.phase = phase
        self.file = path.open("a", encoding="utf-8")
        self.board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=None if resume_step is None else resume_step + 1
        )

    def write(self, kind: str, step: int, numbers: dict) -> None:
        """One row: {"kind", "phase", "step", **numbers}; nested dictionaries become TensorBoard groups."""
        if self.file is None:
            return
        self.file.write(json.dumps({"kind": kind, "phase": self.phase, "step": step, **numbers}) + "\n")
        self.file.flush()
        for name, value in numbers.items():
            for key, number in value.items() if isinstance(value, dict) else [(kind, value)]:
                if isinstance(number, (int, float)):
                    self.board.add_scalar(f"{name}/{key}", number, step)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.file is not None:
            self.file.close()
            self.board.close()


def _rows_until(path: Path, step: int) -> list[str]:
    """The rows of an earlier part of the run, up to the step it is resumed from: what came after was lost with it."""
    if not path.is_file():
        return []
    return [line for line, row in _rows(path) if row["step"] <= step]


def read_log(path: Path) -> list[dict]:
    """The rows of a log.jsonl."""
    return [row for _, row in _rows(path)]


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    """Every line with its row, up to one that was cut short when the run was killed."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line)
            row["step"]
        except (ValueError, KeyError, TypeError):
            return
        yield line, row
