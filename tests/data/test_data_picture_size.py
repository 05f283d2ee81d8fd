"""Pictures that would take gigabytes are refused before they are decoded; the user's own limit lifts that."""

import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest

from directdet.common.errors import UserError
from directdet.data.image import decode_image, read_image
from directdet.data.picture_size import MOST_PIXELS, VARIABLE, declared_size


def png(width, height):
    """A grey PNG that says it is of that size, and has the pixels of its first rows."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes((width + 1) * min(height, 3)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tiff", "gif"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 500), (300, 7), (257, 258)])
def test_the_declared_size_is_that_of_the_picture(suffix, height, width):
    if suffix == "gif" and not hasattr(cv2, "IMWRITE_GIF_LOOP"):
        pytest.skip("this OpenCV writes no GIF")
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    done, content = cv2.imencode(f".{suffix}", image)
    assert done and declared_size(content.tobytes()) == (height, width) == decode_image(content.tobytes()).shape[:2]


@pytest.mark.parametrize("quality", [50, 101])
def test_both_kinds_of_webp(quality):
    done, content = cv2.imencode(".webp", np.zeros((20, 31, 3), np.uint8), [cv2.IMWRITE_WEBP_QUALITY, quality])
    assert done and declared_size(content.tobytes()) == (20, 31)


def test_a_progressive_jpeg_with_a_thumbnail():
    thumb = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    large = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    note = b"\xff\xe1" + struct.pack(">H", len(thumb) + 2) + thumb
    assert declared_size(large[:2] + note + large[2:]) == (40, 60)


@pytest.mark.parametrize("content", [b"", b"BM", b"RIFF", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"\xff\xd8\xff", b"GIF8"])
def test_a_cut_header_says_nothing(content):
    assert declared_size(content) is None


def test_a_bomb_is_refused_with_the_way_out(tmp_path):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(12000, 12000))
    with pytest.raises(UserError, match=rf"bomb\.png: image of 12000x12000 pixels, .*{VARIABLE}=144000000 to read it"):
        read_image(bomb)
    assert MOST_PIXELS < 12000 * 12000


@pytest.mark.parametrize("value", ["a", "-1", "1e9", "9" * 13, "²"])
def test_a_limit_that_is_no_number_is_told(monkeypatch, tmp_path, value):
    monkeypatch.setenv(VARIABLE, value)
    (tmp_path / "a.png").write_bytes(png(3, 3))
    with pytest.raises(UserError, match=rf"{VARIABLE}: .* is not a number of pixels"):
        read_image(tmp_path / "a.png")


READ = """
import sys
from directdet.data.picture_size import tell_opencv
tell_opencv()  # as the command line does
from directdet.common.errors import UserError
from directdet.data.image import read_image
try:
    print(read_image(sys.argv[1]).shape)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(("limit", "says"), [("", "not a readable image"), ("250000000", "(12000, 12000, 3)")])
def test_the_limit_holds_where_no_header_is_known_and_can_be_lifted(tmp_path, limit, says):
    """A PGM picture, in a new process: OpenCV reads its own limit as it is imported."""
    path = tmp_path / "large.pgm"
    path.write_bytes(b"P5\n12000 12000\n255\n" + bytes(12000 * 12000))
    done = subprocess.run(
        [sys.executable, "-c", READ, path],
        env={"DIRECTDET_MAX_PIXELS": limit, "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert says in done.stdout, done
