"""A benchmark with made-up figures, whose every text would break a page that does not escape it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from directdet.benchmark.cell import STAGES, Cell, Failure, ImageSizes, Memory, Request
from directdet.benchmark.measure import summary
from directdet.benchmark.provider_check import ProviderCheck
from directdet.benchmark.result import About, BenchmarkResult, DatasetFacts
from directdet.infer.accuracy.evaluate import METRIC_NAMES, Metrics

EVIL = "<script>alert('&\"')</script>"
SCALES = {"prepare": 0.1, "device": 1.0, "postprocess": 0.05, "end_to_end": 1.15}


def metrics(ap: float, ap50: float = 0.8) -> Metrics:
    values = dict.fromkeys(METRIC_NAMES, ap) | {"AP50": ap50}
    return Metrics(values, None, ("one",), [ap], {"mAP_11point": ap, "mAP_area": ap}, {}, n_images=9)


def cell(fps: float = 20.0, recipe: str | None = None, ap: float | None = 0.4, **changes) -> Cell:
    times = 1000 / fps * np.linspace(0.9, 1.1, 21)
    samples = {stage: tuple((times * SCALES[stage] / SCALES["end_to_end"]).tolist()) for stage in STAGES}
    nodes = {"CPUExecutionProvider": 7}
    made = Cell(
        path=EVIL,
        runtime="onnxruntime",
        precision="fp32",
        compiled=False,
        batch=1,
        source=EVIL,
        provider="CPUExecutionProvider",
        device="cpu",
        threads=2,
        versions={"onnxruntime": EVIL},
        size=(96, 128),
        fixed_size=True,
        max_batch=1,
        input="uint8",
        classes=1,
        recipe=recipe,
        artefact_sha256=None,
        asked_precision=None,
        provider_check=ProviderCheck("cpu", "cpu", "CPUExecutionProvider", "cpu", nodes),
        model_bytes=3 << 20,
        memory_mib=Memory(peak_rss=321.5, before_loading=45.0, gpu=None),
        iterations=21,
        warmup=5,
        milliseconds={stage: summary(np.array(values)) for stage, values in samples.items()},
        samples_ms=samples,
        fps_end_to_end=fps,
        fps_device_only=1.2 * fps,
        detections_per_image=2.0,
        timed_images=9,
        image_sizes=ImageSizes((96, 128), (96, 128)),
        metrics=None if ap is None else metrics(ap),
    )
    return replace(made, **changes)


def result(*cells: Cell | Failure) -> BenchmarkResult:
    machine = {"cpu": EVIL, "cores": 4, "cores_usable": 2, "gpu": None, "memory_gib": None, "system": EVIL}
    return BenchmarkResult(cells, About("today", EVIL, machine, {"python": "3"}, DatasetFacts(EVIL, EVIL, 3), False))


def failed(error: str = EVIL) -> Failure:
    return Failure(Request(EVIL, "openvino", None, False, 4), error)
