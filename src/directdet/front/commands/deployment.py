"""The verbs that deploy a model: export, infer."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from directdet.export.formats import FORMATS, INPUTS, PRECISIONS
from directdet.front.options import (
    PATH,
    Names,
    Number,
    Size,
    code_option,
    device_option,
    overlap_option,
    precision_option,
    runtime_option,
    score_option,
    threads_option,
    tiles_option,
)
from directdet.front.say import say

if TYPE_CHECKING:
    from directdet.infer.predict.options import PredictOptions
    from directdet.infer.predictor import Predictor


def _show_formats(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """A click callback: print the table of formats and leave."""
    if not value or ctx.resilient_parsing:
        return
    from directdet.common.terminal import terminal
    from directdet.export.formats import formats_table

    terminal().print(formats_table())
    ctx.exit()


def _either(names: tuple[str, ...]) -> str:
    """Names in a sentence: "a, b or c"."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


@click.command("export")
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, metavar="ARTEFACT", help="Folder to write.")
@click.option("--format", default="onnx", show_default=True, help=f"{_either(tuple(FORMATS))}.")
@click.option("--precision", default="fp32", show_default=True, help=f"{_either(PRECISIONS)}.")
@click.option("--input", default=INPUTS[0], show_default=True, help=f"{INPUTS[0]} pixels, or normalised {INPUTS[1]}.")
@click.option("--size", type=Size(), help="Input size, height first.  [default: that of the fine-tuning]")
@click.option("--batch", default="1", show_default=True, metavar="N|MIN,OPT,MAX", help="Images per batch.")
@click.option("--compute-capability", metavar="X.Y,...", help="tensorrt-rtx: the GPUs to build for.  [default: 8.9]")
@click.option("--score", type=Number(0, 1), help="Scores above this leave the graph.  [default: the model's]")
@click.option("--nms", type=Number(0, 1), help="IoU above which NMS suppresses.  [default: the model's]")
@click.option("--detections", type=click.IntRange(min=1), help="Most detections a picture.  [default: the model's]")
@click.option("--proposals", type=click.IntRange(min=1), help="Of two-stage models.  [default: the model's]")
@click.option("--max-ms", type=Number(0), help="With --data: the best size and proposals within this time here.")
@click.option("--min-ap", type=Number(0, 100), help="With --data: the fastest ones with this box AP (%).")
@click.option("--reduce-range", is_flag=True, help="onnx int8: 7-bit weights, for processors without VNNI.")
@click.option(
    "--data", type=PATH, metavar="DATA", help="Verify on this dataset, with AP.  [default: that of a run folder]"
)
@click.option("--split", help="Split to verify with.  [default: val, or train where there is no val]")
@click.option(
    "--ap-images", type=click.IntRange(min=0), default=100, show_default=True, help="Images for AP; 0: no AP."
)
@click.option(
    "--formats",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_formats,
    help="Show what each format can be.",
)
@code_option
def export(checkpoint: Path, out: Path, data: Path | None, split: str | None, ap_images: int, **settings: Any) -> int:
    """Write CHECKPOINT as an artefact, verified against PyTorch.

    In every runtime that can run the artefact here. Exit code 1 if they disagree; the artefact is kept, marked as
    failed.
    """
    from directdet.front import api

    least = settings.pop("min_ap")
    result = api.export(
        checkpoint,
        out,
        data=data,
        split=split,
        ap_images=ap_images,
        min_ap=None if least is None else least / 100,
        say=lambda line: say(line, error=True),
        **settings,
    )
    from directdet.export.run import report

    report(result)
    passed = result.verification.passed
    say(f"{'PASS' if passed else 'FAIL'}: {result.artefact}")
    return int(not passed)


@click.command("infer")
@click.argument("model", type=PATH)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--out", type=PATH, metavar="DIR", help="Folder for annotated pictures or video, and detections.")
@score_option
@click.option("--classes", type=Names(), metavar="NAME,...", help="Only these classes.")
@click.option(
    "--format",
    "results",
    type=click.Choice(["coco", "jsonl", "dataset"]),
    help="dataset: pseudo-labels, which train takes.  [default: images coco, video jsonl]",
)
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Write annotated pictures or video.")
@click.option("--batch", type=click.IntRange(min=1), help="Images per batch.  [default: the model's own, or 1]")
@click.option("--split", help="SOURCE is a dataset: detect on this split; the results have its ids.")
@click.option("--without", type=PATH, metavar="DATA", help="Images: leave out those of this dataset.")
@tiles_option
@overlap_option
@click.option("--as-stored", is_flag=True, help="Images: do not turn photos as their EXIF orientation says.")
@click.option("--resume", is_flag=True, help="Images: continue where a run into DIR was interrupted.")
@click.option("--show", is_flag=True, help="Video: a window with the detections; q closes it.")
@click.option("--frames", type=click.IntRange(min=1), help="Video: stop after this many.")
@click.option("--keep-audio", is_flag=True, help="Video file: with its sound, unchanged. Needs directdet[video].")
@click.option("--hw-decode", is_flag=True, help="Video: decode on a GPU where that works. Needs directdet[video].")
@runtime_option
@device_option
@threads_option
@precision_option
@code_option
def infer(
    model: Path,
    sources: tuple[str, ...],
    out: Path | None,
    score: float | None,
    classes: tuple[str, ...] | None,
    **options: Any,
) -> int:
    """Detect on images, videos, cameras or streams.

    SOURCE is an image, a folder, a pattern in quotes such as 'folder/*.jpg', a dataset with --split, a video file, the
    number of a camera, or the URL of a stream (rtsp://, http://). Several videos, cameras and streams share the
    network's batches (export with --batch 1,4,8). Ctrl-C closes all files, and an annotated video plays
    up to that point; with PyAV (directdet[video]) a killed run leaves NAME.part.mp4, which plays too. Exit code 1 if a
    video is damaged: what could be read of it is in the results.
    """
    from directdet.infer.predict.options import PredictOptions
    from directdet.infer.predict.sources import find_images, source_kind

    if out is None and not options["show"]:
        raise click.UsageError("nothing to do: give --out DIR, or --show for a video")
    source = sources[0]
    for other in sources if len(sources) > 1 else ():
        if options["split"] is not None or source_kind(other) == "images":
            raise click.UsageError(
                f"{len(sources)} sources: only videos, cameras and streams are taken together, and {other} is none; "
                "give a folder, or a pattern in quotes"
            )
    loading = [options.pop(name) for name in ("runtime", "device", "threads", "precision")]
    tiles = options.pop("tiles"), options.pop("overlap")
    as_stored = options.pop("as_stored")
    settings = PredictOptions(
        classes=classes,
        upright=not as_stored,
        **{name: options.pop(name) for name in ("batch", "pictures", "results")},
    )
    if options["split"] is not None or source_kind(source) == "images":
        for name in ("show", "frames", "keep_audio", "hw_decode"):
            if options.pop(name):
                raise click.UsageError(
                    f"--{name.replace('_', '-')} is for videos, cameras and streams; {source} is not one"
                )
        if options["split"] is None:
            find_images(source)  # before a model is loaded for nothing
        with _held(out, beside=False):
            return _infer_images(model, loading, tiles, score, settings, source=source, out=out, **options)
    if options.pop("resume"):
        raise click.UsageError("--resume is for images; a video always runs from its start")
    pseudo = settings.results == "dataset"
    given_options = ("as-stored", as_stored), ("tiles", tiles[0]), ("overlap", tiles[1]), ("format dataset", pseudo)
    given_options += (("without", options.pop("without")),)
    for name, given in given_options:
        if given:
            raise click.UsageError(f"--{name} is for images; {source} is none")
    options.pop("split")
    limit = options.pop("frames")
    return _infer_videos(model, loading, score, settings, sources, out=out, limit=limit, **options)


def _held(out: Path | None, beside: bool) -> contextlib.AbstractContextManager[None]:
    """Other commands are kept out of the output folder, or from the files of that name in it; None: nothing is kept."""
    from directdet.common.folder_lock import hold_folder

    return contextlib.nullcontext() if out is None else hold_folder(out, "infer", beside)


def _with_score(options: PredictOptions, score: float | None, detector: Predictor) -> PredictOptions:
    """The options with the score that is asked for, or else the detector's own, which is told."""
    if score is None:
        options.selection(detector)  # classes that the model has not are told alone
        options = replace(options, score=detector.usual_scores)
        source = "the default" if detector.suggested_score is None else "of the best F1 when it was exported"
        least = options.selection(detector).words(detector.classes)
        say(f"scores of at least {least} are kept ({source}); --score changes it")
        return options
    return replace(options, score=score)


def _infer_images(
    model: Path,
    loading: list[Any],
    tiles: tuple[int | None, float | None],
    score: float | None,
    options: PredictOptions,
    **arguments: Any,
) -> int:
    from directdet.infer.predict.images import predict
    from directdet.infer.runtimes.load import load
    from directdet.infer.tiled import in_tiles

    detector = in_tiles(load(model, *loading), *tiles)
    summary = predict(detector, options=_with_score(options, score, detector), **arguments)
    resumed = f" ({summary.n_resumed} of them done before)" if summary.n_resumed else ""
    skipped = f", {summary.n_skipped} skipped" if summary.n_skipped else ""
    say(
        f"{summary.n_images} images{resumed}{skipped}, {summary.n_detections} detections, {summary.seconds:.1f} s: "
        f"{summary.results_file}"
    )
    return 0


def _infer_videos(
    model: Path,
    loading: list[Any],
    score: float | None,
    options: PredictOptions,
    sources: tuple[str, ...],
    hw_decode: bool,
    **arguments: Any,
) -> int:
    from directdet.common.terminal import terminal
    from directdet.infer.predict.show import require_display
    from directdet.infer.predict.video import Video
    from directdet.infer.predict.videos import predict_videos, require_different_names
    from directdet.infer.runtimes.load import load

    if arguments["show"]:
        require_display()
    warn = partial(say, label="note:", colour="yellow", error=True)
    videos = [Video(source, warn=warn, hardware=hw_decode) for source in sources]
    for video in videos if hw_decode else ():
        why = ": there is no decoder in hardware for it, or no PyAV" if video.decoder == "cpu" else ""
        say(f"{video}: decoded by {video.decoder}{why}", error=True)
    require_different_names(videos)
    out: Path | None = arguments["out"]
    with contextlib.ExitStack() as held:
        for video in videos:
            held.enter_context(_held(out and out / video.name, beside=True))  # several cameras may share a folder
        detector = load(model, *loading)
        summaries = predict_videos(detector, videos, options=_with_score(options, score, detector), **arguments)
    total = summaries[0]
    terminal().print(total.table())
    seconds = f"{total.pipeline.seconds:.1f} s"
    share = f", {100 * total.fps / total.device_fps:.0f} % of the device stage alone" if total.device_fps else ""
    for video, summary in zip(videos, summaries, strict=True):
        counts = [f"{summary.n_frames} frames", f"{summary.n_detections} detections"]
        counts += [seconds] * (len(videos) == 1)
        for name in ("dropped", "broken", "reconnects"):
            if number := getattr(summary, f"n_{name}"):
                counts.append(f"{number} {name}")
        if len(videos) == 1:
            say(f"{', '.join(counts)}; {total.fps:.1f} fps{share}")
        else:
            say(f"{video}: {', '.join(counts)}")
    if len(videos) > 1:
        say(f"{len(videos)} videos, {total.n_all} frames, {seconds}; {total.fps:.1f} fps{share}")
    for summary in summaries:
        silent = "" if summary.has_sound else " (without sound)"
        for path in summary.files:
            say(f"written: {path}{silent if path.suffix == '.mp4' else ''}")
    for summary in summaries:
        if summary.failure is not None:
            say(str(summary.failure), "error:", error=True)
    return int(any(summary.n_broken or summary.failure is not None for summary in summaries))
