"""Reading an artefact: the folder `directdet export` writes, with a model file and its meta.json.

Whatever could make detections silently wrong is compared before anything runs: the model file's hash, the format, and
the checksum of what the preprocessing here makes of a fixture image.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .preprocess import Preprocess

FORMAT = 1
META_FILE = "meta.json"
KINDS = ("onnx", "tensorrt", "tensorrt-rtx")

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "kind": str,
    "file": str,
    "sha256": str,
    "classes": list,
    "category_ids": list,
    "preprocess": dict,
    "preprocess_checksum": str,
    "precision": str,
    "input": dict,
}


@dataclass(frozen=True)
class Artefact:
    """A checked artefact folder. `meta` is meta.json as it is; the other fields are read from it."""

    folder: Path
    kind: str
    model_file: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    preprocess: Preprocess
    input_name: str
    input_shape: tuple[int | None, ...]  # None: any size, e.g. a dynamic batch
    meta: dict[str, Any]


def read_artefact(folder: str | Path) -> Artefact:
    """Read and check an artefact folder.

    Raises:
        UserError: no or broken meta.json, another format, a changed model file, or a preprocessing that behaves
            differently here from where the model was exported.
    """
    folder = Path(folder)
    meta = read_meta(folder / META_FILE)
    where = str(folder / META_FILE)
    if meta["kind"] not in KINDS:
        raise UserError(f"{where}: kind: {meta['kind']!r} is not known here; expected one of {', '.join(KINDS)}")
    if len(meta["classes"]) != len(meta["category_ids"]):
        raise UserError(
            f"{where}: {len(meta['classes'])} classes but {len(meta['category_ids'])} category_ids; export again"
        )
    if not all(isinstance(number, int) for number in meta["category_ids"]):
        raise UserError(f"{where}: category_ids: expected whole numbers; export again")
    preprocess = Preprocess.from_dict(meta["preprocess"], where)
    name, shape = _input(meta["input"], where)
    model_file = _model_file(folder, meta, where)
    if preprocess.checksum() != meta["preprocess_checksum"]:
        raise UserError(
            f"{where}: preprocess_checksum: images are prepared differently here from where this was exported (another "
            "OpenCV or an edited file?), so accuracy would suffer; export again with this installation"
        )
    return Artefact(
        folder=folder,
        kind=meta["kind"],
        model_file=model_file,
        classes=tuple(str(name) for name in meta["classes"]),
        category_ids=tuple(meta["category_ids"]),
        preprocess=preprocess,
        input_name=name,
        input_shape=shape,
        meta=meta,
    )


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json with the fields this version needs, each of the right type."""
    try:
        meta = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; an artefact folder holds meta.json beside the model") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); export again") from None
    if not isinstance(meta, dict):
        raise UserError(f"{path}: expected a JSON object; export again")
    if meta.get("format") != FORMAT:
        raise UserError(f"{path}: format: {meta.get('format')!r}, this version reads {FORMAT}; export again")
    for field, kind in _FIELDS.items():
        if not isinstance(meta.get(field), kind):
            state = "missing" if field not in meta else f"a {type(meta[field]).__name__}"
            raise UserError(f"{path}: {field}: {state}; export again")
    return meta


def _input(value: dict[str, Any], where: str) -> tuple[str, tuple[int | None, ...]]:
    """Name and shape [B, 3, H, W] of the network's input; None for a size left open (a name or -1 in the file)."""
    name, shape = value.get("name"), value.get("shape")
    if not isinstance(name, str) or not isinstance(shape, list) or len(shape) != 4:
        raise UserError(f"{where}: input: expected a name and a shape of four sizes; export again")
    return name, tuple(size if isinstance(size, int) and size > 0 else None for size in shape)


def _model_file(folder: Path, meta: dict[str, Any], where: str) -> Path:
    """The model file, inside the folder and with the hash it was exported with."""
    if Path(meta["file"]).name != meta["file"]:
        raise UserError(f"{where}: file: {meta['file']!r} must be a plain file name in the same folder")
    path = folder / meta["file"]
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: the model file cannot be read: {error.strerror}; export again") from None
    if digest != meta["sha256"]:
        raise UserError(f"{path}: sha256 differs from {META_FILE}: the file was changed or cut short; export again")
    return path
