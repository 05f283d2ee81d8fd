"""Measuring what canvases and numbers of proposals cost here and find: a small grid, the promising part of it."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from directdet.data.records import Dataset
from directdet.export.artefact import graph_meta, new_meta, write_meta
from directdet.export.deployed import deployed_preprocess, with_thresholds, write_graph
from directdet.export.formats import FORMATS
from directdet.export.openvino_model import write_openvino
from directdet.export.options import ExportOptions
from directdet.export.price import Choice, Price, canvases, fewer_proposals, frontier
from directdet.export.verification.verify import network_of, verification_pictures
from directdet.infer.accuracy.evaluate import evaluate
from directdet.infer.predict.sources import read_for_detector
from directdet.infer.predictor import Predictor
from directdet.infer.runtimes.load import load
from directdet.infer.runtimes.torch_runtime import TorchPredictor

WARMUP, RUNS = 3, 15
MODERATE = 100  # proposals that canvases are compared at


def measure_prices(
    trained: TorchPredictor,
    source: Path,
    options: ExportOptions,
    dataset: Dataset,
    ap_images: int,
    work: Path,
    say: Callable[[str], None],
) -> list[Price]:
    """Prices of the canvases that suit the pictures, then of numbers of proposals on those that nothing beats.

    Args:
        source: the checkpoint's file.
        options: a size or a number of proposals that they have is not varied.
        ap_images: AP is measured on the first so many of `dataset`.
        work: folder for files that are not kept.
        say: called with a line about each price.
    """
    model = network_of(trained)
    own = getattr(model.config, "test_proposals", None)
    shapes = [(record.height, record.width) for record in dataset.records]
    sizes = [options.size] if options.size else canvases(trained.preprocess, shapes)
    numbers = [options.proposals] if options.proposals or own is None else fewer_proposals(own)
    first = min(numbers, key=lambda number: abs((number or 0) - MODERATE))
    measured: dict[Choice, Price] = {}

    def measure(choices: list[Choice]) -> None:
        for choice in choices:
            if choice not in measured:
                found = measured[choice] = _price(trained, source, options, choice, dataset, ap_images, work)
                say(f"{choice.name}: box AP {100 * found.ap:.1f} in {found.ms:.1f} ms")

    measure([Choice(size, first) for size in sizes])
    best = frontier(list(measured.values()))
    measure([Choice(price.choice.size, number) for price in best for number in numbers])
    return list(measured.values())


def _price(
    trained: TorchPredictor,
    source: Path,
    options: ExportOptions,
    choice: Choice,
    dataset: Dataset,
    ap_images: int,
    work: Path,
) -> Price:
    """Export one choice, without verification, and measure it."""
    model, kind = network_of(trained), options.format
    options = replace(options, size=choice.size, proposals=choice.proposals, max_ms=None, min_ap=None)
    preprocess = deployed_preprocess(trained.preprocess, choice.size)
    before = model.config
    model.config = with_thresholds(before, options)
    try:
        with tempfile.TemporaryDirectory(dir=work) as temporary:
            folder = Path(temporary)
            meta, target = new_meta(trained, preprocess, source, options), folder / FORMATS[kind].file
            graph = folder / "graph.onnx" if kind == "openvino" else target
            pictures = verification_pictures(dataset, preprocess)
            facts = write_graph(model, preprocess, options, pictures, graph)
            files = [target.name]
            if kind == "openvino":
                write_openvino(graph, target)
                files.append(target.with_suffix(".bin").name)
            write_meta(folder, {**meta, **graph_meta(facts)}, kind, *files)
            detector = load(folder, device="cpu")
            metrics = evaluate(detector, dataset, progress=False, max_images=ap_images)
            masks = metrics.segm["AP"] if metrics.segm else None
            return Price(choice, metrics.bbox["AP"], masks, _milliseconds(detector, dataset), metrics.n_images)
    finally:
        model.config = before


def _milliseconds(detector: Predictor, dataset: Dataset) -> float:
    """Median time of one picture in the network with its post-processing."""
    batches = [
        detector.prepare([read_for_detector(record.path, record.pixels)])[0] for record in dataset.records[:RUNS]
    ]
    times = []
    for number in range(-WARMUP, RUNS):
        batch = batches[number % len(batches)]
        started = time.perf_counter()
        detector.run(batch)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[WARMUP:])
