"""One cell of the benchmark: one model in one runtime and batch size, timed in a process of its own.

Run as `python -m directdet.benchmark.cell` with a JSON specification on standard input. Two runtimes never share
a process: their thread pools slow each other down several times over.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from directdet.benchmark.provider_check import check_provider, onnx_nodes
from directdet.common.errors import UserError
from directdet.common.files import write_json_atomic
from directdet.data.dataset import Dataset, Record
from directdet.data.masks import coco_mask
from directdet.infer.accuracy.evaluate import evaluate, match_classes
from directdet.infer.machine import gpu_memory_mib, peak_memory_mib
from directdet.infer.predict.sources import read_bgr
from directdet.infer.predictor import Predictor
from directdet.infer.runtimes.load import find_model, load

STAGES = ("prepare", "device", "postprocess", "end_to_end")
QUANTILES = {"median": 50, "p95": 95, "p99": 99}


def run_cell(specification: dict[str, Any]) -> dict[str, Any]:
    """Time one model in one runtime and take its AP.

    Args:
        specification: path, runtime, device, threads, precision, compiled, dataset (a file in which the parent process
            pickled the `Dataset`, so that it may be any part of one), iterations, warmup, batch, ap_images (None: all,
            0: no AP).

    Returns:
        Plain values: what ran and that it was what was asked for, milliseconds per stage and of every iteration, frame
        rates, memory, size of the model, detections per image, AP.
    """
    if specification["threads"] is not None:
        cv2.setNumThreads(specification["threads"])
    dataset = pickle.loads(Path(specification["dataset"]).read_bytes())
    index = _gpu_index(specification["device"])
    before, gpu_before = peak_memory_mib(), gpu_memory_mib(index)
    detector = _load(specification)
    provider = check_provider(specification["device"], detector)
    match_classes(detector, dataset)  # before the long part, as what follows
    if specification["ap_images"] != 0:
        coco_mask()
    batch, compiled = specification["batch"], specification["compiled"]
    records = timed_records(detector, dataset, one_canvas=batch > 1 or compiled)
    seconds, detections = time_stages(detector, records, specification["warmup"], specification["iterations"], batch)
    # Before the AP, which holds all detections of the dataset at once.
    memory = _memory(provider["expected"], before, gpu_before, index)
    if detector.runtime == "onnxruntime":
        provider["nodes"] = _onnx_nodes(detector, records[0], batch)
    result = {
        **detector.describe(),
        "artefact_sha256": detector.meta.get("files", {}).get(detector.meta.get("file")),
        "batch": batch,
        "compiled": compiled,
        "asked_precision": specification["precision"],
        "provider_check": provider,
        "model_bytes": model_bytes(specification["path"], detector.meta),
        "memory_mib": memory,
        "iterations": specification["iterations"],
        "warmup": specification["warmup"],
        "milliseconds": {stage: summary(1000 * values) for stage, values in seconds.items()},
        "samples_ms": {stage: np.round(1000 * values, 4).tolist() for stage, values in seconds.items()},
        "fps_end_to_end": batch / float(seconds["end_to_end"].mean()),
        "fps_device_only": batch / float(seconds["device"].mean()),
        "detections_per_image": detections,
        "timed_images": len(records),
        "image_sizes": _sizes(records),
        "metrics": None,
    }
    # Compiled for one canvas, it would be compiled again for every other one.
    if specification["ap_images"] != 0 and (detector.preprocess.fixed or not compiled):
        metrics = evaluate(detector, dataset, progress=False, max_images=specification["ap_images"])
        result["metrics"] = metrics.to_dict()
    return result


def _load(specification: dict[str, Any]) -> Predictor:
    """The detector, compiled where that is asked for."""
    choice = {key: specification[key] for key in ("device", "threads", "precision")}
    if not specification["compiled"]:
        return load(specification["path"], specification["runtime"], **choice)
    from directdet.infer.runtimes.torch_runtime import load_torch

    return load_torch(find_model(specification["path"])[1], compiled=True, **choice)


def _gpu_index(device: str) -> int:
    index = device.partition(":")[2]
    return int(index) if index.isdecimal() else 0


def _memory(expected: str, before: float | None, gpu_before: float | None, index: int) -> dict[str, float | None]:
    """MiB: the process's peak, its peak before the model was loaded, and what the GPU holds more than before.

    The GPU's figure counts every process on it, and runtimes keep what they once took; None on a CPU or if unknown.
    """
    gpu = gpu_memory_mib(index) if expected == "cuda" and gpu_before is not None else None
    return {
        "peak_rss": peak_memory_mib(),
        "before_loading": before,
        "gpu": None if gpu is None or gpu_before is None else max(0.0, gpu - gpu_before),
    }


def _onnx_nodes(detector: Predictor, record: Record, batch: int) -> dict[str, int]:
    inputs, _ = detector.prepare([read_bgr(record.path)])
    inputs = np.repeat(inputs, detector.backend.input.batch or batch, axis=0)
    model = Path(detector.source) / detector.meta["file"]
    return onnx_nodes(model, detector.info["provider"], detector.info["device"], inputs)


def model_bytes(path: str | Path, meta: dict[str, Any]) -> int:
    """Size on disk of an artefact's model files, or of a checkpoint with all that training left in it."""
    what, place = find_model(path)
    if what == "checkpoint":
        return place.stat().st_size
    return sum((place / name).stat().st_size for name in meta.get("files") or [meta["file"]])


def timed_records(detector: Predictor, dataset: Dataset, one_canvas: bool) -> tuple[Record, ...]:
    """The images to time on: all, or with `one_canvas` those of the commonest canvas, which alone can share a batch."""
    if detector.preprocess.fixed or not one_canvas:
        return tuple(dataset.records)
    groups: dict[tuple[int, int], list[Record]] = {}
    for record in dataset.records:
        canvas = detector.preprocess.canvas(detector.preprocess.place(record.height, record.width))
        groups.setdefault(canvas, []).append(record)
    return tuple(max(groups.values(), key=len))


def time_stages(
    detector: Predictor, records: Sequence[Record], warmup: int, iterations: int, batch: int
) -> tuple[dict[str, np.ndarray], float]:
    """Seconds of every stage and iteration, float64 [iterations] each, and the mean number of detections per image.

    - prepare: read the file, decode it, resize, normalise (files are warm in the page cache after the first round);
    - device: host to device, network with the post-processing in its graph, device to host; `run` returns only when the
      results are on the host, so nothing is left running at either end;
    - postprocess: boxes into image pixels, masks pasted at full size;
    - end_to_end: wall time around all three.
    """
    seconds = {stage: np.zeros(iterations) for stage in STAGES}
    found = 0
    for step in range(-warmup, iterations):
        # Negative steps are the warm-up, on the last images of the dataset rather than the first ones timed.
        chosen = [records[(step * batch + offset) % len(records)] for offset in range(batch)]
        start = time.perf_counter()
        inputs, placements = detector.prepare([read_bgr(record.path) for record in chosen])
        prepared = time.perf_counter()
        raw = detector.run(inputs)
        returned = time.perf_counter()
        results = [detector.decode(raw, index, placement) for index, placement in enumerate(placements)]
        masks = [result.full_masks() for result in results if result.masks is not None]
        end = time.perf_counter()
        del masks
        if step >= 0:
            for stage, value in zip(
                STAGES, (prepared - start, returned - prepared, end - returned, end - start), strict=True
            ):
                seconds[stage][step] = value
            found += sum(len(result) for result in results)
    return seconds, found / (iterations * batch)


def summary(values: np.ndarray) -> dict[str, float]:
    """Mean, median, 95th and 99th percentile."""
    quantiles = {name: float(np.percentile(values, at)) for name, at in QUANTILES.items()}
    return {"mean": float(values.mean()), **quantiles}


def _sizes(records: Sequence[Record]) -> dict[str, list[int]]:
    """Median and largest (height, width) of the images."""
    sizes = np.array([(record.height, record.width) for record in records])
    return {"median": np.median(sizes, axis=0).astype(int).tolist(), "largest": sizes.max(axis=0).tolist()}


def main() -> int:
    """Read a specification from standard input, write the result to the file it names."""
    specification = json.load(sys.stdin)
    try:
        result = run_cell(specification)
    except UserError as error:
        result = {"error": str(error)}
    except Exception as error:  # one failing cell must not stop the others; its trace goes to stderr
        import traceback

        traceback.print_exc()
        result = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
    write_json_atomic(specification["result"], result)
    return int("error" in result)


if __name__ == "__main__":
    sys.exit(main())
