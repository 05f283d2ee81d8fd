"""Preprocessing: geometry, values, padding, checksum, speed."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from directdet.common.errors import UserError
from directdet.data.pixels.format import MEAN, STD
from directdet.infer import preprocess as module
from directdet.infer.decode import to_detections
from directdet.infer.preprocess import Preprocess, fixture_image


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "size,fixed,image,placed,canvas",
    [
        ((448, 448), True, (480, 640), (336, 448), (448, 448)),
        ((448, 448), True, (640, 480), (448, 336), (448, 448)),
        ((448, 448), True, (100, 100), (448, 448), (448, 448)),
        ((300, 500), True, (333, 1000), (167, 500), (300, 500)),
        ((448, 448), True, (1, 3000), (1, 448), (448, 448)),
        ((800, 1333), False, (480, 640), (800, 1067), (800, 1088)),
        ((1333, 800), False, (640, 480), (1067, 800), (1088, 800)),
        ((800, 1333), False, (400, 1333), (400, 1333), (416, 1344)),
        ((800, 1333), False, (500, 2666), (250, 1333), (256, 1344)),
    ],
)
def test_geometry(size, fixed, image, placed, canvas):
    prepared, placement = Preprocess(size, fixed)(picture(*image))
    assert prepared.shape == (3, *canvas) and prepared.dtype == np.float32 and prepared.flags.c_contiguous
    assert (placement.height, placement.width) == placed
    assert (placement.original_height, placement.original_width) == image
    assert placement.scale_x == placed[1] / image[1] and placement.scale_y == placed[0] / image[0]


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (448, 448)])
def test_values_are_rgb_normalised_and_padded_with_zeros(shape):
    image = picture(*shape)
    prepared, placement = Preprocess((448, 448))(image)
    resized = cv2.resize(image, (placement.width, placement.height), interpolation=cv2.INTER_LINEAR)
    expected = (resized[:, :, ::-1].astype(np.float64) - MEAN) / STD
    inside = prepared[:, : placement.height, : placement.width]
    np.testing.assert_allclose(inside.transpose(1, 2, 0), expected, atol=1e-6)
    assert not prepared[:, placement.height :].any() and not prepared[:, :, placement.width :].any()


@pytest.mark.parametrize("image", [(375, 500), (500, 333), (300, 300), (40, 1000)])
def test_warp_fills_the_canvas_whatever_the_ratio(image):
    value = Preprocess((300, 270), std=(1.0, 1.0, 1.0), warp=True)
    original = picture(*image)
    prepared, placement = value(original)
    assert prepared.shape == (3, 300, 270) and (placement.height, placement.width) == (300, 270)
    assert (placement.original_height, placement.original_width) == image
    assert placement.scale_x == 270 / image[1] and placement.scale_y == 300 / image[0]
    resized = cv2.resize(original, (270, 300), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(prepared.transpose(1, 2, 0), resized[:, :, ::-1].astype(np.float64) - MEAN, atol=1e-5)


def test_writes_into_a_used_buffer_and_takes_views():
    image = picture(200, 100)
    expected, _ = Preprocess((64, 64))(image)
    batch = np.full((3, 3, 64, 64), np.nan, np.float32)
    made, _ = Preprocess((64, 64))(image, out=batch[1])
    assert made is not None and np.shares_memory(made, batch)
    assert np.array_equal(batch[1], expected) and np.isnan(batch[[0, 2]]).all()
    turned = np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1]  # a view with negative strides
    assert np.array_equal(Preprocess((64, 64))(turned)[0], expected)


@pytest.mark.parametrize(
    "preprocess",
    [Preprocess((64, 96)), Preprocess((300, 300), warp=True, std=(1.0, 1.0, 1.0)), Preprocess((64, 128), fixed=False)],
)
@pytest.mark.parametrize("shape", [(64, 96), (1, 1), (7, 200), (301, 33), (480, 640)])
def test_letterbox_is_the_same_picture_as_pixels(preprocess, shape):
    """Normalised it is what the network would otherwise be given, but for the padding's rounded colour."""
    image = picture(*shape)
    expected, placement = preprocess(image)
    canvas, same = preprocess.letterbox(image)
    assert same == placement and canvas.shape == (*expected.shape[1:], 3) and canvas.dtype == np.uint8
    found = preprocess.normalise(canvas[None])[0]
    height, width = placement.height, placement.width
    np.testing.assert_allclose(found[:, :height, :width], expected[:, :height, :width], atol=1e-6 * 255)
    assert (canvas[height:] == preprocess.pad_colour).all() and (canvas[:height, width:] == preprocess.pad_colour).all()
    assert np.abs(found - expected).max() < 0.51 / min(preprocess.std)


def test_letterbox_writes_into_the_row_of_a_batch():
    image = picture(50, 40)
    batch = np.full((3, 64, 96, 3), 77, np.uint8)
    made, _ = Preprocess((64, 96)).letterbox(image, out=batch[1])
    assert np.shares_memory(made, batch) and (batch[[0, 2]] == 77).all()
    assert np.array_equal(batch[1], Preprocess((64, 96)).letterbox(image)[0])
    turned = np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1]
    assert np.array_equal(Preprocess((64, 96)).letterbox(turned)[0], batch[1])
    for wrong in (batch[1].astype(np.float32), batch[1][:, :95], batch[1].transpose(1, 0, 2), batch[1][:, ::-1]):
        with pytest.raises(ValueError, match="out"):
            Preprocess((64, 96)).letterbox(image, out=wrong)
    with pytest.raises(ValueError, match="uint8"):
        Preprocess((64, 96)).letterbox(image.astype(np.float32))


@pytest.mark.parametrize(
    "image", [picture(5, 5)[:, :, 0], picture(5, 5).astype(np.float32), np.zeros((0, 5, 3), np.uint8)]
)
def test_refuses_other_images(image):
    with pytest.raises(ValueError, match="uint8"):
        Preprocess((64, 64))(image)
    with pytest.raises(ValueError, match="out"):
        Preprocess((64, 64))(picture(5, 5), out=np.zeros((3, 64, 65), np.float32))


def test_dictionary_round_trip_and_errors():
    for value in (
        Preprocess((448, 448)),
        Preprocess((800, 1333), False, 32, (1.0, 2.0, 3.0), (1.0, 1.0, 1.0)),
        Preprocess((300, 300), warp=True),
    ):
        assert Preprocess.from_dict(json.loads(json.dumps(value.to_dict())), "x") == value
    good = Preprocess((448, 448)).to_dict()
    for change in (
        {"size": [0, 5]},
        {"size": [5]},
        {"std": [0, 1, 1]},
        {"mean": ["a", 1, 1]},
        {"extra": 1},
        {"warp": True, "fixed": False},
    ):
        with pytest.raises(UserError, match=r"meta\.json: preprocess"):
            Preprocess.from_dict(good | change, "meta.json")


def test_files_written_before_warping_was_known_are_read_as_ever():
    """Such a file has no "warp", and the checksum that was then made of the same values."""
    value = Preprocess((448, 448))
    old = {key: entry for key, entry in value.to_dict().items() if key != "warp"}
    assert Preprocess.from_dict(old, "meta.json") == value and not value.warp
    assert value.checksum() == "ca4396c27408ef231d80fe9bc1cb33cbfd215675ce05b56ea65fb3d173906c25"
    edges = Preprocess((800, 1333), fixed=False)
    assert edges.checksum() == "8dc359b67601c3562e253fe1769a844e641e8406fbcd805be7cf6d6862b23178"


def test_checksum_changes_with_every_parameter():
    base = Preprocess((448, 448))
    others = [
        replace(base, size=(448, 480)),
        replace(base, fixed=False),
        replace(base, mean=MEAN[::-1]),
        replace(base, std=(1.0, 1.0, 1.0)),
        replace(base, mean=(123.675, 116.28, 113.53)),
        replace(base, fixed=False, divisor=64),
        replace(base, warp=True),
        replace(base, warp=True, std=(1.0, 1.0, 1.0)),
        replace(base, warp=True, std=(1.0, 1.0, 1.0), mean=(123.675, 116.28, 113.53)),
        replace(base, warp=True, std=(1.0, 1.0, 1.0), mean=MEAN[::-1]),
    ]
    sums = [value.checksum(dtype) for value in (base, *others) for dtype in ("float32", "uint8")]
    assert len(set(sums)) == len(sums)
    assert base.checksum() == Preprocess((448, 448)).checksum()


@pytest.mark.parametrize(
    "value",
    [
        Preprocess((448, 448)),
        Preprocess((800, 1333), fixed=False),
        Preprocess((300, 300), std=(1.0, 1.0, 1.0), warp=True),
    ],
    ids=["fixed", "edges", "warp"],
)
def test_checksum_survives_one_grey_level_but_not_another_resize(value, monkeypatch):
    expected = value.checksum()
    original, rng = module.resize, np.random.default_rng(0)

    def noisy(image, height, width):
        noise = rng.integers(-1, 2, (height, width, 3))
        return np.clip(original(image, height, width) + noise, 0, 255).astype(np.uint8)

    monkeypatch.setattr(module, "resize", noisy)
    assert value.checksum() == expected
    for interpolation in (cv2.INTER_NEAREST, cv2.INTER_AREA, cv2.INTER_CUBIC):
        monkeypatch.setattr(
            module, "resize", lambda image, h, w, i=interpolation: cv2.resize(image, (w, h), interpolation=i)
        )
        assert value.checksum() != expected


def test_checksum_uses_most_points():
    value, image = Preprocess((448, 448)), fixture_image(427, 640)
    prepared, placement = value(image)
    grid = np.ix_(range(3), range(0, 448, 5), range(0, 448, 5))
    exact = value._reference(image, placement, prepared.shape[1:], grid)
    assert np.abs(prepared[grid] - exact).max() < 0.03  # the reference agrees with OpenCV to a grey level or so
    steady = np.abs(exact / 0.25 - np.round(exact / 0.25)) < 0.3
    assert steady.mean() > 0.5


def test_boxes_come_back_to_the_image():
    value = Preprocess((448, 448))
    placement = value.place(480, 640)
    box = np.array([100.0, 50, 300, 200], np.float32)
    scale = np.array([placement.scale_x, placement.scale_y] * 2, np.float32)
    boxes = np.stack([box * scale, [-5, -5, 500, 500], [10, 340, 20, 400], [1, 1, 2, 2]])[None].astype(np.float32)
    raw = (np.array([[3]], np.int32), boxes, np.ones((1, 4), np.float32), np.arange(4, dtype=np.int32)[None])
    found = to_detections(raw, 0, placement)
    np.testing.assert_allclose(found.boxes[0], box, rtol=1e-5)
    assert found.boxes[1].tolist() == [0, 0, 640, 480]
    assert found.labels.tolist() == [0, 1]  # the third lies in the padding, the fourth beyond num
    assert found.masks is None and found.image_size == (480, 640)


def test_boxes_come_back_to_a_warped_image():
    placement = Preprocess((300, 300), warp=True).place(480, 640)
    boxes = np.array([[[75, 100, 150, 200], [-9, -9, 310, 310]]], np.float32)
    raw = (np.array([[2]], np.int32), boxes, np.ones((1, 2), np.float32), np.zeros((1, 2), np.int32))
    found = to_detections(raw, 0, placement)
    np.testing.assert_allclose(found.boxes, [[160, 160, 320, 320], [0, 0, 640, 480]], rtol=1e-6)


def test_decode_refuses_broken_numbers():
    placement = Preprocess((64, 64)).place(64, 64)
    boxes, scores, labels = np.zeros((1, 2, 4)), np.zeros((1, 2)), np.zeros((1, 2), int)
    with pytest.raises(UserError, match="rows"):
        to_detections((np.array([[3]]), boxes, scores, labels), 0, placement)
    with pytest.raises(UserError, match="NaN"):
        to_detections((np.array([[2]]), boxes * np.nan, scores, labels), 0, placement)
    assert len(to_detections((np.array([[0]]), boxes * np.nan, scores, labels), 0, placement)) == 0


def test_speed():
    value, image = Preprocess((448, 448)), picture(480, 640)
    buffer = np.empty((3, 448, 448), np.float32)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        value(image, out=buffer)
        times.append(time.perf_counter() - start)
    print(f"preprocess 640x480 -> 448x448: median {1e3 * np.median(times):.2f} ms, best {1e3 * min(times):.2f} ms")
    assert min(times) < 0.010  # about 0.0015 when nothing else runs; the bound only catches a change of kind


def test_the_padding_of_a_uint8_canvas_is_exactly_zero_once_normalised():
    preprocess = Preprocess((64, 96))
    canvas, placement = preprocess.letterbox(fixture_image(80, 60))
    values = preprocess.normalise(canvas[None])[0]
    assert not values[:, :, placement.width :].any()
    own, _ = preprocess(fixture_image(80, 60))
    assert np.abs(values - own).max() < 0.5 / min(preprocess.std)  # a pixel of the padding's colour is zero as well
    colour = np.full((1, 2, 2, 3), preprocess.pad_colour, np.uint8)
    colour[0, 0, 0, 1] += 1  # another colour, in one channel
    values = preprocess.normalise(colour)
    assert values[0, :, 0, 0].all() and not values[0, :, 1].any()
    assert replace(preprocess, warp=True).normalise(colour).all()  # without padding all colours are the picture's
