"""Reading an artefact: the folder that `directdet export` writes, with model files and their meta.json.

Everything that could make detections silently wrong is checked before anything runs: the hashes of the files, the
format, and the checksum of a fixture image as preprocessed here. meta.json may come from an untrusted source: the files
it names must lie in its folder, and the amount that is read is limited.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from directdet.common.errors import UserError
from directdet.common.files import is_file_name
from directdet.data.formats.values import is_integer
from directdet.infer.external_data import external_files
from directdet.infer.preprocess import Preprocess

FORMAT = 2
META_FILE = "meta.json"
KINDS = ("onnx", "openvino", "tensorrt", "tensorrt-rtx")
LAYOUTS = {"float32": "NCHW", "uint8": "NHWC"}  # the layout of each input type
MAX_META_BYTES = 4 * 2**20
MAX_FILE_BYTES = 8 * 2**30
MAX_FILES = 8

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
    """A checked artefact folder. `meta` is the content of meta.json; the other fields are taken from it.

    batch: minimum, optimal and maximum batch size; None if the artefact does not restrict it.
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
        """The libraries that wrote the file, for errors of a runtime that cannot load it."""
        libraries = self.meta.get("built_with")
        known = libraries if isinstance(libraries, dict) else {}
        return "made with " + (", ".join(f"{name} {version}" for name, version in known.items()) or "unknown versions")


def read_artefact(folder: str | Path) -> Artefact:
    """Read and check an artefact folder.

    Raises:
        UserError: meta.json is missing or broken, its format is not supported, a model file was changed, or
            preprocessing gives other results here than where the model was exported.
    """
    folder = Path(folder)
    meta = read_meta(folder / META_FILE)
    where = str(folder / META_FILE)
    if meta["kind"] not in KINDS:
        raise UserError(f"{where}: kind: {meta['kind']!r} is not known; expected one of {', '.join(KINDS)}")
    if len(meta["classes"]) != len(meta["category_ids"]):
        raise UserError(
            f"{where}: {len(meta['classes'])} classes but {len(meta['category_ids'])} category_ids; export again"
        )
    if not all(is_integer(number) and -(2**63) <= number < 2**63 for number in meta["category_ids"]):
        raise UserError(f"{where}: category_ids: expected integers; export again")
    if not all(isinstance(name, str) for name in meta["classes"]):
        raise UserError(f"{where}: classes: expected names; export again")
    preprocess = Preprocess.from_dict(meta["preprocess"], where)
    name, shape, dtype = _input(meta["input"], where)
    if dtype == "uint8" and preprocess.dtype != "uint8":
        raise UserError(f"{where}: input: uint8, but the model takes {preprocess.dtype} pictures; export again")
    batch = _batch(meta["shapes"], where)
    model_file = _check_files(folder, meta, where)
    if preprocess.checksum(dtype) != meta["preprocess_checksum"]:
        raise UserError(
            f"{where}: preprocess_checksum: images are preprocessed differently here than where the model was exported "
            "(another OpenCV or an edited file?), which would reduce accuracy; export again with this installation"
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
    """The content of meta.json; the fields that this version needs are there and have the right type."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_META_BYTES + 1)
        if len(content) > MAX_META_BYTES:
            raise UserError(f"{path}: larger than {MAX_META_BYTES >> 20} MiB, so not from export; export again")
        meta = json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; an artefact folder contains meta.json and the model") from None
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
    """Convert format 1, which had one file, normalised inputs and a fixed batch, to format 2."""
    meta = {**meta, "format": FORMAT, "files": {str(meta.get("file")): meta.pop("sha256", None)}, "shapes": {}}
    if isinstance(meta.get("input"), dict):
        meta["input"] = {**meta["input"], "dtype": "float32", "layout": "NCHW"}
    return meta


def _input(value: dict[str, Any], where: str) -> tuple[str, tuple[int | None, ...], str]:
    """Name, shape and type of the network's input; None for a dynamic size (null, a name or -1 in the file)."""
    name, shape, dtype = value.get("name"), value.get("shape"), value.get("dtype")
    if not isinstance(name, str) or not isinstance(shape, list) or len(shape) != 4:
        raise UserError(f"{where}: input: expected a name and a shape of four sizes; export again")
    if not isinstance(dtype, str) or LAYOUTS.get(dtype) != value.get("layout"):
        known = " or ".join(f"{dtype} {layout}" for dtype, layout in LAYOUTS.items())
        raise UserError(f"{where}: input: {dtype} {value.get('layout')}, expected {known}; export again")
    return name, tuple(size if isinstance(size, int) and size > 0 else None for size in shape), dtype


def _batch(shapes: dict[str, Any], where: str) -> tuple[int, int, int] | None:
    """Minimum, optimal and maximum batch size."""
    if "batch" not in shapes:
        return None
    value = shapes["batch"]
    least, usual, most = (value.get(key) for key in ("min", "opt", "max")) if isinstance(value, dict) else (0, 0, 0)
    if is_integer(least) and is_integer(usual) and is_integer(most) and 1 <= least <= usual <= most:
        return least, usual, most
    raise UserError(f"{where}: shapes: batch: expected 1 <= min <= opt <= max; export again")


def _check_files(folder: Path, meta: dict[str, Any], where: str) -> Path:
    """The model file, after checking that all files lie in the folder and still have their original hashes.

    Links that point outside the folder are refused.
    """
    files = meta["files"]
    if meta["file"] not in files or len(files) > MAX_FILES:
        raise UserError(f"{where}: files: expected {meta['file']!r} and at most {MAX_FILES} files; export again")
    inside = folder.resolve()
    for name, wanted in files.items():
        if Path(name).name != name or not is_file_name(name):
            raise UserError(f"{where}: file: {name!r} must be a plain file name in the same folder")
        path = folder / name
        if path.resolve().parent != inside:
            raise UserError(f"{path}: is a link to a file outside its folder; copy the file there instead")
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise UserError(f"{path}: larger than {MAX_FILE_BYTES >> 30} GiB, so not from export; export again")
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path}: the model file cannot be read: {error.strerror}; export again") from None
        if digest != wanted:
            raise UserError(f"{path}: sha256 differs from {META_FILE}: the file was changed or truncated; export again")
    _check_unlisted(folder, meta, where)
    return folder / meta["file"]


_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}  # of kinds whose runtime goes by it


def _check_unlisted(folder: Path, meta: dict[str, Any], where: str) -> None:
    """UserError if a runtime would read files that meta.json does not list, and that so have no hash."""
    kind, file, files = meta["kind"], meta["file"], meta["files"]
    suffix = _SUFFIXES.get(kind)
    if suffix is not None and Path(file).suffix != suffix:
        raise UserError(f"{where}: file: {file!r} does not end in {suffix}, as {kind} files do; export again")
    read = {Path(file).with_suffix(".bin").name} if kind == "openvino" else set()
    if kind == "onnx":
        read = external_files(folder / file)
    if missing := sorted(read - files.keys()):
        raise UserError(f"{where}: files: {missing[0]!r} holds weights of {file} but is not listed; export again")
