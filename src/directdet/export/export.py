"""`directdet export`: a checkpoint in, a verified artefact folder out."""

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from directdet import __version__
from directdet.common.errors import UsageProblem, UserError
from directdet.common.files import require_writable, write_json_atomic
from directdet.data.dataset import find_splits, load_dataset
from directdet.data.records import Dataset
from directdet.export.formats import CALIBRATED, FORMATS, Options, check_options
from directdet.export.onnx_graph import INPUT_NAME, GraphFacts, write_onnx
from directdet.export.openvino_model import write_openvino
from directdet.export.side_by_side import SideBySide, compare_runtimes
from directdet.export.tensorrt import MODULES, EngineFacts, build_engine
from directdet.export.verify import verification_pictures
from directdet.infer.accuracy.evaluate import evaluate, match_classes
from directdet.infer.artefact import FORMAT, LAYOUTS, META_FILE
from directdet.infer.predict.sources import read_bgr
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.load import find_model, load
from directdet.infer.runtimes.names import RUNTIMES
from directdet.infer.runtimes.torch_runtime import TorchPredictor, load_torch
from directdet.models.build import describe_model
from directdet.models.parts.postprocess import output_names

LARGEST_SIDE = 4096  # pixels
AP_IMAGES = 100
CALIBRATION_IMAGES = 128
SAMPLES = 8  # pictures that show which layers a lower precision would overflow


@dataclass(frozen=True)
class ExportResult:
    """The artefact's folder, what its graph holds, and whether it agrees with PyTorch."""

    artefact: Path
    graph: GraphFacts
    verification: SideBySide
    engine: EngineFacts | None = None


@dataclass(frozen=True)
class _Job:
    """What the steps of one export share. work: a folder for what is not part of the artefact."""

    options: Options
    preprocess: Preprocess
    reference: TorchPredictor
    meta: dict
    pictures: list[tuple[str, np.ndarray]]
    dataset: Dataset | None
    calibration: Dataset | None
    ap_images: int
    work: Path
    say: Callable[[str], None]


def export(
    checkpoint: str | Path,
    out: str | Path,
    format: str = "onnx",
    size: tuple[int, int] | None = None,
    batch: int | str = 1,
    data: str | Path | None = None,
    split: str | None = None,
    compute_capability: str | None = None,
    precision: str = "fp32",
    input: str = "uint8",
    reduce_range: bool = False,
    ap_images: int = AP_IMAGES,
    say: Callable[[str], None] = lambda text: None,
) -> ExportResult:
    """Export the model in `checkpoint` (a file or a run folder) to the artefact folder `out`, and verify it.

    Args:
        format, precision, input, batch, compute_capability, reduce_range: see `formats.check_options` and
            `formats.formats_table`.
        size: height and width of the network's input, multiples of 32; None is the size the model was evaluated at. A
            model whose pictures are warped takes no other than that.
        data: a dataset whose `split` gives the pictures to verify with (None: val, or train where there is no val), and
            AP on the first `ap_images` of them (0: none, and any dataset will do); without data, made pictures are
            used. int8 is calibrated on its train split, or on `split` where there is none.
        say: is told what is being done.

    The artefact appears in `out` only when it is whole; it is kept, marked as failed, where it does not verify.

    Raises:
        UserError: a broken checkpoint, an output folder that holds something else, a library that refuses.
    """
    options = check_options(format, precision, input, batch, compute_capability, data is not None, reduce_range)
    out, source = Path(out).resolve(), _checkpoint_file(checkpoint)
    if out.exists() and not (out / META_FILE).is_file() and any(out.iterdir() if out.is_dir() else [out]):
        raise UserError(f"{out}: exists and is no artefact; choose another --out")
    trained = load_torch(source, device="cpu")
    preprocess = deployed_preprocess(trained.preprocess, size)
    dataset = calibration = None
    if data is not None:
        splits = find_splits(data)
        dataset = load_dataset(data, split or ("val" if "val" in splits else "train"))
        calibration = load_dataset(data, "train") if "train" in splits else dataset
        if ap_images or precision == CALIBRATED:
            match_classes(trained, dataset)  # before minutes of work
    require_writable(out, folder=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _folders(out) as (part, work):
        model = trained.backend.model
        job = _Job(
            options,
            preprocess,
            TorchPredictor.from_model(model, preprocess, trained.classes, trained.category_ids),
            _meta(trained, preprocess, source, options),
            verification_pictures(dataset, preprocess.size),
            dataset,
            calibration,
            ap_images,
            work,
            say,
        )
        say(f"writing the graph ({preprocess.size[0]}x{preprocess.size[1]}, {precision})")
        graph_file = work / "graph.onnx"
        samples = _samples(job) if precision not in ("fp32", CALIBRATED) else None
        written = "fp32" if precision == CALIBRATED else precision
        canvas = preprocess if input == "uint8" else None
        graph = write_onnx(model, preprocess.size, options.batch, graph_file, canvas, written, samples)
        job.meta.update(_graph_facts(graph))
        engine, verification = _BUILDERS[format](job, part, graph_file)
        job.meta["verification"] = verification.to_dict()
        write_json_atomic(part / META_FILE, job.meta)
        _move(part, out)
    return ExportResult(out, graph, verification, engine)


def _onnx(job: _Job, part: Path, graph: Path) -> tuple[None, SideBySide]:
    os.replace(_quantised_onnx(job, graph), part / FORMATS["onnx"].file)
    _finish_meta(part, job.meta, "onnx", FORMATS["onnx"].file)
    return None, _compare(job, part, "onnx")


def _openvino(job: _Job, part: Path, graph: Path) -> tuple[None, SideBySide]:
    job.say("converting it for OpenVINO")
    target = part / FORMATS["openvino"].file
    write_openvino(graph, target)
    if job.options.precision == CALIBRATED:
        from directdet.export.quantise import quantise_openvino

        job.say("quantising")
        plain = job.work / "plain" / target.name
        plain.parent.mkdir()
        for suffix in (".xml", ".bin"):
            os.replace(target.with_suffix(suffix), plain.with_suffix(suffix))
        _record(job, quantise_openvino(plain, target, _calibration(job), _score(job, "openvino", plain)))
    job.meta["built_with"]["openvino"] = importlib.metadata.version("openvino")
    _finish_meta(part, job.meta, "openvino", target.name, target.with_suffix(".bin").name)
    return None, _compare(job, part, "openvino")


def _engine(job: _Job, part: Path, graph: Path) -> tuple[EngineFacts, SideBySide]:
    """Build the engine from the graph and verify it; where it cannot run here, the graph it was built from."""
    kind, options = job.options.format, job.options
    graph = _quantised_onnx(job, graph)
    job.say(f"building the engine with {kind}")
    facts = build_engine(kind, graph, part / FORMATS[kind].file, options.capabilities, options.batch)
    _finish_meta(part, job.meta, kind, FORMATS[kind].file, built_for=facts.built_for(), engine=asdict(facts))
    if torch.cuda.is_available():
        here = ".".join(map(str, torch.cuda.get_device_capability()))
        if here in facts.compute_capabilities:
            return facts, _compare(job, part, kind, device="auto")
    shown = ", ".join(facts.compute_capabilities)
    note = f"the engine is for compute capability {shown} and was not run here; the graph it was built from was"
    _finish_meta(job.work, {**job.meta}, "onnx", graph.name)
    return facts, _compare(job, job.work, "onnx", notes=(note,))


_BUILDERS = {"onnx": _onnx, "openvino": _openvino, **dict.fromkeys(MODULES, _engine)}


def _compare(job: _Job, artefact: Path, kind: str, device: str = "cpu", notes: tuple[str, ...] = ()) -> SideBySide:
    return compare_runtimes(
        job.reference,
        artefact,
        kind,
        job.pictures,
        precision=job.options.precision,
        dataset=job.dataset,
        ap_images=job.ap_images,
        batch=job.options.batch[1],
        device=device,
        notes=notes,
        say=job.say,
    )


# ---- Lower precision


def _samples(job: _Job) -> torch.Tensor:
    """Normalised float32 [N, 3, H, W] of the verification pictures."""
    chosen = job.pictures[:SAMPLES]
    return torch.from_numpy(np.stack([job.preprocess(image)[0] for _, image in chosen]))


def _quantised_onnx(job: _Job, graph: Path) -> Path:
    """The graph to go on with: `graph` itself unless int8 was asked for."""
    if job.options.precision != CALIBRATED:
        return graph
    from directdet.export.quantise import quantise_onnx

    job.say("quantising")
    target = graph.with_name("int8.onnx")
    flavour = {"symmetric": job.options.format in MODULES, "reduce_range": job.options.reduce_range}
    _record(job, quantise_onnx(graph, target, _calibration(job), _score(job, "onnx", graph), **flavour))
    return target


def _record(job: _Job, facts: Any) -> None:
    """Quantisation's facts in meta.json; layers left out stay in fp32."""
    job.meta["quantisation"] = asdict(facts)
    job.meta["kept_fp32"] += [f"{name}: {reason}" for name, reason in facts.left_out.items()]


def _calibration(job: _Job) -> list[np.ndarray]:
    """Batches of the network's input, of pictures spread over the training split."""
    records = job.calibration.records if job.calibration is not None else ()
    step = max(1, len(records) // CALIBRATION_IMAGES)
    images = [read_bgr(record.path) for record in records[::step][:CALIBRATION_IMAGES]]
    prepare = job.preprocess.letterbox if job.options.input == "uint8" else job.preprocess
    rows = [prepare(image)[0] for image in images]
    size = job.options.batch[0]
    rows += rows[: -len(rows) % size]  # the last batch is full, too
    return [np.stack(rows[start : start + size]) for start in range(0, len(rows), size)]


def _score(job: _Job, kind: str, source: Path) -> Callable[[Path], float]:
    """Box AP on the dataset of `source`, a model file in fp32, or of what it was quantised to."""

    def score(file: Path) -> float:
        folder = Path(tempfile.mkdtemp(dir=job.work))
        parts = [f.name for f in sorted(file.parent.glob(f"{file.stem}.*")) if f.suffix in (".onnx", ".xml", ".bin")]
        for part in parts:
            shutil.copyfile(file.parent / part, folder / part)
        _finish_meta(folder, {**job.meta}, kind, file.name, *(part for part in parts if part != file.name))
        found = evaluate(load(folder, device="cpu"), job.dataset, progress=False, max_images=job.ap_images or AP_IMAGES)
        shutil.rmtree(folder)
        job.say(f"box AP {100 * found.bbox['AP']:.1f} in {'fp32' if file == source else 'int8'}")
        return found.bbox["AP"]

    return score


# ---- Preprocessing, files and meta.json


@contextlib.contextmanager
def _folders(out: Path) -> Iterator[tuple[Path, Path]]:
    """Two folders beside `out`, for the artefact and for what is needed on the way; gone in the end."""
    made = [Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent)) for _ in range(2)]
    try:
        yield made[0], made[1]
    finally:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


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


def _meta(trained: TorchPredictor, preprocess: Preprocess, source: Path, options: Options) -> dict:
    config = describe_model(trained.backend.model.config)
    keys = ("score_threshold", "nms", "candidates", "detections", "test_proposals")
    least, usual, most = options.batch
    rows, (height, width) = least if least == most else None, preprocess.size
    shape = [rows, height, width, 3] if LAYOUTS[options.input] == "NHWC" else [rows, 3, height, width]
    libraries = ("torch", "torchvision", "onnx", "onnxscript")
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
        "outputs": list(output_names(trained.backend.model.config)),
        "thresholds": {key: config[key] for key in keys if key in config},
        "built_with": {"directdet": __version__} | {name: importlib.metadata.version(name) for name in libraries},
        "checkpoint_sha256": _sha256(source),
        "recipe": trained.meta["recipe"],
        "phase": trained.meta["phase"],
        "model_config": config,
    }


def _graph_facts(graph: GraphFacts) -> dict:
    return {
        "opset": graph.opset,
        "operators": graph.operators,
        "folded_batchnorms": graph.folded,
        "unfolded_batchnorms": list(graph.unfolded),
        "fold_error": graph.fold_error,
        "kept_fp32": list(graph.kept_fp32),
    }


def _finish_meta(
    folder: Path, meta: dict, kind: str, file: str, *others: str, built_for: dict | None = None, **more: object
) -> None:
    """Write meta.json with the hashes of the model `file` and `others` that belong to it."""
    files = {name: _sha256(folder / name) for name in (file, *others)}
    meta.update(kind=kind, file=file, files=files, runs_with=list(RUNTIMES[kind]), built_for=built_for, **more)
    write_json_atomic(folder / META_FILE, meta)


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
    """Print what was exported and whether it verified, picture by picture where it did not."""
    console, graph = Console(), result.graph
    for one in result.verification.runtimes:
        if not one.passed:
            console.print(one.table())
    console.print(result.verification.table())
    nodes = sum(graph.operators.values())
    console.print(f"{graph.folded} batch normalisations folded (largest relative change {graph.fold_error:.1e})")
    if graph.unfolded:
        console.print(
            f"{len(graph.unfolded)} follow no convolution and became a product and a sum: {graph.unfolded[0]}, ...",
            markup=False,
        )
    if graph.kept_fp32:
        console.print(f"{len(graph.kept_fp32)} kept in fp32, listed in {META_FILE}: {graph.kept_fp32[0]}, ...")
    console.print(f"{nodes} nodes, none of them a plugin; written to {result.artefact}")
