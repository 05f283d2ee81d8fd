"""What the benchmark scripts share: the description of the machine, timing, writing results."""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from directdet.infer.machine import hardware

if TYPE_CHECKING:
    from directdet.infer.accuracy.evaluate import Metrics

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "torchvision", "onnxruntime-gpu", "openvino", "av", "opencv-python", "numpy")


def milliseconds(run: Callable[[], object], count: int, warmup: int) -> dict[str, float]:
    """Median, mean and 95th percentile of `count` runs, after `warmup` runs that are not counted."""
    for _ in range(warmup):
        run()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return quantiles(times)


def quantiles(times: list[float]) -> dict[str, float]:
    """Median, mean and 95th percentile of milliseconds."""
    ordered = sorted(times)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {
        "median_ms": statistics.median(times),
        "mean_ms": statistics.fmean(times),
        "p95_ms": p95,
        "runs": len(times),
    }


def in_process(script: str, cell: str, *arguments: str, source: Path | None = None) -> dict:
    """Run one cell in its own process: two runtimes' thread pools in one process slow each other down.

    `source`: the folder that directdet is imported from, if it is another one.
    """
    command = [sys.executable, script, "--cell", cell, *arguments]
    environment = os.environ if source is None else {**os.environ, "PYTHONPATH": str(source.absolute())}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{cell} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_once(script: str, name: str, folder: Path, *arguments: object) -> None:
    """Run a script in a process and on a thread of its own, unless folder/NAME.json is there, which it is to write.

    What it says is kept in folder/NAME.log.
    """
    file = folder / f"{name}.json"
    if file.is_file():
        return
    command = [sys.executable, script, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with file.with_suffix(".log").open("w", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment)
    print(f"{name}: {file.read_text('utf-8').strip()}", flush=True)


def train_once(
    recipe: str, data: Path, out: Path, settings: Sequence[str], seed: int, phase: str | None = None
) -> "tuple[Metrics, float]":
    """Train on one thread of the CPU; the last evaluation, and the seconds of all phases.

    A run that was broken off goes on. The data has a val split.
    """
    import torch

    from directdet.front.api import run_training

    torch.set_num_threads(1)
    result = run_training(
        recipe, data, out, settings, phase, None, resume=any(out.glob("*/run.json")), epochs=None, device="cpu",
        seed=seed, dry_run=False, log=("none",), warn=print,
    )  # fmt: skip
    assert result.metrics is not None
    return result.metrics, sum(one["seconds"] for one in result.phases)


def measured_on(libraries: Sequence[str] = LIBRARIES) -> dict:
    """Date, command line, hardware and versions (None: not installed), to be written next to figures."""
    versions = {}
    for library in libraries:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = None
    command = " ".join(["python", *sys.argv])
    return {"date": date.today().isoformat(), "command": command, "hardware": hardware(), "versions": versions}


def write_results(
    name: str, settings: dict, rows: dict[str, dict], folder: Path | None = None, libraries: Sequence[str] = LIBRARIES
) -> Path:
    """Write the figures with what they were measured on, in results/ or `folder`."""
    path = (folder or ROOT / "results") / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    content = {**measured_on(libraries), "settings": settings, "rows": rows}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--runs", type=int, default=10, help="counted runs of each cell and round")
    made.add_argument("--rounds", type=int, default=3, help="times that all cells take turns")
    made.add_argument("--results", type=Path, metavar="DIR", help="folder for the figures  [default: results]")
    made.add_argument("--cell", help=argparse.SUPPRESS)
    return made
