"""What the header of an image file says: its size, its channels and bits, and its EXIF note of rotation.

No pixel is decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTATION, _BITS = 0x0112, 0x0102  # tags of TIFF, on which EXIF is built
_SAMPLES, _SAMPLE_FORMAT, _PHOTOMETRIC, _EXTRA, _PLANAR = 0x0115, 0x0153, 0x0106, 0x0152, 0x011C
_TIFF_TYPES = {(1, 8): "uint8", (1, 16): "uint16", (3, 32): "float32", (2, 16): "int16", (3, 64): "float64"}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; 3 is a palette of RGB
_MOST_TAGS = 1000
TIFF, BIG_TIFF = (b"II*\0", b"MM\0*"), (b"II+\0", b"MM\0+")  # how these files start
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
        channels: None where they are not known.
        dtype: of a channel, as numpy calls it; of a TIFF that holds anything else, "other".
        foreign: a TIFF that cannot be read as a picture in grey or colour, since it holds other numbers or channels.
        plain: OpenCV reads all channels of it; of a TIFF, one of grey, or RGB pixel by pixel.
    """

    size: tuple[int, int] | None = None
    bits: int = 8
    orientation: int = 1
    channels: int | None = None
    dtype: str = "uint8"
    foreign: bool = False
    plain: bool = True


def read_header(content: bytes) -> Header:
    """The header of an image file's content (JPEG, PNG, WebP, TIFF); what is not known or damaged is the default."""
    try:
        if content.startswith(b"\xff\xd8"):
            return _jpeg(content)
        if content.startswith(_PNG_SIGNATURE):
            return _png(content)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return _webp(content)
        if content[:4] in TIFF:
            return _tiff(content)
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
            bits, height, width, channels = struct.unpack_from(">BHHB", content, start)
            # A height of 0 stands after the first scan.
            return Header((width, height) if height else None, bits, orientation, channels)
    return Header(orientation=orientation)


def _png(content: bytes) -> Header:
    width, height, bits, colour = struct.unpack_from(">IIBB", content, 16)
    position, exif = len(_PNG_SIGNATURE), b""
    while not exif and position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"eXIf":
            exif = content[position + 8 : position + 8 + length]
        position += 12 + length
    dtype = "uint16" if bits == 16 else "uint8"
    return Header((width, height), bits, _orientation(exif), _PNG_CHANNELS.get(colour), dtype)


def _tiff(content: bytes) -> Header:
    bits, samples, kind = _tag(content, _BITS, 1), _tag(content, _SAMPLES, 1), _tag(content, _SAMPLE_FORMAT, 1)
    grey = _tag(content, _PHOTOMETRIC, 1) in (0, 1)
    # A second channel of grey is its transparency where the file says so; more of them are other channels.
    more = samples > (2 if _tag(content, _EXTRA, 0) else 1) if grey else samples > 4
    return Header(
        None,
        bits,
        _orientation(content),
        samples,
        _TIFF_TYPES.get((kind, bits), "uint8" if kind == 1 and bits < 8 else "other"),
        foreign=kind in (2, 3) or bits > 16 or more,
        plain=samples == 1 or (samples == 3 and not grey and _tag(content, _PLANAR, 1) == 1),
    )


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
