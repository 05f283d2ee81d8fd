"""The benchmark: times and AP of every model in every runtime, each cell measured in its own process."""

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
from dataclasses import replace
from pathlib import Path

from directdet.benchmark.cell import Cell, Failure, Request, Task, cell_from_dict
from directdet.benchmark.options import BenchmarkOptions
from directdet.benchmark.result import About, BenchmarkResult, DatasetFacts, where
from directdet.benchmark.tables import to_csv
from directdet.common.errors import UserError
from directdet.common.files import require_writable, write_json_atomic, write_text_atomic
from directdet.common.terminal import terminal
from directdet.data.dataset import Dataset
from directdet.infer.machine import hardware, versions
from directdet.infer.runtimes.load import model_kind
from directdet.infer.runtimes.names import MODULES, PRECISIONS, RUNTIMES

JSON_FILE, CSV_FILE = "benchmark.json", "benchmark.csv"


def benchmark(
    paths: Sequence[str | Path],
    dataset: Dataset,
    options: BenchmarkOptions | None = None,
    out: str | Path | None = None,
    command: str | None = None,
    progress: bool = True,
) -> BenchmarkResult:
    """Time models on real images and measure the AP of the same files.

    The cells run one after the other, each in its own process. One that fails is recorded with its error, and the
    others still run.

    Args:
        paths: artefact folders, run folders or checkpoints.
        dataset: images to time on, and ground truth for the AP.
        options: what to measure and how; None: the defaults.
        out: folder for benchmark.json and, unless every cell fails, benchmark.csv; None writes nothing.
        command: the command line to record; None: that of this process.
        progress: say on stderr which cell is running.

    Raises:
        UserError: there is no model or no image, or `out` cannot be written.
    """
    options = options or BenchmarkOptions()
    if not paths:
        raise UserError("benchmark: no model given; name artefact folders or checkpoints")
    if not dataset.records:
        raise UserError(f"{dataset.root}: {dataset.split}: no images to time on")
    if out is not None:
        require_writable(out, folder=True)
    console = terminal(stderr=True, quiet=not progress)
    about = About(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command or shlex.join(sys.argv),
        hardware=hardware(),
        versions=versions(),
        dataset=DatasetFacts(str(dataset.root), dataset.split, len(dataset)),
        quick=options.quick,
    )
    result = BenchmarkResult((), about)
    with tempfile.TemporaryDirectory(prefix="directdet-benchmark-") as folder:
        pickled = Path(folder) / "dataset.pickle"
        pickled.write_bytes(pickle.dumps(dataset))
        for variants, problem in _groups(paths, options):
            metrics = None
            for request in variants:
                number = len(result.cells)
                if problem is not None:
                    result = _with(result, Failure(request, problem))
                    continue
                said = f"cell {number + 1}: {request.path} in {where(request)} ..."
                console.print(said, markup=False, highlight=False)
                done = _run(
                    Task(
                        request,
                        options.device,
                        options.threads,
                        options.iterations,
                        options.warmup,
                        ap_images=options.ap_images if metrics is None else 0,
                        dataset=str(pickled),
                        result=str(Path(folder) / f"{number}.json"),
                        throughput=options.throughput,
                    )
                )
                if isinstance(done, Cell):
                    metrics = metrics or done.metrics
                    done = replace(done, metrics=metrics)
                result = _with(result, done)
                _write(result, out)  # a later cell may take hours, and be stopped
    _write(result, out)
    if out is not None and result.good:
        write_text_atomic(Path(out) / CSV_FILE, to_csv(result))
    return result


def _with(result: BenchmarkResult, cell: Cell | Failure) -> BenchmarkResult:
    return replace(result, cells=(*result.cells, cell))


def _write(result: BenchmarkResult, out: str | Path | None) -> None:
    if out is not None:
        write_json_atomic(Path(out) / JSON_FILE, result.to_dict(), indent=None)


def _groups(paths: Sequence[str | Path], options: BenchmarkOptions) -> Iterator[tuple[list[Request], str | None]]:
    """What to measure: groups of requests that differ in the batch size only and so share one AP.

    Each comes with None, or with the reason why it cannot be measured.
    """
    for path, runtime, problem in _pairs(paths, options.runtimes):
        asked = options.precisions
        # A precision that the runtime lacks is left out if it has another one; else its own message says so.
        known = [name for name in asked if name in PRECISIONS.get(runtime, (None,))]
        for precision in known or asked[:1]:
            for compiled in (False, True) if options.compiled and runtime == "torch" else (False,):
                yield [Request(path, runtime, precision, compiled, batch) for batch in options.batches], problem


def _pairs(paths: Sequence[str | Path], runtimes: Sequence[str] | None) -> Iterator[tuple[str, str, str | None]]:
    """(path, runtime, None) for every pair to run, or (path, runtime or "-", why it cannot run)."""
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
    return importlib.util.find_spec(MODULES[runtime]) is not None


def _run(task: Task) -> Cell | Failure:
    """Run one cell in its own process."""
    environment = dict(os.environ)
    if task.threads is not None:
        environment["OMP_NUM_THREADS"] = str(task.threads)
    done = subprocess.run(
        [sys.executable, "-m", "directdet.benchmark.measure"],
        input=json.dumps(task.to_dict()),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    result = Path(task.result)
    if result.is_file():
        return cell_from_dict(json.loads(result.read_text("utf-8")))
    lines = [line for line in done.stdout.splitlines() if line.strip()] or ["no output"]
    how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"ended with code {done.returncode}"
    return Failure(task.request, f"the measuring process was {how} without a result; its last line: {lines[-1][:300]}")
