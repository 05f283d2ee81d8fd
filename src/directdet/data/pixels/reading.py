"""Reading pictures of any format: 8-bit RGB as data/image.py does it, others exactly as the file holds them."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from directdet.common.errors import MissingLibraryError, UserError
from directdet.data.headers import BIG_TIFF, TIFF, Header, read_header
from directdet.data.image import check_content, decode_image, read_bytes
from directdet.data.pixels.format import PixelFormat, describe

_MEASURED = 256  # pictures that mean and std are measured on, spread over the set


def read_pixels(path: str | os.PathLike[str], pixels: PixelFormat) -> np.ndarray:
    """Read an image file, see :func:`decode_pixels`; UserError too if it is missing or unreadable."""
    return decode_pixels(read_bytes(path), path, pixels)


def decode_pixels(content: bytes, name: str | os.PathLike[str], pixels: PixelFormat) -> np.ndarray:
    """Decode an image file that holds this format: [H, W, C], channels in the order of the file.

    8-bit RGB is read as :func:`directdet.data.image.read_image` says. Anything else is taken as it is and never
    converted. A TIFF's orientation is followed, since it is a part of that format; EXIF's where the format says so.

    Raises:
        UserError: not an image, damaged, of another kind, or with values that are not finite.
        MissingLibraryError: a TIFF that only tifffile reads, and it is not installed.
    """
    image = decode_image(content, name) if pixels.is_rgb else _decode_other(content, name, pixels)
    if pixels.upright and not content.startswith(TIFF):
        image = turn(image, read_header(content).orientation)
    return image


def _decode_other(content: bytes, name: str | os.PathLike[str], pixels: PixelFormat) -> np.ndarray:
    """A picture that is not read as 8-bit RGB, as it is stored."""
    check_content(content, name)
    header = read_header(content)
    if header.channels is not None:
        _check_kind(header.channels, header.dtype, pixels, name)
    image = _decode(content, name, header, pixels)
    if image.ndim not in (2, 3) or not image.size:
        raise UserError(f"{name}: not a readable image, or it is damaged")
    image = image[:, :, None] if image.ndim == 2 else image
    _check_kind(image.shape[2], image.dtype.name, pixels, name)
    if image.dtype == np.float32 and not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise UserError(
            f"{name}: {count} values are not finite (NaN or infinity); write a number for what was not measured"
        )
    return image


def file_kind(content: bytes) -> tuple[int, str] | None:
    """(channels, dtype) of an image file as its header says; None where that does not say it."""
    header = read_header(content)
    return None if header.channels is None else (header.channels, header.dtype)


@dataclass(frozen=True)
class Measured:
    """A format with the mean and std that were measured, and the lowest and highest value of each channel."""

    pixels: PixelFormat
    low: tuple[float, ...]
    high: tuple[float, ...]


def measure(pixels: PixelFormat, paths: Sequence[Path]) -> Measured:
    """Measure up to 256 pictures that are spread over these.

    Raises:
        UserError: a picture cannot be read as this format.
    """
    count, sums = 0, np.zeros((2, pixels.channels))
    low, high = np.full(pixels.channels, np.inf), np.full(pixels.channels, -np.inf)
    for path in paths[:: -(-len(paths) // _MEASURED) or 1]:
        values = read_pixels(path, pixels).reshape(-1, pixels.channels).astype(np.float64)
        count += len(values)
        sums += [values.sum(0), np.square(values).sum(0)]
        low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
    mean = sums[0] / max(count, 1)
    std = np.sqrt(np.maximum(sums[1] / max(count, 1) - np.square(mean), 0))
    # A channel that is the same everywhere tells nothing: any number serves.
    std = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, 1.0)
    return Measured(replace(pixels, mean=_rounded(mean), std=_rounded(std)), tuple(low.tolist()), tuple(high.tolist()))


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """Seven digits, as they are written into a dataset.toml."""
    return tuple(float(f"{value:.7g}") for value in values)


def _check_kind(channels: int, dtype: str, pixels: PixelFormat, name: object) -> None:
    if (channels, dtype) != (pixels.channels, pixels.dtype):
        raise UserError(f"{name}: holds {describe(channels, dtype)}, not the {pixels.kind} that are wanted here")


def _decode(content: bytes, name: object, header: Header, pixels: PixelFormat) -> np.ndarray:
    # OpenCV reads several channels of grey as one, and more than four not at all.
    if not header.plain or content.startswith(BIG_TIFF):
        return _decode_tiff(content, name, header.orientation, pixels)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{name}: not a readable image (JPEG, PNG, BMP, WebP or TIFF), or it is damaged")
    if image.ndim == 3 and image.shape[2] >= 3:  # OpenCV has colours the other way round
        image = np.ascontiguousarray(image[:, :, [2, 1, 0, *range(3, image.shape[2])]])
    return image


def _decode_tiff(content: bytes, name: object, orientation: int, pixels: PixelFormat) -> np.ndarray:
    """The first page of a TIFF, [H, W, C] or [H, W]."""
    try:
        import tifffile
    except ImportError as error:
        remedy = 'pip install "directdet[tiff]"'
        raise MissingLibraryError(f"{name}: a TIFF of these channels needs tifffile ({error}); {remedy}") from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # what is wrong is told in one line
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page: Any = file.pages[0]
            _check_kind(int(page.samplesperpixel), np.dtype(page.dtype).name, pixels, name)  # before it takes memory
            image = np.asarray(page.asarray())
            planar = image.ndim == 3 and int(page.planarconfig) == 2
    except UserError:
        raise
    except Exception as error:  # of a damaged file almost any
        raise UserError(f"{name}: not a readable TIFF: {' '.join(str(error).split())[:200]}") from None
    image = np.moveaxis(image, 0, -1) if planar else image
    return turn(image.astype(image.dtype.newbyteorder("="), copy=False), orientation)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image [h, w, ...] as EXIF's orientation 1 to 8 says it is to be shown; 5 to 8 exchange height and width."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):  # the rows as they are now, from the bottom up
        image = image[::-1]
    if orientation in (2, 3, 6, 7):  # and the columns from right to left
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
