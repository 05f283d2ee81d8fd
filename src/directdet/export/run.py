"""`directdet export`: from a checkpoint to a verified artefact folder."""

import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from directdet.common.errors import UserError
from directdet.common.files import require_writable
from directdet.common.folder_lock import hold_folder
from directdet.common.terminal import terminal
from directdet.data.dataset import find_splits, load_dataset
from directdet.data.records import Dataset
from directdet.export.artefact import finish_meta, graph_meta, new_meta, put_in_place, working_folders, write_meta
from directdet.export.deployed import deployed_preprocess, with_thresholds, write_graph
from directdet.export.formats import CALIBRATED, FORMATS
from directdet.export.onnx_graph import GraphFacts, finish_graph
from directdet.export.openvino_model import write_openvino
from directdet.export.options import ExportOptions
from directdet.export.price import Price, choose, price_table
from directdet.export.price_search import measure_prices
from directdet.export.tensorrt import ENGINES, EngineFacts, build_engine
from directdet.export.verification.side_by_side import AP_IMAGES, SideBySide, VerificationSet, compare_runtimes
from directdet.export.verification.verify import network_of, verification_pictures
from directdet.infer.accuracy.evaluate import evaluate, match_classes, require_format
from directdet.infer.artefact import META_FILE
from directdet.infer.predict.sources import read_for_detector
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.load import find_model, load
from directdet.infer.runtimes.torch_runtime import TorchPredictor, load_torch

CALIBRATION_IMAGES = 128
# What of meta.json the ONNX file says, too, since files get separated from their folder.
IN_THE_FILE = ("classes", "category_ids", "preprocess", "input", "thresholds", "contract")


@dataclass(frozen=True)
class ExportResult:
    """The artefact's folder, what its graph holds, and whether it agrees with PyTorch.

    prices: with a limit, of all canvases and numbers of proposals that were measured; the first was taken.
    """

    artefact: Path
    graph: GraphFacts
    verification: SideBySide
    engine: EngineFacts | None = None
    prices: tuple[Price, ...] = ()


@dataclass(frozen=True)
class _Job:
    """What the steps of one export share.

    Attributes:
        options: what the artefact is to be.
        preprocess: of the artefact.
        reference: the model in PyTorch with that preprocessing.
        meta: the content of meta.json so far.
        verify_on: what the artefact is verified on.
        calibration: the split that int8 is calibrated on.
        work: folder for what is not part of the artefact.
        say: called with a line about each step.
    """

    options: ExportOptions
    preprocess: Preprocess
    reference: TorchPredictor
    meta: dict[str, Any]
    verify_on: VerificationSet
    calibration: Dataset | None
    work: Path
    say: Callable[[str], None]


def export(
    checkpoint: str | Path,
    out: str | Path,
    options: ExportOptions | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    ap_images: int = AP_IMAGES,
    say: Callable[[str], None] = lambda text: None,
) -> ExportResult:
    """Export the model in `checkpoint` (a file or a run folder) to the artefact folder `out`, and verify it.

    The artefact appears in `out` only when it is complete. One that fails its verification is kept and marked as
    failed.

    Args:
        options: what the artefact is to be; None: ONNX in fp32 for one image of uint8 pixels.
        data: a dataset whose `split` gives the pictures to verify with (None: val, or train where there is no val), and
            the AP on the first `ap_images` of them (0: no AP, and the dataset may have other classes). Without data,
            made pictures are used. int8 is calibrated on its train split, or on `split` where there is none.
        say: called with a line about each step.

    Raises:
        UserError: a broken checkpoint, an output folder that holds something else, a library that refuses the model.
    """
    options = options or ExportOptions()
    options.require_data(data is not None)
    out, source = Path(out).resolve(), _checkpoint_file(checkpoint)
    if out.exists() and not (out / META_FILE).is_file() and any(out.iterdir() if out.is_dir() else [out]):
        raise UserError(f"{out}: exists and is not an artefact; choose another --out")
    trained = load_torch(source, device="cpu")
    preprocess = deployed_preprocess(trained.preprocess, options.size)  # an impossible size is told at once
    if options.input == "uint8" and preprocess.dtype != "uint8":
        # No other type is an input in ONNX Runtime, OpenVINO and TensorRT alike: TensorRT knows no uint16.
        options = replace(options, input="float32")
        say(f"the graph's input is float32, normalised: the model takes {preprocess.pixels.kind}")
    model = network_of(trained)
    own = model.config
    model.config = with_thresholds(own, options)
    dataset = calibration = None
    if data is not None:
        splits = find_splits(data)
        dataset = load_dataset(data, split or ("val" if "val" in splits else "train"))
        calibration = load_dataset(data, "train") if "train" in splits else dataset
        if ap_images or options.precision == CALIBRATED:
            match_classes(trained, dataset)  # before minutes of work
        require_format(trained, dataset)
    require_writable(out, folder=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with hold_folder(out, "export", beside=True), working_folders(out) as (part, work):
        prices: list[Price] = []
        if dataset is not None and options.limited:
            prices = measure_prices(trained, source, options, dataset, ap_images or AP_IMAGES, work, say)
            taken = choose(prices, options.max_ms, options.min_ap)
            prices.insert(0, prices.pop(prices.index(taken)))
            size, proposals = taken.choice.size, taken.choice.proposals
            options = replace(options, size=size, proposals=proposals, max_ms=None, min_ap=None)
            preprocess, model.config = deployed_preprocess(trained.preprocess, size), with_thresholds(own, options)
        job = _Job(
            options=options,
            preprocess=preprocess,
            reference=TorchPredictor.from_model(model, preprocess, trained.classes, trained.category_ids),
            meta=new_meta(trained, preprocess, source, options),
            verify_on=VerificationSet(verification_pictures(dataset, preprocess), dataset, ap_images),
            calibration=calibration,
            work=work,
            say=say,
        )
        say(f"writing the graph ({preprocess.size[0]}x{preprocess.size[1]}, {options.precision})")
        graph_file = work / "graph.onnx"
        graph = write_graph(model, preprocess, options, job.verify_on.pictures, graph_file)
        job.meta.update(graph_meta(graph))
        engine, verification = _BUILDERS[options.format](job, part, graph_file)
        job.meta["verification"] = verification.to_dict()
        if verification.suggested is not None:
            job.meta["suggested_score"] = {**verification.suggested, "images": verification.ap_images}
        job.meta["prices"] = [price.to_dict() for price in prices]
        finish_meta(part, job.meta)
        put_in_place(part, out)
    return ExportResult(out, graph, verification, engine, tuple(prices))


def _onnx(job: _Job, part: Path, graph: Path) -> tuple[None, SideBySide]:
    target = part / FORMATS["onnx"].file
    os.replace(_quantised_onnx(job, graph), target)
    finish_graph(target, {name: job.meta[name] for name in IN_THE_FILE})
    write_meta(part, job.meta, "onnx", FORMATS["onnx"].file)
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
    write_meta(part, job.meta, "openvino", target.name, target.with_suffix(".bin").name)
    return None, _compare(job, part, "openvino")


def _engine(job: _Job, part: Path, graph: Path) -> tuple[EngineFacts, SideBySide]:
    """Build the engine from the graph and verify it; where it cannot run here, verify the graph it was built from."""
    kind, options = job.options.format, job.options
    graph = _quantised_onnx(job, graph)
    job.say(f"building the engine with {kind}")
    facts = build_engine(kind, graph, part / FORMATS[kind].file, options.capabilities, options.batch_sizes)
    write_meta(part, job.meta, kind, FORMATS[kind].file, built_for=facts.built_for(), engine=asdict(facts))
    if torch.cuda.is_available():
        here = ".".join(map(str, torch.cuda.get_device_capability()))
        if here in facts.compute_capabilities:
            return facts, _compare(job, part, kind, device="auto")
    shown = ", ".join(facts.compute_capabilities)
    note = f"the engine is for compute capability {shown} and was not run here; the graph it was built from was"
    write_meta(job.work, {**job.meta}, "onnx", graph.name)
    found = _compare(job, job.work, "onnx")
    return facts, replace(found, notes=(note, *found.notes))


_BUILDERS = {"onnx": _onnx, "openvino": _openvino, **dict.fromkeys(ENGINES, _engine)}


def _compare(job: _Job, artefact: Path, kind: str, device: str = "cpu") -> SideBySide:
    options = job.options
    return compare_runtimes(
        job.reference, artefact, kind, job.verify_on, options.precision, options.batch_sizes[1], device, job.say
    )


# ---- Lower precision


def _quantised_onnx(job: _Job, graph: Path) -> Path:
    """The graph to go on with: `graph` itself unless the precision is int8."""
    if job.options.precision != CALIBRATED:
        return graph
    from directdet.export.quantise import quantise_onnx

    job.say("quantising")
    target = graph.with_name("int8.onnx")
    flavour = {"symmetric": job.options.format in ENGINES, "reduce_range": job.options.reduce_range}
    _record(job, quantise_onnx(graph, target, _calibration(job), _score(job, "onnx", graph), **flavour))
    return target


def _record(job: _Job, facts: Any) -> None:
    """Put quantisation's facts into meta.json; layers left out of it stay in fp32."""
    job.meta["quantisation"] = asdict(facts)
    job.meta["kept_fp32"] += [f"{name}: {reason}" for name, reason in facts.left_out.items()]


def _calibration(job: _Job) -> list[np.ndarray]:
    """Batches of the network's input, of pictures spread over the calibration split."""
    records = job.calibration.records if job.calibration is not None else ()
    step = max(1, len(records) // CALIBRATION_IMAGES)
    images = [read_for_detector(record.path, record.pixels) for record in records[::step][:CALIBRATION_IMAGES]]
    prepare = job.preprocess.letterbox if job.options.input == "uint8" else job.preprocess
    rows = [prepare(image)[0] for image in images]
    size = job.options.batch_sizes[0]
    rows += rows[: -len(rows) % size]  # fill up the last batch
    return [np.stack(rows[start : start + size]) for start in range(0, len(rows), size)]


def _score(job: _Job, kind: str, source: Path) -> Callable[[Path], float]:
    """A function from a model file to its box AP on the dataset. `source` is the file in fp32, others are in int8."""
    dataset, ap_images = job.verify_on.dataset, job.verify_on.ap_images or AP_IMAGES
    assert dataset is not None  # options.require_data refused int8 without one

    def score(file: Path) -> float:
        folder = Path(tempfile.mkdtemp(dir=job.work))
        parts = [f.name for f in sorted(file.parent.glob(f"{file.stem}.*")) if f.suffix in (".onnx", ".xml", ".bin")]
        for part in parts:
            shutil.copyfile(file.parent / part, folder / part)
        write_meta(folder, {**job.meta}, kind, file.name, *(part for part in parts if part != file.name))
        found = evaluate(load(folder, device="cpu"), dataset, progress=False, max_images=ap_images)
        shutil.rmtree(folder)
        job.say(f"box AP {100 * found.bbox['AP']:.1f} in {'fp32' if file == source else 'int8'}")
        return found.bbox["AP"]

    return score


# ---- Input and output


def _checkpoint_file(path: str | Path) -> Path:
    kind, place = find_model(path)
    if kind != "checkpoint":
        raise UserError(f"{path}: is an artefact already; export takes a run folder or a checkpoint (.pt)")
    return place


def report(result: ExportResult) -> None:
    """Print what was exported and whether it verified, picture by picture where it did not."""
    console, graph = terminal(), result.graph
    if result.prices:
        console.print(price_table(result.prices, result.prices[0], "what a picture costs here, and what is found"))
    for one in result.verification.runtimes:
        if not one.passed:
            console.print(one.table())
    console.print(result.verification.table())
    if "per_class" in (result.verification.suggested or {}):
        console.print(f"F1 is better with a score threshold for each class: suggested_score in {META_FILE}")
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
