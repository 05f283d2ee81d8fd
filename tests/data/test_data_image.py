"""Reading pictures: formats, damage, sizes."""

import cv2
import numpy as np
import pytest

from directdet.common.errors import UserError
from directdet.data import image as image_module
from directdet.data.image import decode_bgr, decode_image, fit_size, pad_bottom_right, put_planes, read_image, resize


def smooth(height=60, width=90, channels=3):
    small = np.random.default_rng(0).integers(0, 256, (5, 5, channels), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(image, end=".jpg", *options):
    return cv2.imencode(end, image, options)[1].tobytes()


def test_reads_png_exactly_as_rgb(tmp_path):
    bgr = smooth()
    (tmp_path / "a.png").write_bytes(encode(bgr, ".png"))
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, bgr[..., ::-1])


def test_grey_16_bit_and_transparent_pictures_become_three_channels_of_8_bits():
    grey = smooth()[..., 0]
    np.testing.assert_array_equal(decode_image(encode(grey, ".png")), np.repeat(grey[..., None], 3, axis=2))
    deep = np.arange(6000, dtype=np.uint16).reshape(60, 100) * 10
    np.testing.assert_array_equal(decode_image(encode(deep, ".png"))[..., 0], deep // 256)
    assert decode_image(encode(smooth(channels=4), ".png")).shape == (60, 90, 3)


@pytest.mark.parametrize("end", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("share", [0.02, 0.4, 0.8, 0.995])
def test_cut_short_is_noticed(end, share, tmp_path):
    content = encode(np.random.default_rng(1).integers(0, 256, (80, 80, 3), dtype=np.uint8), end)
    decode_image(content)
    (tmp_path / f"a{end}").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=rf"a\{end}: "):
        read_image(tmp_path / f"a{end}")


def test_jpeg_without_its_end_mark_but_with_a_thumbnail_is_truncated():
    whole = encode(smooth())
    thumbnail = encode(smooth(8, 8))
    comment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    with_thumbnail = whole[:2] + comment + whole[2:]
    np.testing.assert_array_equal(decode_image(with_thumbnail), decode_image(whole))
    with pytest.raises(UserError, match="truncated"):
        decode_image(with_thumbnail[:-2])


def test_progressive_jpeg_restart_marks_and_trailing_bytes_are_fine():
    image = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for options in ((cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)):
        content = encode(image, ".jpg", *options)
        assert decode_image(content + b"\0\0trailing").shape == (64, 64, 3)
        with pytest.raises(UserError):
            decode_image(content[: len(content) // 2])


def test_png_with_a_flipped_bit_is_damaged():
    content = bytearray(encode(smooth(), ".png"))
    content[len(content) // 2] ^= 4
    with pytest.raises(UserError, match="damaged"):
        decode_image(bytes(content), "b.png")


def test_exif_rotation_is_ignored():
    whole = encode(smooth(60, 90))
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    exif = b"\xff\xe1" + (len(tiff) + 8).to_bytes(2, "big") + b"Exif\0\0" + tiff
    turned = whole[:2] + exif + whole[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (90, 60, 3)  # the note is valid
    np.testing.assert_array_equal(decode_image(turned), decode_image(whole))


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\xff\xff"]
)
def test_what_is_no_picture_is_refused(content, tmp_path, capfd):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jpg"):
        read_image(tmp_path / "a.jpg")
    assert capfd.readouterr().err == ""


def test_missing_file_folder_and_bad_name(tmp_path):
    with pytest.raises(UserError, match=r"no\.jpg: image file not found"):
        read_image(tmp_path / "no.jpg")
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path)
    with pytest.raises(UserError, match="file name"):
        read_image("a\0b.jpg")


def test_pad_and_resize():
    image = smooth(7, 5)
    padded = pad_bottom_right(image, 8, 9, (1, 2, 3))
    np.testing.assert_array_equal(padded[:7, :5], image)
    assert (padded[7:] == (1, 2, 3)).all() and (padded[:, 5:] == (1, 2, 3)).all()
    assert (pad_bottom_right(image, 8, 9)[7:] == 0).all()
    four = pad_bottom_right(np.dstack([image, image[..., :1]]), 8, 9, (1, 2, 3, 4))  # OpenCV has no part in these
    assert (four[..., :3] == padded).all() and (four[7:, :, 3] == 4).all()
    floats = pad_bottom_right(image.astype(np.float32), 8, 9, (0.5, 2, 3))
    assert floats.dtype == np.float32 and (floats[7:, :, 0] == 0.5).all()
    assert pad_bottom_right(image, 7, 5) is image
    with pytest.raises(ValueError, match="does not fit"):
        pad_bottom_right(image, 6, 9)
    assert resize(image, 13, 11).shape == (13, 11, 3)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_planes_are_the_channels(channels, kind):
    image = np.random.default_rng(0).integers(0, 256, (7, 5, channels), np.uint8)
    for source in (image, image[::-1, 1:4]):  # rows that follow each other, and not
        target = np.full((2, channels, 9, 8), 3, kind)
        put_planes(source, target[1, :, : source.shape[0], : source.shape[1]])
        assert (target[1, :, :7, : source.shape[1]] == source.transpose(2, 0, 1)).all()
        assert (
            (target[0] == 3).all() and (target[1, :, 7:] == 3).all() and (target[1, :, :, source.shape[1] :] == 3).all()
        )


@pytest.mark.parametrize(
    ("height", "width", "limits", "expected"),
    [
        (480, 640, (800, 1333), (800, 1067)),
        (640, 480, (800, 1333), (1067, 800)),
        (300, 1000, (800, 1333), (400, 1333)),
        (427, 640, (448, 448), (299, 448)),
        (1, 3000, (100, 100), (1, 100)),
    ],
)
def test_fit_size(height, width, limits, expected):
    assert fit_size(height, width, *limits) == expected


@pytest.mark.parametrize("ending", [".jpg", ".png", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_file_is_read_straight_into_its_array(tmp_path, monkeypatch, ending, channels):
    monkeypatch.setattr(image_module, "LARGE", 0)
    calls = []
    read = cv2.imread
    monkeypatch.setattr(cv2, "imread", lambda *given: calls.append(given) or read(*given))
    path = tmp_path / f"größe{ending}"
    picture = np.random.default_rng(0).integers(0, 256, (37, 53, channels), dtype=np.uint8)
    path.write_bytes(cv2.imencode(ending, picture)[1].tobytes())
    found = decode_bgr(path.read_bytes(), path, path)
    assert len(calls) == 1 and np.array_equal(found[:, :, ::-1], read_image(path))
