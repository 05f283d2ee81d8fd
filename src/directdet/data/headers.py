"""What the header of an image file says: its size, its bits, and its EXIF note of rotation. No pixel is decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTATION, _BITS = 0x0112, 0x0102  # tags of TIFF, on which EXIF is built
_MOST_TAGS = 1000
_NO_FRAMES = (0xC4, 0xC8, 0xCC)  # JPEG markers between those of a frame that are none
_LONE = (0x01, *range(0xD0, 0xD8))  # JPEG markers without a length


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


def _jpeg(content: bytes) -> Header:
    orientation, position = 1, 2
    while content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF or marker in _LONE:  # fill, or no length
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", content, position + 2)
        body = content[position + 4 : position + 2 + length]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _orientation(body[6:])
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES:
            bits, height, width = struct.unpack_from(">BHH", body)
            # A height of 0 stands after the first scan.
            return Header((width, height) if height else None, bits, orientation)
        elif marker == 0xDA:
            break
        position += 2 + length
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
