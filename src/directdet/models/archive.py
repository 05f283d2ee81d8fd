"""Looking into a file of torch.save before torch reads it: what it would allocate, and what it would call.

torch's own restricted reader still unpacks compressed entries of any size, and makes byte arrays and views of any size:
a file of some KB could ask for more memory than the machine has.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

MOST_PICKLE = 256 * 2**20  # bytes of the entry with names, numbers and the places of the tensors; ours have some KB
_CALLED = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
}


def check_archive(path: Path) -> None:
    """ValueError, which says why, unless the file holds tensors and plain values alone, and no more than its size."""
    if not zipfile.is_zipfile(path):  # torch.save writes zip files; never open a plain pickle
        raise ValueError("not a file written by torch.save, or truncated")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("holds compressed entries, which torch.save does not write")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("claims to hold more than its size")
        for entry in entries:
            if entry.filename.endswith("/data.pkl"):
                if entry.file_size > MOST_PICKLE:
                    raise ValueError(f"its data.pkl is larger than {MOST_PICKLE >> 20} MiB")
                _check_pickle(archive.read(entry))


class ForeignObjectError(ValueError):
    """The file would call what neither tensors nor plain values need."""


def _check_pickle(content: bytes) -> None:
    for operation, argument, _ in pickletools.genops(content):
        if operation.name == "GLOBAL" and _is_known(str(argument)):
            continue
        if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise ForeignObjectError(str(argument))


def _is_known(name: str) -> bool:
    storage = name.startswith(("torch ", "torch.storage ")) and name.endswith("Storage")
    return name in _CALLED or storage


def overlapping_tensor(value: Any) -> bool:
    """Whether a tensor has more elements than memory: a view that repeats its elements, which arithmetic unfolds."""
    if not torch.is_tensor(value) or value.layout != torch.strided or value.is_quantized:
        return torch.is_tensor(value)
    return value.numel() * value.element_size() > value.untyped_storage().nbytes()
