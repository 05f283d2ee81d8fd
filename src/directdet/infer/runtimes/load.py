"""Loading a trained or exported detector for any runtime: `load(path)` returns a `Predictor`."""

from __future__ import annotations

import os
from pathlib import Path

from directdet.common.cores import usable_cores
from directdet.common.errors import UserError
from directdet.infer.artefact import META_FILE, Artefact, read_artefact, read_meta
from directdet.infer.predictor import Backend, Predictor
from directdet.infer.runtimes.names import MOST_THREADS, RUNTIMES, TITLES

CHECKPOINT_SUFFIXES = (".pt", ".pth")
_CHECKPOINTS = ("best.pt", "last.pt")


def find_model(path: str | Path) -> tuple[str, Path]:
    """The model at a path: ("artefact", folder) or ("checkpoint", file).

    The path is an artefact folder (or the model file in it), a run folder or the folder of one of its phases (their
    checkpoints/best.pt, else last.pt; the finetune phase first), or a checkpoint file.

    Raises:
        UserError: the path does not exist, or contains no model.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"{path!r}: not a path; give an artefact folder, a run folder or a checkpoint (.pt)")
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: not found; give an artefact folder, a run folder or a checkpoint (.pt)")
    if path.is_file():
        if path.suffix in CHECKPOINT_SUFFIXES:
            return "checkpoint", path
        if (path.parent / META_FILE).is_file():
            return "artefact", path.parent
        raise UserError(f"{path}: no {META_FILE} next to it; give a folder written by `directdet export` or a .pt file")
    if (path / META_FILE).is_file():
        return "artefact", path
    # A run of both phases has a folder for each; the later phase gives the detector.
    phases = [path / name / "checkpoints" for name in ("finetune", "scratch", "pretrain", "montage")]
    for folder in (*phases[:2], path / "checkpoints", *phases[2:], path):
        for name in _CHECKPOINTS:
            if (folder / name).is_file():
                return "checkpoint", folder / name
    raise UserError(
        f"{path}: contains neither {META_FILE} (artefact) nor "
        f"checkpoints/{' or checkpoints/'.join(_CHECKPOINTS)} (run folder); give a folder written by "
        "`directdet export` or `directdet train`"
    )


def model_kind(path: str | Path) -> str:
    """The kind of model at `path`, a key of `RUNTIMES`. Reads meta.json of an artefact but not its model file."""
    what, place = find_model(path)
    if what == "checkpoint":
        return what
    kind = read_meta(place / META_FILE)["kind"]
    if kind not in RUNTIMES:
        raise UserError(f"{place / META_FILE}: kind: {kind!r} is not known; expected one of {', '.join(RUNTIMES)}")
    return kind


def load(
    path: str | Path,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    in_flight: int = 1,
) -> Predictor:
    """Load a detector for inference.

    Args:
        path: an artefact folder, a run folder or a checkpoint; see `find_model`.
        runtime: "auto", or one of the runtimes that run this kind of model (`RUNTIMES`).
        device: "auto" (a GPU if the runtime can use one, else the CPU), "cpu", "cuda", "cuda:1", or "gpu" (OpenVINO).
        threads: CPU threads of the runtime; None leaves it to the runtime.
        precision: None means strict "fp32". OpenVINO also takes "bf16" and "fp16"; ONNX Runtime and torch on a GPU take
            "tf32". The precision of an engine was chosen when it was built.
        in_flight: how many threads will call the predictor at the same time, on a CPU. More than one asks for images
            per second instead of a short time each: ONNX Runtime's calls share `threads`, or the cores that may be
            used, and OpenVINO makes streams of them. PyTorch runs one call at a time.

    Raises:
        UserError: there is no model, it is broken, or the runtime cannot run it here.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UserError(f"threads: {threads}; give at least 1 and at most {MOST_THREADS}")
    if in_flight < 1:
        raise UserError(f"in_flight: {in_flight}; give at least 1")
    what, place = find_model(path)
    if what == "checkpoint":
        _choose(runtime, "checkpoint", place)
        from directdet.infer.runtimes.torch_runtime import load_torch

        return load_torch(place, device=device, threads=threads, precision=precision)
    artefact = read_artefact(place)
    backend = _backend(artefact, _choose(runtime, artefact.kind, place), device, threads, precision, in_flight)
    return Predictor(
        backend, artefact.preprocess, artefact.classes, artefact.category_ids, str(artefact.folder), artefact.meta
    )


def _choose(runtime: str, kind: str, place: Path) -> str:
    """The runtime to use, checked against the kind of model."""
    possible = RUNTIMES[kind]
    if runtime == "auto":
        return possible[0]
    if runtime not in possible:
        raise UserError(f"{place}: runtime {runtime!r} cannot run a model of kind {kind}; use {' or '.join(possible)}")
    return runtime


def _backend(
    artefact: Artefact, runtime: str, device: str, threads: int | None, precision: str | None, in_flight: int
) -> Backend:
    """Open the artefact's model; imports only the library of the chosen runtime."""
    if runtime == "onnxruntime":
        from directdet.infer.runtimes.onnx_runtime import OnnxBackend

        if in_flight > 1:
            threads = max(1, (threads or usable_cores()) // in_flight)
        return OnnxBackend(artefact, device, threads, precision)
    if runtime == "openvino":
        from directdet.infer.runtimes.openvino_runtime import OpenVinoBackend

        return OpenVinoBackend(artefact, device, threads, precision, in_flight)
    if runtime in ("tensorrt", "tensorrt-rtx"):
        from directdet.infer.runtimes.tensorrt_runtime import TensorRTBackend

        return TensorRTBackend(artefact, device, threads, precision)
    raise UserError(f"runtime {runtime!r} is not known; choose from {', '.join(TITLES)}")
