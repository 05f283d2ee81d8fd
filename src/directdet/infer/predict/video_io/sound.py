"""The sound of a video file, copied packet by packet beside the annotated frames. Needs PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer


class Sound:
    """The first sound track of a video file, as it is compressed.

    Args:
        source: the file.
        start: when its first frame is shown, in seconds on the file's own clock: the sound begins there.

    Attributes:
        missing: why there is no sound; "" if there is.
    """

    def __init__(self, source: str | Path, start: float) -> None:
        import av
        from av.error import FFmpegError

        self.missing, self._start = "", start
        self._input: InputContainer | None = None
        self._output: Any = None
        self._next: Any = None
        try:
            self._input = av.open(os.fspath(source))
            self._track = next(iter(self._input.streams.audio), None)
            self.missing = "" if self._track is not None else "it has none"
        except FFmpegError as error:
            self.missing = str(error.strerror)

    def begin(self, container: OutputContainer) -> None:
        """Add the track to a file that is about to be written."""
        if self.missing or self._input is None or self._track is None:
            return
        codec = self._track.codec_context.name
        if codec not in container.supported_codecs:
            self.missing = f"an MP4 file takes no {codec}"
            return
        self._output = container.add_stream_from_template(self._track)
        self._packets = self._read()
        self._next = next(self._packets, None)

    def until(self, time: float) -> Iterator[Any]:
        """The packets that are heard before this time, in seconds from the first frame, each once."""
        while self._next is not None and float(self._next.pts * self._next.time_base) < time:
            packet, self._next = self._next, next(self._packets, None)
            packet.stream = self._output
            yield packet

    def close(self) -> None:
        """Close the source."""
        if self._input is not None:
            self._input.close()
        self._next = None

    def _read(self) -> Iterator[Any]:
        """The packets from the first frame on, at times from there. What is damaged ends them."""
        from av.error import FFmpegError

        assert self._input is not None and self._track is not None
        try:
            for packet in self._input.demux(self._track):
                if packet.pts is None or packet.dts is None or packet.time_base is None:
                    continue  # the end, or of no use
                shift = round(self._start / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                if packet.pts >= 0:
                    yield packet
        except FFmpegError:
            return
