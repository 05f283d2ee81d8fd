"""Measure one cell of the benchmark in its own process.

Run as `python -m directdet.benchmark.measure` with a `Task` as JSON on standard input. Two runtimes never share a
process: their thread pools would slow each other down several times over.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from directdet.benchmark.cell import STAGES, Cell, Failure, ImageSizes, Memory, Task, Times
from directdet.benchmark.provider_check import check_provider, onnx_nodes
from directdet.benchmark.throughput import Throughput, time_throughput
from directdet.common.cores import usable_cores
from directdet.common.errors import UserError
from directdet.common.files import write_json_atomic
from directdet.data.dataset import Dataset, Record
from directdet.data.masks import coco_mask
from directdet.infer.accuracy.evaluate import evaluate, match_classes
from directdet.infer.machine import gpu_memory_mib, peak_memory_mib
from directdet.infer.predict.sources import read_for_detector
from directdet.infer.predictor import Predictor
from directdet.infer.runtimes.load import find_model, load


def run_cell(task: Task) -> Cell:
    """Time one model in one runtime and measure its AP.

    Raises:
        UserError: the model cannot be loaded, runs on another device than the one asked for, does not know the
            dataset's classes, or does not take such a batch.
    """
    if task.threads is not None:
        cv2.setNumThreads(task.threads)
    request = task.request
    dataset: Dataset = pickle.loads(Path(task.dataset).read_bytes())
    gpu = _gpu_index(task.device)
    before, gpu_before = peak_memory_mib(), gpu_memory_mib(gpu)
    detector = _load(task)
    provider = check_provider(task.device, detector)
    match_classes(detector, dataset)  # before the long part, as is the check that follows
    if task.ap_images != 0:
        coco_mask()
    records = timed_records(detector, dataset, one_canvas=request.batch > 1 or request.compiled)
    seconds, detections = time_stages(detector, records, task.warmup, task.iterations, request.batch)
    # Before the AP, which holds all detections of the dataset at once.
    memory = _memory(before, gpu_before, gpu_memory_mib(gpu) if provider.expected == "cuda" else None)
    if detector.runtime == "onnxruntime":
        provider = replace(provider, nodes=_onnx_nodes(detector, records[0], request.batch))
    described = detector.describe()
    metrics = None
    # A model compiled for one canvas would be compiled again for every other one.
    if task.ap_images != 0 and (detector.preprocess.fixed or not request.compiled):
        metrics = evaluate(detector, dataset, progress=False, max_images=task.ap_images)
    meta, size = detector.meta, detector.preprocess.size
    throughput = None
    if task.throughput and detector.runtime != "torch" and provider.expected == "cpu":
        del detector  # its threads and memory
        throughput = _throughput(task, records)
    return Cell(
        path=request.path,
        runtime=request.runtime,
        precision=described["precision"],
        compiled=request.compiled,
        batch=request.batch,
        source=described["source"],
        provider=described["provider"],
        device=described["device"],
        threads=described["threads"],
        versions=described["versions"],
        size=size,
        fixed_size=described["fixed_size"],
        max_batch=described["max_batch"],
        input=described["input"],
        classes=described["classes"],
        recipe=described["recipe"],
        network=meta.get("model_config"),
        artefact_sha256=meta.get("files", {}).get(meta.get("file")),
        asked_precision=request.precision,
        provider_check=provider,
        model_bytes=model_bytes(request.path, meta),
        memory_mib=memory,
        iterations=task.iterations,
        warmup=task.warmup,
        milliseconds={stage: summary(1000 * values) for stage, values in seconds.items()},
        samples_ms={stage: tuple(np.round(1000 * values, 4).tolist()) for stage, values in seconds.items()},
        fps_end_to_end=request.batch / float(seconds["end_to_end"].mean()),
        fps_device_only=request.batch / float(seconds["device"].mean()),
        detections_per_image=detections,
        timed_images=len(records),
        image_sizes=_sizes(records),
        metrics=metrics,
        throughput=throughput,
    )


def _throughput(task: Task, records: Sequence[Record]) -> Throughput:
    """Images per second with a batch in flight on every core that may be used, from file to masks in image pixels."""
    request, in_flight = task.request, task.threads or usable_cores()
    detector = load(request.path, request.runtime, task.device, task.threads, request.precision, in_flight)
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)  # every batch has a core of its own
    try:
        return time_throughput(
            lambda number: detect(detector, batch_of(records, number, request.batch)),
            task.warmup,
            task.iterations,
            request.batch,
            in_flight,
        )
    finally:
        cv2.setNumThreads(before)


def batch_of(records: Sequence[Record], step: int, batch: int) -> list[Record]:
    """The images of a step; negative steps are the warm-up, on the last images rather than the first ones timed."""
    return [records[(step * batch + offset) % len(records)] for offset in range(batch)]


def detect(detector: Predictor, chosen: Sequence[Record]) -> int:
    """Read and detect, masks pasted at full size; returns the number of detections."""
    inputs, placements = detector.prepare([read_for_detector(record.path, record.pixels) for record in chosen])
    raw = detector.run(inputs)
    results = [detector.decode(raw, index, placement) for index, placement in enumerate(placements)]
    for result in results:
        if result.masks is not None:
            result.full_masks()
    return sum(len(result) for result in results)


def _load(task: Task) -> Predictor:
    """The detector, compiled where the request says so."""
    request = task.request
    if not request.compiled:
        return load(request.path, request.runtime, task.device, task.threads, request.precision)
    from directdet.infer.runtimes.torch_runtime import load_torch

    return load_torch(find_model(request.path)[1], task.device, task.threads, request.precision, compiled=True)


def _gpu_index(device: str) -> int:
    index = device.partition(":")[2]
    return int(index) if index.isdecimal() else 0


def _memory(before: float | None, gpu_before: float | None, gpu_now: float | None) -> Memory:
    """The process's peak now and before loading, and how much the GPU's memory in use grew.

    The GPU's figure counts every process on it, and runtimes keep what they once allocated.
    """
    grown = None if gpu_now is None or gpu_before is None else max(0.0, gpu_now - gpu_before)
    return Memory(peak_memory_mib(), before, grown)


def _onnx_nodes(detector: Predictor, record: Record, batch: int) -> dict[str, int]:
    inputs, _ = detector.prepare([read_for_detector(record.path, record.pixels)])
    inputs = np.repeat(inputs, detector.backend.input.batch or batch, axis=0)
    model = Path(detector.source) / detector.meta["file"]
    return onnx_nodes(model, detector.info["provider"], detector.info["device"], inputs)


def model_bytes(path: str | Path, meta: dict[str, Any]) -> int:
    """Size on disk of an artefact's model files, or of a checkpoint with everything that training left in it."""
    what, place = find_model(path)
    if what == "checkpoint":
        return place.stat().st_size
    return sum((place / name).stat().st_size for name in meta.get("files") or [meta["file"]])


def timed_records(detector: Predictor, dataset: Dataset, one_canvas: bool) -> tuple[Record, ...]:
    """The images to time on: all of them, or with `one_canvas` those that get the most frequent canvas size.

    Only images with the same canvas can share a batch.
    """
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

    - prepare: read the file, decode it, resize, normalise (files are in the page cache after the first round);
    - device: host to device, network with the post-processing in its graph, device to host; `run` returns only when the
      results are on the host, so nothing is left running at either end;
    - postprocess: boxes into image pixels, masks pasted at full size;
    - end_to_end: wall time around all three.
    """
    seconds = {stage: np.zeros(iterations) for stage in STAGES}
    found = 0
    for step in range(-warmup, iterations):
        chosen = batch_of(records, step, batch)
        start = time.perf_counter()
        inputs, placements = detector.prepare([read_for_detector(record.path, record.pixels) for record in chosen])
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


def summary(values: np.ndarray) -> Times:
    """Mean, median, 95th and 99th percentile."""
    median, p95, p99 = (float(np.percentile(values, at)) for at in (50, 95, 99))
    return Times(float(values.mean()), median, p95, p99)


def _sizes(records: Sequence[Record]) -> ImageSizes:
    sizes = np.array([(record.height, record.width) for record in records])
    median, largest = (tuple(map(int, edges)) for edges in (np.median(sizes, axis=0), sizes.max(axis=0)))
    return ImageSizes((median[0], median[1]), (largest[0], largest[1]))


def main() -> int:
    """Read a task from standard input and write the cell, or the failure, to the file it names."""
    task = Task.from_dict(json.load(sys.stdin))
    try:
        result = run_cell(task)
    except UserError as error:
        result = Failure(task.request, str(error))
    except Exception as error:  # one failing cell must not stop the others; its traceback goes to stderr
        import traceback

        traceback.print_exc()
        result = Failure(task.request, " ".join(f"{type(error).__name__}: {error}".split())[:500])
    write_json_atomic(task.result, result.to_dict())
    return int(isinstance(result, Failure))


if __name__ == "__main__":
    sys.exit(main())
