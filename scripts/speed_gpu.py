"""How fast detectors run on a GPU: eager, captured as a CUDA graph, compiled, beside torchvision's of the same weights.

Batch 1, a picture of 640x480 in memory to detections in its own pixels. Random networks that really detect. Each cell:
milliseconds of the device part (copies to and from the GPU, network, post-processing) and end to end, kernels a
picture, GPU memory, and how far its detections are from the eager ones in fp32. Results are written after each cell.

    python scripts/speed_gpu.py
    python scripts/speed_gpu.py --only ssd300 --seconds 240
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import speed_models
import torch
from measure import milliseconds, write_results
from speed import picture

from directdet.infer.runtimes.torch_runtime import load_torch

FORMS = ("eager", "captured", "torchvision", "compiled")  # as they are run: eager first, to compare with
PRECISIONS = ("fp32", "tf32", "fp16")
PROPOSALS = {"mask_rcnn": 300}


@dataclass(frozen=True)
class Cell:
    """What is timed: a detector, how it runs, and in which precision and batch size."""

    model: str
    form: str
    precision: str
    batch: int = 1

    @property
    def name(self) -> str:
        return f"{self.model}/{self.form}/{self.precision}" + (f"/batch {self.batch}" if self.batch > 1 else "")


def cells(gpu: bool) -> list[Cell]:
    """Every cell that can run here, the cheap ones of all detectors first."""
    found = []
    for form in FORMS if gpu else ("eager", "torchvision"):
        for model, precision in itertools.product(speed_models.SUBJECTS, PRECISIONS if gpu else ("fp32",)):
            if form == "compiled" and precision == "tf32":
                continue  # compiling takes minutes
            if form == "torchvision" and model == "rtmdet_s":
                continue  # it has none
            found.append(Cell(model, form, precision))
    if gpu:
        found += [Cell(model, "captured", "fp16", 8) for model in speed_models.SUBJECTS]
    return found


def runner(cell: Cell, checkpoint: Path, device: str) -> tuple[Any, Callable[[np.ndarray], Any]]:
    """The predictor of a cell, which prepares and decodes, and what runs its batch."""
    own = load_torch(
        checkpoint,
        device,
        precision=cell.precision,
        compiled=cell.form == "compiled",
        captured=cell.form in ("captured", "compiled"),
    )
    if cell.form != "torchvision":
        return own, own.run
    from directdet.export.verification.verify import network_of

    twin = speed_models.torchvision_run(network_of(own), device)
    backend: Any = own.backend

    def run(batch: np.ndarray) -> Any:
        with backend._tf32(), backend._autocast():
            return twin(batch)

    return own, run


def kernels(run: Callable[[], object]) -> int:
    """CUDA kernels of one call, those of a replayed graph included."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return sum(
        str(event.device_type).endswith("CUDA") and not event.name.startswith("Mem")
        for event in profiler.events() or []
    )


def difference(found: Any, expected: Any) -> dict[str, float]:
    """How many of the expected detections have a partner of the same class at an IoU of 0.9, and how near they are."""
    if not len(expected):
        return {"expected": 0, "found": len(found)}
    low = np.maximum(expected.boxes[:, None, :2], found.boxes[None, :, :2])
    high = np.minimum(expected.boxes[:, None, 2:], found.boxes[None, :, 2:])
    inner = np.prod(np.clip(high - low, 0, None), -1)
    one, two = (np.prod(side.boxes[:, 2:] - side.boxes[:, :2], 1) for side in (expected, found))
    iou = inner / (one[:, None] + two[None] - inner)
    iou[expected.labels[:, None] != found.labels[None]] = 0
    best = iou.argmax(1)
    same = iou.max(1) >= 0.9
    boxes = np.abs(expected.boxes - found.boxes[best])[same]
    scores = np.abs(expected.scores - found.scores[best])[same]
    return {
        "expected": len(expected),
        "found": len(found),
        "matched": int(same.sum()),
        "largest_box_px": float(boxes.max(initial=0)),
        "largest_score": float(scores.max(initial=0)),
    }


def time_cell(cell: Cell, checkpoint: Path, device: str, runs: int, expected: dict[str, Any]) -> dict[str, Any]:
    """The figures of one cell."""
    gpu = device != "cpu"
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    image = picture()
    predictor, run = runner(cell, checkpoint, device)
    batch, placements = predictor.prepare([image] * cell.batch)
    start = time.perf_counter()
    for _ in range(2):
        run(batch)  # the second time it is captured
    first = time.perf_counter() - start

    def call() -> None:
        run(batch)
        if gpu and cell.form == "torchvision":
            torch.cuda.synchronize()

    def whole() -> None:
        given, places = predictor.prepare([image] * cell.batch)
        raw = run(given)
        if cell.form != "torchvision":
            for index, place in enumerate(places):
                predictor.decode(raw, index, place)
        elif gpu:
            torch.cuda.synchronize()

    row: dict[str, Any] = {"first_two_calls_s": first, "device": milliseconds(call, runs, 10)}
    row["end_to_end"] = milliseconds(whole, runs, 3)
    if gpu:
        row["kernels"] = kernels(call)
        row["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    if cell.form != "torchvision":
        found = predictor.decode(run(batch), 0, placements[0])
        if cell.form == "eager" and cell.precision == "fp32":
            expected[cell.model] = found
        row["runs_in"] = predictor.info
        if cell.model in expected:
            row["against_eager_fp32"] = difference(found, expected[cell.model])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="cells whose name begins with it; repeatable")
    parser.add_argument("--device", default="auto", help="cpu or cuda  [default: a GPU if there is one]")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seconds", type=float, help="start no further cell after this time")
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder for the figures  [default: results]")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    gpu = torch.cuda.is_available() if given.device == "auto" else given.device != "cpu"
    began = time.monotonic()
    rows: dict[str, dict] = {}
    expected: dict[str, Any] = {}
    settings = {"runs": given.runs, "tiny": given.tiny, "proposals": PROPOSALS, "picture": "640x480"}
    with tempfile.TemporaryDirectory() as temporary:
        for cell in cells(gpu):
            if given.only and not any(cell.name.startswith(name) for name in given.only):
                continue
            if given.seconds and time.monotonic() - began > given.seconds:
                print(f"{cell.name}: left out, {given.seconds:.0f} s are over")
                continue
            checkpoint = Path(temporary) / f"{cell.model}.pt"
            if not checkpoint.exists():
                speed_models.save_random(cell.model, checkpoint, given.tiny)
                if cell.model in PROPOSALS:
                    speed_models.save_with(checkpoint, checkpoint, test_proposals=PROPOSALS[cell.model])
            try:
                rows[cell.name] = time_cell(cell, checkpoint, "cuda" if gpu else "cpu", given.runs, expected)
            except (RuntimeError, TypeError, ValueError) as error:  # the other cells are worth having
                rows[cell.name] = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
            report(cell.name, rows[cell.name])
            write_results("speed_gpu" if gpu else "speed_gpu_smoke", settings, rows, given.results)


def report(name: str, row: dict[str, Any]) -> None:
    """One line of the table."""
    if "failed" in row:
        print(f"{name:40s} failed: {row['failed']}", flush=True)
        return
    near = row.get("against_eager_fp32", {})
    matched = f"{near['matched']}/{near['expected']}" if near.get("expected") else "-"
    print(
        f"{name:40s} device {row['device']['median_ms']:8.2f} ms, end to end {row['end_to_end']['median_ms']:8.2f} ms, "
        f"kernels {row.get('kernels', '-')}, matched {matched}",
        flush=True,
    )


if __name__ == "__main__":
    main()
