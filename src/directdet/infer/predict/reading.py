"""Reading one picture of a run: its pixels, turned as a viewer shows it, and what tells its content from others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from directdet.data.headers import read_header
from directdet.data.image import decode_image, read_bytes

_TIFF = (b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Picture:
    """A picture that was read.

    Attributes:
        image: uint8 [h, w, 3] BGR.
        digest: SHA-256 of the file's bytes.
        orientation: the EXIF orientation that was applied; 1: none.
    """

    image: np.ndarray
    digest: str
    orientation: int = 1


def read_picture(path: Path, upright: bool) -> Picture:
    """Read an image file; with `upright` it is turned and mirrored as its EXIF orientation says, as viewers do.

    Raises:
        UserError: see data.image.read_image.
    """
    content = read_bytes(path)
    image, orientation = decode_picture(content, path, upright)
    return Picture(image, hashlib.sha256(content).hexdigest(), orientation)


def decode_picture(content: bytes, name: object, upright: bool) -> tuple[np.ndarray, int]:
    """(uint8 [h, w, 3] BGR, the EXIF orientation that was applied, 1 if none) of an image file's bytes.

    The orientation of a TIFF is part of the format, not a note for viewers: it is followed in any case.

    Raises:
        UserError: see data.image.decode_image; `name` is in the message.
    """
    image = cv2.cvtColor(decode_image(content, str(name)), cv2.COLOR_RGB2BGR)
    orientation = read_header(content).orientation if upright and content[:4] not in _TIFF else 1
    return turn(image, orientation), orientation


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image [h, w, ...] as EXIF's orientation 1 to 8 says it is to be shown; 5 to 8 exchange height and width."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):  # the rows as they are now, from the bottom up
        image = image[::-1]
    if orientation in (2, 3, 6, 7):  # and the columns from right to left
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
