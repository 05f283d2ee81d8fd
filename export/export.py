"""`directdet export`: a checkpoint in, a verified artefact folder out."""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from ..data.dataset import find_splits, load_dataset
from ..errors import UsageProblem, UserError
from ..files import require_writable, write_json_atomic
from ..infer.artefact import META_FILE
from ..infer.preprocess import Preprocess
from ..infer.runtimes import find_model, load
from ..infer.torch_runtime import TorchDetector, load_torch
from ..models.build import describe_model
from ..models.postprocess import output_names
from .onnx_graph import OPSET, GraphFacts, write_onnx
from .tensorrt import MODULES, EngineFacts, build_engine, check_capability
from .verify import Verification, verification_pictures, verify

FORMATS = ("onnx", *MODULES)
META_FORMAT = 1
LARGEST_SIDE = 4096  # pixels


@dataclass(frozen=True)
class ExportResult:
    """The artefact's folder, what its graph holds, and whether it agrees with PyTorch."""

    artefact: Path
    graph: GraphFacts
    verification: Verification
    engine: EngineFacts | None = None


def export(
    checkpoint: str | Path,
    out: str | Path,
    format: str = "onnx",
    size: tuple[int, int] | None = None,
    batch: int = 1,
    data: str | Path | None = None,
    split: str | None = None,
    compute_capability: str = "8.9",
) -> ExportResult:
    """Export the model in `checkpoint` (a file or a run folder) to the artefact folder `out`, and verify it.

    Args:
        format: "onnx"; "tensorrt-rtx", an engine for `compute_capability`, built with or without a GPU; "tensorrt", an
            engine for the GPU at hand.
        size: height and width of the network's input, multiples of 32; None is the size the model was evaluated at. A
            model whose pictures are warped takes no other than that.
        batch: images per run.
        data: a dataset whose `split` gives the pictures to verify with (None: val, or train where there is no val);
            without data, made ones are used.

    The artefact appears in `out` only when it is whole; it is kept, marked as failed, where it does not verify.

    Raises:
        UserError: a broken checkpoint, an output folder that holds something else, a library that refuses.
    """
    if format not in FORMATS:
        raise UsageProblem(f"--format {format}: there are {', '.join(FORMATS)}")
    if batch < 1:
        raise UsageProblem(f"--batch {batch}: at least 1")
    capability = check_capability(compute_capability)
    out, source = Path(out).resolve(), _checkpoint_file(checkpoint)
    if out.exists() and not (out / META_FILE).is_file() and any(out.iterdir() if out.is_dir() else [out]):
        raise UserError(f"{out}: exists and is no artefact; choose another --out")
    trained = load_torch(source, device="cpu")
    preprocess = deployed_preprocess(trained.preprocess, size)
    dataset = None
    if data is not None:
        split = split or ("val" if "val" in find_splits(data) else "train")
        dataset = load_dataset(data, split)
    model = trained.backend.model
    require_writable(out, folder=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        graph = write_onnx(model, preprocess.size, batch, part / "model.onnx")
        meta = _meta(trained, preprocess, graph, source, batch)
        _finish_meta(part, meta, "onnx", "model.onnx", None)
        reference = TorchDetector.from_model(model, preprocess, trained.classes, trained.category_ids)
        pictures = verification_pictures(dataset, preprocess.size)
        engine = None
        if format == "onnx":
            verification = verify(reference, load(part, device="cpu"), pictures)
        else:
            engine, verification = _engine(format, part, meta, capability, reference, pictures)
        meta["verification"] = verification.to_dict()
        write_json_atomic(part / META_FILE, meta)
        _move(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return ExportResult(out, graph, verification, engine)


def _engine(
    kind: str, part: Path, meta: dict, capability: str, reference: TorchDetector, pictures: list
) -> tuple[EngineFacts, Verification]:
    """Build the engine from the graph and verify it; where it cannot run here, the graph it was built from."""
    on_graph = load(part, device="cpu")
    facts = build_engine(kind, part / "model.onnx", part / "model.engine", capability)
    _finish_meta(part, meta, kind, "model.engine", facts)
    if torch.cuda.is_available():
        here = ".".join(map(str, torch.cuda.get_device_capability()))
        if here == facts.compute_capability:
            return facts, verify(reference, load(part), pictures)
    note = f"the engine is for compute capability {facts.compute_capability} and was not run here; its graph was"
    return facts, verify(reference, on_graph, pictures, notes=(note,))


def deployed_preprocess(trained: Preprocess, size: tuple[int, int] | None) -> Preprocess:
    """The Preprocess of an artefact: onto a fixed canvas of `size`, by default the one evaluated at while training."""
    if trained.warp:
        if size not in (None, trained.size):
            shown, own = (",".join(map(str, edges)) for edges in (size, trained.size))
            raise UsageProblem(f"--size {shown}: this model is made for {own} alone; leave --size out")
        return trained
    if size is None:
        short, long = trained.size
        size = (short, long) if trained.fixed else (-(-short // 32) * 32, -(-long // 32) * 32)
    if len(size) != 2 or any(side % 32 or not 32 <= side <= LARGEST_SIDE for side in size):
        shown = ",".join(map(str, size))
        raise UsageProblem(f"--size {shown}: height and width must be multiples of 32, at most {LARGEST_SIDE}")
    return replace(trained, size=tuple(size), fixed=True)


def _checkpoint_file(path: str | Path) -> Path:
    kind, place = find_model(path)
    if kind != "checkpoint":
        raise UserError(f"{path}: is an artefact already; export takes a run folder or a checkpoint (.pt)")
    return place


def _meta(trained: TorchDetector, preprocess: Preprocess, graph: GraphFacts, source: Path, batch: int) -> dict:
    config = describe_model(trained.backend.model.config)
    keys = ("score_threshold", "nms", "candidates", "detections", "test_proposals")
    thresholds = {key: config[key] for key in keys if key in config}
    libraries = ("torch", "torchvision", "onnx", "onnxscript")
    return {
        "format": META_FORMAT,
        "classes": list(trained.classes),
        "category_ids": list(trained.category_ids),
        "preprocess": preprocess.to_dict(),
        "preprocess_checksum": preprocess.checksum(),
        "precision": "fp32",
        "input": {"name": "images", "shape": [batch, 3, *preprocess.size]},
        "outputs": list(output_names(trained.backend.model.config)),
        "thresholds": thresholds,
        "opset": OPSET,
        "operators": graph.operators,
        "folded_batchnorms": graph.folded,
        "fold_error": graph.fold_error,
        "built_with": {name: importlib.metadata.version(name) for name in libraries},
        "checkpoint_sha256": _sha256(source),
        "recipe": trained.meta["recipe"],
        "phase": trained.meta["phase"],
        "model_config": config,
    }


def _finish_meta(part: Path, meta: dict, kind: str, file: str, engine: EngineFacts | None) -> None:
    meta.update(kind=kind, file=file, sha256=_sha256(part / file), built_for=engine.built_for() if engine else None)
    if engine is not None:
        meta["engine"] = asdict(engine)
    write_json_atomic(part / META_FILE, meta)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move(part: Path, out: Path) -> None:
    """Put the finished folder in place; an artefact that was there before goes only then."""
    part.chmod(0o755)
    if out.exists():
        old = part.with_name(part.name + ".old")
        os.replace(out, old)
        os.replace(part, out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(part, out)


def report(result: ExportResult) -> None:
    """Print what was exported and whether it verified."""
    console, graph = Console(), result.graph
    console.print(result.verification.table())
    nodes = sum(graph.operators.values())
    console.print(f"{graph.folded} batch normalisations folded (largest relative change {graph.fold_error:.1e})")
    console.print(f"{nodes} nodes, none of them a plugin; written to {result.artefact}")
