"""How large a picture says it is, before it is decoded: a file of 100 KB may hold a thousand million pixels.

At OpenCV's own limit of 2**30 pixels a picture takes 10 GB on its way through this program.
"""

from __future__ import annotations

import os
import struct

from directdet.common.errors import UserError
from directdet.data.headers import JPEG_FRAMES, jpeg_segments

VARIABLE = "DIRECTDET_MAX_PIXELS"
MOST_PIXELS = 2**27  # 134 million, 11585 x 11585: some 1.2 GB while it is decoded
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_TIFF_NUMBERS = {3: "H", 4: "I", 16: "Q"}


def most_pixels() -> int:
    """Height x width of the largest picture that is read; UserError if the user's own limit is no number."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return MOST_PIXELS
    if not (text.isascii() and text.isdecimal() and 0 < len(text) <= 12):
        raise UserError(f"{VARIABLE}: {text!r} is not a number of pixels such as 400000000; correct or unset it")
    return int(text)


def tell_opencv() -> None:
    """Lower OpenCV's own limit, for the formats whose headers are not read here; only before OpenCV is imported."""
    text = os.environ.get(VARIABLE, "")
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", text if text.isdecimal() else str(MOST_PIXELS))


def check_pixels(height: int, width: int, name: object) -> None:
    """UserError if a picture of this size is not read."""
    if height * width > most_pixels():
        raise UserError(
            f"{name}: image of {width}x{height} pixels, more than {most_pixels()} in all; make it smaller, or set "
            f"{VARIABLE}={height * width} to read it all the same"
        )


def declared_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) as the header of a PNG, JPEG, BMP, WebP, TIFF or GIF file says; None if it does not say."""
    try:
        for start, reader in _READERS:
            if content.startswith(start):
                return reader(content)
    except (struct.error, IndexError):  # cut off
        pass
    return None


def _png(content: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", content, 16)
    return height, width


def _jpeg(content: bytes) -> tuple[int, int] | None:
    for marker, start, _ in jpeg_segments(content):
        if marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", content, start + 1)
            return height, width
    return None


def _bmp(content: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", content, 14)[0] == 12:  # OS/2's short header
        width, height = struct.unpack_from("<HH", content, 18)
    else:
        width, height = struct.unpack_from("<ii", content, 18)
    return abs(height), abs(width)


def _webp(content: bytes) -> tuple[int, int] | None:
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(content[place : place + 3], "little") + 1 for place in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", content, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", content, 26))
    else:
        return None
    return height, width


def _tiff(content: bytes) -> tuple[int, int] | None:
    order = "<" if content.startswith(b"II") else ">"
    big = struct.unpack_from(f"{order}H", content, 2)[0] == 43
    place = struct.unpack_from(f"{order}{'Q' if big else 'I'}", content, 8 if big else 4)[0]
    count = struct.unpack_from(f"{order}{'Q' if big else 'H'}", content, place)[0]
    entry, value_at = (20, 12) if big else (12, 8)
    found: dict[int, int] = {}
    for number in range(min(count, 4096)):
        start = place + (8 if big else 2) + number * entry
        tag, kind = struct.unpack_from(f"{order}HH", content, start)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT) and kind in _TIFF_NUMBERS:
            found[tag] = struct.unpack_from(f"{order}{_TIFF_NUMBERS[kind]}", content, start + value_at)[0]
    return (found[_TIFF_HEIGHT], found[_TIFF_WIDTH]) if len(found) == 2 else None


def _gif(content: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", content, 6)
    return height, width


_READERS = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8", _jpeg),
    (b"BM", _bmp),
    (b"RIFF", _webp),
    (b"II", _tiff),
    (b"MM", _tiff),
    (b"GIF8", _gif),
)
