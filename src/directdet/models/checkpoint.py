"""Checkpoints: plain dictionaries of tensors and plain values, written atomically, read without executing code."""

import contextlib
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from directdet.common.errors import UserError
from directdet.common.json_files import check_json
from directdet.common.settings import ZeroOrMore
from directdet.models.archive import ForeignObjectError, check_archive, overlapping_tensor

FORMAT = 1
REQUIRED = ("format", "model_config", "model", "classes", "category_ids", "preprocess")


class CheckpointError(UserError):
    """The file is not a valid directdet checkpoint; the message names the file and the reason."""


class _Recorder:
    """A file that keeps the first exception of writing, since torch.save makes a RuntimeError of any."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except BaseException as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


@dataclass(frozen=True)
class _Fields:
    """What a checkpoint holds; those with a default are missing where it is for inference alone."""

    model_config: dict[str, Any]
    model: dict[str, Any]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    preprocess: dict[str, Any]
    recipe: str | None = None
    phase: str | None = None
    optimizer: dict[str, Any] | None = None
    step: ZeroOrMore = 0
    steps: ZeroOrMore = 0
    best: float = -1.0
    evaluated: ZeroOrMore = 0
    seed: ZeroOrMore = 0
    images_per_step: ZeroOrMore = 0


def _is_weight(value: Any) -> bool:
    return torch.is_tensor(value) and not overlapping_tensor(value)


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write `checkpoint` to `path` atomically.

    Raises:
        UserError: it cannot be written, for example because the disk is full; an earlier file stays.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            _save({"format": FORMAT, **checkpoint}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = "; the earlier one is kept" if path.is_file() else ""
        raise UserError(f"{path}: cannot be written: {error.strerror or error}{kept}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _save(content: dict, file: BinaryIO) -> None:
    """torch.save, but Ctrl-C and errors of the disk are raised as what they are."""
    recorder = _Recorder(file)
    try:
        torch.save(content, cast(BinaryIO, recorder))  # it calls write and flush alone
    except RuntimeError as error:
        first: BaseException | None = error  # torch ends its file even after Ctrl-C, which fails in turn
        while first is not None and not isinstance(first, KeyboardInterrupt):
            first = first.__context__
        cause = first or recorder.error
        if cause is None:
            raise
        raise cause from None


def load_checkpoint(path: str | Path, device: str = "cpu") -> dict:
    """Read a checkpoint without executing anything in it.

    Raises:
        CheckpointError: the file is missing, damaged or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        check_archive(path)
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, ForeignObjectError) as error:
        raise CheckpointError(f"{path}: contains objects other than tensors and plain values; not loaded") from error
    except Exception as error:  # a damaged file can make torch raise almost anything: assertions, index errors, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in REQUIRED):
        raise CheckpointError(f"{path}: not a directdet checkpoint, which has the keys {', '.join(REQUIRED)}")
    if checkpoint["format"] != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {checkpoint['format']!r}, this version reads {FORMAT}")
    try:
        check_json(checkpoint, _Fields, str(path), "use an earlier checkpoint")
    except UserError as error:
        raise CheckpointError(str(error)) from None
    odd = [name for name, value in checkpoint["model"].items() if not _is_weight(value)]
    if odd or not all(isinstance(name, str) for name in checkpoint["model"]):
        raise CheckpointError(f"{path}: model: {str(odd[:1])[:120]}: is not a tensor; use an earlier checkpoint")
    bad = not_finite(checkpoint["model"])
    if bad is not None:
        raise CheckpointError(
            f"{path}: {bad}: holds values that are not finite, as training leaves them that diverged; use an earlier "
            "checkpoint, or train with a lower rate"
        )
    return checkpoint


@contextlib.contextmanager
def matching(path: str | Path) -> Iterator[None]:
    """CheckpointError where what a checkpoint holds does not fit what it is loaded into inside this block."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: does not fit its own network and settings ({type(error).__name__}: {reason}); use an earlier "
            "checkpoint"
        ) from error


def not_finite(weights: Mapping[str, Any]) -> str | None:
    """The name of a tensor that holds NaN or infinity; None if all are finite. On a GPU, it waits once."""
    values = {k: v for k, v in weights.items() if torch.is_tensor(v) and v.is_floating_point()}
    if not values or bool(torch.stack([v.isfinite().all() for v in values.values()]).all()):
        return None
    return next(name for name, value in values.items() if not value.isfinite().all())
