"""What the headers of image files say, against what OpenCV and other writers put there."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest

from directdet.data.headers import Header, read_header
from directdet.data.image import read_size

IMAGE = np.zeros((30, 40, 3), np.uint8)


def exif(orientation, order="<"):
    """A TIFF directory of two tags: a resolution unit, and the orientation."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    tags = struct.pack(f"{order}HHIHxx", 0x0128, 3, 1, 2) + struct.pack(f"{order}HHIHxx", 0x0112, 3, 1, orientation)
    return start + struct.pack(f"{order}IH", 8, 2) + tags + bytes(4)


def encoded(ending, image=IMAGE, **options):
    ok, content = cv2.imencode(ending, image)
    assert ok
    return content.tobytes()


def with_note(ending, orientation, order="<"):
    content, note = encoded(ending), exif(orientation, order)
    if ending == ".jpg":
        body = b"Exif\0\0" + note
        return content[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + content[2:]
    if ending == ".png":
        chunk = struct.pack(">I4s", len(note), b"eXIf") + note + bytes(4)
        return content[:33] + chunk + content[33:]
    padded = note + bytes(len(note) % 2)
    return content + struct.pack("<4sI", b"EXIF", len(note)) + padded


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_size_is_that_of_the_pixels(ending, tmp_path):
    assert read_header(encoded(ending)) == Header((40, 30), 8, 1, 3)
    assert read_header(encoded(ending, IMAGE[..., 0])).size == (40, 30)
    for other in (ending, ".bmp", ".webp", ".tiff"):
        (tmp_path / f"a{other}").write_bytes(encoded(other))
        assert read_size(tmp_path / f"a{other}") == (40, 30)


@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_bits(ending):
    assert read_header(encoded(ending, IMAGE.astype(np.uint16))).bits == 16
    assert read_header(encoded(ending, IMAGE[..., 0].astype(np.uint16))).bits == 16
    assert read_header(encoded(ending)).bits == 8


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
def test_orientation(ending, order):
    for orientation in range(1, 9):
        assert read_header(with_note(ending, orientation, order)).orientation == orientation
    assert read_header(with_note(ending, 9, order)).orientation == 1
    assert read_header(encoded(ending)).orientation == 1


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tiff"])
def test_cut_short_anywhere_is_the_default_or_right(ending):
    content = with_note(ending, 6) if ending != ".tiff" else encoded(ending)
    whole = read_header(content)
    for end in range(len(content)):
        found = read_header(content[:end])
        assert found.size in (None, whole.size) and found.orientation in (1, whole.orientation)
    assert read_header(b"no image") == Header()
