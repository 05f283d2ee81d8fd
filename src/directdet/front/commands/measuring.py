"""The verbs that measure a model: eval, benchmark."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from directdet.front.options import (
    PATH,
    PRECISION,
    RUNTIME,
    code_option,
    data_option,
    device_option,
    precision_option,
    print_failures,
    runtime_option,
    split_option,
    threads_option,
)
from directdet.front.run_data import data_of
from directdet.front.say import say


@click.command("eval")
@click.argument("model", type=PATH)
@click.option("--data", type=PATH, metavar="DATA", help="Dataset folder.  [default: that of a run folder]")
@split_option
@click.option("--json", "json_file", type=PATH, metavar="FILE", help="Write the numbers as JSON.")
@click.option("--report", type=PATH, metavar="DIR", help="Write report.html and report.json: where it errs, and how.")
@click.option("--against", type=PATH, metavar="MODEL", help="Is MODEL better than this one, on the same pictures?")
@click.option("--results", type=PATH, metavar="FILE", help="Write the detections as COCO results.")
@runtime_option
@device_option
@threads_option
@precision_option
@click.option("--per-class", is_flag=True, help="Show the AP of each class.")
@code_option
def evaluate(
    model: Path,
    data: Path | None,
    split: str,
    json_file: Path | None,
    results: Path | None,
    report: Path | None,
    against: Path | None,
    per_class: bool,
    **loading: Any,
) -> None:
    """Measure MODEL by COCO's twelve numbers and VOC's mAP."""
    from directdet.common.files import require_writable, write_json_atomic
    from directdet.common.terminal import terminal
    from directdet.data.dataset import load_dataset
    from directdet.infer.accuracy.evaluate import examine
    from directdet.infer.runtimes.load import load, model_kind
    from directdet.recipes.table_rows import beside_ours, published_rows

    data = data or data_of(model)
    if data is None:
        raise click.UsageError("--data is missing; only a run folder knows its data", click.get_current_context())
    for file in filter(None, (json_file, results)):
        require_writable(file)
    if report is not None:
        require_writable(report, folder=True)
    if against is not None:
        model_kind(against)  # a mistyped path is reported now, not after the evaluation
    dataset = load_dataset(data, split)
    detector = load(model, **loading)
    evaluation = examine(detector, dataset, results=results)
    metrics = evaluation.metrics
    terminal().print(metrics.table(per_class=per_class))
    if per_class:
        terminal().print(metrics.voc_table())
    compared = None
    if against is not None:
        from directdet.infer.accuracy.ap_difference import compare

        other = examine(load(against, **loading), dataset)
        compared = compare(evaluation.found, other.found, dataset, evaluation.records)
        say(compared.words(str(model), str(against)))
    recipe = detector.meta.get("recipe")
    for line in beside_ours(recipe):
        say(line)
    if json_file is not None:
        about = {"root": str(data), "split": split}
        papers = [asdict(found) for found in published_rows(recipe)]
        content = {"model": detector.describe(), "dataset": about, **metrics.to_dict(), "in_the_papers": papers}
        if compared is not None:
            content["against"] = {"model": str(against), **asdict(compared), "verdict": compared.verdict}
        write_json_atomic(json_file, content)
        say(f"written: {json_file}")
    if results is not None:
        say(f"written: {results}")
    if report is not None:
        from directdet.front.evaluation_report import write_model_report

        comparison = "" if compared is None else compared.words(str(model), str(against)) + "."
        say(f"written: {write_model_report(evaluation, detector, report, comparison)}")


@click.command("benchmark")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@data_option
@split_option
@click.option("--out", type=PATH, metavar="DIR", help="Write benchmark.json, benchmark.csv and report.html here.")
@click.option("--runtime", "runtimes", type=RUNTIME, multiple=True, help="May be given again.  [default: all here]")
@click.option("--iterations", type=click.IntRange(min=1), default=300, show_default=True, help="Timed batches.")
@click.option("--warmup", type=click.IntRange(min=0), default=50, show_default=True, help="Batches before them.")
@click.option(
    "--batch", type=click.IntRange(min=1), multiple=True, default=(1,), help="Images per batch; may be given again."
)
@device_option
@threads_option
@click.option(
    "--precision",
    type=PRECISION,
    multiple=True,
    help="fp32 (default); tf32 on a GPU; OpenVINO and torch also bf16, fp16; may be given again.",
)
@click.option("--compile", "compiled", is_flag=True, help="Time checkpoints compiled as well as eager.")
@click.option("--ap-images", type=click.IntRange(min=0), help="AP on this many images, the first ones; 0: no AP.")
@click.option("--quick", is_flag=True, help="30 iterations after 5, AP on 50 images: not to be quoted.")
@code_option
def benchmark(models: tuple[str, ...], data: Path, split: str, out: Path | None, **settings: Any) -> int:
    """Time every MODEL in every runtime, and measure its AP.

    On real images, each stage by itself and end to end, with memory and size, next to the papers' own figures. A model
    that would run on another device than the one asked for counts as failed.
    """
    from directdet.benchmark.options import BenchmarkOptions
    from directdet.benchmark.report import write_report
    from directdet.benchmark.run import benchmark
    from directdet.benchmark.tables import tables
    from directdet.common.folder_lock import hold_folder
    from directdet.common.terminal import terminal
    from directdet.data.dataset import load_dataset
    from directdet.infer.runtimes.load import model_kind

    # Options that may be given again are empty where they are not given.
    settings |= {name: settings[name] or None for name in ("runtimes", "precision")}
    options = BenchmarkOptions(**settings)
    dataset = load_dataset(data, split)
    for model in models:
        model_kind(model)  # a mistyped path is reported now, not after the other models were timed
    with contextlib.nullcontext() if out is None else hold_folder(out, "benchmark"):
        result = benchmark(models, dataset, options, out)
        if result.good:
            terminal().print(tables(result))
        if out is not None:
            if result.good:
                write_report(result, dataset, out, options.device)
            say(f"written: {out}")
    print_failures(result.failures)
    return result.exit_code
