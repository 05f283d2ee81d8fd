"""Reading an artefact: the folder `directdet export` writes, with model files and their meta.json.

Whatever could make detections silently wrong is compared before anything runs: the files' hashes, the format, and the
checksum of what the preprocessing here makes of a fixture image. meta.json may come from anywhere: what it names must
lie in its folder, and what is read of it is limited.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from directdet.common.errors import UserError
from directdet.infer.preprocess import Preprocess

FORMAT = 2
META_FILE = "meta.json"
KINDS = ("onnx", "openvino", "tensorrt", "tensorrt-rtx")
LAYOUTS = {"float32": "NCHW", "uint8": "NHWC"}  # the layout that goes with each type of input
LARGEST_META = 4 * 2**20  # bytes
LARGEST_FILE = 8 * 2**30
MOST_FILES = 8

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "kind": str,
    "file": str,
    "files": dict,
    "classes": list,
    "category_ids": list,
    "preprocess": dict,
    "preprocess_checksum": str,
    "precision": str,
    "input": dict,
    "shapes": dict,
}


@dataclass(frozen=True)
class Artefact:
    """A checked artefact folder. `meta` is meta.json as it is; the other fields are read from it.

    batch: the fewest, usual and most images of a run; None where the artefact leaves that open.
    """

    folder: Path
    kind: str
    model_file: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    preprocess: Preprocess
    input_name: str
    input_shape: tuple[int | None, ...]  # None: any size, e.g. a dynamic batch
    dtype: str  # of the input, a key of LAYOUTS
    batch: tuple[int, int, int] | None
    meta: dict[str, Any]

    @property
    def made_with(self) -> str:
        """For errors of a runtime that does not take the file: what it was made with."""
        libraries = self.meta.get("built_with")
        known = libraries if isinstance(libraries, dict) else {}
        return "made with " + (", ".join(f"{name} {version}" for name, version in known.items()) or "unknown versions")


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
    name, shape, dtype = _input(meta["input"], where)
    batch = _batch(meta["shapes"], where)
    model_file = _check_files(folder, meta, where)
    if preprocess.checksum(dtype) != meta["preprocess_checksum"]:
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
        dtype=dtype,
        batch=batch,
        meta=meta,
    )


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json with the fields this version needs, each of the right type."""
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_META + 1)
        if len(content) > LARGEST_META:
            raise UserError(f"{path}: larger than {LARGEST_META >> 20} MiB, so no meta.json of ours; export again")
        meta = json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; an artefact folder holds meta.json beside the model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); export again") from None
    if not isinstance(meta, dict):
        raise UserError(f"{path}: expected a JSON object; export again")
    if meta.get("format") == 1:
        meta = _from_format_1(meta)
    if meta.get("format") != FORMAT:
        raise UserError(f"{path}: format: {meta.get('format')!r}, this version reads 1 to {FORMAT}; export again")
    for field, kind in _FIELDS.items():
        if not isinstance(meta.get(field), kind):
            state = "missing" if field not in meta else f"a {type(meta[field]).__name__}"
            raise UserError(f"{path}: {field}: {state}; export again")
    return meta


def _from_format_1(meta: dict[str, Any]) -> dict[str, Any]:
    """What format 1 said, as format 2 says it: it had one file, normalised inputs and a fixed batch."""
    meta = {**meta, "format": FORMAT, "files": {str(meta.get("file")): meta.pop("sha256", None)}, "shapes": {}}
    if isinstance(meta.get("input"), dict):
        meta["input"] = {**meta["input"], "dtype": "float32", "layout": "NCHW"}
    return meta


def _input(value: dict[str, Any], where: str) -> tuple[str, tuple[int | None, ...], str]:
    """Name, shape and type of the network's input; None for a size left open (null, a name or -1 in the file)."""
    name, shape, dtype = value.get("name"), value.get("shape"), value.get("dtype")
    if not isinstance(name, str) or not isinstance(shape, list) or len(shape) != 4:
        raise UserError(f"{where}: input: expected a name and a shape of four sizes; export again")
    if not isinstance(dtype, str) or LAYOUTS.get(dtype) != value.get("layout"):
        known = " or ".join(f"{dtype} {layout}" for dtype, layout in LAYOUTS.items())
        raise UserError(f"{where}: input: {dtype} {value.get('layout')}, expected {known}; export again")
    return name, tuple(size if isinstance(size, int) and size > 0 else None for size in shape), dtype


def _batch(shapes: dict[str, Any], where: str) -> tuple[int, int, int] | None:
    """Fewest, usual and most images of a run."""
    if "batch" not in shapes:
        return None
    value = shapes["batch"]
    sizes = [value.get(key) for key in ("min", "opt", "max")] if isinstance(value, dict) else []
    if not sizes or not all(type(size) is int for size in sizes) or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise UserError(f"{where}: shapes: batch: expected 1 <= min <= opt <= max; export again")
    return tuple(sizes)  # type: ignore[return-value]


def _check_files(folder: Path, meta: dict[str, Any], where: str) -> Path:
    """The model file; it and all files that belong to it lie in the folder and have the hashes they were written with.

    Links are refused where they lead out of the folder.
    """
    files = meta["files"]
    if meta["file"] not in files or len(files) > MOST_FILES:
        raise UserError(f"{where}: files: expected {meta['file']!r} and at most {MOST_FILES} in all; export again")
    inside = folder.resolve()
    for name, wanted in files.items():
        if Path(name).name != name or not name:
            raise UserError(f"{where}: file: {name!r} must be a plain file name in the same folder")
        path = folder / name
        if path.resolve().parent != inside:
            raise UserError(f"{path}: is a link out of its folder; copy the file there instead")
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise UserError(f"{path}: larger than {LARGEST_FILE >> 30} GiB, so no model file of ours; export again")
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path}: the model file cannot be read: {error.strerror}; export again") from None
        if digest != wanted:
            raise UserError(f"{path}: sha256 differs from {META_FILE}: the file was changed or cut short; export again")
    return folder / meta["file"]
