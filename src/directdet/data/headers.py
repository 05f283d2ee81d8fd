"""What the header of an image file says: its size, its bits, and its EXIF note of rotation. No pixel is decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTATION, _BITS = 0x0112, 0x0102  # tags of TIFF, on which EXIF is built
_MOST_TAGS = 1000
JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # markers of the segment that says the size
_LONE = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})  # JPEG markers without a length


@dataclass(frozen=True)
class Header:
    """What the header says.

    Attributes:
        size: (width, height) as stored, None for other formats than JPEG and PNG.
        bits: of a channel; 8 where they are not known.
        orientation: the EXIF note, 1 to 8; 1 (as stored) if there is none. 2, 4, 5 and 7 mirror, 3 and 4 are half a
            turn, 5 to 8 a quarter.
    """

    size: tuple[int, int] | None = None
    bits: int = 8
    orientation: int = 1


def read_header(content: bytes) -> Header:
    """The header of an image file's content (JPEG, PNG, WebP, TIFF); what is not known or damaged is the default."""
    try:
        if content.startswith(b"\xff\xd8"):
            return _jpeg(content)
        if content.startswith(_PNG_SIGNATURE):
            return _png(content)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return _webp(content)
        if content[:4] in (b"II*\0", b"MM\0*"):
            return Header(None, _tag(content, _BITS, 8), _orientation(content))
    except (struct.error, IndexError):  # cut short
        pass
    return Header()


def jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of what a JPEG file's segments hold, up to its picture; bytes between them are passed over.

    Raises:
        struct.error, IndexError: it is cut short.
    """
    position = 2
    while position < len(content):
        marker = content[position + 1] if content[position] == 0xFF else None
        if marker == 0xDA:  # the picture begins
            return
        if marker is None or marker == 0xFF:  # no marker, or fill
            position += 1
        elif marker in _LONE:
            position += 2
        else:
            (length,) = struct.unpack_from(">H", content, position + 2)
            yield marker, position + 4, position + 2 + length
            position += 2 + length


def _jpeg(content: bytes) -> Header:
    orientation = 1
    for marker, start, end in jpeg_segments(content):
        if marker == 0xE1 and content.startswith(b"Exif\0\0", start):
            orientation = _orientation(content[start + 6 : end])
        elif marker in JPEG_FRAMES:
            bits, height, width = struct.unpack_from(">BHH", content, start)
            # A height of 0 stands after the first scan.
            return Header((width, height) if height else None, bits, orientation)
    return Header(orientation=orientation)


def _png(content: bytes) -> Header:
    width, height, bits = struct.unpack_from(">IIB", content, 16)
    position, exif = len(_PNG_SIGNATURE), b""
    while not exif and position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"eXIf":
            exif = content[position + 8 : position + 8 + length]
        position += 12 + length
    return Header((width, height), bits, _orientation(exif))


def _webp(content: bytes) -> Header:
    position, exif = 12, b""
    while not exif and position + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, position)
        if kind == b"EXIF":
            exif = content[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
    return Header(orientation=_orientation(exif.removeprefix(b"Exif\0\0")))


def _orientation(exif: bytes) -> int:
    value = _tag(exif, _ORIENTATION, 1)
    return value if 1 <= value <= 8 else 1


def _tag(tiff: bytes, wanted: int, default: int) -> int:
    """The first 16-bit value of a tag of the first directory of a TIFF file."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return default
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for index in range(min(count, _MOST_TAGS)):
            tag, kind, values = struct.unpack_from(f"{order}HHI", tiff, start + 2 + 12 * index)
            if tag == wanted and kind == 3:
                place = start + 2 + 12 * index + 8
                if values > 2:  # they stand elsewhere
                    (place,) = struct.unpack_from(f"{order}I", tiff, place)
                return struct.unpack_from(f"{order}H", tiff, place)[0]
    except struct.error:  # cut short
        pass
    return default
