"""Reading, resizing and padding images.

Images that are read here are uint8 [H, W, 3] in RGB order; see pixels/reading.py for others.
"""

from __future__ import annotations

import os
import re
import unicodedata
import zlib
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np

from directdet.common.errors import UserError
from directdet.data.headers import Header, read_header
from directdet.data.inside.paths import is_inside, read_inside, split_path
from directdet.data.picture_size import check_pixels, declared_size
from directdet.data.pixels.format import describe, planewise

# A JPEG marker inside the compressed data: 0xFF followed by anything but stuffing (00), a restart marker or fill (FF).
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_HEADER_BYTES = 1 << 16
_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
LARGE = 1 << 26  # pixels, 67 million
_JPEG_START, _JPEG_SCAN, _JPEG_END = 0xD8, 0xDA, 0xD9
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# This module reports broken files in one line; OpenCV's own log lines would only repeat that without the file name.
_set_log_level = getattr(cv2, "setLogLevel", None)  # OpenCV 4; OpenCV 5 moved it
if _set_log_level is None:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
else:
    _set_log_level(0)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as uint8 [H, W, 3] RGB.

    Grey images get three equal channels, transparency is dropped, 16 bit is scaled to 8. The EXIF orientation tag is
    ignored, since annotation tools built on the COCO API work on the stored pixels.

    Raises:
        UserError: missing, unreadable, not an image, or truncated.
    """
    return decode_image(read_bytes(path), path)


def read_bytes(path: str | os.PathLike[str], most: int = -1) -> bytes:
    """The content of an image file, or its first ``most`` bytes; UserError if it is missing or unreadable.

    It may lie inside a tar or Parquet file, see inside/paths.py.
    """
    inside = split_path(path)
    if inside is not None:
        return read_inside(*inside, most)
    try:
        with open(path, "rb") as stream:
            return stream.read(most)
    except FileNotFoundError:
        hint = similar_file(path) or "check the path and the dataset's image folder"
        raise UserError(f"{path}: image file not found; {hint}") from None
    except OSError as error:
        raise UserError(f"{path}: image file cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # e.g. a NUL character in the name
        raise UserError(f"{str(path)!r}: not a usable file name: {error}") from None


def is_picture_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file, or such a picture inside one; False for names that no file can have."""
    inside = split_path(path)
    return os.path.isfile(path) if inside is None else is_inside(*inside)


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) of an image file; from its header where that says it. Errors as :func:`read_image`."""
    content, header = b"", Header()
    for most in (_HEADER_BYTES, -1):  # a header is rarely longer, and a set has many pictures
        content = read_bytes(path, most)
        header = read_header(content)
        if header.size is not None:
            return header.size
    declared = declared_size(content)
    if header.foreign and declared is not None:
        height, width = declared[::-1] if header.orientation >= 5 else declared
        return width, height
    height, width = decode_image(content, path).shape[:2]
    return width, height


def similar_file(path: str | os.PathLike[str]) -> str:
    """Which file of the folder has nearly the name of one that is missing, in words; nothing if none has.

    Names are taken as equal whatever the case, the form of accents (macOS decomposes them), URL encoding and ending.
    """
    path = Path(path)
    try:
        beside = _names_in(path.parent, path.parent.stat().st_mtime_ns).get(_canonical(path.name))
    except (OSError, ValueError):
        return ""
    return f"there is {beside}, whose name differs in form; correct one of the two names" if beside else ""


@lru_cache(maxsize=4)
def _names_in(folder: Path, changed: int) -> dict[str, str]:
    """The files of a folder that was ``changed`` then, by their :func:`_canonical` name."""
    return {_canonical(name): name for name in sorted(os.listdir(folder), reverse=True)}


def _canonical(name: str) -> str:
    return unicodedata.normalize("NFC", os.path.splitext(unquote(name))[0]).casefold()


def decode_image(content: bytes, name: str | os.PathLike[str] = "image") -> np.ndarray:
    """Decode the bytes of an image file, as :func:`read_image`; ``name`` is used in error messages."""
    return cv2.cvtColor(decode_bgr(content, name), cv2.COLOR_BGR2RGB)


def decode_bgr(content: bytes, name: str | os.PathLike[str] = "image", file: Path | None = None) -> np.ndarray:
    """:func:`decode_image` with the channels in OpenCV's order.

    With ``file``, where these bytes are, a large picture is held once.
    """
    check_content(content, name)
    header = read_header(content)
    if header.foreign:
        raise UserError(
            f"{name}: holds {describe(header.channels or 0, header.dtype)}, not a picture in grey or RGB; a set of "
            "such pictures needs a table [pixels] in its dataset.toml, which check-data prints"
        )
    try:
        image = None if file is None else _decode_large(content, file)
        image = cv2.imdecode(np.frombuffer(content, np.uint8), _FLAGS) if image is None else image
    except cv2.error:  # e.g. more pixels than OpenCV accepts
        image = None
    if image is None:
        raise UserError(f"{name}: not a readable image (JPEG, PNG, BMP, WebP or TIFF), or it is damaged")
    return image


def _decode_large(content: bytes, file: Path) -> np.ndarray | None:
    """A large picture, BGR, read straight into its array: `cv2.imdecode` makes a second one. None: not a large one."""
    size = declared_size(content)
    if size is None or size[0] * size[1] < LARGE or split_path(file) is not None:  # OpenCV opens files alone
        return None
    target = np.empty((*size, 3), np.uint8)
    found = cv2.imread(os.fspath(file), target, _FLAGS)
    return target if found is target else None


def check_content(content: bytes, name: object) -> None:
    """UserError if an image file is empty, cut short, or holds more pixels than are read."""
    if not content:
        raise UserError(f"{name}: image file is empty; restore it or remove it from the dataset")
    if _is_truncated(content):
        raise UserError(f"{name}: image file is truncated or damaged; restore it or remove it from the dataset")
    size = declared_size(content)
    if size is not None:
        check_pixels(*size, name)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize to exactly ``height`` x ``width``, bilinear without antialiasing, like the papers' pipelines."""
    if image.shape[:2] == (height, width):
        return image
    return planewise(image, lambda one: cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR))


def resize_into(image: np.ndarray, target: np.ndarray) -> None:
    """:func:`resize` straight into ``target`` with any row stride; of three channels without an intermediate image."""
    height, width = target.shape[:2]
    if image.shape[:2] == (height, width):
        target[...] = image
        return
    if image.shape[2] != 3:
        target[...] = resize(image, height, width)
        return
    written = cv2.resize(image, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    if written is not target:  # OpenCV allocated its own array, e.g. for a view it cannot address
        target[...] = written


def pad_bottom_right(image: np.ndarray, height: int, width: int, value: float | tuple[float, ...] = 0) -> np.ndarray:
    """Place ``image`` in the top left corner of a ``height`` x ``width`` canvas filled with ``value``.

    ``value`` is one number, or one for each channel. Raises ValueError if the image is larger than the canvas.
    """
    image_height, image_width = image.shape[:2]
    if image_height > height or image_width > width:
        raise ValueError(f"a {image_height}x{image_width} image does not fit into a {height}x{width} canvas")
    if (image_height, image_width) == (height, width):
        return image
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:  # OpenCV is several times faster
        values = value if isinstance(value, tuple) else (value,) * 3
        below, right = height - image_height, width - image_width
        return cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=values)
    canvas = np.empty((height, width, *image.shape[2:]), image.dtype)
    canvas[:image_height, :image_width] = image
    canvas[image_height:] = value
    canvas[:image_height, image_width:] = value
    return canvas


def put_planes(image: np.ndarray, target: np.ndarray) -> None:
    """Copy an image [H, W, C] to ``target`` [C, H, W], whose rows may lie apart."""
    if image.dtype == target.dtype == np.uint8 and image.shape[2] == 3:  # several times faster than numpy's transpose
        planes = list(target)
        if all(one is plane for one, plane in zip(cv2.split(image, planes), planes, strict=True)):
            return
    target[:] = image.transpose(2, 0, 1)


def fit_size(height: int, width: int, short: float, long: float) -> tuple[int, int]:
    """Largest (height, width) of the same proportions with short edge <= ``short`` and long edge <= ``long``.

    Rounded half up and at least 1 pixel, as in the papers' code. ``short == long`` fits the image into a square.
    """
    scale = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _is_truncated(content: bytes) -> bool:
    """Whether a JPEG or PNG ends before its end marker; not all decoders report that."""
    if content.startswith(b"\xff\xd8"):
        return _jpeg_is_truncated(content)
    if content.startswith(_PNG_SIGNATURE):
        return _png_is_truncated(content)
    return False


def _jpeg_is_truncated(content: bytes) -> bool:
    """Walk the segments to the end marker. A plain search for it could find the one of an embedded thumbnail."""
    position = 2
    while True:
        found = _JPEG_MARKER.search(content, position)
        if found is None:
            return True
        marker, position = content[found.end() - 1], found.end()
        # Most files end with the mark, and what is behind the start of the picture is no thumbnail that ends with one.
        if marker == _JPEG_END or (marker == _JPEG_SCAN and content.endswith(b"\xff\xd9")):
            return False
        if marker in (_JPEG_START, 0x01):  # markers without a length
            continue
        if position + 2 > len(content):
            return True
        # The compressed data after a start-of-scan segment is skipped by the search for the next marker.
        position += int.from_bytes(content[position : position + 2], "big")


def _png_is_truncated(content: bytes) -> bool:
    """Walk the chunks to IEND, checking their checksums."""
    position, view = len(_PNG_SIGNATURE), memoryview(content)
    while position + 12 <= len(content):
        length = int.from_bytes(view[position : position + 4], "big")
        end = position + 8 + length
        kind = bytes(view[position + 4 : position + 8])
        critical = kind[:1].isupper()
        if end + 4 > len(content):
            return True
        if critical and zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return True
        if kind == b"IEND":
            return False
        position = end + 4
    return True
