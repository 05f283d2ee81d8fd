"""The artefact's folder: where it is put together, its meta.json, and the step that puts it in place."""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from directdet import __version__
from directdet.common.files import write_json_atomic, write_text_atomic
from directdet.export.contract import README_FILE, contract, readme
from directdet.export.onnx_graph import INPUT_NAME, GraphFacts
from directdet.export.options import ExportOptions
from directdet.export.running import write_programs
from directdet.export.verification.verify import network_of
from directdet.infer.artefact import FORMAT, LAYOUTS, META_FILE
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.names import RUNTIMES
from directdet.infer.runtimes.torch_runtime import TorchPredictor
from directdet.models.build import describe_model
from directdet.models.parts.postprocess import output_names

_OURS = ".directdet-"  # in the names of folders beside an artefact
_OLD = ".old"
_HERE, _EXCHANGE = -100, 2  # Linux's AT_FDCWD and RENAME_EXCHANGE


@contextlib.contextmanager
def working_folders(out: Path) -> Iterator[tuple[Path, Path]]:
    """Two temporary folders next to `out`: for the artefact, and for what is only needed on the way.

    Those that killed exports left are removed, so `out` has to be held (`folder_lock`).
    """
    start = f".{out.name[:64]}{_OURS}"
    for left in sorted(path for path in out.parent.iterdir() if path.name.startswith(start)):
        if left.name.endswith(_OLD) and not out.exists():
            os.replace(left, out)  # it was killed between two renames
        else:
            shutil.rmtree(left, ignore_errors=True)
    made = [Path(tempfile.mkdtemp(prefix=start, dir=out.parent)) for _ in range(2)]
    try:
        yield made[0], made[1]
    finally:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


def put_in_place(part: Path, out: Path) -> None:
    """Move the finished folder `part` to `out`; an artefact that was there before is only removed then."""
    part.chmod(0o755)
    if not out.exists():
        os.replace(part, out)
    elif not _exchange(part, out):  # else the earlier artefact is now in `part`, which is removed
        old = part.with_name(part.name + _OLD)
        os.replace(out, old)
        os.replace(part, out)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders at once, so that no moment is without either; False where the system cannot do it."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return rename(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0


def new_meta(trained: TorchPredictor, preprocess: Preprocess, source: Path, options: ExportOptions) -> dict[str, Any]:
    """What meta.json says before the graph is written: the model, its input and outputs, and where it comes from."""
    settings: Any = network_of(trained).config
    config = describe_model(settings)
    keys = ("score_threshold", "nms", "candidates", "detections", "test_proposals")
    least, usual, most = options.batch_sizes
    rows, (height, width) = least if least == most else None, preprocess.size
    channels = len(preprocess.mean)
    shape = [rows, height, width, channels] if LAYOUTS[options.input] == "NHWC" else [rows, channels, height, width]
    libraries = ("torch", "torchvision", "onnx", "onnxscript")
    thresholds = {key: config[key] for key in keys if key in config}
    return {
        "format": FORMAT,
        "classes": list(trained.classes),
        "category_ids": list(trained.category_ids),
        "preprocess": preprocess.to_dict(),
        "preprocess_checksum": preprocess.checksum(options.input),
        "precision": options.precision,
        "kept_fp32": [],
        "input": {"name": INPUT_NAME, "shape": shape, "dtype": options.input, "layout": LAYOUTS[options.input]},
        "shapes": {"batch": {"min": least, "opt": usual, "max": most}, "height": height, "width": width},
        "outputs": list(output_names(settings)),
        "thresholds": thresholds,
        "contract": contract(preprocess, options.input, thresholds, settings.masks),
        "built_with": {"directdet": __version__} | {name: importlib.metadata.version(name) for name in libraries},
        "checkpoint_sha256": _sha256(source),
        "recipe": trained.meta["recipe"],
        "phase": trained.meta["phase"],
        "model_config": config,
    }


def graph_meta(graph: GraphFacts) -> dict[str, Any]:
    """What meta.json says about the graph."""
    return {
        "opset": graph.opset,
        "operators": graph.operators,
        "folded_batchnorms": graph.folded,
        "unfolded_batchnorms": list(graph.unfolded),
        "fold_error": graph.fold_error,
        "kept_fp32": list(graph.kept_fp32),
    }


def write_meta(
    folder: Path,
    meta: dict[str, Any],
    kind: str,
    file: str,
    *others: str,
    built_for: dict[str, Any] | None = None,
    **more: object,
) -> None:
    """Complete `meta` with the model `file`, its kind and the hashes of it and of the `others`, and write meta.json."""
    files = {name: _sha256(folder / name) for name in (file, *others)}
    meta.update(kind=kind, file=file, files=files, runs_with=list(RUNTIMES[kind]), built_for=built_for, **more)
    write_json_atomic(folder / META_FILE, meta)


def finish_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write the complete `meta`, now with the verification; README.md with the same contract; and programs."""
    write_json_atomic(folder / META_FILE, meta)
    write_text_atomic(folder / README_FILE, readme(meta))
    write_programs(folder, meta)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
