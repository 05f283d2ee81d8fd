"""Geometry of samples: boxes and masks follow the pixels."""

import cv2
import numpy as np
import pytest

from directdet.data.augment.sample import Sample, clip_boxes, hflip, load_sample
from directdet.data.augment.transforms import EdgesTransform, PretrainTransform, direct_resize, short_edge_resize
from directdet.data.dataset import Record, load_dataset
from directdet.data.masks import rasterise
from directdet.data.pixels.format import RGB


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
        assert (result.image[height:] == RGB.padding).all() and (result.image[:, width:] == RGB.padding).all()
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


@pytest.mark.parametrize(
    ("size", "shrink", "expected"),
    [
        ((480, 640), 2, (400, 534)),  # 800 x 1067, the second half rounded up
        ((480, 640), 1.5, (533, 711)),
        ((100, 500), 4, (67, 333)),  # 267 x 1333
        ((3, 900), 10, (1, 133)),  # 4 x 1333: no edge goes under a pixel
    ],
)
def test_shrink_divides_the_edges_and_resamples_once(size, shrink, expected):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    sample = Sample(image, np.float32([[0, 0, size[1], size[0]]]), np.array([0]), None, size)
    result = EdgesTransform(flip=0, shrink=shrink)(sample, np.random.default_rng(0))
    assert result.size == expected
    once = cv2.resize(image, (expected[1], expected[0]), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(result.image, once)
    np.testing.assert_allclose(result.boxes, [[0, 0, expected[1], expected[0]]], rtol=1e-6)


def test_boxes_and_masks_follow_a_shrunk_picture():
    result = EdgesTransform(300, 500, flip=0, shrink=2.5)(painted(), np.random.default_rng(0))
    np.testing.assert_allclose(result.boxes[0], red_box(result), atol=1.01)
    assert rasterise(result.segmentations[0], result.boxes[0]).mean() > 0.97
    for shrink in (0.5, 0, float("nan")):
        with pytest.raises(ValueError, match=r"shrink = .*: must be at least 1"):
            EdgesTransform(shrink=shrink)


def test_short_edges_are_equally_likely_and_the_long_edge_holds():
    edges = (32, 35, 38, 41)
    transform = EdgesTransform(99, 60, short_edges=edges)  # the plain short edge is not among them
    short = [transform(painted(40, 50, (5, 5, 11, 11)), np.random.default_rng(seed)).size[0] for seed in range(400)]
    counts = [short.count(edge) for edge in edges]
    assert sum(counts) == 400 and all(70 < count < 130 for count in counts)  # 100 each, +- 3.4 standard deviations
    # 1:1.8: the long edge is the limit from 35 on.
    sizes = {transform(painted(40, 72, (5, 5, 11, 11)), np.random.default_rng(seed)).size for seed in range(40)}
    assert sizes == {(32, 58), (33, 60)}


def test_draws_hang_neither_on_the_picture_nor_on_shrink():
    def draws(sample, shrink):
        transform = EdgesTransform(40, 200, shrink=shrink, short_edges=(40, 60, 80))
        result = []
        for seed in range(30):
            rng = np.random.default_rng(seed)
            moved = transform(sample, rng)
            flipped = moved.boxes[0, 0] > moved.size[1] / 2
            result.append((round(min(moved.size) * shrink / 20), bool(flipped), rng.random()))
        return result

    first = draws(painted(40, 60, (5, 5, 20, 20)), 1)
    assert len(set(first)) == 30 and {(edge, flip) for edge, flip, _ in first} == {
        (edge, flip) for edge in (2, 3, 4) for flip in (False, True)
    }
    assert first == draws(painted(90, 70, (5, 5, 20, 20)), 1) == draws(painted(40, 60, (5, 5, 20, 20)), 2)


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
    assert (flipped.image[height:] == RGB.padding).all() and (flipped.image[:, width:] == RGB.padding).all()
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
        for transform in (PretrainTransform(64), EdgesTransform(20, 33)):
            for seed in range(4):
                result = transform(sample, np.random.default_rng(seed))
                assert result.boxes.shape == (0, 4) and result.segmentations == shapes


def test_flip_happens_half_the_time():
    sample = painted(40, 60, (5, 5, 11, 11))
    flips = [EdgesTransform(40, 66)(sample, np.random.default_rng(seed)).boxes[0, 0] > 30 for seed in range(200)]
    assert 70 < sum(flips) < 130
    assert EdgesTransform(40, 66, flip=0)(sample, np.random.default_rng(0)).boxes[0, 0] < 30


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


def test_subset_is_drawn_by_its_seed_and_keeps_the_order(synthetic):
    whole = load_dataset(synthetic, "train")
    place = {record.image_id: index for index, record in enumerate(whole.records)}

    def drawn(fraction, seed):
        part = whole.subset(fraction, seed)
        assert (part.classes, part.category_ids, part.split) == (whole.classes, whole.category_ids, whole.split)
        assert all(record is whole.records[place[record.image_id]] for record in part.records)
        return [place[record.image_id] for record in part.records]

    for fraction, count in ((1, 12), (0.5, 6), (0.1, 1), (1e-9, 1), (0.125, 2)):
        assert len(drawn(fraction, 0)) == count
    assert drawn(1, 3) == list(range(12))
    draws = [drawn(0.25, seed) for seed in range(40)]
    assert draws == [drawn(0.25, seed) for seed in range(40)]
    assert all(indices == sorted(set(indices)) for indices in draws)
    assert {index for indices in draws for index in indices} == set(range(12))  # no picture is left out by all seeds
    assert all(set(drawn(0.25, seed)) < set(drawn(0.5, seed)) for seed in range(5))
    assert whole.has_masks and whole.subset(0.5, 0).has_masks
    for fraction in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="more than 0 and at most 1"):
            whole.subset(fraction, 0)


def test_record_lists_must_agree(tmp_path):
    with pytest.raises(ValueError, match="differ in length"):
        Record(1, tmp_path, 5, 5, np.zeros((1, 4), np.float32), np.zeros(2), np.zeros(1), np.zeros(1), (None,), (1,))
