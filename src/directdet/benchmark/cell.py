"""A cell of the benchmark as an object and as JSON: what to measure, what was measured, or why that failed.

A cell is one model in one runtime with one batch size. Each is measured in its own process (`measure.py`) and kept in
benchmark.json, so every class here turns into plain values and back.
"""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from typing import Any

from directdet.benchmark.provider_check import ProviderCheck
from directdet.benchmark.throughput import Throughput
from directdet.infer.accuracy.evaluate import Metrics

STAGES = ("prepare", "device", "postprocess", "end_to_end")
TIMES = ("mean", "median", "p95", "p99")


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        path: an artefact folder, a run folder or a checkpoint.
        runtime: a key of `runtimes.names.TITLES`; for a model that cannot be measured also "-" or several runtimes.
        precision: as `runtimes.load` takes it.
        compiled: whether a checkpoint runs through `torch.compile`.
        batch: images per batch.
    """

    path: str
    runtime: str
    precision: str | None
    compiled: bool
    batch: int


@dataclass(frozen=True)
class Task:
    """A request with everything its process needs to know.

    Attributes:
        device, threads: as `runtimes.load` takes them.
        iterations: timed batches. warmup: batches before them.
        ap_images: images the AP is measured on; None: all, 0: no AP.
        dataset: file in which the parent process pickled the `Dataset`, which may be any part of one.
        result: file that the process writes a cell or a failure to, as JSON.
        throughput: whether to measure images per second with several batches in flight, too.
    """

    request: Request
    device: str
    threads: int | None
    iterations: int
    warmup: int
    ap_images: int | None
    dataset: str
    result: str
    throughput: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Task:
        """The task that `to_dict` describes."""
        return cls(**{**content, "request": Request(**content["request"])})


@dataclass(frozen=True)
class Failure:
    """A request that could not be measured, and why, in one line."""

    request: Request
    error: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self.request), "error": self.error}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Failure:
        """The failure that `to_dict` describes."""
        values = dict(content)
        error = values.pop("error")
        return cls(Request(**values), error)


@dataclass(frozen=True)
class Times:
    """Milliseconds per batch of one stage: mean, median, 95th and 99th percentile."""

    mean: float
    median: float
    p95: float
    p99: float

    def in_order(self) -> tuple[float, ...]:
        """The four values in the order of `TIMES`."""
        return astuple(self)


@dataclass(frozen=True)
class Memory:
    """Memory in MiB; None where it is not known.

    Attributes:
        peak_rss: largest resident memory of the measuring process, before the AP is measured.
        before_loading: the same before the model was loaded: Python and the libraries.
        gpu: what all processes hold on the GPU more than before loading; None on a CPU.
    """

    peak_rss: float | None
    before_loading: float | None
    gpu: float | None


@dataclass(frozen=True)
class ImageSizes:
    """Median and largest (height, width) of the timed images in pixels."""

    median: tuple[int, int]
    largest: tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """What was measured of one model in one runtime with one batch size.

    Attributes:
        path, runtime, compiled, batch: as requested.
        precision: what the model ran in; asked_precision: what was requested.
        source, provider, device, threads, versions, size, fixed_size, max_batch, input, classes, recipe: as
            `Predictor.describe` returns them. size: (height, width) in pixels.
        artefact_sha256: hash of the artefact's model file; None for a checkpoint.
        provider_check: what was asked for and what ran.
        model_bytes: size on disk.
        iterations: timed batches. warmup: batches before them.
        milliseconds: times per batch of each of the `STAGES`; samples_ms: those of every iteration.
        fps_end_to_end, fps_device_only: images per second, from the mean times.
        detections_per_image: mean over the timed images.
        timed_images: how many different images were timed. image_sizes: of those.
        metrics: AP on the dataset; None where it was not measured.
        network: settings of the network, as `models.build.describe_model` returns them; None in older files.
        throughput: images per second with several batches in flight; None where it was not measured.
    """

    path: str
    runtime: str
    precision: str
    compiled: bool
    batch: int
    source: str
    provider: str
    device: str
    threads: int | None
    versions: dict[str, str]
    size: tuple[int, int]
    fixed_size: bool
    max_batch: int | None
    input: str
    classes: int
    recipe: str | None
    artefact_sha256: str | None
    asked_precision: str | None
    provider_check: ProviderCheck
    model_bytes: int
    memory_mib: Memory
    iterations: int
    warmup: int
    milliseconds: dict[str, Times]
    samples_ms: dict[str, tuple[float, ...]]
    fps_end_to_end: float
    fps_device_only: float
    detections_per_image: float
    timed_images: int
    image_sizes: ImageSizes
    metrics: Metrics | None
    network: dict[str, Any] | None = None
    throughput: Throughput | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "provider_check": self.provider_check.to_dict(),
            "metrics": None if self.metrics is None else self.metrics.to_dict(),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Cell:
        """The cell that `to_dict` describes, also after a journey through JSON, where tuples become lists."""
        metrics, sizes = content["metrics"], content["image_sizes"]
        parts: dict[str, Any] = {
            "size": tuple(content["size"]),
            "provider_check": ProviderCheck(**content["provider_check"]),
            "memory_mib": Memory(**content["memory_mib"]),
            "milliseconds": {stage: Times(**content["milliseconds"][stage]) for stage in STAGES},
            "samples_ms": {stage: tuple(content["samples_ms"][stage]) for stage in STAGES},
            "image_sizes": ImageSizes(tuple(sizes["median"]), tuple(sizes["largest"])),
            "throughput": Throughput(**content["throughput"]) if content.get("throughput") else None,
            "metrics": None if metrics is None else Metrics(**{**metrics, "classes": tuple(metrics["classes"])}),
        }
        return cls(**{**content, **parts})


def cell_from_dict(content: dict[str, Any]) -> Cell | Failure:
    """The cell or failure that its `to_dict` describes."""
    return Failure.from_dict(content) if "error" in content else Cell.from_dict(content)
