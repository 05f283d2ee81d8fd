"""Detections: validation, mask pasting, run-length encoding."""

from __future__ import annotations

import time

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from directdet.infer.decode import to_detections
from directdet.infer.detections import Detections, encode_crop, paste_crop
from directdet.infer.preprocess import Placement


def slow_paste(mask: np.ndarray, box, image_size) -> np.ndarray:
    """Bilinear sampling at every pixel centre of the image, zero beyond the mask: `grid_sample` in float64 loops."""
    cells = mask.shape[0]
    result = np.zeros(image_size, bool)
    padded = np.pad(mask.astype(np.float64), 1)
    for y in range(image_size[0]):
        for x in range(image_size[1]):
            v = (y + 0.5 - box[1]) / (box[3] - box[1]) * cells - 0.5
            u = (x + 0.5 - box[0]) / (box[2] - box[0]) * cells - 0.5
            if not (-1 < u < cells and -1 < v < cells):
                continue
            j, i = int(np.floor(v)), int(np.floor(u))
            b, a = v - j, u - i
            block = padded[j + 1 : j + 3, i + 1 : i + 3]
            result[y, x] = block[0] @ [1 - a, a] * (1 - b) + block[1] @ [1 - a, a] * b >= 0.5
    return result


def smooth_masks(rng: np.random.Generator, count: int) -> np.ndarray:
    """Blobs of probability, float32 [count, 28, 28]."""
    grid = np.mgrid[0:28, 0:28].astype(np.float64)
    masks = []
    for _ in range(count):
        centre, radius = rng.uniform(8, 20, 2), rng.uniform(6, 13, 2)
        distance = (((grid - centre[:, None, None]) / radius[:, None, None]) ** 2).sum(0)
        masks.append(1 / (1 + np.exp(4 * (distance - 1))))
    return np.array(masks, np.float32)


def make(boxes, masks=None, size=(60, 80)) -> Detections:
    count = len(boxes)
    return Detections(np.array(boxes, np.float32), np.full(count, 0.5), np.zeros(count, int), masks, size)


def test_paste_equals_slow_reference():
    rng = np.random.default_rng(1)
    boxes = [[3.3, 4.7, 41.2, 50.1], [-10.5, -8.2, 30.6, 20.4], [50, 30, 95.5, 75.2], [20.1, 20.2, 24.9, 59.9]]
    masks = smooth_masks(rng, len(boxes))
    pasted = make(boxes, masks).full_masks()
    for mask, box, found in zip(masks, boxes, pasted, strict=True):
        assert found.dtype == bool and found.any()
        # float32 against float64: a pixel exactly at the threshold may fall either way
        assert (found != slow_paste(mask, box, (60, 80))).sum() <= 1


@pytest.mark.parametrize("scale", [1.0, 1.6])
@pytest.mark.parametrize(("x", "y"), [(80, 30), (40, 60), (80, 60), (0, 0), (40, 30)])
def test_a_mask_that_reaches_into_the_padding_is_not_squeezed(x, y, scale):
    """The picture, 60 x 80, is in the corner of a larger canvas; the network saw a disk of which the border cuts off a
    part, and predicted the whole of it."""
    radius, (height, width) = 25.0, (60, 80)
    cells = (np.arange(28) + 0.5) / 28 * 2 - 1
    disk = (1 / (1 + np.exp(40 * (np.hypot(cells, cells[:, None]) - 1)))).astype(np.float32)
    box = np.array([x - radius, y - radius, x + radius, y + radius], np.float32)
    raw = [np.array([[1]]), box[None, None] * scale, np.ones((1, 1), np.float32), np.zeros((1, 1)), disk[None, None]]
    found = to_detections(raw, 0, Placement(scale, scale, int(height * scale), int(width * scale), height, width))
    rows, columns = np.mgrid[:height, :width] + 0.5
    truth = np.hypot(columns - x, rows - y) <= radius
    mask = found.full_masks()[0]
    assert (mask & truth).sum() / (mask | truth).sum() > 0.95
    np.testing.assert_allclose(found.boxes[0], np.clip(box, 0, [width, height] * 2))
    assert np.array_equal(found.above(0.5).full_masks(), found.full_masks())


@pytest.mark.parametrize(
    ("low", "high", "seen"), [(-30.0, 0.3, [0]), (79.7, 130.0, [79]), (-5.0, -0.1, []), (80.0, 99.0, [])]
)
def test_what_is_seen_of_a_box_may_be_thinner_than_a_pixel(low, high, seen):
    x, _, crop = paste_crop(np.ones((28, 28), np.float32), np.array([low, 10.0, high, 20.0]), (60, 80))
    assert [x + column for column in range(crop.shape[1])] == seen and crop.all()


def test_paste_agrees_with_torchvision():
    torch = pytest.importorskip("torch")
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    rng = np.random.default_rng(2)
    low = rng.uniform(0, 150, (20, 2))
    boxes = np.concatenate([low, low + rng.uniform(80, 300, (20, 2))], 1).clip(0, [[470, 350, 470, 350]])
    masks = smooth_masks(rng, 20)
    ours = make(boxes, masks, (350, 470)).full_masks()
    theirs = paste_masks_in_image(
        torch.from_numpy(masks)[:, None], torch.from_numpy(boxes).float(), (350, 470), padding=1
    )[:, 0].numpy()
    overlap = (ours & (theirs >= 0.5)).sum((1, 2)) / (ours | (theirs >= 0.5)).sum((1, 2))
    assert overlap.min() >= 0.95  # torchvision rounds the box to whole pixels first


def test_paste_is_shift_invariant_by_whole_pixels():
    mask = smooth_masks(np.random.default_rng(3), 1)[0]
    first = make([[5.3, 6.1, 30.2, 29.7]], mask[None]).full_masks()[0]
    second = make([[15.3, 16.1, 40.2, 39.7]], mask[None]).full_masks()[0]
    assert np.array_equal(first[:40, :60], second[10:50, 10:70])


@pytest.mark.parametrize(
    "box,pixels",
    [
        ([7, 5, 8, 6], 1),  # exactly one pixel
        ([7.2, 5.3, 7.4, 5.4], 1),  # thinner than a pixel, holds no centre
        ([79, 59, 80, 60], 1),  # bottom right corner
        ([0, 0, 80, 60], 80 * 60 - 4),  # in the very corners the product of both falls is under 0.5
        ([-1000, -1000, 1000, 1000], 80 * 60),
        ([0, 3, 80, 4], 80),
    ],
)
def test_paste_at_extremes(box, pixels):
    found = make([box], np.ones((1, 28, 28), np.float32))
    assert found.full_masks().sum() == pixels


@pytest.mark.parametrize(
    "box", [[90, 10, 120, 30], [-30, -30, -10, -5], [20, 70, 30, 90], [5, 5, 5, 9], [80, 0, 80, 60]]
)
def test_paste_outside_or_without_area_is_empty(box):
    found = make([box], np.ones((1, 28, 28), np.float32))
    assert not found.full_masks().any()
    entry = found.to_coco(1, (1,))[0]
    assert coco_mask.area(entry["segmentation"]) == 0


def test_encode_crop_equals_encoding_the_picture():
    rng = np.random.default_rng(4)
    for x, y, height, width in (
        (0, 0, 13, 17),
        (3, 4, 5, 6),
        (12, 2, 11, 5),
        (0, 12, 1, 17),
        (5, 5, 0, 0),
        (4, 0, 13, 9),
    ):
        crop = rng.random((height, width)) > 0.4
        full = np.zeros((13, 17), np.uint8)
        full[y : y + height, x : x + width] = crop
        expected = coco_mask.encode(np.asfortranarray(full))
        assert encode_crop(x, y, crop, (13, 17)) == {"size": [13, 17], "counts": expected["counts"].decode()}
    for y, x, height, width in ((0, 0, 13, 17), (0, 3, 13, 5), (2, 3, 11, 5), (0, 0, 12, 17), (12, 16, 1, 1)):
        full = np.zeros((13, 17), np.uint8)
        full[y : y + height, x : x + width] = 1  # runs that go on from column to column, or end with the picture
        found = encode_crop(x, y, np.ones((height, width), bool), (13, 17))
        assert found["counts"] == coco_mask.encode(np.asfortranarray(full))["counts"].decode()


def test_to_coco():
    masks = smooth_masks(np.random.default_rng(5), 2)
    found = Detections([[1, 2, 11, 22], [0, 0, 5, 5]], [0.75, 0.5], [1, 0], masks, (60, 80))
    first, second = found.to_coco(42, (7, 90))
    assert first["bbox"] == [1, 2, 10, 20] and first["category_id"] == 90 and first["score"] == 0.75
    assert second["category_id"] == 7 and second["image_id"] == 42
    assert np.array_equal(coco_mask.decode(first["segmentation"]).astype(bool), found.full_masks()[0])
    assert "segmentation" not in Detections([[1, 2, 3, 4]], [1], [0], None, (9, 9)).to_coco(1, (1,))[0]


def test_nothing_found():
    found = Detections(np.zeros((0, 4)), [], [], np.zeros((0, 28, 28)), (5, 6))
    assert found.full_masks().shape == (0, 5, 6) and found.to_coco(1, (1,)) == [] and len(found.above(0.5)) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": np.zeros((2, 5))},
        {"scores": np.zeros(3)},
        {"labels": np.array([0, -1])},
        {"boxes": np.full((2, 4), np.nan)},
        {"scores": np.array([0.1, np.inf])},
        {"masks": np.zeros((1, 28, 28))},
        {"image_size": (0, 5)},
    ],
)
def test_validation(change):
    good = {"boxes": np.zeros((2, 4)), "scores": np.zeros(2), "labels": np.zeros(2, int), "masks": None}
    with pytest.raises(ValueError):
        Detections(**({**good, "image_size": (5, 5)} | change))


def test_above_keeps_rows_together():
    masks = smooth_masks(np.random.default_rng(6), 3)
    found = Detections(np.arange(12).reshape(3, 4), [0.2, 0.9, 0.5], [0, 1, 2], masks, (60, 80)).above(0.5)
    assert found.labels.tolist() == [1, 2] and np.array_equal(found.masks, masks[1:])


def test_pasting_a_hundred_masks_is_quick():
    rng = np.random.default_rng(7)
    low = rng.uniform(0, 300, (100, 2))
    boxes = np.concatenate([low, low + rng.uniform(10, 180, (100, 2))], 1)
    masks = smooth_masks(rng, 100)
    start = time.perf_counter()
    for mask, box in zip(masks, boxes, strict=True):
        paste_crop(mask, box, (480, 640))
    assert time.perf_counter() - start < 0.5  # takes about 0.02; the bound only catches a change of kind
