"""Frames of a video file, a camera or a stream."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from directdet.common.errors import UserError
from directdet.infer.predict.sources import source_kind
from directdet.infer.predict.video_io import capture
from directdet.infer.predict.video_io.capture import Capture

DEFAULT_RATE = 25.0  # frames per second of a source that does not report its rate
TRIES = 6  # to reopen a lost stream, with doubling waits: half a minute in total
_FIRST_WAIT = 0.5
_MAX_RATE = {False: 1000.0, True: 120.0}  # by `live`; higher rates, which some streams report, are nonsense
_MAX_COUNT = 1e9  # FFmpeg reports larger counts for files of unknown length, e.g. of a killed recording
_TRIES_AT_A_FRAME = 100_000  # reads in a row that may fail before what is left of a file is given up
_SHORT = 1.5  # a file ends early if so many times the usual distance of frames is missing


@dataclass
class Frame:
    """One frame of a video.

    Attributes:
        number: counted from 0; those that could not be read, or were dropped, leave gaps.
        time: seconds from the first frame: by the file's own time stamps, or by the clock in a live source.
        image: uint8 [h, w, 3] BGR.
    """

    number: int
    time: float
    image: np.ndarray


class Video:
    """An open video file, camera or stream; `frames()` reads it once.

    Args:
        source: a file, a camera's number or device, or a URL.
        warn: called with a one-line message for each problem that was handled.
        open_capture: opens `source`, like `cv2.VideoCapture`; for tests.
        wait: sleeps for a number of seconds; for tests.
        hardware: decode on a GPU or media engine where there is one (PyAV only).

    Attributes:
        name: base name of output files: the video's stem (bytes that are not UTF-8 as %E9), "camera-0", or "stream-"
            and eight digits that differ for every address.
        live: frames arrive in real time, not on request. A URL of known length is treated like a file.
        rate: frames per second.
        count: frames that a file claims to contain; 0 if unknown. Some formats do not say it, so that it is the length
            times the average rate.
        pixel_aspect: width of a pixel divided by its height; 1 if unknown.
        broken: frames that could not be read, at the end of a file too if it says how many it has.
        reconnects: how often a lost source came back.
        start: the time of the first frame in seconds on the file's own clock, once it has been read.
        decoder: what decodes: "cpu", or the name of a hardware decoder such as "cuda".

    Raises:
        UserError: it cannot be opened, or is empty.
    """

    def __init__(
        self,
        source: str | Path,
        warn: Callable[[str], None] = lambda line: None,
        open_capture: Callable[[str], Capture] | None = None,
        wait: Callable[[float], None] = time.sleep,
        hardware: bool = False,
    ) -> None:
        self.source = str(source)
        self.kind = source_kind(source)
        self._warn, self._wait = warn, wait
        self._open = open_capture or partial(capture.open_capture, hardware=hardware)
        if self.kind == "video" and not Path(source).is_file():
            raise UserError(f"{source}: not found; check the video's path")
        self._capture = self._open(self.source)
        if not self._capture.isOpened():
            raise UserError(f"{self}: {_CANNOT_OPEN[self.kind]}")
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if 0 < count < _MAX_COUNT else 0
        self.live = self.kind == "camera" or (self.kind == "stream" and not self.count)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = float(rate) if math.isfinite(rate) and 0.1 <= rate <= _MAX_RATE[self.live] else DEFAULT_RATE
        wide, high = (self._capture.get(key) for key in (cv2.CAP_PROP_SAR_NUM, cv2.CAP_PROP_SAR_DEN))
        self.pixel_aspect = wide / high if wide > 0 and high > 0 else 1.0
        self.broken = self.reconnects = 0
        self.start = 0.0
        self.decoder: str = getattr(self._capture, "device", "cpu")

    def __str__(self) -> str:
        return f"camera {self.source}" if self.kind == "camera" else self.source

    @property
    def name(self) -> str:
        """Base name of output files."""
        if self.kind == "video":
            return _printable(Path(self.source).stem)
        if self.kind == "camera":
            return f"camera-{Path(self.source).name}"
        return f"stream-{hashlib.sha256(self.source.encode(errors='surrogateescape')).hexdigest()[:8]}"

    def frames(self) -> Generator[Frame, None, None]:
        """Every frame that can be read, in order.

        Raises:
            UserError: nothing could be read, or a live source was lost and did not come back.
        """
        number = read = 0
        start = None
        clock = _Stamps(self.rate)
        try:
            while True:
                failed = self._grab(number)
                if failed is None:
                    break
                number += failed
                good, image = self._capture.retrieve()
                if good and image is not None:
                    start = time.perf_counter() if start is None else start
                    stamp = time.perf_counter() - start if self.live else clock.read(self._capture, number)
                    self.start = clock.first
                    yield Frame(number, stamp, image)
                    read += 1
                number += 1
                self.broken = number - read
        finally:
            self._capture.release()
        if not read:
            raise UserError(f"{self}: contains no readable frames")
        # A count proves nothing: it may be an estimate, or include frames that an edit has hidden. The length does.
        short = self.count > number + 1 and clock.end + _SHORT * clock.step < self.count / self.rate
        ends = f"ends after {clock.end:.1f} s of {self.count / self.rate:.1f} s"
        if short and _counts_its_frames(self.source):
            self.broken = self.count - read
            self._warn(f"{self}: truncated or damaged: it claims {self.count} frames, {read} could be read; {ends}")
        elif self.broken:
            self._warn(f"{self}: damaged: {self.broken} frames could not be read, {read} could")
        elif short:
            self._warn(f"{self}: {ends}: it was truncated, or only its sound goes on")

    def _grab(self, number: int) -> int | None:
        """Go to the next frame; returns how many unreadable ones were skipped, or None at the end."""
        if self._capture.grab():
            return 0
        if self.live:
            self._reconnect()
            return 0
        # Usually the end, but a damaged file may have good frames after the bad ones, and each read skips one of these.
        for failed in range(1, min(_TRIES_AT_A_FRAME, self.count - number)):
            if self._capture.grab():
                return failed
        return None

    def _reconnect(self) -> None:
        """Reopen a lost live source and go to its first frame, waiting longer each time.

        Raises:
            UserError: it could not be reopened.
        """
        self._capture.release()
        wait = _FIRST_WAIT
        for attempt in range(1, TRIES + 1):
            self._warn(f"{self}: connection lost; reopening in {wait:g} s (attempt {attempt} of {TRIES})")
            self._wait(wait)
            wait *= 2
            self._capture = self._open(self.source)
            if self._capture.isOpened() and self._capture.grab():
                self.reconnects += 1
                self._warn(f"{self}: reconnected")
                return
            self._capture.release()
        raise UserError(f"{self}: connection lost, and not restored after {TRIES} attempts")


class _Stamps:
    """The times of a file's frames in seconds, from the first on.

    Attributes:
        first: the time of the first on the file's own clock.
        end: when the last frame that was read ends, if it lasts as long as the one before it.
        step: the distance of the last two.
    """

    def __init__(self, rate: float) -> None:
        self.end, self.step = 0.0, 1 / rate
        self.first, self._rate, self._last, self._number = 0.0, rate, -1.0, -1

    def read(self, source: Capture, number: int) -> float:
        """The time of the frame just read. Where the file does not say it, the nominal rate does."""
        stamp = source.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if self._number < 0:
            self.first, now = stamp if math.isfinite(stamp) else 0.0, number / self._rate
            self.first -= now
        else:
            now = stamp - self.first
            if not math.isfinite(now) or now <= self._last:
                now = self._last + (number - self._number) / self._rate
            self.step = now - self._last
        self._last, self._number, self.end = now, number, now + self.step
        return now


def _counts_its_frames(path: str) -> bool:
    """Whether a file is of a format that says how many frames it has: MP4, QuickTime, AVI."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(12)
    except OSError:
        return False
    return start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free") or start[:4] == b"RIFF"


def _printable(name: str) -> str:
    """A file name with bytes that are not UTF-8 as %E9; every program can open what is called so."""
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in name)


_CANNOT_OPEN = {
    "video": "not a readable video, or truncated before its index; restore it or convert it again",
    "camera": "no such camera, or another program is using it",
    "stream": "the stream cannot be opened; check the address, and that its server is running",
}
