"""One cell of the benchmark: one model in one runtime, timed in a process of its own.

Run as `python -m directdet.infer.benchmark_cell` with a JSON specification on standard input. Two runtimes never share
a process: their thread pools slow each other down several times over.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..data.dataset import Dataset
from ..errors import UserError
from ..files import write_json_atomic
from .evaluate import evaluate, match_classes
from .runtimes import Detector, load
from .sources import read_bgr

STAGES = ("prepare", "device", "postprocess", "end_to_end")


def run_cell(specification: dict[str, Any]) -> dict[str, Any]:
    """Time one model in one runtime and take its AP.

    Args:
        specification: path, runtime, device, threads, precision, dataset (a file in which the parent process pickled
            the `Dataset`, so that it may be any part of one), iterations, warmup, batch, ap_images (None: all, 0: no
            AP).

    Returns:
        Plain values: what ran, milliseconds per stage, frame rates, detections per image, AP.
    """
    if specification["threads"] is not None:
        cv2.setNumThreads(specification["threads"])
    choice = {key: specification[key] for key in ("runtime", "device", "threads", "precision")}
    detector = load(specification["path"], **choice)
    dataset = pickle.loads(Path(specification["dataset"]).read_bytes())
    match_classes(detector, dataset)  # before the long part
    batch = specification["batch"]
    seconds, detections = time_stages(detector, dataset, specification["warmup"], specification["iterations"], batch)
    result = {
        **detector.describe(),
        "artefact_sha256": detector.meta.get("files", {}).get(detector.meta.get("file")),
        "batch": batch,
        "iterations": specification["iterations"],
        "warmup": specification["warmup"],
        "milliseconds": {stage: summary(1000 * values) for stage, values in seconds.items()},
        "fps_end_to_end": batch / float(seconds["end_to_end"].mean()),
        "fps_device_only": batch / float(seconds["device"].mean()),
        "detections_per_image": detections,
        "image_sizes": _sizes(dataset),
        "metrics": None,
    }
    if specification["ap_images"] != 0:
        metrics = evaluate(detector, dataset, progress=False, max_images=specification["ap_images"])
        result["metrics"] = metrics.to_dict()
    return result


def time_stages(
    detector: Detector, dataset: Dataset, warmup: int, iterations: int, batch: int
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
        chosen = [dataset.records[(step * batch + offset) % len(dataset)] for offset in range(batch)]
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
    """Mean, median and 95th percentile."""
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
    }


def _sizes(dataset: Dataset) -> dict[str, list[int]]:
    """Median and largest (height, width) of the images."""
    sizes = np.array([(record.height, record.width) for record in dataset.records])
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
