"""Detect on a video file, a camera or a stream: annotated video, and a JSON line for each frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from directdet.common.errors import UserError
from directdet.common.files import require_writable, write_json_atomic
from directdet.common.terminal import terminal
from directdet.infer.detections import Detections
from directdet.infer.draw import draw
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.own_files import OwnFiles
from directdet.infer.predict.pipeline import PipelineResult, run_pipeline
from directdet.infer.predict.progress import progress_bar
from directdet.infer.predict.same import origin_of
from directdet.infer.predict.show import Window
from directdet.infer.predict.stages import (
    Batch,
    Item,
    coco_categories,
    detection_stages,
    make_batches,
    one_opencv_thread,
)
from directdet.infer.predict.video import Frame, Video
from directdet.infer.predict.writers import LinesWriter, VideoWriter, read_lines, replace, write_coco
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
        files: what was written: the annotated video, the detections, the timing.
        pipeline: times of the stages.
        batch: frames per batch; the times of the stages are per batch.
    """

    n_frames: int = 0
    n_detections: int = 0
    n_dropped: int = 0
    n_broken: int = 0
    n_reconnects: int = 0
    files: list[Path] = field(default_factory=list)
    pipeline: PipelineResult = field(default_factory=PipelineResult)
    batch: int = 1

    @property
    def fps(self) -> float:
        """Frames per second, from reading the first frame to writing the last."""
        return self.n_frames / self.pipeline.seconds if self.pipeline.seconds else 0.0

    @property
    def device_fps(self) -> float:
        """Frames per second that the device stage alone would reach, at its speed in this run."""
        device = self.pipeline.stages.get("device")
        return self.n_frames / device.total if device is not None and device.total else 0.0

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
    *,
    show: bool = False,
    limit: int | None = None,
    progress: bool = True,
    console: Console | None = None,
) -> VideoSummary:
    """Detect on every frame of `video`; reading, preparing, the network, drawing and writing overlap.

    `out` receives, under the video's name, the annotated video (.mp4, its frames at the times of the source, without
    sound), the detections and the times of the stages (.timing.json). The detections are JSON lines, one for each
    frame: frame (from 0), time (seconds from the first, as the file's time stamps say), width, height, and "detections"
    in COCO's results format plus the name of the class; image_id is the frame. Or they are a COCO file (.json) whose
    images are the frames. During the run they are in .part.jsonl.

    Every frame of a file is processed, in order. Of a live source the newest frame is processed whenever the network is
    free, the others are counted as dropped, and the annotated video keeps real time. Ctrl-C and SIGTERM close all
    files.

    Args:
        out: folder to write; None writes nothing, for `show` alone.
        options: what to detect and what to write; None: the defaults.
        show: open a window with the annotated frames; q or Escape ends the run.
        limit: stop after this many frames.
        progress: show a progress bar.
        console: where messages go; None: stderr.

    Raises:
        UserError: nothing can be read or written, a file would be replaced that no earlier run made from this source, a
            stage failed, or a lost source did not come back; the results up to that point are kept.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the files are closed.
    """
    options = options or PredictOptions()
    require_rgb(detector, video)
    selection = options.selection(detector)
    size = 1 if video.live else options.batch_size(detector)
    console = console or terminal(stderr=True)
    output = _Output(detector, video, None if out is None else Path(out), options, console)
    summary = VideoSummary(batch=size)
    window = Window(video.name) if show else None
    total = min(video.count, limit or video.count) or None
    try:
        with one_opencv_thread(detector), progress_bar("detecting", total, console, progress) as advance:

            def write(batch: Batch[Frame]) -> bool:
                for item in batch.items:
                    output.write(item.source, item.line, item.annotated)
                    summary.n_frames += 1
                    summary.n_detections += len(item.line["detections"])
                    if window is not None and item.annotated is not None and window.show(item.annotated):
                        return True
                advance(len(batch.items))
                return limit is not None and summary.n_frames >= limit

            def describe(item: Item[Frame], image: np.ndarray, found: Detections) -> None:
                frame = item.source
                height, width = image.shape[:2]
                entries = found.to_coco(frame.number, detector.category_ids, item.crops)
                for entry, label in zip(entries, found.labels, strict=True):
                    entry["name"] = detector.classes[int(label)]
                about = {"frame": frame.number, "time": round(frame.time, 4), "width": width, "height": height}
                item.line = {**about, "detections": entries}

            draws = window is not None or (options.pictures and out is not None)

            def finish(item: Item[Frame], image: np.ndarray, found: Detections) -> None:
                if draws:
                    item.annotated = draw(image, found, detector.classes, crops=item.crops)
                item.crops = None

            stages = detection_stages(detector, selection, describe, finish)
            items = _read(video, None if video.live else limit)
            summary.pipeline = run_pipeline(make_batches(items, detector, size), stages, write, live=video.live)
    finally:
        if window is not None:
            window.close()
        output.close()
    summary.n_dropped, summary.n_broken = summary.pipeline.dropped, video.broken
    summary.n_reconnects = video.reconnects
    summary.files = output.finish(summary)
    if summary.pipeline.interrupted and summary.n_frames:
        console.print(f"stopped after {summary.n_frames} frames", highlight=False)
    summary.pipeline.raise_failure()
    return summary


def require_rgb(detector: Predictor, video: Video) -> None:
    """UserError for a detector of other pictures: what a video holds is 8-bit colour."""
    pixels = detector.preprocess.pixels
    if not pixels.is_rgb:
        raise UserError(
            f"{video}: a video is read as 8-bit RGB, but {detector.source} takes {pixels.kind}; "
            "give pictures, one a frame"
        )


def _read(video: Video, limit: int | None) -> Iterator[Item[Frame]]:
    for count, frame in enumerate(video.frames(), start=1):
        yield Item(frame, frame.image)
        if count == limit:
            return


class _Output:
    """The files of one video."""

    def __init__(
        self, detector: Predictor, video: Video, out: Path | None, options: PredictOptions, console: Console
    ) -> None:
        self._detector, self._video, self._out, self._options = detector, video, out, options
        self._console = console
        self._lines: LinesWriter | None = None
        self._writer: VideoWriter | None = None
        self._size: tuple[int, int] | None = None
        self._skipped = 0  # frame times in which nothing arrived, e.g. while a stream was lost
        if out is None:
            return
        require_writable(out, folder=True)
        if not str(out.absolute()).isprintable() and any("\udc80" <= c <= "\udcff" for c in str(out.absolute())):
            raise UserError(f"{out}: OpenCV writes no videos into a folder whose name is not UTF-8; choose another")
        target = out / f"{video.name}.mp4"
        if options.pictures and target.exists() and video.kind == "video" and target.samefile(video.source):
            raise UserError(f"{out}: would overwrite the source video {target.name}; choose another output folder")
        self._own, self._origin = OwnFiles(out), origin_of(video.source)
        endings = [".json" if options.results == "coco" else ".jsonl", ".part.jsonl", ".timing.json"]
        endings += [".mp4", ".part.avi"] * options.pictures
        self._own.claim((f"{video.name}{ending}", lambda: self._origin) for ending in endings)

    def write(self, frame: Frame, line: dict[str, Any], annotated: np.ndarray | None) -> None:
        """Add one frame. Files are created with the first one, so that a source without frames leaves none."""
        height, width = frame.image.shape[:2]
        if self._size not in (None, (height, width)):
            self._warn(
                f"{self._video}: from frame {frame.number} on, frames are {width}x{height} pixels; "
                "in the annotated video they are scaled to the size of the first"
            )
        if self._size is None and self._out is not None:
            self._tell(height, width)
        self._size = (height, width)
        if self._out is None:
            return
        if self._lines is None:
            self._own.started(f"{self._video.name}.part.jsonl", self._origin)
            self._lines = LinesWriter(self._out / f"{self._video.name}.part.jsonl")
        if self._options.pictures and self._writer is None:
            self._own.started(f"{self._video.name}.part.avi", self._origin)
            self._writer = VideoWriter(self._out / f"{self._video.name}.mp4", self._video.rate, self._size)
        if self._writer is not None and annotated is not None:
            for _ in range(self._repeats(frame, self._writer.frames)):
                self._writer.write(annotated, None if self._video.live else frame.time)
        self._lines.write(line)

    def _tell(self, height: int, width: int) -> None:
        """Say once what the results do not keep of the source."""
        aspect = self._video.pixel_aspect
        if abs(aspect - 1) > 0.01:
            shown = "so the annotated video looks squeezed; " if self._options.pictures else ""
            self._warn(
                f"{self._video}: its pixels are {aspect:.3f} times as wide as high; the network sees them as stored, "
                f"{shown}boxes count stored pixels"
            )
        if self._options.pictures and (height % 2 or width % 2):
            self._warn(
                f"{self._video}: frames are {width}x{height}, and the annotated video {width + width % 2}x"
                f"{height + height % 2}, since its codec takes even sizes: the last row or column stands there twice"
            )

    def _repeats(self, frame: Frame, written: int) -> int:
        """How often to write a frame: a live one until the video has caught up with real time, at most for a second."""
        if not self._video.live:
            return 1
        missing = int(frame.time * self._video.rate) + 1 - self._skipped - written
        most = max(1, round(self._video.rate))
        if missing > most:
            self._skipped += missing - most
        return max(0, min(missing, most))

    def close(self) -> None:
        """Close the JSON lines, which are now complete."""
        if self._lines is not None:
            self._lines.close()

    def finish(self, summary: VideoSummary) -> list[Path]:
        """Write the final files; returns their paths."""
        if self._lines is None or self._out is None:
            return []
        files = []
        if self._writer is not None:
            self._own.started(self._writer.path.name, self._origin)
            files.append(self._writer.finish())
            self._own.written(self._writer.part.name, self._origin)  # gone
        part, name = self._lines.path, self._video.name
        if self._options.results == "coco":
            lines = self._out / f"{name}.json"
            self._own.started(lines.name, self._origin)
            write_coco(lines, lambda: _as_images(part, name), coco_categories(self._detector))
            part.unlink()
        else:
            lines = self._out / f"{name}.jsonl"
            self._own.started(lines.name, self._origin)
            replace(part, lines)
        self._own.written(part.name, self._origin)  # gone
        about = {"model": self._detector.describe(), "video": self._video.source, **summary.to_dict()}
        timing = self._out / f"{self._video.name}.timing.json"
        self._own.started(timing.name, self._origin)
        files += [lines, write_json_atomic(timing, about)]
        for path in files:
            self._own.written(path.name, self._origin)
        return files

    def _warn(self, line: str) -> None:
        self._console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _as_images(path: Path, name: str) -> Iterator[dict[str, Any]]:
    for line in read_lines(path):
        number = line.pop("frame")
        yield {"image_id": number, "file_name": f"{name}/{number:06d}", **line}
