"""The verbs of the command line. Each imports what it needs when it runs, so that help stays instant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from directdet.front.options import PATH, check_settings, data_option
from directdet.infer.runtimes.names import TITLES

if TYPE_CHECKING:
    from directdet.data.check import CheckReport


class Size(click.ParamType):
    """H,W in pixels."""

    name = "H,W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """(height, width) from "H,W"."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a size; give height and width in pixels, as 448,448", param, ctx)
        return int(parts[0]), int(parts[1])


split_option = click.option("--split", default="val", show_default=True, help="Split of the dataset.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
threads_option = click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the runtime.")
precision_option = click.option(
    "--precision", help="fp32 (default); tf32 on a GPU; OpenVINO and torch also bf16, fp16."
)


@click.command("demo")
@click.option("--out", type=PATH, default="directdet-demo", show_default=True, metavar="DIR", help="Folder to write.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def demo(out: Path, device: str) -> int:
    """Run the whole chain on a made-up dataset, with a report.

    Train, export, verify, benchmark; about five minutes on two CPU cores, and no files are needed.
    """
    from directdet.front.demo import run_demo

    result = run_demo(out, device=device)
    _tell_failures(result.failures)
    return result.exit_code


@click.command("check-data")
@click.argument("data", type=PATH)
@click.option("--report", type=PATH, metavar="FILE", help="Write all findings: .json, .html, or else plain text.")
@click.option("--split", "splits", multiple=True, help="Only this split (may be given again).  [default: all]")
@click.option("--images/--no-images", default=True, show_default=True, help="Open and decode every picture.")
def check_data(data: Path, report: Path | None, splits: tuple[str, ...], images: bool) -> int:
    """Look through a dataset before time is spent on it.

    Exit code 1 if it cannot be used (missing or broken files, splits that do not match) or if objects are left out
    because their boxes are none.
    """
    from directdet.common.files import require_writable, write_text_atomic
    from directdet.data.check import check_data
    from directdet.data.check_report import print_report

    if report is not None:
        require_writable(report)
    found = check_data(data, splits or None, verify_images=images)
    print_report(found)
    if report is not None:
        write_text_atomic(report, _report_text(found, report.suffix.lower()))
        click.echo(f"report: {report}")
    if found.dropped:
        first, more = found.dropped[0], len(found.dropped) - 1
        others = f" (and {more} more)" if more else ""
        click.echo(
            f"error: {first.file}: annotation {first.annotation_id}: {first.message}{others}; training would leave it "
            "out: correct or remove it",
            err=True,
        )
    return int(found.fatal or bool(found.dropped))


def _report_text(found: CheckReport, suffix: str) -> str:
    """The report with every finding, in the form the file's name asks for."""
    import io

    from rich.console import Console

    from directdet.data.check_report import print_report

    if suffix == ".json":
        return json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n"
    console = Console(file=io.StringIO(), width=140, record=True, force_terminal=False)
    print_report(found, console, shown=None)
    return console.export_html(inline_styles=True) if suffix in (".html", ".htm") else console.export_text()


@click.command("train")
@click.argument("recipe")
@data_option
@click.option("--out", type=PATH, required=True, metavar="RUN", help="Folder of the run.")
@click.option(
    "--phase", type=click.Choice(["pretrain", "finetune", "scratch"]), help="Only this phase.  [default: all]"
)
@click.option("--init", metavar="FILE", help="Start from this checkpoint or backbone file, from imagenet or random.")
@click.option("--resume", is_flag=True, help="Go on where the run in RUN stopped.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", callback=check_settings, help="Change a setting."
)
@click.option("--dry-run", is_flag=True, help="Check recipe, data and model, print the plan, write nothing.")
def train(
    recipe: str,
    data: Path,
    out: Path,
    phase: str | None,
    init: str | None,
    resume: bool,
    device: str,
    seed: int,
    settings: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Train RECIPE from scratch on DATA.

    Direct pre-training at low resolution with live batch normalisation, then fine-tuning at high resolution with batch
    normalisation fixed.
    """
    if init is not None and resume:
        raise click.UsageError("--init starts a new run, --resume goes on with one; give one of them")
    from directdet.recipes.settings import apply_settings, get_recipe

    chosen = apply_settings(get_recipe(recipe), list(settings))
    # After the recipe: a mistyped name is told before torch is imported.
    from directdet.train.run import train

    result = train(chosen, data, out, phase=phase, init=init, resume=resume, device=device, seed=seed, dry_run=dry_run)
    if dry_run:
        if result.phases:  # the main process's, where there are several
            click.echo("dry run: nothing was written")
        return
    for row in result.phases:
        best = "-" if row.get("best_ap") is None else f"{100 * row['best_ap']:.1f}"
        click.echo(f"{row['name']}: best box AP {best}, {row['seconds']:.0f} s, {row['checkpoint']}")


@click.command("eval")
@click.argument("model", type=PATH)
@data_option
@split_option
@click.option("--json", "json_file", type=PATH, metavar="FILE", help="Write the numbers as JSON.")
@click.option("--runtime", type=click.Choice(["auto", *TITLES]), default="auto", show_default=True)
@device_option
@threads_option
@precision_option
@click.option("--per-class", is_flag=True, help="Show the AP of each class.")
def evaluate(
    model: Path,
    data: Path,
    split: str,
    json_file: Path | None,
    runtime: str,
    device: str,
    threads: int | None,
    precision: str | None,
    per_class: bool,
) -> None:
    """Measure MODEL by COCO's twelve numbers and VOC's mAP."""
    from rich.console import Console

    from directdet.common.files import require_writable, write_json_atomic
    from directdet.data.dataset import load_dataset
    from directdet.infer.accuracy.evaluate import evaluate
    from directdet.infer.runtimes.load import load

    if json_file is not None:
        require_writable(json_file)
    dataset = load_dataset(data, split)
    detector = load(model, runtime, device, threads, precision)
    metrics = evaluate(detector, dataset)
    Console().print(metrics.table(per_class=per_class))
    if per_class:
        Console().print(metrics.voc_table())
    if json_file is not None:
        about = {"root": str(data), "split": split}
        write_json_atomic(json_file, {"model": detector.describe(), "dataset": about, **metrics.to_dict()})
        click.echo(f"written: {json_file}")


def _show_formats(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print the table of formats and leave."""
    if not value or ctx.resilient_parsing:
        return
    from rich.console import Console

    from directdet.export.formats import formats_table

    Console().print(formats_table())
    ctx.exit()


@click.command("export")
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, metavar="ARTEFACT", help="Folder to write.")
@click.option("--format", default="onnx", show_default=True, help="onnx, openvino, tensorrt or tensorrt-rtx.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, fp16, bf16 or int8.")
@click.option("--input", default="uint8", show_default=True, help="uint8 pixels, or normalised float32.")
@click.option("--size", type=Size(), help="Input size, height first.  [default: that of the fine-tuning]")
@click.option("--batch", default="1", show_default=True, metavar="N|MIN,OPT,MAX", help="Images per batch.")
@click.option("--compute-capability", metavar="X.Y,...", help="tensorrt-rtx: the GPUs to build for.  [default: 8.9]")
@click.option("--reduce-range", is_flag=True, help="onnx int8: 7-bit weights, for processors without VNNI.")
@click.option("--data", type=PATH, metavar="DATA", help="Verify on images of this dataset, with AP.")
@click.option("--split", help="Split to verify with.  [default: val, or train where there is no val]")
@click.option("--ap-images", type=click.IntRange(min=0), default=100, show_default=True, help="Images for AP; 0: none.")
@click.option(
    "--formats", is_flag=True, is_eager=True, expose_value=False, callback=_show_formats, help="Show what formats take."
)
def export(checkpoint: Path, out: Path, **options: Any) -> int:
    """Write CHECKPOINT as an artefact, verified against PyTorch.

    In every runtime that runs the artefact here. Exit code 1 if they disagree; the artefact is kept, marked as failed.
    """
    from directdet.export.formats import check_options

    names = ("format", "precision", "input", "batch", "compute_capability", "reduce_range")
    check_options(**{name: options[name] for name in names}, data_given=options["data"] is not None)
    # After the options: a mistyped one is told before torch is imported.
    from directdet.export.export import export, report

    result = export(checkpoint, out, **options, say=lambda text: click.echo(text, err=True))
    report(result)
    passed = result.verification.passed
    click.echo(f"{'PASS' if passed else 'FAIL'}: {result.artefact}")
    return int(not passed)


@click.command("infer")
@click.argument("model", type=PATH)
@click.argument("source")
@click.option("--out", type=PATH, metavar="DIR", help="Folder for annotated pictures or video, and detections.")
@click.option("--score", type=click.FloatRange(0, 1), default=0.3, show_default=True, help="Leave out what is below.")
@click.option("--classes", metavar="NAME,...", help="Only these classes.")
@click.option("--format", "results", type=click.Choice(["coco", "jsonl"]), help="[default: images coco, video jsonl]")
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Write annotated pictures or video.")
@click.option("--batch", type=click.IntRange(min=1), help="Images per batch.  [default: what the model takes, or 1]")
@click.option("--resume", is_flag=True, help="Images: go on where a run into DIR was interrupted.")
@click.option("--show", is_flag=True, help="Video: a window with what is found; q closes it.")
@click.option("--frames", type=click.IntRange(min=1), help="Video: stop after so many.")
@click.option("--runtime", type=click.Choice(["auto", *TITLES]), default="auto", show_default=True)
@device_option
@threads_option
@precision_option
def infer(model: Path, source: str, out: Path | None, classes: str | None, **options: Any) -> None:
    """Detect on images, a video, a camera or a stream.

    SOURCE is an image, a folder, a pattern in quotes such as 'folder/*.jpg', a video file, the number of a camera, or
    the URL of a stream (rtsp://, http://). Ctrl-C closes all files, and an annotated video plays up to there; what a
    killed run leaves is NAME.part.avi, which plays too.
    """
    from directdet.infer.predict.options import PredictOptions
    from directdet.infer.predict.sources import find_images, source_kind

    if out is None and not options["show"]:
        raise click.UsageError("nothing to do: give --out DIR, or --show for a video")
    names = None if classes is None else [name.strip() for name in classes.split(",") if name.strip()]
    loading = [options.pop(name) for name in ("runtime", "device", "threads", "precision")]
    settings = PredictOptions(
        classes=names, **{name: options.pop(name) for name in ("score", "batch", "pictures", "results")}
    )
    if source_kind(source) == "images":
        for name in ("show", "frames"):
            if options.pop(name):
                raise click.UsageError(f"--{name} is for videos, cameras and streams; {source} is none")
        find_images(source)  # before a model is loaded for nothing
        _infer_images(model, loading, source=source, out=out, options=settings, **options)
    else:
        if options.pop("resume"):
            raise click.UsageError("--resume is for images; a video is run through from its start")
        _infer_video(model, loading, source, out=out, options=settings, limit=options.pop("frames"), **options)


def _infer_images(model: Path, loading: list[Any], **arguments: Any) -> None:
    from directdet.infer.predict.images import predict
    from directdet.infer.runtimes.load import load

    summary = predict(load(model, *loading), **arguments)
    resumed = f" ({summary.n_resumed} of them done before)" if summary.n_resumed else ""
    skipped = f", {summary.n_skipped} skipped" if summary.n_skipped else ""
    click.echo(
        f"{summary.n_images} images{resumed}{skipped}, {summary.n_detections} detections, {summary.seconds:.1f} s: "
        f"{summary.results_file}"
    )


def _infer_video(model: Path, loading: list[Any], source: str, **arguments: Any) -> None:
    from rich.console import Console

    from directdet.infer.predict.show import require_display
    from directdet.infer.predict.video import Video
    from directdet.infer.predict.videos import predict_video
    from directdet.infer.runtimes.load import load

    if arguments["show"]:
        require_display()
    video = Video(source, warn=lambda line: click.echo(click.style("note:", fg="yellow") + f" {line}", err=True))
    summary = predict_video(load(model, *loading), video, **arguments)
    Console().print(summary.table())
    counts = [f"{summary.n_frames} frames", f"{summary.n_detections} detections", f"{summary.pipeline.seconds:.1f} s"]
    for name in ("dropped", "broken", "reconnects"):
        if number := getattr(summary, f"n_{name}"):
            counts.append(f"{number} {name}")
    share = f", {100 * summary.fps / summary.device_fps:.0f} % of the device stage alone" if summary.device_fps else ""
    click.echo(f"{', '.join(counts)}; {summary.fps:.1f} fps{share}")
    for path in summary.files:
        click.echo(f"written: {path}")


@click.command("benchmark")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@data_option
@split_option
@click.option("--out", type=PATH, metavar="DIR", help="Write benchmark.json, benchmark.csv and report.html here.")
@click.option(
    "--runtime",
    "runtimes",
    type=click.Choice(list(TITLES)),
    multiple=True,
    help="May be given again.  [default: all here]",
)
@click.option("--iterations", type=click.IntRange(min=1), default=300, show_default=True, help="Timed batches.")
@click.option("--warmup", type=click.IntRange(min=0), default=50, show_default=True, help="Batches before them.")
@click.option(
    "--batch", type=click.IntRange(min=1), multiple=True, default=(1,), help="Images per batch; may be given again."
)
@device_option
@threads_option
@click.option(
    "--precision",
    multiple=True,
    help="fp32 (default); tf32 on a GPU; OpenVINO and torch also bf16, fp16; may be given again.",
)
@click.option("--compile", "compiled", is_flag=True, help="Time checkpoints compiled too, beside eager PyTorch.")
@click.option("--ap-images", type=click.IntRange(min=0), help="AP on the first so many images; 0: no AP.")
@click.option("--quick", is_flag=True, help="30 iterations after 5, AP on 50 images: not to be quoted.")
def benchmark(
    models: tuple[str, ...], data: Path, split: str, out: Path | None, runtimes: tuple[str, ...], **options: Any
) -> int:
    """Time every MODEL in every runtime, and take its AP.

    On real images, each stage by itself and end to end, with memory and size, beside the papers' own figures. What
    would run on another device than the one asked for is a failure, not a figure.
    """
    from rich.console import Console

    from directdet.benchmark.report import write_report
    from directdet.benchmark.run import benchmark
    from directdet.data.dataset import load_dataset
    from directdet.infer.runtimes.load import model_kind

    dataset = load_dataset(data, split)
    for model in models:
        model_kind(model)  # a mistyped path is told now, not after the other models were timed
    options["precision"] = options["precision"] or None
    result = benchmark(models, dataset, runtimes or None, out=out, **options)
    if result.good:
        Console().print(result.render())
    if out is not None:
        if result.good:
            write_report(result, dataset, out, options["device"])
        click.echo(f"written: {out}")
    _tell_failures(result.failures)
    return result.exit_code


def _tell_failures(failures: Sequence[str]) -> None:
    """What a benchmark could not measure, one line each on stderr: its tables may go to a file."""
    for line in failures:
        click.echo(click.style("failed:", fg="red", bold=True) + f" {line}", err=True)


def add_to(group: click.Group) -> None:
    """Add the verbs in the order of the work."""
    from directdet.front.paper_commands import landscape, plan, recipes, reproduce

    for command in (demo, recipes, plan, check_data, train, evaluate, export, infer, benchmark, reproduce, landscape):
        group.add_command(command)
