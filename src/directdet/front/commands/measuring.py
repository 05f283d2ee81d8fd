"""The verbs that measure a model: eval, benchmark."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from directdet.front.options import (
    PATH,
    PRECISION,
    RUNTIME,
    code_option,
    data_option,
    device_option,
    flip_option,
    overlap_option,
    precision_option,
    print_failures,
    runtime_option,
    scales_option,
    split_option,
    threads_option,
    tiles_option,
)
from directdet.front.say import say

if TYPE_CHECKING:
    from directdet.benchmark.result import BenchmarkResult
    from directdet.infer.accuracy.evaluate import Metrics


@click.command("eval")
@click.argument("model", type=PATH)
@click.option("--data", type=PATH, metavar="DATA", help="Dataset folder.  [default: that of a run folder]")
@split_option
@click.option("--json", "json_file", type=PATH, metavar="FILE", help="Write the numbers as JSON.")
@click.option("--report", type=PATH, metavar="DIR", help="Write report.html and report.json: where it errs, and how.")
@click.option("--against", type=PATH, metavar="MODEL", help="Is MODEL better than this one, on the same pictures?")
@click.option("--results", type=PATH, metavar="FILE", help="Write the detections as COCO results.")
@tiles_option
@overlap_option
@scales_option
@flip_option
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
    from directdet.front import api
    from directdet.recipes.table_rows import beside_ours, published_rows

    if json_file is not None:
        require_writable(json_file)

    def show(metrics: Metrics) -> None:
        terminal().print(metrics.table(per_class=per_class))
        if per_class:
            terminal().print(metrics.voc_table())

    found = api.evaluate(
        model, data=data, split=split, against=against, results=results, report=report, show=show, **loading
    )
    for difference in found.differences:
        say(difference.words(str(model), str(against)))
    recipe = found.model["recipe"]
    for line in beside_ours(recipe):
        say(line)
    if json_file is not None:
        about = {"root": str(data), "split": split}
        papers = [asdict(row) for row in published_rows(recipe)]
        content = {"model": found.model, "dataset": about, **found.metrics.to_dict(), "in_the_papers": papers}
        if found.differences:
            told = {one.name: {**asdict(one), "verdict": one.verdict} for one in found.differences}
            content["against"] = {"model": str(against), **told}
        write_json_atomic(json_file, content)
    for file in filter(None, (json_file, results, found.report)):
        say(f"written: {file}")


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
@click.option("--throughput", is_flag=True, help="Images per second with a batch in flight on every core, too.")
@click.option("--ap-images", type=click.IntRange(min=0), help="AP on this many images, the first ones; 0: no AP.")
@click.option("--quick", is_flag=True, help="30 iterations after 5, AP on 50 images: not to be quoted.")
@code_option
def benchmark(models: tuple[str, ...], data: Path, split: str, out: Path | None, **settings: Any) -> int:
    """Time every MODEL in every runtime, and measure its AP.

    On real images, each stage by itself and end to end, with memory and size, next to the papers' own figures. A model
    that would run on another device than the one asked for counts as failed.
    """
    from directdet.benchmark.tables import tables
    from directdet.common.terminal import terminal
    from directdet.front import api

    def show(result: BenchmarkResult) -> None:
        if result.good:
            terminal().print(tables(result))

    # Options that may be given again are empty where they are not given.
    settings |= {name: settings[name] or None for name in ("runtimes", "precision")}
    result = api.benchmark(models, data=data, split=split, out=out, show=show, **settings)
    if out is not None:
        say(f"written: {out}")
    print_failures(result.failures)
    return result.exit_code
