"""Reading one picture of a run: its pixels, turned as a viewer shows it, and what tells its content from others."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from directdet.data.headers import TIFF, read_header
from directdet.data.image import decode_bgr, read_bytes
from directdet.data.pixels.format import RGB, PixelFormat
from directdet.data.pixels.reading import decode_pixels, turn


@dataclass(frozen=True)
class Picture:
    """A picture that was read.

    Attributes:
        image: as detectors take it: uint8 [h, w, 3] BGR, or of another format as the file holds it.
        digest: SHA-256 of the file's bytes.
        orientation: the EXIF orientation that was applied; 1: none.
    """

    image: np.ndarray
    digest: str
    orientation: int = 1


def read_picture(path: Path, upright: bool, pixels: PixelFormat = RGB) -> Picture:
    """Read an image file; with `upright` it is turned and mirrored as its EXIF orientation says, as viewers do.

    Raises:
        UserError: see data.pixels.reading.decode_pixels.
    """
    content = read_bytes(path)
    image, orientation = decode_picture(content, path, upright, pixels, path)
    return Picture(image, hashlib.sha256(content).hexdigest(), orientation)


def decode_picture(
    content: bytes,
    name: str | os.PathLike[str],
    upright: bool,
    pixels: PixelFormat = RGB,
    file: Path | None = None,
) -> tuple[np.ndarray, int]:
    """(a picture as detectors take it, the EXIF orientation that was applied, 1 if none) of an image file's bytes.

    `file` is where the bytes are, if they are in a file.

    Raises:
        UserError: see data.pixels.reading.decode_pixels; `name` is in the message.
    """
    if pixels.is_rgb:
        image = decode_bgr(content, name, file)
    else:
        image = decode_pixels(content, name, replace(pixels, upright=False))  # what is applied is told
    orientation = read_header(content).orientation if upright and content[:4] not in TIFF else 1
    return turn(image, orientation), orientation
