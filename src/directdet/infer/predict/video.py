"""Frames of a video file, a camera or a stream."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from directdet.common.errors import UserError
from directdet.infer.predict.sources import source_kind

# FFmpeg inside OpenCV logs its own lines about files it cannot read; we report each problem in one line with its file.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

DEFAULT_RATE = 25.0  # frames per second of a source that does not report its rate
TRIES = 6  # to reopen a lost stream, with doubling waits: half a minute in total
_FIRST_WAIT = 0.5
_MAX_RATE = {False: 1000.0, True: 120.0}  # by `live`; higher rates, which some streams report, are nonsense
_MAX_COUNT = 1e9  # FFmpeg reports larger counts for files of unknown length, e.g. of a killed recording
_OPEN_TIMEOUT, _READ_TIMEOUT = 10_000, 5_000  # milliseconds


@dataclass
class Frame:
    """One frame of a video.

    Attributes:
        number: counted from 0; those that could not be read, or were dropped, leave gaps.
        time: seconds from the first frame: by the nominal rate in a file, by the clock in a live source.
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

    Attributes:
        name: base name of output files: the video's stem, "camera-0", or "stream-" and eight digits that differ for
            every address.
        live: frames arrive in real time, not on request. A URL of known length is treated like a file.
        rate: frames per second.
        count: frames that a file claims to contain; 0 if unknown.
        broken: frames that could not be read.
        reconnects: how often a lost source came back.

    Raises:
        UserError: it cannot be opened, or is empty.
    """

    def __init__(
        self,
        source: str | Path,
        warn: Callable[[str], None] = lambda line: None,
        open_capture: Callable[[str], Any] | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.source = str(source)
        self.kind = source_kind(source)
        self._warn, self._open, self._wait = warn, open_capture or _open_capture, wait
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
        self.broken = self.reconnects = 0

    def __str__(self) -> str:
        return f"camera {self.source}" if self.kind == "camera" else self.source

    @property
    def name(self) -> str:
        """Base name of output files."""
        if self.kind == "video":
            return Path(self.source).stem
        if self.kind == "camera":
            return f"camera-{Path(self.source).name}"
        return f"stream-{hashlib.sha256(self.source.encode(errors='surrogateescape')).hexdigest()[:8]}"

    def frames(self) -> Iterator[Frame]:
        """Every frame that can be read, in order.

        Raises:
            UserError: nothing could be read, or a live source was lost and did not come back.
        """
        number = read = 0
        start = None
        try:
            while True:
                failed = self._grab(number)
                if failed is None:
                    break
                number += failed
                good, image = self._capture.retrieve()
                if good and image is not None:
                    start = time.perf_counter() if start is None else start
                    yield Frame(number, time.perf_counter() - start if self.live else number / self.rate, image)
                    read += 1
                number += 1
                self.broken = number - read
        finally:
            self._capture.release()
        if not read:
            raise UserError(f"{self}: contains no readable frames")
        if self.count > number + 1:  # counts are estimates in some containers, off by one
            self._warn(f"{self}: truncated or damaged: it claims {self.count} frames, {read} could be read")

    def _grab(self, number: int) -> int | None:
        """Go to the next frame; returns how many unreadable ones were skipped, or None at the end."""
        if self._capture.grab():
            return 0
        if self.live:
            self._reconnect()
            return 0
        # Usually the end, but a damaged file may have good frames after the bad ones.
        for failed in range(1, 4):
            if number + failed < self.count and self._capture.grab():
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


_CANNOT_OPEN = {
    "video": "not a readable video, or truncated before its index; restore it or convert it again",
    "camera": "no such camera, or another program is using it",
    "stream": "the stream cannot be opened; check the address, and that its server is running",
}


def _open_capture(source: str) -> Any:
    kind = source_kind(source)
    if kind == "camera":
        return cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if kind == "video":
        return cv2.VideoCapture(source)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT]
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
