"""Preprocessing: geometry, values, padding, checksum, speed."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from directdet.errors import UserError
from directdet.infer import preprocess as module
from directdet.infer.decode import to_detections
from directdet.infer.preprocess import MEAN, STD, Preprocess, fixture_image


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
    "image", [picture(5, 5)[:, :, 0], picture(5, 5).astype(np.float32), np.zeros((0, 5, 3), np.uint8)]
)
def test_refuses_other_images(image):
    with pytest.raises(ValueError, match="uint8"):
        Preprocess((64, 64))(image)
    with pytest.raises(ValueError, match="out"):
        Preprocess((64, 64))(picture(5, 5), out=np.zeros((3, 64, 65), np.float32))


def test_dictionary_round_trip_and_errors():
    for value in (Preprocess((448, 448)), Preprocess((800, 1333), False, 32, (1.0, 2.0, 3.0), (1.0, 1.0, 1.0))):
        assert Preprocess.from_dict(json.loads(json.dumps(value.to_dict())), "x") == value
    good = Preprocess((448, 448)).to_dict()
    for change in ({"size": [0, 5]}, {"size": [5]}, {"std": [0, 1, 1]}, {"mean": ["a", 1, 1]}, {"extra": 1}):
        with pytest.raises(UserError, match=r"meta\.json: preprocess"):
            Preprocess.from_dict(good | change, "meta.json")


def test_checksum_changes_with_every_parameter():
    base = Preprocess((448, 448))
    others = [
        replace(base, size=(448, 480)),
        replace(base, fixed=False),
        replace(base, mean=MEAN[::-1]),
        replace(base, std=(1.0, 1.0, 1.0)),
        replace(base, mean=(123.675, 116.28, 113.53)),
        replace(base, fixed=False, divisor=64),
    ]
    sums = [value.checksum() for value in (base, *others)]
    assert len(set(sums)) == len(sums)
    assert base.checksum() == Preprocess((448, 448)).checksum()


@pytest.mark.parametrize("size,fixed", [((448, 448), True), ((800, 1333), False)])
def test_checksum_survives_one_grey_level_but_not_another_resize(size, fixed, monkeypatch):
    value = Preprocess(size, fixed)
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
