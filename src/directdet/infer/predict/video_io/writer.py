"""The annotated video: one MP4 file, by PyAV where it is installed, else by OpenCV."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from directdet.common.errors import UserError
from directdet.infer.predict.video_io import capture
from directdet.infer.predict.video_io.sound import Sound
from directdet.infer.predict.writers import replace

_TICKS = 60_000  # a second, of the time stamps that PyAV writes: exact for the usual rates, and MPEG-4 takes no more
# Every frame is in the file as soon as the next one is there (fragments last at least a millisecond: with
# frag_every_frame FFmpeg miscounts the times of sound). The end makes an ordinary file of it, which can be sought in.
# Sound that ends early must not hold back frames.
_MUXER = {
    "movflags": "hybrid_fragmented+delay_moov",
    "frag_duration": "1000",
    "flush_packets": "1",
    "max_interleave_delta": "100000",
}
# Tried in this order; each frame leaves the encoder at once. This H.264 takes about the time and space of OpenCV's
# MPEG-4, and its frames are nearer to those drawn.
_ENCODERS = {
    "libx264": {"preset": "ultrafast", "tune": "zerolatency", "crf": "28"},
    "mpeg4": {"flags": "+qscale", "global_quality": "472"},  # a quantiser of 4, in units of 1/118
}
_BT601, _LIMITED = 6, 1  # the colours that `cv2.COLOR_BGR2YUV_I420` computes, as FFmpeg numbers them


class _Encoder(Protocol):
    def write(self, image: np.ndarray, time: float) -> None: ...
    def close(self) -> None: ...


class VideoWriter:
    """An MP4 file; until `finish` it is `NAME.part.mp4`.

    With PyAV it is H.264, frames have their own times, and the unfinished file plays up to its end even if the process
    is killed. With OpenCV it is MPEG-4 Part 2 at an even rate, which cannot be read before `finish`.

    Args:
        path: the file to write, `.mp4`.
        rate: frames per second, where they follow each other evenly.
        size: (height, width) of the first frame. Frames of another size are scaled to it, keeping their proportions.
            The codec takes even sizes only, so that a last odd row or column is written twice.
        sound: what is heard with it; PyAV only.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int], sound: Sound | None = None) -> None:
        self.path, self.part = path, path.with_name(f"{path.stem}.part.mp4")
        self.frames = 0
        self.size = size[0] + size[0] % 2, size[1] + size[1] % 2
        self._rate, self._size = rate, size
        path.parent.mkdir(parents=True, exist_ok=True)
        self.keeps_times = capture.has_pyav()
        self._encoder: _Encoder = (
            _AvEncoder(self.part, rate, self.size, sound)
            if self.keeps_times
            else _CvEncoder(self.part, rate, self.size)
        )

    def write(self, image: np.ndarray, time: float | None = None) -> None:
        """Add one frame, uint8 [h, w, 3] BGR.

        Args:
            time: when it is shown, in seconds; None: `1 / rate` after the one before it.

        Raises:
            UserError: it cannot be written, e.g. because the disk is full.
        """
        if image.shape[:2] != self._size:
            image = _fit(image, self._size)
        if self.size != self._size:
            low, right = (edge - own for edge, own in zip(self.size, self._size, strict=True))
            image = cv2.copyMakeBorder(image, 0, low, 0, right, cv2.BORDER_REPLICATE)
        self._encoder.write(image, self.frames / self._rate if time is None else time)
        self.frames += 1

    def finish(self) -> Path:
        """Close the file; afterwards `path` is the complete video.

        Raises:
            UserError: the file, read back, does not contain the frames that were written, e.g. because the disk is
                full. It is kept as `part`, and so is an earlier `path`.
        """
        self._encoder.close()
        # OpenCV does not tell of a write that fails: what counts is what can be read from the file.
        good = _count(self.part, decode=not self.keeps_times)
        if good != self.frames:
            raise UserError(
                f"{self.part}: {good} of {self.frames} frames can be read back; is the disk full? The file is kept"
            )
        replace(self.part, self.path)
        return self.path


class _AvEncoder:
    """Fragments of H.264, or of MPEG-4 Part 2 where PyAV was built without an encoder of H.264."""

    def __init__(self, path: Path, rate: float, size: tuple[int, int], sound: Sound | None) -> None:
        import av

        self._path, self._sound, self._tick, self._step = path, sound, -1, 1 / rate
        with _told(path):
            self._container = av.open(os.fspath(path), "w", format="mp4", options=_MUXER)
            codec = next(name for name in _ENCODERS if name in av.codecs_available)
            # FFmpeg keeps rates as fractions of 32 bits.
            stream = self._container.add_stream(codec, rate=Fraction(rate).limit_denominator(65536))
            assert isinstance(stream, av.VideoStream)
            self._stream, context = stream, stream.codec_context
            context.height, context.width, context.pix_fmt = *size, "yuv420p"
            context.colorspace, context.color_range = _BT601, _LIMITED
            context.options, context.time_base = _ENCODERS[codec], Fraction(1, _TICKS)
            context.thread_count = cv2.getNumThreads()  # one beside a network that runs on the same cores
            if sound is not None:
                sound.begin(self._container)

    def write(self, image: np.ndarray, time: float) -> None:
        import av

        planes = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420), np.uint8)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        self._tick = max(self._tick + 1, round(time * _TICKS))  # no two at once
        frame.pts, frame.time_base = self._tick, Fraction(1, _TICKS)
        with _told(self._path):
            if self._sound is not None:
                self._container.mux(list(self._sound.until(time)))
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        with _told(self._path):
            try:
                self._container.mux(self._stream.encode(None))
                if self._sound is not None:
                    self._container.mux(list(self._sound.until(self._tick / _TICKS + self._step)))
            finally:
                self._container.close()
                if self._sound is not None:
                    self._sound.close()


class _CvEncoder:
    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        if any("\udc80" <= c <= "\udcff" for c in str(path.absolute())):
            raise UserError(f"{path.parent}: OpenCV writes no videos into a folder whose name is not UTF-8; choose one")
        code = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, (size[1], size[0]))
        if not self._writer.isOpened():
            raise UserError(f"{path}: this OpenCV cannot write a video of {size[1]}x{size[0]} pixels at {rate:g} fps")

    def write(self, image: np.ndarray, time: float) -> None:
        self._writer.write(image)

    def close(self) -> None:
        self._writer.release()


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """FFmpeg's errors as one line about the file."""
    from av.error import FFmpegError

    try:
        yield
    except (FFmpegError, OSError) as error:
        raise UserError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error


def _count(path: Path, decode: bool) -> int:
    """How many frames of a file can be read; unless `decode`, only as compressed packets."""
    if decode:
        reader, frames = cv2.VideoCapture(str(path)), 0
        while reader.grab():
            frames += 1
        reader.release()
        return frames
    import av
    from av.error import FFmpegError

    frames = 0
    with contextlib.suppress(FFmpegError), av.open(os.fspath(path)) as container:
        for packet in container.demux(video=0):
            frames += packet.size > 0
    return frames


def _fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale an image into `size`, with black bars at two edges if the proportions differ."""
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(1, round(edge * scale)) for edge in image.shape[:2])
    canvas = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return canvas
