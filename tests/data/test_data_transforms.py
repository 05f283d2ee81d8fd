"""Geometry of samples: boxes and masks follow the pixels."""

import numpy as np
import pytest

from directdet.data.dataset import Record, load_dataset
from directdet.data.image import PAD_COLOUR
from directdet.data.transforms import (
    FinetuneTransform,
    PretrainTransform,
    Sample,
    clip_boxes,
    direct_resize,
    hflip,
    load_sample,
    rasterise,
    short_edge_resize,
)


def painted(height=150, width=210, box=(40, 30, 121, 96)):
    """A red rectangle on blue, its box, and its outline as a polygon."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 2] = 255
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = (255, 0, 0)
    polygon = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)
    return Sample(image, np.float32([box]), np.array([2]), ([polygon],), (height, width))


def red_box(sample):
    # Padding is grey and blended pixels are purple: red where it outweighs both others.
    red = (sample.image[..., 0].astype(int) - sample.image[..., 2] > 0) & (sample.image[..., 1] < 60)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.mark.parametrize("size", [(150, 210), (211, 149), (97, 97)])
@pytest.mark.parametrize("length", [448, 101])
def test_direct_resize_boxes_follow_the_pixels(size, length):
    cropped = padded = 0
    for seed in range(12):
        sample = painted(*size, box=(20, 15, 81, 76))
        result = direct_resize(sample, length, np.random.default_rng(seed))
        assert result.image.shape == (length, length, 3) and result.image.flags.c_contiguous
        height, width = result.size
        assert height <= length and width <= length
        assert (result.image[height:] == PAD_COLOUR).all() and (result.image[:, width:] == PAD_COLOUR).all()
        (box,) = result.boxes
        assert (box[:2] >= 0).all() and box[2] <= width and box[3] <= height and box.dtype == np.float32
        np.testing.assert_allclose(box, red_box(result), atol=1.01)
        assert rasterise(result.segmentations[0], box).mean() > 0.97
        cropped += max(size) / min(size) < 1.01 and height == length
        padded += height < length
    assert padded and (cropped or size != (97, 97))


def test_direct_resize_crops_above_one_and_pads_below():
    sample = painted(200, 300)
    assert direct_resize(sample, 100, np.random.default_rng(0), (0.8, 0.8)).size == (53, 80)
    assert direct_resize(sample, 100, np.random.default_rng(0), (1.0, 1.0)).size == (67, 100)
    assert direct_resize(sample, 100, np.random.default_rng(0), (1.2, 1.2)).size == (80, 100)
    square = painted(200, 200)
    crops = [direct_resize(square, 100, np.random.default_rng(seed), (1.2, 1.2)) for seed in range(30)]
    assert all(crop.size == (100, 100) for crop in crops)
    starts = {tuple(np.round(crop.boxes[0, :2]).astype(int)) for crop in crops}
    assert len(starts) > 15  # the window is drawn at random, in both directions
    assert len({x for x, _ in starts}) > 5 and len({y for _, y in starts}) > 5


def test_direct_resize_is_reproducible_and_leaves_its_input():
    sample = painted()
    before = sample.image.copy(), sample.boxes.copy()
    first, second = (direct_resize(sample, 64, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    np.testing.assert_array_equal(sample.image, before[0])
    np.testing.assert_array_equal(sample.boxes, before[1])


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((100, 500), (267, 1333))]
)
def test_short_edge_resize(size, expected):
    sample = short_edge_resize(painted(*size, box=(10, 12, 51, 77)))
    assert sample.image.shape[:2] == sample.size == expected
    np.testing.assert_allclose(sample.boxes[0], red_box(sample), atol=1.01)
    assert rasterise(sample.segmentations[0], sample.boxes[0]).mean() > 0.97


@pytest.mark.parametrize("width", [210, 211])
def test_hflip_is_exact_and_its_own_inverse(width):
    sample = painted(width=width)
    flipped = hflip(sample)
    np.testing.assert_array_equal(flipped.image, sample.image[:, ::-1])
    np.testing.assert_array_equal(flipped.boxes[0], red_box(flipped))
    assert rasterise(flipped.segmentations[0], flipped.boxes[0]).all()
    again = hflip(flipped)
    np.testing.assert_array_equal(again.image, sample.image)
    np.testing.assert_array_equal(again.boxes, sample.boxes)
    np.testing.assert_array_equal(again.segmentations[0][0], sample.segmentations[0][0])


def test_hflip_leaves_padding_where_it_is():
    padded = direct_resize(painted(), 256, np.random.default_rng(0), (0.8, 0.8))
    flipped = hflip(padded)
    height, width = padded.size
    assert flipped.size == padded.size
    np.testing.assert_array_equal(flipped.image[:height, :width], padded.image[:height, width - 1 :: -1])
    assert (flipped.image[height:] == PAD_COLOUR).all() and (flipped.image[:, width:] == PAD_COLOUR).all()
    np.testing.assert_allclose(flipped.boxes[0], red_box(flipped), atol=1.01)


def test_clip_boxes_drops_what_is_left_under_a_pixel():
    boxes = np.float32([[-5, -5, 3, 3], [9.5, 2, 14, 8], [9, 2, 14, 8], [4, 4, 5, 5], [4, 4, 4.5, 8], [20, 20, 30, 30]])
    shapes = tuple([np.full((3, 2), index, np.float64)] for index in range(6))
    sample = Sample(np.zeros((10, 10, 3), np.uint8), boxes, np.arange(6), shapes, (10, 10))
    clipped = clip_boxes(sample)
    assert clipped.labels.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(clipped.boxes, np.float32([[0, 0, 3, 3], [9, 2, 10, 8], [4, 4, 5, 5]]))
    assert [shape[0][0, 0] for shape in clipped.segmentations] == [0, 2, 3]


def test_samples_without_objects_or_masks():
    image = np.zeros((30, 40, 3), np.uint8)
    for shapes in (None, ()):
        sample = Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), shapes, (30, 40))
        for transform in (PretrainTransform(64), FinetuneTransform(20, 33)):
            for seed in range(4):
                result = transform(sample, np.random.default_rng(seed))
                assert result.boxes.shape == (0, 4) and result.segmentations == shapes


def test_flip_happens_half_the_time():
    sample = painted(40, 60, (5, 5, 11, 11))
    flips = [FinetuneTransform(40, 66)(sample, np.random.default_rng(seed)).boxes[0, 0] > 30 for seed in range(200)]
    assert 70 < sum(flips) < 130
    assert FinetuneTransform(40, 66, flip=0)(sample, np.random.default_rng(0)).boxes[0, 0] < 30


def test_load_sample_leaves_out_crowd_but_keeps_difficult(synthetic):
    record = next(item for item in load_dataset(synthetic, "train").records if item.crowd.any())
    sample = load_sample(record, masks=True)
    assert len(sample.boxes) == len(sample.labels) == len(sample.segmentations) == (~record.crowd).sum()
    assert sample.size == (record.height, record.width) == sample.image.shape[:2]
    assert load_sample(record, masks=False).segmentations is None
    plain = Record(
        1, record.path, record.width, record.height, np.float32([[1, 1, 5, 5]]), np.array([0]), np.array([False]),
        np.array([True]), (None,), (1,),
    )  # fmt: skip
    assert len(load_sample(plain, masks=False).boxes) == 1
    assert plain.areas.tolist() == [16]
    with pytest.raises(ValueError, match="no mask"):
        load_sample(plain, masks=True)


def test_record_lists_must_agree(tmp_path):
    with pytest.raises(ValueError, match="differ in length"):
        Record(1, tmp_path, 5, 5, np.zeros((1, 4), np.float32), np.zeros(2), np.zeros(1), np.zeros(1), (None,), (1,))
