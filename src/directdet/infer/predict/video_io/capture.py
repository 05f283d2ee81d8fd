"""What frames come out of: PyAV where it is installed (the extra `video`), and OpenCV for cameras and without it."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

from directdet.infer.predict.sources import source_kind

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

# FFmpeg inside OpenCV logs its own lines about files it cannot read; we report each problem in one line with its file.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_OPEN_TIMEOUT, _READ_TIMEOUT = 10, 5  # seconds
_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, -90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180}
_TURNS[-180] = cv2.ROTATE_180
_DEVICES = ("cuda", "videotoolbox", "d3d11va", "vaapi", "qsv")  # those that decode, the likeliest first


class Capture(Protocol):
    """The part of `cv2.VideoCapture` that reads frames; the names are OpenCV's."""

    def isOpened(self) -> bool: ...
    def get(self, what: int, /) -> float: ...
    def grab(self) -> bool: ...
    def retrieve(self) -> tuple[bool, np.ndarray | None]: ...
    def release(self) -> None: ...


def has_pyav() -> bool:
    """Whether PyAV is installed and loads."""
    try:
        import av  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def open_capture(source: str, hardware: bool = False) -> Capture:
    """Open a video file, a camera or a stream; whether that worked is what `isOpened` says.

    Args:
        hardware: decode on a GPU or media engine where there is one; only PyAV can.
    """
    kind = source_kind(source)
    if kind != "camera" and has_pyav():
        return AvCapture(source, hardware)
    if kind == "camera":
        return cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if kind == "video":
        if not any("\udc80" <= c <= "\udcff" for c in source):
            return cv2.VideoCapture(source)
        # OpenCV crashes on such a name; a file that is open needs none.
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / f"video{Path(source).suffix}"
            link.symlink_to(os.path.abspath(source))
            return cv2.VideoCapture(str(link))
    limits = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        1000 * _OPEN_TIMEOUT,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        1000 * _READ_TIMEOUT,
    ]
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)


def any_decoder() -> str | None:
    """The name of a decoder in hardware that is here and that PyAV knows; None: there is none."""
    if not has_pyav():
        return None
    import av
    from av.codec.hwaccel import HWAccel, hwdevices_available
    from av.error import FFmpegError

    for device in _DEVICES:
        if device in hwdevices_available():
            with contextlib.suppress(FFmpegError, RuntimeError, NotImplementedError):
                HWAccel(device).create(av.Codec("h264", "r"))
                return device
    return None


class AvCapture:
    """A file or a stream through PyAV. Frames are upright: turned as the file's display matrix says.

    Attributes:
        device: what decodes: "cpu", or the name of a hardware decoder such as "cuda".
    """

    def __init__(self, source: str, hardware: bool = False) -> None:
        self.device = "cpu"
        self._container: InputContainer | None = None
        self._waiting: deque[VideoFrame] = deque()
        self._frame: VideoFrame | None = None
        self._packets: Iterator[Any] | None = None
        container = self._open(source, hardware)
        if container is not None and container.streams.video:
            self._container, self._stream = container, container.streams.video[0]
            if not self._stream.codec_context.is_hwaccel:  # what the device has no decoder for, FFmpeg decodes itself
                self.device = "cpu"
        elif container is not None:
            container.close()

    def _open(self, source: str, hardware: bool) -> InputContainer | None:
        import av
        from av.error import FFmpegError

        options = {"rtsp_transport": "tcp"} if source.startswith("rtsp") else {}
        limits = (_OPEN_TIMEOUT, _READ_TIMEOUT) if "://" in source else None
        device = any_decoder() if hardware else None
        if device is not None:
            from av.codec.hwaccel import HWAccel

            with contextlib.suppress(FFmpegError, RuntimeError, NotImplementedError):  # it does not take this codec
                container = av.open(source, options=options, timeout=limits, hwaccel=HWAccel(device))
                self.device = device
                return container
        try:
            return av.open(source, options=options, timeout=limits)
        except FFmpegError:
            return None

    def isOpened(self) -> bool:
        """Whether there is a video stream."""
        return self._container is not None

    def get(self, what: int) -> float:
        """A property by OpenCV's number; 0 for what is not known. The time stamp is the container's own."""
        if self._container is None:
            return 0.0
        if what == cv2.CAP_PROP_POS_MSEC:
            return 1000 * _time_of(self._frame)
        if what == cv2.CAP_PROP_FPS:
            return float(self._stream.guessed_rate or self._stream.average_rate or 0)
        if what == cv2.CAP_PROP_FRAME_COUNT:
            length = (self._container.duration or 0) / 1e6
            return self._stream.frames or math.floor(length * self.get(cv2.CAP_PROP_FPS) + 0.5)
        aspect = self._stream.sample_aspect_ratio or Fraction(0)
        return {cv2.CAP_PROP_SAR_NUM: aspect.numerator, cv2.CAP_PROP_SAR_DEN: aspect.denominator}.get(what, 0.0)

    def grab(self) -> bool:
        """Go to the next frame. False: a packet could not be read or decoded, which skips it, or that was the end."""
        from av.error import FFmpegError, InvalidDataError

        if self._container is None:
            return False
        try:
            if self._packets is None:
                if not self._stream.codec_context.is_open:
                    self._stream.thread_type = "AUTO"
                    # As many as OpenCV may use: one beside a network that runs on the same cores.
                    self._stream.thread_count = cv2.getNumThreads()
                self._packets = self._container.demux(self._stream)
            while not self._waiting:
                packet = next(self._packets, None)
                if packet is None:
                    return False
                self._waiting.extend(packet.decode())
        except (FFmpegError, OSError) as error:
            if not isinstance(error, InvalidDataError):
                return False
            self._packets = None  # an iterator that raised has ended; what is behind the damage may be good
            return False
        self._frame = self._waiting.popleft()
        return True

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        """(whether there is a frame, the frame: uint8 [h, w, 3] BGR)."""
        if self._frame is None:
            return False, None
        image = self._frame.to_ndarray(format="bgr24")
        turn = _TURNS.get(self._frame.rotation)
        return True, image if turn is None else cv2.rotate(image, turn)

    def release(self) -> None:
        """Close the source."""
        if self._container is not None:
            self._container.close()
        self._container = self._packets = None


def _time_of(frame: VideoFrame | None) -> float:
    """Seconds on the container's own clock; NaN where it does not say."""
    if frame is None or frame.time_base is None:
        return math.nan
    ticks = frame.dts if frame.pts is None else frame.pts
    return math.nan if ticks is None else float(ticks * frame.time_base)
