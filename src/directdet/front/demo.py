"""`directdet demo`: the whole chain on a made-up dataset, with no files needed and a report at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from directdet.benchmark.options import BenchmarkOptions
from directdet.benchmark.page_parts import machine_facts
from directdet.benchmark.result import BenchmarkResult
from directdet.benchmark.run import benchmark
from directdet.benchmark.tables import tables
from directdet.common.errors import UserError
from directdet.common.files import write_text_atomic
from directdet.common.terminal import plain, terminal, verdict
from directdet.data.dataset import load_dataset
from directdet.data.synthetic import make_synthetic
from directdet.export.run import ExportResult, export
from directdet.export.verification.verify import limited
from directdet.front.demo_report import Report, render
from directdet.front.say import now, typed
from directdet.infer.runtimes.load import load
from directdet.pages.gallery import make_gallery
from directdet.pages.page import Figure, Grid
from directdet.recipes.by_name import get_recipe
from directdet.train.log import read_log
from directdet.train.run import RunResult, train

if TYPE_CHECKING:
    from directdet.export.verification.verify import Verification
    from directdet.recipes.recipe import Phase, Recipe

_TRAIN, _VAL = 200, 40  # images
_PICTURES, _SCORE = 8, 0.5  # of the gallery: how many, and the lowest score of a detection that is drawn
# Fewer than the benchmark's own 300 after 50, so that the demo ends in minutes; the page says how many there were.
_ITERATIONS, _WARMUP = 100, 20
_INTRO = (
    "An RTMDet-Ins was trained from random weights on a synthetic dataset: direct pre-training at low resolution with "
    "live batch normalisation, then fine-tuning at higher resolution with batch normalisation fixed. It was exported "
    "to ONNX, compared with PyTorch image by image, and timed."
)


@dataclass(frozen=True)
class DemoResult:
    """What a demo found.

    Attributes:
        report: the page.
        ap50: box AP50 of the exported model on the val split, or None if it could not be benchmarked.
        passed: whether the exported model agreed with PyTorch.
        failures: benchmark cells that failed, one line each.
        seconds: wall time of everything.
    """

    report: Path
    ap50: float | None
    passed: bool
    failures: tuple[str, ...]
    seconds: float

    @property
    def exit_code(self) -> int:
        """1 if the verification or a part of the benchmark failed, else 0."""
        return int(not self.passed or bool(self.failures))


def run_demo(out: str | Path, device: str = "auto", seed: int = 0, command: str | None = None) -> DemoResult:
    """Make a dataset, train both phases, export, verify, benchmark, and write OUT/report.html.

    Raises:
        UserError: `out` holds an earlier demo, or cannot be written.
    """
    out, console = Path(out), terminal()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: not an empty folder; delete it or choose another --out")
    seconds: dict[str, float] = {}
    with _stage(console, seconds, "dataset"):
        data = make_synthetic(out / "data", images_train=_TRAIN, images_val=_VAL, seed=seed)
    recipe = get_recipe("demo")
    with _stage(console, seconds, "training"):
        run = train(recipe, data, out / "run", device=device, seed=seed)
    checkpoint = run.phases[-1]["checkpoint"]
    with _stage(console, seconds, "export and verification"):
        exported = export(checkpoint, out / "artefact", data=data, split="val", ap_images=0)
        console.print(exported.verification.table())
    val = load_dataset(data, "val")
    command = command or typed()
    with _stage(console, seconds, "benchmark"):
        options = BenchmarkOptions(("torch", "onnxruntime"), _ITERATIONS, _WARMUP, device=device)
        timed = benchmark([checkpoint, exported.artefact], val, options, out / "benchmark", command)
        console.print(tables(timed))
    with _stage(console, seconds, "report"):
        gallery = make_gallery(load(exported.artefact), val, _PICTURES, _SCORE)
        page = render(_report(recipe, run, exported, timed, gallery, seconds, command))
        report = write_text_atomic(out / "report.html", page)
    result = DemoResult(
        report=report,
        ap50=_metric(timed, "onnxruntime", "AP50"),
        passed=exported.verification.passed,
        failures=tuple(timed.failures),
        seconds=sum(seconds.values()),
    )
    _print_end(console, result)
    return result


@contextlib.contextmanager
def _stage(console: Console, seconds: dict[str, float], name: str) -> Iterator[None]:
    """Say what begins, and note how long it took."""
    console.rule(name, align="left", style="dim")
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _print_end(console: Console, result: DemoResult) -> None:
    ap50 = "not measured" if result.ap50 is None else f"{result.ap50:.3f}"
    console.rule(style="dim")
    console.print(plain(f"report        {result.report}"), highlight=False, soft_wrap=True)
    console.print(f"box AP50      {ap50}", highlight=False)
    console.print("verification ", verdict(result.passed), highlight=False)
    console.print(f"seconds       {result.seconds:.0f}", highlight=False)


def _report(
    recipe: Recipe,
    run: RunResult,
    exported: ExportResult,
    timed: BenchmarkResult,
    gallery: list[Any],
    seconds: dict[str, float],
    command: str,
) -> Report:
    log = {row["name"]: read_log(path) for row in run.phases if (path := run.out / row["name"] / "log.jsonl").is_file()}
    verification = exported.verification.runtimes[0]
    return Report(
        title="directdet: from scratch to a verified detector",
        intro=_INTRO,
        figures=_figures(timed, exported.verification.passed, seconds),
        phases=_phase_grid(recipe, run, log),
        log=log,
        verification=_verification_grid(verification),
        passed=exported.verification.passed,
        verification_note=_verification_note(verification),
        benchmark=timed,
        gallery=gallery,
        gallery_note="Left the ground truth, right what the exported model finds with a score of at least "
        f"{_SCORE:g}. The first images of the val split, not chosen; crowd regions are left out.",
        about=_about(timed, seconds, command),
    )


def _figures(timed: BenchmarkResult, passed: bool, seconds: dict[str, float]) -> list[Figure]:
    figures = [
        Figure("Verification", "PASS" if passed else "FAIL", "ONNX against PyTorch", "good" if passed else "bad")
    ]
    ap50, torch_ap50 = (_metric(timed, runtime, "AP50") for runtime in ("onnxruntime", "torch"))
    if ap50 is not None:
        compared = "" if torch_ap50 is None else f", PyTorch {100 * torch_ap50:.1f}"
        figures.insert(0, Figure("Box AP50 on val", f"{100 * ap50:.1f}", f"ONNX Runtime{compared}"))
    rates = {cell.runtime: cell.fps_end_to_end for cell in timed.good}
    if "onnxruntime" in rates:
        compared = f"; PyTorch {rates['torch']:.1f}" if "torch" in rates else ""
        figures.append(Figure("Frames a second", f"{rates['onnxruntime']:.1f}", f"end to end, ONNX Runtime{compared}"))
    training = f"of which training {seconds['training']:.0f} s"
    figures.append(Figure("Everything took", f"{sum(seconds.values()):.0f} s", training))
    return figures


def _metric(timed: BenchmarkResult, runtime: str, name: str) -> float | None:
    """A number of `Metrics.bbox` as measured in `runtime`; None where it was not measured."""
    return next(
        (cell.metrics.bbox[name] for cell in timed.good if cell.runtime == runtime and cell.metrics is not None), None
    )


def _phase_grid(recipe: Recipe, run: RunResult, log: dict[str, list[dict[str, Any]]]) -> Grid:
    """The two phases side by side, one row per setting."""
    phases = recipe.phases
    rows = {row["name"]: row for row in run.phases}
    last = {name: next((row for row in reversed(kept) if row["kind"] == "eval"), {}) for name, kept in log.items()}
    steps = {name: max((row["step"] for row in kept), default=0) for name, kept in log.items()}

    def ap(phase: Phase, kind: str, metric: str) -> str:
        values = last.get(phase.name, {}).get(kind)
        return f"{100 * values[metric]:.1f}" if values else "-"

    lines = {
        "batch normalisation": [phase.norm for phase in phases],
        "input": [_input(phase) for phase in phases],
        "images per step": [phase.batch_size for phase in phases],
        "learning rate": [f"{phase.base_lr * phase.batch_size / phase.base_batch:g}" for phase in phases],
        "steps": [steps.get(phase.name, "-") for phase in phases],
        "seconds": [f"{rows[phase.name]['seconds']:.0f}" if phase.name in rows else "-" for phase in phases],
        "box AP at the end": [ap(phase, "bbox", "AP") for phase in phases],
        "box AP50 at the end": [ap(phase, "bbox", "AP50") for phase in phases],
        "mask AP at the end": [ap(phase, "segm", "AP") for phase in phases],
    }
    return Grid(("", *(phase.name for phase in phases)), [(name, *values) for name, values in lines.items()])


def _input(phase: Phase) -> str:
    first, second = phase.size
    return f"{first}x{second}" if phase.resize == "direct" else f"edges {first}, {second}"


def _verification_grid(verification: Verification) -> Grid:
    """One row per picture, then the largest differences and the limits."""
    limits = verification.tolerance
    names = ("box", "score", "mask")
    rows: list[tuple[Any, ...]] = []
    for one in verification.comparisons:
        share = f"{one.matched}/{one.counted}"
        differences = (f"{getattr(one, name):.1e}" for name in names)
        rows.append((one.picture, one.expected, one.found, share, one.undecided, *differences))
    bad = {one.name.removesuffix(" px") for one in verification.failed}
    largest = (f"{verification.largest(name):.1e}{' FAIL' * (name in bad)}" for name in names)
    matched = f"{verification.matched:.1%}{' FAIL' * ('matched' in bad)}"
    rows.append(("largest", "", "", matched, "", *largest))
    rows.append(("allowed", "", "", f"{limits.matched:.0%}", "", *(limited(getattr(limits, name)) for name in names)))
    return Grid(("picture", "PyTorch", "ONNX", "matched", "undecided", "box (px)", "score", "mask"), rows)


def _verification_note(verification: Verification) -> str:
    detections = sum(one.expected for one in verification.comparisons)
    told = (
        f"{detections} detections of PyTorch on {len(verification.comparisons)} pictures, a blank one and one of an "
        "odd aspect ratio among them, compared with those of the exported graph in ONNX Runtime. Undecided detections "
        "are those that PyTorch itself does not repeat when its input is disturbed by rounding errors; they are not "
        "counted. The last three columns are the largest differences."
    )
    return " ".join((*verification.reasons, told))


def _about(timed: BenchmarkResult, seconds: dict[str, float], command: str) -> dict[str, str]:
    return {
        "command": command,
        "date": now(),
        **machine_facts(timed.about, timed.good),
        "time": ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()),
    }
