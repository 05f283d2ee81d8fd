"""Frames of a video file, a camera or a stream."""

from __future__ import annotations

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

# FFmpeg inside OpenCV writes lines of its own about files it cannot read; here each problem has one line that names it.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

DEFAULT_RATE = 25.0  # frames per second where a source tells none
TRIES = 6  # to open a lost stream again, the waits doubling: half a minute in all
_FIRST_WAIT = 0.5
_FASTEST = {False: 1000.0, True: 120.0}  # frames per second; what tells more, as some streams do, tells nonsense
_ENDLESS = 1e9  # FFmpeg gives such counts for files without a length, e.g. of a killed recording
_OPEN_TIMEOUT, _READ_TIMEOUT = 10_000, 5_000  # milliseconds


@dataclass
class Frame:
    """One picture of a video.

    Attributes:
        number: counted from 0; those that could not be read, or were dropped, leave gaps.
        time: seconds from the first frame, in a file by its nominal rate, live by the clock.
        image: uint8 [h, w, 3] BGR.
    """

    number: int
    time: float
    image: np.ndarray


class Video:
    """An open video file, camera or stream; `frames()` reads it once.

    Args:
        source: a file, a camera's number or device, or a URL.
        tell: gets a line about each thing that went wrong and was dealt with.
        open_capture: opens `source`, as `cv2.VideoCapture` does; tests put a stand-in here.

    Attributes:
        name: to call files by: the video's stem, "camera-0" or "stream".
        live: frames come by the clock, not when they are asked for. A URL of known length is like a file.
        rate: frames per second.
        count: frames that a file says it holds; 0 where it is unknown.
        broken: frames that could not be read.
        reconnects: how often a lost source came back.

    Raises:
        UserError: it cannot be opened, or is empty.
    """

    def __init__(
        self,
        source: str | Path,
        tell: Callable[[str], None] = lambda line: None,
        open_capture: Callable[[str], Any] | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.source = str(source)
        self.kind = source_kind(source)
        self._tell, self._open, self._wait = tell, open_capture or _open_capture, wait
        if self.kind == "video" and not Path(source).is_file():
            raise UserError(f"{source}: not found; check the video's path")
        self._capture = self._open(self.source)
        if not self._capture.isOpened():
            raise UserError(f"{self}: {_WHY[self.kind]}")
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if 0 < count < _ENDLESS else 0
        self.live = self.kind == "camera" or (self.kind == "stream" and not self.count)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = float(rate) if math.isfinite(rate) and 0.1 <= rate <= _FASTEST[self.live] else DEFAULT_RATE
        self.broken = self.reconnects = 0

    def __str__(self) -> str:
        return f"camera {self.source}" if self.kind == "camera" else self.source

    @property
    def name(self) -> str:
        """What to call files by."""
        if self.kind == "video":
            return Path(self.source).stem
        return f"camera-{Path(self.source).name}" if self.kind == "camera" else "stream"

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
            raise UserError(f"{self}: holds no frame that can be read")
        if self.count > number + 1:  # counts are estimates in some containers, off by one
            self._tell(f"{self}: cut short or damaged: it says it holds {self.count} frames, {read} could be read")

    def _grab(self, number: int) -> int | None:
        """Go to the next frame; how many could not be got before it, or None at the end."""
        if self._capture.grab():
            return 0
        if self.live:
            self._reconnect()
            return 0
        # The end, as a rule; a damaged file may have good frames behind the bad ones.
        for failed in range(1, 4):
            if number + failed < self.count and self._capture.grab():
                return failed
        return None

    def _reconnect(self) -> None:
        """Open a lost live source again and go to its first frame, waiting longer each time.

        Raises:
            UserError: it stayed lost.
        """
        self._capture.release()
        wait = _FIRST_WAIT
        for attempt in range(1, TRIES + 1):
            self._tell(f"{self}: lost; opening it again in {wait:g} s (try {attempt} of {TRIES})")
            self._wait(wait)
            wait *= 2
            self._capture = self._open(self.source)
            if self._capture.isOpened() and self._capture.grab():
                self.reconnects += 1
                self._tell(f"{self}: back again")
                return
            self._capture.release()
        raise UserError(f"{self}: lost, and not back after {TRIES} tries")


_WHY = {
    "video": "not a video that can be read, or cut short before its index; restore it or convert it again",
    "camera": "no such camera, or another program uses it",
    "stream": "the stream cannot be opened; check the address, and that its server runs",
}


def _open_capture(source: str) -> Any:
    kind = source_kind(source)
    if kind == "camera":
        return cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if kind == "video":
        return cv2.VideoCapture(source)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT]
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
