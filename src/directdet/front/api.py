"""The commands `train`, `eval`, `export` and `benchmark` as Python functions, which the command line itself calls.

`directdet.train` and the others are these. They take names and paths, and return dataclasses. Errors that a user can
put right are `UserError`, in the same words as on the command line.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from directdet.common.devices import device_name, no_device
from directdet.common.errors import UsageProblem
from directdet.front.run_data import data_of, known_data

if TYPE_CHECKING:
    from directdet.benchmark.result import BenchmarkResult
    from directdet.export.run import ExportResult
    from directdet.infer.accuracy.ap_difference import Difference
    from directdet.infer.accuracy.evaluate import Evaluation, Metrics
    from directdet.recipes.recipe import Recipe
    from directdet.train.run import RunResult
    from directdet.train.watch.callbacks import Callback

FilePath: TypeAlias = "str | os.PathLike[str]"


def train(
    recipe: str | Recipe | None = None,
    *,
    data: FilePath | None = None,
    out: FilePath | None = None,
    phase: str | None = None,
    init: FilePath | None = None,
    resume: bool = False,
    device: str | int = "auto",
    seed: int | None = None,
    dry_run: bool = False,
    log: Sequence[str] | None = None,
    callbacks: Sequence[Callback] = (),
    warn: Callable[[str], None] = warnings.warn,
    **settings: object,
) -> RunResult:
    """Train a recipe from scratch: `train("rtmdet_tiny", data="DATA", out="RUN", epochs=50)`.

    As `directdet train` does: checkpoints, logs and report.html are in the folder `out`, and progress is printed.

    Args:
        recipe: its name (`directdet recipes` lists them), or a Recipe. Not needed with `resume`.
        data: the dataset's folder. With `resume` None: that of the run.
        out: the folder of the run.
        phase: only this one of the recipe's phases, "montage", "pretrain", "finetune" or "scratch"; None: all.
        init: start from this checkpoint or backbone file, "imagenet" or "random"; None: the recipe's own start.
        resume: go on with the run in `out`: `train(out="RUN", resume=True)`.
        device: "auto", "cpu", "cuda", "cuda:N" or N.
        seed: of weights, order, augmentation and sampling; None: 0, or with `resume` that of the run.
        dry_run: check recipe, data and model, time three steps, print the plan, write nothing.
        log: names of loggers, as --log takes them; None: those of the run with `resume`, else TensorBoard.
        callbacks: are told of steps, evaluations and checkpoints; see `directdet.train.watch.callbacks`.
        warn: called with a line where the run is complete and only its report.html could not be written.
        **settings: changes of the recipe by the keys that --set takes, as `epochs=50`; those of one phase or of the
            model have a dot in them: `**{"finetune.size": (320, 448)}`. With `resume`, `epochs` is the new length of
            the phase that the run is in.

    Raises:
        UserError: the dataset, a checkpoint or a setting cannot be used, or the loss is no longer finite.
        Stopped: Ctrl-C, once the run is saved.
    """
    epochs = settings.pop("epochs", None) if resume and recipe is None else None
    if epochs is not None and (isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1):
        raise UsageProblem(f"epochs: {epochs!r} is not a number of at least 1")
    return run_training(
        recipe, data, out, texts(settings), phase, init, resume=resume, epochs=epochs, device=device, seed=seed,
        dry_run=dry_run, log=log, callbacks=callbacks, warn=warn,
    )  # fmt: skip


def run_training(
    recipe: str | Recipe | None,
    data: FilePath | None,
    out: FilePath | None,
    settings: Sequence[str],
    phase: str | None,
    init: FilePath | None,
    *,
    resume: bool,
    epochs: int | None,
    device: str | int,
    seed: int | None,
    dry_run: bool,
    log: Sequence[str] | None,
    callbacks: Sequence[Callback] = (),
    warn: Callable[[str], None],
) -> RunResult:
    """`train`, with the settings as --set takes them, "key=value"."""
    check_call(recipe, data, out, init, resume)
    assert out is not None  # check_call refused it
    out, place = Path(out), _device(device)
    chosen, data, seed, phase = _what_to_train(recipe, data, out, seed, phase, settings, epochs)
    from directdet.train import run

    start = None if init is None else os.fspath(init)
    result = run.train(
        chosen, data, out, phase=phase, init=start, resume=resume, device=place, seed=seed, dry_run=dry_run,
        log=log, callbacks=callbacks,
    )  # fmt: skip
    if dry_run or not result.phases:  # the latter in other processes than the main one
        return result
    return _with_report(result, chosen, warn)


def check_call(
    recipe: object, data: FilePath | None, out: FilePath | None, init: FilePath | None, resume: bool
) -> None:
    """UsageProblem unless there is all that training needs: a run that goes on needs its folder alone."""
    if init is not None and resume:
        raise UsageProblem("--init starts a new run, --resume continues one; give one of them")
    needed: dict[str, object] = {"--out RUN": out}
    if not resume:
        needed = {"RECIPE": recipe, "--data": data, **needed}
    for shown, value in needed.items():
        if value is None:
            raise UsageProblem(f"{shown} is missing")


def texts(settings: Mapping[str, object]) -> list[str]:
    """Settings as --set takes them, "key=value"."""
    return [f"{key}={_text(value)}" for key, value in settings.items()]


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _what_to_train(
    recipe: str | Recipe | None,
    data: FilePath | None,
    out: Path,
    seed: int | None,
    phase: str | None,
    settings: Sequence[str],
    epochs: int | None,
) -> tuple[Recipe, Path, int, str | None]:
    """Recipe, data, seed and phase: as given, and else those of the run in `out`."""
    from directdet.recipes.by_name import get_recipe
    from directdet.recipes.settings import apply_settings

    # First the recipe: a mistyped name is reported before torch is imported.
    named = get_recipe(recipe) if isinstance(recipe, str) else recipe
    chosen = None if named is None else apply_settings(named, settings)
    if chosen is not None and data is not None:
        return chosen, Path(data), seed or 0, phase
    from directdet.train.run_file import longer_settings, stored_run

    run = stored_run(out)
    if chosen is None:
        chosen = apply_settings(run.recipe, longer_settings(run.recipe, out, settings, epochs))
        phase = phase or run.phase
    known = Path(data) if data is not None else known_data(run.data, out)
    return chosen, known, run.seed if seed is None else seed, phase


def _with_report(result: RunResult, recipe: Recipe, warn: Callable[[str], None]) -> RunResult:
    """Write the page about the run; a fault in that is one line, since everything trained is saved."""
    try:
        from directdet.front.evaluation_report import write_run_report

        return replace(result, report=write_run_report(result, recipe))
    except Exception as error:
        warn(f"{result.out / 'report.html'}: not written: {error or type(error).__name__}")
        return result


@dataclass(frozen=True, eq=False)
class EvaluateResult:
    """What `evaluate` found.

    Attributes:
        metrics: COCO's twelve numbers and VOC's two.
        evaluation: with the detections that they were computed from.
        model: what ran, and in what, as plain values.
        differences: to the other model, if there is one: of the boxes' AP, and of the masks' if there are masks.
        report: the page, if one was written.
    """

    metrics: Metrics
    evaluation: Evaluation
    model: dict[str, Any]
    differences: tuple[Difference, ...] = ()
    report: Path | None = None


def evaluate(
    model: FilePath,
    *,
    data: FilePath | None = None,
    split: str = "val",
    against: FilePath | None = None,
    results: FilePath | None = None,
    report: FilePath | None = None,
    tiles: int | None = None,
    overlap: float | None = None,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    runtime: str = "auto",
    device: str | int = "auto",
    threads: int | None = None,
    precision: str | None = None,
    progress: bool = True,
    show: Callable[[Metrics], None] = lambda metrics: None,
) -> EvaluateResult:
    """Measure a model by COCO's twelve numbers and VOC's mAP: `evaluate("RUN", data="DATA").metrics.bbox["AP"]`.

    Args:
        model: a run folder, a checkpoint or an artefact.
        data: the dataset's folder; None: that of the run, if `model` is a run folder. `split`: which of its splits.
        against: another model: is `model` better on the same pictures?
        results: write the detections into this file, as the list of results that pycocotools' `loadRes` takes.
        report: write report.html and report.json into this folder: where the model errs, and how.
        tiles, overlap: detect larger pictures in tiles of this side as well, see `TiledDetector`; None: only whole.
        scales, flip: detect at each of these scales, and in the mirrored picture, see `ScaledDetector`; the same of
            `against`.
        runtime, device, threads, precision: as `Detector` takes them.
        progress: show a bar, in a terminal.
        show: called with the numbers as soon as they are there, before `against` and `report`.

    Raises:
        UserError: no such model or data, other classes, no pictures, or one that cannot be read.
    """
    from directdet.common.files import require_writable
    from directdet.data.dataset import load_dataset
    from directdet.infer.accuracy.evaluate import examine
    from directdet.infer.runtimes.load import load, model_kind
    from directdet.infer.scaled import with_looks

    data = data or data_of(Path(model))
    if data is None:
        raise UsageProblem("--data is missing; only a run folder knows its data")
    if results is not None:
        require_writable(Path(results))
    if report is not None:
        require_writable(Path(report), folder=True)
    if against is not None:
        model_kind(Path(against))  # a mistyped path is reported now, not after the evaluation
    loading = (runtime, _device(device, "gpu"), threads, precision)
    dataset, looks = load_dataset(data, split), (tiles, overlap, scales, flip)
    detector = with_looks(load(Path(model), *loading), *looks)
    written = None if results is None else Path(results)
    evaluation = examine(detector, dataset, progress, results=written, keep_masks=against is not None)
    show(evaluation.metrics)
    differences, comparison, page = (), "", None
    if against is not None:
        from directdet.infer.accuracy.ap_difference import compare

        other = examine(with_looks(load(Path(against), *loading), *looks), dataset, progress, keep_masks=True)
        differences = compare(evaluation.found, other.found, dataset, evaluation.records)
        comparison = " ".join(f"{difference.words(str(model), str(against))}." for difference in differences)
    if report is not None:
        from directdet.front.evaluation_report import write_model_report

        page = write_model_report(evaluation, detector, Path(report), comparison)
    return EvaluateResult(evaluation.metrics, evaluation, detector.describe(), differences, page)


def export(
    checkpoint: FilePath,
    out: FilePath,
    *,
    data: FilePath | None = None,
    split: str | None = None,
    ap_images: int = 100,
    format: str = "onnx",
    precision: str = "fp32",
    input: str = "uint8",
    size: tuple[int, int] | None = None,
    batch: int | str | Sequence[int] = 1,
    compute_capability: str | None = None,
    score: float | None = None,
    nms: float | None = None,
    detections: int | None = None,
    proposals: int | None = None,
    max_ms: float | None = None,
    min_ap: float | None = None,
    reduce_range: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> ExportResult:
    """Export a model and verify it: `export("RUN", "ARTEFACT", data="DATA").verification.passed`.

    One that fails its verification is kept and marked as failed.

    Args:
        checkpoint: a run folder or a checkpoint.
        out: the artefact's folder; it appears when it is complete.
        data: verify with pictures of this dataset, and the AP on the first `ap_images` of them (0: no AP). None: of
            the run's, if `checkpoint` is a run folder, else with made pictures. `split`: which one; None: val, or
            train where there is no val.
        format, precision, input, size, batch, compute_capability, score, nms, detections, proposals, max_ms, min_ap,
            reduce_range: what the artefact is to be: see `directdet.export.options.ExportOptions`.
        say: called with a line about each step.

    Raises:
        UserError: a combination that there is not, a broken checkpoint, a folder that holds something else, or a
            library that refuses the model.
    """
    from directdet.export.options import ExportOptions

    data = data or data_of(Path(checkpoint), needed=False)
    options = ExportOptions(
        format=format,
        precision=precision,
        input=input,
        size=size,
        batch=batch,
        compute_capability=compute_capability,
        score=score,
        nms=nms,
        detections=detections,
        proposals=proposals,
        max_ms=max_ms,
        min_ap=min_ap,
        reduce_range=reduce_range,
    )
    options.require_data(data is not None)
    # After the options: a mistyped one is reported before torch is imported.
    from directdet.export import run

    return run.export(Path(checkpoint), Path(out), options, None if data is None else Path(data), split, ap_images, say)


def benchmark(
    models: FilePath | Sequence[FilePath],
    *,
    data: FilePath,
    split: str = "val",
    out: FilePath | None = None,
    runtimes: Sequence[str] | None = None,
    iterations: int = 300,
    warmup: int = 50,
    batch: int | Sequence[int] = 1,
    threads: int | None = None,
    device: str | int = "auto",
    precision: str | Sequence[str] | None = None,
    compiled: bool = False,
    ap_images: int | None = None,
    quick: bool = False,
    throughput: bool = False,
    progress: bool = True,
    show: Callable[[BenchmarkResult], None] = lambda result: None,
) -> BenchmarkResult:
    """Time models in every runtime and measure their AP: `benchmark(["RUN", "ARTEFACT"], data="DATA").good`.

    Args:
        models: run folders, checkpoints, artefacts; one or several.
        data: the dataset's folder; `split`: which of its splits.
        out: folder for benchmark.json, benchmark.csv and report.html; None writes nothing.
        runtimes, iterations, warmup, batch, threads, device, precision, compiled, ap_images, quick, throughput: what to
            measure and how: see `directdet.benchmark.options.BenchmarkOptions`.
        progress: say on stderr which cell is running.
        show: called with the result before the page is written.

    Raises:
        UserError: there is no model or no picture, or `out` cannot be written. A cell that fails raises nothing: it is
            in the result's `failed`.
    """
    from directdet.benchmark.options import BenchmarkOptions
    from directdet.benchmark.report import write_report
    from directdet.benchmark.run import benchmark as measure
    from directdet.common.folder_lock import hold_folder
    from directdet.data.dataset import load_dataset
    from directdet.infer.runtimes.load import model_kind

    options = BenchmarkOptions(
        runtimes, iterations, warmup, batch, threads, _device(device, "gpu"), precision, ap_images, quick, compiled,
        throughput,
    )  # fmt: skip
    paths = [Path(models)] if isinstance(models, (str, os.PathLike)) else [Path(model) for model in models]
    dataset = load_dataset(data, split)
    for path in paths:
        model_kind(path)  # a mistyped path is reported now, not after the other models were timed
    folder = None if out is None else Path(out)
    with contextlib.nullcontext() if folder is None else hold_folder(folder, "benchmark"):
        result = measure(paths, dataset, options, folder, progress=progress)
        show(result)
        if folder is not None and result.good:
            write_report(result, dataset, folder, options.device)
    return result


def _device(value: str | int, *others: str) -> str:
    name = device_name(value, *others)
    if name is None:
        raise UsageProblem(f"device: {no_device(value)}")
    return name
