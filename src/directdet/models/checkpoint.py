"""Checkpoints: plain dictionaries of tensors and plain values, written atomically, read without executing code."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from directdet.common.errors import UserError

FORMAT = 1
REQUIRED = ("format", "model_config", "model", "classes", "category_ids", "preprocess")


class CheckpointError(UserError):
    """The file is not a valid directdet checkpoint; the message names the file and the reason."""


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write `checkpoint` to `path` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **checkpoint}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
