"""The benchmark: honest times and AP of every model in every runtime, beside the papers' own figures."""

from __future__ import annotations

import datetime
import importlib.util
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

from directdet.benchmark.published_speed import beside, runtime_words
from directdet.benchmark.tables import short, tables, to_csv
from directdet.common.errors import UserError
from directdet.common.files import require_writable, write_json_atomic, write_text_atomic
from directdet.data.dataset import Dataset
from directdet.infer.machine import hardware, versions
from directdet.infer.runtimes.load import model_kind
from directdet.infer.runtimes.names import PRECISIONS, RUNTIMES, TITLES
from directdet.recipes.published import speed_tables

JSON_FILE, CSV_FILE = "benchmark.json", "benchmark.csv"
QUICK = {"iterations": 30, "warmup": 5, "ap_images": 50}
_MODULES = {"tensorrt-rtx": "tensorrt_rtx"}


@dataclass
class BenchmarkResult:
    """Everything a benchmark run measured and ran on.

    Attributes:
        cells: one dict per model, runtime, precision, batch size and, for checkpoints, eager and compiled: "path",
            "runtime", "batch", "compiled" and either "error" or the values of `cell.run_cell`.
        about: hardware, versions, date, command, dataset.
        papers: the papers' tables of frame rates with these cells in them, see `published_speed`; never comparable.
    """

    cells: list[dict[str, Any]]
    about: dict[str, Any]
    papers: list[dict[str, Any]]

    @property
    def good(self) -> list[dict[str, Any]]:
        """The cells that did not fail."""
        return [cell for cell in self.cells if "error" not in cell]

    @property
    def failures(self) -> list[str]:
        """One line for every cell that failed."""
        failed = (cell for cell in self.cells if "error" in cell)
        return [f"{short(cell['path'])} in {_where(cell)}: {cell['error']}" for cell in failed]

    @property
    def exit_code(self) -> int:
        """1 if any cell failed, else 0."""
        return int(bool(self.failures))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"about": self.about, "cells": self.cells, "papers": self.papers}

    def render(self) -> Group:
        """Tables for the terminal, none if all cells failed; why a cell failed is in `failures`."""
        return tables(self.cells, self.about, self.papers) if self.good else Group()


def _where(cell: dict[str, Any]) -> str:
    return f"{runtime_words(cell)}, batch {cell['batch']}"


def benchmark(
    paths: Sequence[str | Path],
    dataset: Dataset,
    runtimes: Sequence[str] | None = None,
    iterations: int = 300,
    warmup: int = 50,
    batch: int | Sequence[int] = 1,
    threads: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str | Sequence[str] | None = None,
    ap_images: int | None = None,
    quick: bool = False,
    compiled: bool = False,
    command: str | None = None,
    progress: bool = True,
) -> BenchmarkResult:
    """Time models on real images and take the AP of the same files.

    Every cell runs in a process of its own, one after the other. One that fails is recorded with its error and the rest
    goes on.

    Args:
        paths: artefact folders, run folders or checkpoints.
        dataset: images to time on, and ground truth for the AP.
        runtimes: which runtimes; each model runs in those that can run its kind. None: all that are installed.
        iterations: timed batches. warmup: batches before them.
        batch: images per batch, one or several sizes. The AP is taken once, with the first size that runs.
        threads: CPU threads of the runtime and of OpenCV; None leaves it to them.
        out: folder for benchmark.json and, unless all fails, benchmark.csv; None writes nothing.
        device: as `runtimes.load`; what runs elsewhere than on the device asked for is a failure.
        precision: as `runtimes.load`, one or several; each runtime takes those it has.
        ap_images: AP on the first so many images only; None: all, 0: no AP.
        quick: 30 iterations after 5, AP on 50 images: to see that it works, not to be quoted.
        compiled: time checkpoints compiled (`torch.compile`) as well as eager.
        command: the command line to record; the process's own if None.
        progress: say on stderr which cell is running.

    Raises:
        UserError: numbers out of range, or no model or dataset to start with, or `out` cannot be written.
    """
    if quick:
        iterations, warmup, ap_images = QUICK["iterations"], QUICK["warmup"], QUICK["ap_images"]
    batches = tuple(dict.fromkeys((batch,) if isinstance(batch, int) else batch))
    precisions = (precision,) if precision is None or isinstance(precision, str) else tuple(dict.fromkeys(precision))
    if iterations < 1 or warmup < 0 or not batches or min(batches) < 1:
        raise UserError("benchmark: iterations and batch must be at least 1, warmup at least 0")
    if not paths:
        raise UserError("benchmark: no model given; name artefact folders or checkpoints")
    if not dataset.records:
        raise UserError(f"{dataset.root}: {dataset.split}: no images to time on")
    if out is not None:
        require_writable(out, folder=True)
    console = Console(stderr=True, quiet=not progress)
    settings = {"device": device, "threads": threads, "iterations": iterations, "warmup": warmup}
    about = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command or shlex.join(sys.argv),
        "hardware": hardware(),
        "versions": versions(),
        "dataset": {"root": str(dataset.root), "split": dataset.split, "images": len(dataset)},
        "quick": quick,
    }
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="directdet-benchmark-") as folder:
        settings["dataset"] = str(Path(folder) / "dataset.pickle")
        Path(settings["dataset"]).write_bytes(pickle.dumps(dataset))
        for variant, problem in _variants(paths, runtimes, precisions or (None,), compiled):
            metrics = None
            for size in batches:
                cell = {**variant, "batch": size}
                if problem is not None:
                    cells.append(cell | {"error": problem})
                    continue
                number = f"cell {len(cells) + 1}"
                console.print(f"{number}: {cell['path']} in {_where(cell)} ...", markup=False, highlight=False)
                images = ap_images if metrics is None else 0
                done = _run({**settings, **cell, "ap_images": images, "result": f"{folder}/{len(cells)}.json"})
                metrics = metrics or done.get("metrics")
                cells.append(cell | done | ({} if "error" in done else {"metrics": metrics}))
                _keep(cells, about, out)  # a later cell may take hours, and be stopped
    result = _keep(cells, about, out)
    if out is not None and result.good:
        write_text_atomic(Path(out) / CSV_FILE, to_csv(result.cells, about, result.papers))
    return result


def _keep(cells: list[dict[str, Any]], about: dict[str, Any], out: str | Path | None) -> BenchmarkResult:
    """What was measured so far, beside the papers; written to `out`."""
    result = BenchmarkResult(cells, about, [])
    result.papers = [beside(table, result.good) for table in speed_tables()]
    if out is not None:
        write_json_atomic(Path(out) / JSON_FILE, result.to_dict(), indent=None)
    return result


def _variants(
    paths: Sequence[str | Path], runtimes: Sequence[str] | None, precisions: Sequence[str | None], compiled: bool
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """What to time as parts of a specification, each with None or what is wrong with it."""
    for path, runtime, problem in _pairs(paths, runtimes):
        # A precision that the runtime does not have is left out if it has another one; else its own message says so.
        known = [name for name in precisions if name in PRECISIONS.get(runtime, (None,))]
        for precision in (known or precisions)[: None if known else 1]:
            for graph in (False, True) if compiled and runtime == "torch" else (False,):
                yield {"path": path, "runtime": runtime, "precision": precision, "compiled": graph}, problem


def _pairs(paths: Sequence[str | Path], runtimes: Sequence[str] | None) -> Iterator[tuple[str, str, str | None]]:
    """(path, runtime, None) for every pair to run, or (path, runtime or "-", what is wrong)."""
    for name in runtimes or ():
        if name not in TITLES:
            raise UserError(f"runtime {name!r} is not known; choose from {', '.join(TITLES)}")
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
        [sys.executable, "-m", "directdet.benchmark.cell"],
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
