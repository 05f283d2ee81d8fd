"""Videos for the tests: small files whose frames can be told apart, and stand-ins for captures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def frame(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """A grey picture with its number, modulo 16, as four dark or bright bars at the right, where nothing is found."""
    image = np.full((height, width, 3), 110, np.uint8)
    for bit in range(4):
        image[bit * height // 4 : (bit + 1) * height // 4, width * 3 // 4 :] = 220 if number >> bit & 1 else 20
    return image


def number_of(image: np.ndarray) -> int:
    """Inverse of `frame`, whatever a codec did to it."""
    height, width = image.shape[:2]
    bars = image[:, width * 13 // 16 : width * 15 // 16].mean((1, 2))
    return sum(int(bars[(2 * bit + 1) * height // 8] > 120) << bit for bit in range(4))


def write_video(path: Path, count: int, rate: float = 20.0, size: tuple[int, int] = (96, 128)) -> Path:
    """A video file of `count` frames; its codec is what the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = "XVID" if path.suffix == ".avi" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (size[1], size[0]))
    assert writer.isOpened()
    for number in range(count):
        writer.write(frame(number, *size))
    writer.release()
    return path


def read_video(path: Path) -> list[np.ndarray]:
    """All frames of a video."""
    capture = cv2.VideoCapture(str(path))
    images = []
    while True:
        good, image = capture.read()
        if not good:
            capture.release()
            return images
        images.append(image)


class StandInCapture:
    """What `cv2.VideoCapture` is to `Video`. Of `script`, a picture is read, None cannot be decoded, and "end" ends."""

    def __init__(self, script: Sequence[Any], count: int = 0, opens: bool = True, rate: float = 20.0) -> None:
        self._script, self._count, self._opens, self._rate = list(script), count, opens, rate
        self._now: Any = None
        self.released = False

    def isOpened(self) -> bool:
        return self._opens

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: self._rate, cv2.CAP_PROP_FRAME_COUNT: self._count}.get(what, 0.0)

    def grab(self) -> bool:
        self._now = self._script.pop(0) if self._script else "end"
        return not isinstance(self._now, str)

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        return self._now is not None, self._now

    def release(self) -> None:
        self.released = True


def lines_of(path: Path) -> list[dict]:
    """The values of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
