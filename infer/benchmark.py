"""The benchmark: honest times and AP of every model in every runtime, beside the papers' own figures."""

from __future__ import annotations

import csv
import datetime
import importlib.util
import io
import json
import os
import pickle
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ..data.dataset import Dataset
from ..errors import UserError
from ..files import require_writable, write_json_atomic, write_text_atomic
from .benchmark_cell import STAGES
from .machine import hardware, versions
from .papers import PaperTable, table7
from .runtimes import RUNTIMES, model_kind

JSON_FILE, CSV_FILE = "benchmark.json", "benchmark.csv"
QUICK = {"iterations": 30, "warmup": 5, "ap_images": 50}
_MODULES = {"tensorrt-rtx": "tensorrt_rtx"}
_STAGE_NAMES = {
    "prepare": "decode + preprocess",
    "device": "device (copy, network, copy)",
    "postprocess": "postprocess (boxes, masks)",
    "end_to_end": "end to end",
}


@dataclass
class BenchmarkResult:
    """Everything a benchmark run measured and ran on.

    Attributes:
        cells: one dict per (model, runtime): "path", "runtime" and either "error" or the values of
            `benchmark_cell.run_cell`.
        about: hardware, versions, date, command, dataset.
        paper: the paper's table that stands beside them; never comparable.
    """

    cells: list[dict[str, Any]]
    about: dict[str, Any]
    paper: PaperTable

    @property
    def failures(self) -> list[str]:
        """One line for every cell that failed."""
        return [
            f"{_short(cell['path'])} in {cell['runtime']}: {cell['error']}" for cell in self.cells if "error" in cell
        ]

    @property
    def exit_code(self) -> int:
        """1 if any cell failed, else 0."""
        return int(bool(self.failures))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"about": self.about, "cells": self.cells, "paper": self.paper.to_dict()}

    def render(self) -> Group:
        """Tables for the terminal; why a cell failed is in `failures`."""
        paper = self.paper
        return Group(
            _summary_table(self),
            _stage_table(self),
            Text(f"not comparable: {paper.source}\n{paper.title}; {paper.hardware}; stages included: {paper.included}"),
            _paper_table(paper),
        )


def benchmark(
    paths: Sequence[str | Path],
    dataset: Dataset,
    runtimes: Sequence[str] | None = None,
    iterations: int = 300,
    warmup: int = 50,
    batch: int = 1,
    threads: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    ap_images: int | None = None,
    quick: bool = False,
    command: str | None = None,
    progress: bool = True,
) -> BenchmarkResult:
    """Time models on real images and take the AP of the same files.

    Every (model, runtime) pair runs in a process of its own, one after the other. A pair that fails is recorded with
    its error and the rest goes on.

    Args:
        paths: artefact folders, run folders or checkpoints.
        dataset: images to time on, and ground truth for the AP.
        runtimes: which runtimes; each model runs in those that can run its kind. None: all that are installed.
        iterations: timed batches. warmup: batches before them.
        batch: images per batch.
        threads: CPU threads of the runtime and of OpenCV; None leaves it to them.
        out: folder for benchmark.json and benchmark.csv; None writes nothing.
        device: as `runtimes.load`. precision: as `runtimes.load`.
        ap_images: AP on the first so many images only; None: all, 0: no AP.
        quick: 30 iterations after 5, AP on 50 images: to see that it works, not to be quoted.
        command: the command line to record; the process's own if None.
        progress: say on stderr which pair is running.

    Raises:
        UserError: numbers out of range, or no model or dataset to start with, or `out` cannot be written.
    """
    if quick:
        iterations, warmup, ap_images = QUICK["iterations"], QUICK["warmup"], QUICK["ap_images"]
    if iterations < 1 or warmup < 0 or batch < 1:
        raise UserError("benchmark: iterations and batch must be at least 1, warmup at least 0")
    if not paths:
        raise UserError("benchmark: no model given; name artefact folders or checkpoints")
    if not dataset.records:
        raise UserError(f"{dataset.root}: {dataset.split}: no images to time on")
    if out is not None:
        require_writable(out, folder=True)
    console = Console(stderr=True, quiet=not progress)
    settings = {
        "device": device,
        "precision": precision,
        "threads": threads,
        "iterations": iterations,
        "warmup": warmup,
        "batch": batch,
        "ap_images": ap_images,
    }
    cells = []
    with tempfile.TemporaryDirectory(prefix="directdet-benchmark-") as folder:
        settings["dataset"] = str(Path(folder) / "dataset.pickle")
        Path(settings["dataset"]).write_bytes(pickle.dumps(dataset))
        for path, runtime, problem in _pairs(paths, runtimes):
            cell = {"path": path, "runtime": runtime}
            if problem is None:
                console.print(f"timing {path} in {runtime} ...", markup=False, highlight=False)
                cells.append(cell | _run({**settings, **cell, "result": f"{folder}/{len(cells)}.json"}))
            else:
                cells.append(cell | {"error": problem})
    about = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command or shlex.join(sys.argv),
        "hardware": hardware(),
        "versions": versions(),
        "dataset": {"root": str(dataset.root), "split": dataset.split, "images": len(dataset)},
        "quick": quick,
    }
    result = BenchmarkResult(cells, about, table7())
    if out is not None:
        write_json_atomic(Path(out) / JSON_FILE, result.to_dict())
        write_text_atomic(Path(out) / CSV_FILE, to_csv(result))
    return result


def _pairs(paths: Sequence[str | Path], runtimes: Sequence[str] | None) -> Iterator[tuple[str, str, str | None]]:
    """(path, runtime, None) for every cell to run, or (path, runtime or "-", what is wrong)."""
    known = {name for names in RUNTIMES.values() for name in names}
    for name in runtimes or ():
        if name not in known:
            raise UserError(f"runtime {name!r} is not known; choose from {', '.join(sorted(known))}")
    for path in map(str, paths):
        try:
            kind = model_kind(path)
        except UserError as error:
            yield path, "-", str(error)
            continue
        possible = RUNTIMES[kind]
        chosen = [name for name in possible if (_installed(name) if runtimes is None else name in runtimes)]
        if not chosen and runtimes is None:
            chosen = list(possible[:1])  # its own message says what to install
        for name in chosen:
            yield path, name, None
        if not chosen:
            yield path, ",".join(runtimes or ()), f"a model of kind {kind} runs in {' or '.join(possible)} only"


def _installed(runtime: str) -> bool:
    return importlib.util.find_spec(_MODULES.get(runtime, runtime)) is not None


def _run(specification: dict[str, Any]) -> dict[str, Any]:
    """Run one cell in its own process."""
    environment = dict(os.environ)
    if specification["threads"] is not None:
        environment["OMP_NUM_THREADS"] = str(specification["threads"])
    done = subprocess.run(
        # -P: in a checkout, the folder directdet/ would hide the installed package of that name.
        [sys.executable, "-P", "-m", "directdet.infer.benchmark_cell"],
        input=json.dumps(specification),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    result = Path(specification["result"])
    if result.is_file():
        return json.loads(result.read_text("utf-8"))
    lines = [line for line in done.stdout.splitlines() if line.strip()] or ["no output"]
    how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"ended with code {done.returncode}"
    return {"error": f"the measuring process was {how} without a result; its last line: {lines[-1][:300]}"}


def to_csv(result: BenchmarkResult) -> str:
    """One line per cell, then the paper's rows, marked as not comparable."""
    names = ["source", "comparable", "model", "runtime", "provider", "precision", "height", "width", "batch", "threads"]
    names += [f"{stage}_{value}_ms" for stage in STAGES for value in ("mean", "median", "p95")]
    names += ["fps_end_to_end", "fps_device_only", "detections_per_image", "AP_box", "AP_mask", "AP_images"]
    names += ["hardware", "error"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    machine = result.about["hardware"]
    here = machine["gpu"]["name"] if machine["gpu"] else ""
    here = f"{machine['cpu']}, {machine['cores_usable']} cores" + (f"; {here}" if here else "")
    for cell in result.cells:
        writer.writerow({"source": "measured", "comparable": "yes", "hardware": here} | _csv_row(cell))
    paper = {"source": result.paper.source, "comparable": "not comparable", "hardware": result.paper.hardware}
    for row in result.paper.rows:
        writer.writerow({**paper, "model": row.method, "fps_end_to_end": row.fps})
    return stream.getvalue()


def _csv_row(cell: dict[str, Any]) -> dict[str, Any]:
    row = {"model": cell["path"], "runtime": cell["runtime"]}
    if "error" in cell:
        return row | {"error": cell["error"]}
    row |= {name: cell[name] for name in ("provider", "precision", "batch", "threads", "detections_per_image")}
    row |= {"height": cell["size"][0], "width": cell["size"][1]}
    row |= {name: round(cell[name], 3) for name in ("fps_end_to_end", "fps_device_only")}
    for stage in STAGES:
        row |= {f"{stage}_{name}_ms": round(value, 3) for name, value in cell["milliseconds"][stage].items()}
    metrics = cell["metrics"]
    if metrics:
        row |= {"AP_box": metrics["bbox"]["AP"], "AP_images": metrics["n_images"]}
        row |= {"AP_mask": metrics["segm"]["AP"]} if metrics["segm"] else {}
    return row


def _summary_table(result: BenchmarkResult) -> Table:
    """Frame rates and accuracy, one row per cell."""
    machine = result.about["hardware"]
    gpu = machine["gpu"]["name"] if machine["gpu"] else "no GPU"
    quick = " (quick run: not to be quoted)" if result.about["quick"] else ""
    table = Table(title=f"{machine['cpu']}, {machine['cores_usable']} cores, {gpu}{quick}", title_justify="left")
    for name in ("model", "runtime", "provider", "precision", "input"):
        table.add_column(name, overflow="fold", no_wrap=name in ("runtime", "precision", "input"))
    for name in ("fps\nend to end", "fps\ndevice only", "AP box", "AP mask", "found\nper image"):
        table.add_column(name, justify="right")
    for cell in result.cells:
        if "error" in cell:
            table.add_row(_short(cell["path"]), cell["runtime"], "failed", style="red")
            continue
        metrics = cell["metrics"] or {}
        accuracy = [_ap((metrics.get(kind) or {}).get("AP")) for kind in ("bbox", "segm")]
        table.add_row(
            _short(cell["path"]),
            cell["runtime"],
            cell["provider"].removesuffix("ExecutionProvider"),
            cell["precision"],
            f"{cell['batch']}x{cell['size'][0]}x{cell['size'][1]}",
            f"{cell['fps_end_to_end']:.1f}",
            f"{cell['fps_device_only']:.1f}",
            *accuracy,
            f"{cell['detections_per_image']:.1f}",
        )
    return table


def _stage_table(result: BenchmarkResult) -> Table:
    """Milliseconds per batch, four rows per cell."""
    table = Table(title="milliseconds per batch", title_justify="left")
    for name in ("model", "runtime", "stage"):
        table.add_column(name)
    for name in ("mean", "median", "p95"):
        table.add_column(name, justify="right")
    for cell in result.cells:
        for stage in STAGES if "error" not in cell else ():
            values = cell["milliseconds"][stage]
            first = (_short(cell["path"]), cell["runtime"]) if stage == STAGES[0] else ("", "")
            numbers = (f"{values[name]:.2f}" for name in ("mean", "median", "p95"))
            table.add_row(*first, _STAGE_NAMES[stage], *numbers, end_section=stage == STAGES[-1])
    return table


def _paper_table(paper: PaperTable) -> Table:
    """The paper's figures."""
    table = Table()
    for name in ("method", "train s/iter", "fps", "data s"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in paper.rows:
        values = (row.train_s_per_iter, row.fps, row.data_s)
        table.add_row(row.method, *("-" if value is None else f"{value:g}" for value in values))
    return table


def _short(path: str) -> str:
    """The last two parts of a path."""
    return "/".join(Path(path).parts[-2:])


def _ap(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{100 * value:.1f}"
