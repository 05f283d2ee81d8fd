"""The files of one video's results: the annotated video, the detections of each frame, the times of the stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from directdet.common.errors import UserError
from directdet.common.files import require_writable, write_json_atomic
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.own_files import OwnFiles
from directdet.infer.predict.same import origin_of
from directdet.infer.predict.stages import coco_categories
from directdet.infer.predict.video import Frame, Video
from directdet.infer.predict.video_io.sound import Sound
from directdet.infer.predict.video_io.writer import VideoWriter
from directdet.infer.predict.writers import LinesWriter, read_lines, replace, write_coco
from directdet.infer.predictor import Predictor
from directdet.infer.runtimes.library import import_library


class VideoOutput:
    """The files of one video."""

    def __init__(
        self,
        detector: Predictor,
        video: Video,
        out: Path | None,
        options: PredictOptions,
        console: Console,
        keep_audio: bool,
    ) -> None:
        self._detector, self._video, self._out, self._options = detector, video, out, options
        self._console = console
        self._lines: LinesWriter | None = None
        self._writer: VideoWriter | None = None
        self._size: tuple[int, int] | None = None
        self._sound: Sound | None = None
        self._keep_audio = keep_audio and options.pictures and out is not None
        if self._keep_audio:
            import_library("av", "--keep-audio: PyAV", 'pip install "directdet[video]"')
        if self._keep_audio and video.kind != "video":
            raise UserError(f"{video}: --keep-audio is for video files; of this source only pictures are taken")
        self._uneven = False
        self._skipped = 0  # frame times in which nothing arrived, e.g. while a stream was lost
        if out is None:
            return
        require_writable(out, folder=True)
        target = out / f"{video.name}.mp4"
        if options.pictures and target.exists() and video.kind == "video" and target.samefile(video.source):
            raise UserError(f"{out}: would overwrite the source video {target.name}; choose another output folder")
        self._own, self._origin = OwnFiles(out), origin_of(video.source)
        endings = [".json" if options.results == "coco" else ".jsonl", ".part.jsonl", ".timing.json"]
        endings += [".mp4", ".part.mp4"] * options.pictures
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
            self._own.started(f"{self._video.name}.part.mp4", self._origin)
            self._sound = Sound(self._video.source, self._video.start) if self._keep_audio else None
            target = self._out / f"{self._video.name}.mp4"
            self._writer = VideoWriter(target, self._video.rate, self._size, self._sound)
            if self._sound is not None and self._sound.missing:
                self._warn(f"{self._video}: its sound cannot be kept: {self._sound.missing}")
        if self._writer is not None and annotated is not None:
            late = 0.0 if self._video.live else abs(frame.time - self._writer.frames / self._video.rate)
            if late > 1 / self._video.rate and not self._writer.keeps_times and not self._uneven:
                self._uneven = True
                self._warn(
                    f"{self._video}: its frames do not follow each other evenly, but in the annotated video they do; "
                    'with PyAV they keep their times: pip install "directdet[video]"'
                )
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

    @property
    def has_sound(self) -> bool:
        """Whether sound is copied into the annotated video."""
        return self._sound is not None and not self._sound.missing

    def close(self) -> None:
        """Close the JSON lines, which are now complete."""
        if self._lines is not None:
            self._lines.close()

    def finish(self, times: dict[str, Any]) -> list[Path]:
        """Write the final files; returns their paths. `times` go into the last."""
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
        about = {"model": self._detector.describe(), "video": self._video.source, "decoder": self._video.decoder}
        timing = self._out / f"{self._video.name}.timing.json"
        self._own.started(timing.name, self._origin)
        files += [lines, write_json_atomic(timing, about | times)]
        for path in files:
            self._own.written(path.name, self._origin)
        return files

    def _warn(self, line: str) -> None:
        self._console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _as_images(path: Path, name: str) -> Iterator[dict[str, Any]]:
    for line in read_lines(path):
        number = line.pop("frame")
        yield {"image_id": number, "file_name": f"{name}/{number:06d}", **line}
