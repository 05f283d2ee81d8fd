"""Files written as results arrive: annotated video and JSON lines. They stay readable if the process is killed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from directdet.common.errors import UserError
from directdet.common.files import write_pieces_atomic


class VideoWriter:
    """An MP4 file, written through an AVI file, since an MP4 file without its end cannot be read.

    MPEG-4 frames go into `NAME.part.avi`, which can be played up to its end even if the process is killed. `finish`
    copies them unchanged into `NAME.mp4`, reads that back, and only then removes the AVI file.

    Args:
        path: the file to write, `.mp4`.
        rate: frames per second.
        size: (height, width) of the first frame. Frames of another size are scaled to it, keeping their proportions.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        self.path, self.part = path, path.with_name(f"{path.stem}.part.avi")
        self.frames = 0
        self._rate, self._size = rate, size
        self._copier: _PipeCopier | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        if hasattr(os, "mkfifo"):
            self._writer, self._copier = _open_unbuffered(self.part, rate, size)
        else:
            self._writer = _open_writer(self.part, "XVID", rate, size)

    def write(self, image: np.ndarray) -> None:
        """Add one frame, uint8 [h, w, 3] BGR."""
        if self._copier is not None:
            self._copier.raise_error()
        if image.shape[:2] != self._size:
            image = _fit(image, self._size)
        self._writer.write(image)
        self.frames += 1

    def finish(self) -> Path:
        """Close the file; afterwards `path` is the complete video.

        Raises:
            UserError: the file, read back, does not contain the frames that were written, e.g. because the disk is
                full. The AVI file and an earlier `path` are kept.
        """
        self._writer.release()
        if self._copier is not None:
            self._copier.join()
            self._copier.raise_error()
        temporary = self.path.with_name(f".{self.path.stem}.part.mp4")
        try:
            # Neither OpenCV nor FFmpeg tells of a write that fails: what counts is what can be read from the file.
            packets = self.frames > 1
            copied = _to_mp4(self.part, temporary, self._rate, self._size, packets)
            if copied != self.frames:
                raise UserError(
                    f"{self.part}: contains {copied} of {self.frames} frames; is the disk full? The file is kept"
                )
            good = _equal_frames(self.part, temporary, packets)
            if good != self.frames:
                raise UserError(
                    f"{self.path}: cannot be written: {good} of {self.frames} frames can be read back; is the disk "
                    f"full? All of them are in {self.part}"
                )
            _replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self.part.unlink()
        return self.path


class _PipeCopier(threading.Thread):
    """Copies a pipe into a file without delay. FFmpeg buffers 256 KB when it writes a file, many seconds of video that
    a killed process would lose; into a pipe it writes every frame at once."""

    def __init__(self, pipe: int, path: Path) -> None:
        super().__init__(daemon=True)
        self._pipe, self._path = pipe, path
        self._error: OSError | None = None
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def run(self) -> None:
        """Copy until the pipe is closed. After an error the pipe is still read, so that the writer does not block."""
        while content := os.read(self._pipe, 1 << 16):
            try:
                while content and self._error is None:
                    content = content[os.write(self._file, content) :]
            except OSError as error:
                self._error = error
        try:
            os.close(self._file)  # some file systems tell only now that a disk is full
        except OSError as error:
            self._error = self._error or error
        os.close(self._pipe)

    def raise_error(self) -> None:
        """UserError if the file could not be written."""
        if self._error is not None:
            raise UserError(f"{self._path}: cannot be written: {self._error.strerror or self._error}")


def _open_unbuffered(path: Path, rate: float, size: tuple[int, int]) -> tuple[cv2.VideoWriter, _PipeCopier]:
    """An AVI writer that puts every frame into the file as soon as it is compressed."""
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder) / "video.avi"  # OpenCV chooses the format by the suffix
        os.mkfifo(name)
        pipe = os.open(name, os.O_RDONLY | os.O_NONBLOCK)  # else it would wait for the other end
        try:
            writer = _open_writer(name, "XVID", rate, size)
            os.set_blocking(pipe, True)
            copier = _PipeCopier(pipe, path)
        except BaseException as error:
            os.close(pipe)
            if isinstance(error, OSError):
                raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
            raise
    copier.start()
    return writer, copier


def _open_writer(path: Path, codec: str, rate: float, size: tuple[int, int], *parameters: int) -> cv2.VideoWriter:
    code = cv2.VideoWriter.fourcc(*codec)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, (size[1], size[0]), list(parameters))
    if not writer.isOpened():
        raise UserError(f"{path.name}: this OpenCV cannot write a video of {size[1]}x{size[0]} pixels at {rate:g} fps")
    return writer


def _replace(temporary: Path, target: Path) -> None:
    """Put a file at its place once it is on the disk."""
    try:
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error


def _to_mp4(source: Path, target: Path, rate: float, size: tuple[int, int], packets: bool) -> int:
    """Copy the frames of one file to another, still compressed if `packets`, otherwise decoded; returns their number.

    A single frame copied in compressed form would have no duration, and players would not show it.
    """
    capture = _open_reader(source, packets)
    # With a shorter interval OpenCV would mark every frame as a key frame.
    settings = (cv2.VIDEOWRITER_PROP_RAW_VIDEO, 1, cv2.VIDEOWRITER_PROP_KEY_INTERVAL, 1 << 30)
    writer = _open_writer(target, "mp4v", rate, size, *(settings if packets else ()))
    frames = 0
    try:
        while True:
            good, content = capture.read()
            if not good:
                return frames
            if packets:
                writer.set(cv2.VIDEOWRITER_PROP_KEY_FLAG, capture.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME))
            writer.write(content)
            frames += 1
    finally:
        capture.release()
        writer.release()


def _open_reader(path: Path, packets: bool) -> cv2.VideoCapture:
    """A reader of compressed frames if `packets`, otherwise of pictures."""
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1] if packets else [])


def _equal_frames(source: Path, copy: Path, packets: bool) -> int:
    """How many frames of `copy` can be read and are those of `source`: the same bytes or, unless `packets`, as large.

    A decoded frame was compressed anew, so that its pixels differ slightly.
    """
    captures = _open_reader(source, packets), _open_reader(copy, packets)
    equal = 0
    try:
        while True:
            (more, wanted), (good, found) = (capture.read() for capture in captures)
            if not more or not good:
                return equal
            equal += int(np.array_equal(wanted, found) if packets else wanted.shape == found.shape)
    finally:
        for capture in captures:
            capture.release()


def _fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale an image into `size`, with black bars at two edges if the proportions differ."""
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(1, round(edge * scale)) for edge in image.shape[:2])
    canvas = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return canvas


class LinesWriter:
    """JSON lines; each is complete on disk as soon as it is written, or is not there at all."""

    def __init__(self, path: Path, append: bool = False) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer: what a full disk did not take would be written, and fail, once more on closing.
            self._stream = path.open("ab" if append else "wb", buffering=0)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error

    def write(self, value: Any) -> None:
        """Add one line."""
        line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
        content = memoryview(_encode(line))
        end = self._stream.tell()
        try:
            while content:
                content = content[self._stream.write(content) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._stream.truncate(end)  # the part of the line that still had room
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file.

        Raises:
            UserError: the file system could not keep what was written.
        """
        try:
            self._stream.close()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}") from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The values of a file of JSON lines, one at a time, without an incomplete last line of a killed process."""
    with path.open("rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                return
            yield json.loads(line)


def _encode(text: str) -> bytes:
    """JSON as UTF-8; halves of surrogate pairs, which names may hold, become JSON's escapes."""
    return text.encode("utf-8", "backslashreplace")


def write_coco(path: Path, lines: Callable[[], Iterator[dict[str, Any]]], categories: Sequence[dict[str, Any]]) -> None:
    """Write a COCO file from lines of one image each, atomically and in constant memory.

    Args:
        lines: returns them afresh on every call: image_id, file_name, width, height, detections. Lines without
            detections (unreadable images) are left out.
        categories: in COCO's format.
    """

    def pieces() -> Iterator[str]:
        yield '{"images": ['
        images = (line for line in lines() if "detections" in line)
        fields = ("file_name", "width", "height")
        yield from _joined({"id": line["image_id"], **{name: line[name] for name in fields}} for line in images)
        yield f'], "categories": {json.dumps(list(categories), ensure_ascii=False)}, "annotations": ['
        yield from _joined(entry for line in lines() for entry in line.get("detections", ()))
        yield "]}\n"

    write_pieces_atomic(path, map(_encode, pieces()))


def _joined(values: Iterator[Any]) -> Iterator[str]:
    for number, value in enumerate(values):
        yield (", " if number else "") + json.dumps(value, ensure_ascii=False, allow_nan=False)
