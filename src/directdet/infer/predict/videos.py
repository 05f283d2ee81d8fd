"""Detect on video files, cameras and streams: an annotated video of each, and a JSON line for each frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from directdet.common.errors import UserError
from directdet.common.terminal import terminal
from directdet.infer.detections import Detections
from directdet.infer.draw import draw
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.pipeline import PipelineResult, run_pipeline
from directdet.infer.predict.progress import progress_bar
from directdet.infer.predict.show import Window
from directdet.infer.predict.stages import Batch, Item, detection_stages, make_batches, one_opencv_thread
from directdet.infer.predict.video import Frame, Video
from directdet.infer.predict.video_io.output import VideoOutput
from directdet.infer.predict.video_io.together import Together
from directdet.infer.predictor import Predictor


@dataclass
class VideoSummary:
    """What `predict_video` did.

    Attributes:
        n_frames: frames processed.
        n_detections: detections written.
        n_dropped: frames of a live source that were replaced by newer ones before they could be processed.
        n_broken: frames that could not be read.
        n_reconnects: how often a lost live source came back.
        has_sound: the annotated video has the source's sound.
        failure: what ended the reading of one of several videos early, or why its results could not be finished.
        files: what was written: the annotated video, the detections, the timing.
        pipeline: times of the stages, of all videos of the run.
        batch: most frames per batch; the times of the stages are per batch.
        streams: how many videos the run had.
        n_all: frames of all of them.
    """

    n_frames: int = 0
    n_detections: int = 0
    n_dropped: int = 0
    n_broken: int = 0
    n_reconnects: int = 0
    has_sound: bool = False
    failure: UserError | None = None
    files: list[Path] = field(default_factory=list)
    pipeline: PipelineResult = field(default_factory=PipelineResult)
    batch: int = 1
    streams: int = 1
    n_all: int = 0

    @property
    def fps(self) -> float:
        """Frames per second of all videos of the run, from reading the first frame to writing the last."""
        return self.n_all / self.pipeline.seconds if self.pipeline.seconds else 0.0

    @property
    def device_fps(self) -> float:
        """Frames per second of all videos that the device stage alone would reach, at its speed in this run."""
        device = self.pipeline.stages.get("device")
        return self.n_all / device.total if device is not None and device.total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, times in milliseconds."""
        times = {name: latencies.summary() for name, latencies in self.pipeline.stages.items()}
        return {
            "frames": self.n_frames,
            "detections": self.n_detections,
            "dropped": self.n_dropped,
            "broken": self.n_broken,
            "reconnects": self.n_reconnects,
            "seconds": self.pipeline.seconds,
            "fps": self.fps,
            "device_fps": self.device_fps,
            "batch": self.batch,
            "streams": self.streams,
            "stages": times,
            "end_to_end": self.pipeline.end_to_end.summary(),
        }

    def table(self) -> Table:
        """Latency of each stage, for a terminal."""
        of = f" of {self.batch} frames" if self.batch > 1 else ""
        table = Table(title=f"latency{of}, ms", title_justify="left")
        table.add_column("stage")
        for name in ("mean", "p50", "p95", "p99"):
            table.add_column(name, justify="right")
        rows = [*self.pipeline.stages.items(), ("end to end", self.pipeline.end_to_end)]
        for name, latencies in rows:
            table.add_row(name, *(f"{value:.2f}" for value in latencies.summary().values()))
        return table


def predict_video(
    detector: Predictor,
    video: Video,
    out: str | Path | None,
    options: PredictOptions | None = None,
    **settings: Any,
) -> VideoSummary:
    """`predict_videos` of a single one: its failure is raised, too."""
    summary = predict_videos(detector, [video], out, options, **settings)[0]
    if summary.failure is not None:
        raise summary.failure
    return summary


def predict_videos(
    detector: Predictor,
    videos: Sequence[Video],
    out: str | Path | None,
    options: PredictOptions | None = None,
    *,
    show: bool = False,
    limit: int | None = None,
    keep_audio: bool = False,
    progress: bool = True,
    console: Console | None = None,
) -> list[VideoSummary]:
    """Detect on every frame of videos; reading, preparing, the network, drawing and writing overlap.

    `out` receives, under each video's name, the annotated video (.mp4, its frames at the times of the source), the
    detections and the times of the stages (.timing.json). The detections are JSON lines, one for each frame: frame
    (from 0), time (seconds from the first, as the file's time stamps say), width, height, and "detections" in COCO's
    results format plus the name of the class; image_id is the frame. Or they are a COCO file (.json) whose images are
    the frames. During the run they are in .part.jsonl.

    Every frame of a file is processed, in order. Of a live source the newest frame is processed whenever the network is
    free, the others are counted as dropped, and the annotated video keeps real time. Ctrl-C and SIGTERM close all
    files. Several videos share the network's batches, see `together.Together`; one that fails does not end the others.

    Args:
        videos: files, cameras and streams whose names differ.
        out: folder to write; None writes nothing, for `show` alone.
        options: what to detect and what to write; None: the defaults.
        show: open a window with the annotated frames; q or Escape ends the run.
        limit: stop after this many frames of each.
        keep_audio: copy a file's first sound track into the annotated video; needs PyAV.
        progress: show a progress bar.
        console: where messages go; None: stderr.

    Returns:
        A summary of each video, in order, with what ended its reading early.

    Raises:
        UserError: nothing can be read or written, a file would be replaced that no earlier run made from this source,
            or a stage failed; the results up to that point are kept.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the files are closed.
    """
    options = options or PredictOptions()
    for video in videos:
        require_rgb(detector, video)
    require_different_names(videos)
    selection = options.selection(detector)
    several = len(videos) > 1
    live = not several and videos[0].live
    size = 1 if live else _batch_size(detector, options, len(videos))
    console = console or terminal(stderr=True)
    folder = None if out is None else Path(out)
    outputs = [VideoOutput(detector, video, folder, options, console, keep_audio) for video in videos]
    summaries = [VideoSummary(batch=size, streams=len(videos)) for _ in videos]
    windows = [Window(video.name) for video in videos] if show else []
    lengths = [min(video.count, limit or video.count) for video in videos]
    together = Together(videos, detector, size, limit)
    try:
        total = sum(lengths) if all(lengths) else None
        with one_opencv_thread(detector), progress_bar("detecting", total, console, progress) as advance:

            def write(batch: Batch[Frame]) -> bool:
                for item in batch.items:
                    summary = summaries[item.stream]
                    if limit is not None and summary.n_frames >= limit:
                        continue  # of a live one that was read on
                    outputs[item.stream].write(item.source, item.line, item.annotated)
                    summary.n_frames += 1
                    summary.n_detections += len(item.line["detections"])
                    if windows and item.annotated is not None and windows[item.stream].show(item.annotated):
                        return True
                    if summary.n_frames == limit:
                        together.stop(item.stream)
                advance(len(batch.items))
                return limit is not None and all(summary.n_frames >= limit for summary in summaries)

            def describe(item: Item[Frame], image: np.ndarray, found: Detections) -> None:
                frame = item.source
                height, width = image.shape[:2]
                entries = found.to_coco(frame.number, detector.category_ids, item.crops)
                for entry, label in zip(entries, found.labels, strict=True):
                    entry["name"] = detector.classes[int(label)]
                about = {"frame": frame.number, "time": round(frame.time, 4), "width": width, "height": height}
                item.line = {**about, "detections": entries}

            draws = show or (options.pictures and out is not None)

            def finish(item: Item[Frame], image: np.ndarray, found: Detections) -> None:
                if draws:
                    item.annotated = draw(image, found, detector.classes, crops=item.crops)
                item.crops = None

            stages = detection_stages(detector, selection, describe, finish)
            if several:
                batches = together.batches()
            else:
                batches = make_batches(_read(videos[0], None if live else limit), detector, size)
            depth = 1 if any(video.live for video in videos) else 2
            pipeline = run_pipeline(batches, stages, write, live=live, depth=depth)
    finally:
        for window in windows:
            window.close()
        for output in outputs:
            output.close()
    n_all = sum(summary.n_frames for summary in summaries)
    for number, (video, output, summary) in enumerate(zip(videos, outputs, summaries, strict=True)):
        summary.pipeline, summary.n_all = pipeline, n_all
        summary.n_dropped = together.dropped[number] if several else pipeline.dropped
        summary.n_broken, summary.n_reconnects = video.broken, video.reconnects
        failure, summary.has_sound = together.failures.get(number), output.has_sound
        summary.failure = failure if isinstance(failure, UserError) else None
        try:
            summary.files = output.finish(summary.to_dict())
        except UserError as error:  # the others are finished nevertheless
            summary.failure = summary.failure or error
    if pipeline.interrupted and n_all:
        console.print(f"stopped after {n_all} frames", highlight=False)
    pipeline.raise_failure()
    for failure in together.failures.values():
        if not isinstance(failure, UserError):
            raise failure
    return summaries


def require_rgb(detector: Predictor, video: Video) -> None:
    """UserError for a detector of other pictures: what a video holds is 8-bit colour."""
    pixels = detector.preprocess.pixels
    if not pixels.is_rgb:
        raise UserError(
            f"{video}: a video is read as 8-bit RGB, but {detector.source} takes {pixels.kind}; "
            "give pictures, one a frame"
        )


def require_different_names(videos: Sequence[Video]) -> None:
    """UserError for two whose results would have the same names."""
    names: dict[str, Video] = {}
    for video in videos:
        if video.name in names:
            raise UserError(
                f"{video}: its results would be called {video.name}, like those of {names[video.name]}; "
                "rename one, or give them to two runs with a folder each"
            )
        names[video.name] = video


def _batch_size(detector: Predictor, options: PredictOptions, n_videos: int) -> int:
    """Frames per batch: unless something else is asked for, one of each video, as far as the network takes them."""
    size, network = options.batch_size(detector), detector.backend.input
    return size if options.batch or network.batch else max(size, min(n_videos, network.max_batch or n_videos))


def _read(video: Video, limit: int | None) -> Iterator[Item[Frame]]:
    for count, frame in enumerate(video.frames(), start=1):
        yield Item(frame, frame.image)
        if count == limit:
            return
