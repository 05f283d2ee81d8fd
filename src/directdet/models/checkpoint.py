"""Checkpoints: plain dictionaries of tensors and plain values, written atomically, read without executing code."""

import contextlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from directdet.common.errors import UserError

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
        if not zipfile.is_zipfile(path):  # torch.save writes zip files; never open a plain pickle
            raise ValueError("not a file written by torch.save, or truncated")
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: contains objects other than tensors and plain values; not loaded") from error
    except Exception as error:  # a damaged file can make torch raise almost anything: assertions, index errors, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in REQUIRED):
        raise CheckpointError(f"{path}: not a directdet checkpoint, which has the keys {', '.join(REQUIRED)}")
    if checkpoint["format"] != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {checkpoint['format']}, this version reads {FORMAT}")
    bad = not_finite(checkpoint["model"]) if isinstance(checkpoint["model"], dict) else None
    if bad is not None:
        raise CheckpointError(
            f"{path}: {bad}: holds values that are not finite, as training leaves them that diverged; use an earlier "
            "checkpoint, or train with a lower rate"
        )
    return checkpoint


def not_finite(weights: Mapping[str, Any]) -> str | None:
    """The name of a tensor that holds NaN or infinity; None if all are finite. On a GPU, it waits once."""
    values = {k: v for k, v in weights.items() if torch.is_tensor(v) and v.is_floating_point()}
    if not values or bool(torch.stack([v.isfinite().all() for v in values.values()]).all()):
        return None
    return next(name for name, value in values.items() if not value.isfinite().all())
