"""SSD's augmentation: torchvision.transforms.v2 as oracle where it has the operation, plain loops elsewhere."""

import math

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, clip_boxes_to_image
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes

from directdet.data.augment import ssd_transforms as module
from directdet.data.augment.sample import Sample
from directdet.data.augment.ssd_transforms import (
    INTERPOLATIONS,
    OVERLAPS,
    TRIALS,
    SSDTransform,
    adjust_colours,
    crop,
    distort,
    expand,
    reduce,
    sample_window,
    warp,
)
from directdet.data.dataset import load_dataset
from directdet.data.loader import Padding, make_loader
from directdet.data.masks import rasterise
from directdet.data.pixels.format import RGB
from directdet.data.sampling import Sampling

functional = v2.functional


def smooth(height=60, width=90, seed=0):
    """A picture without sharp edges, all colours in it."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def random_boxes(count, height, width, seed=0):
    corners = np.random.default_rng(seed).random((2, count, 2)) * (width - 2, height - 2)
    return np.concatenate([corners.min(axis=0), corners.max(axis=0) + 2], axis=1).astype(np.float32)


def sample_of(height=60, width=90, count=7, seed=0):
    return Sample(
        smooth(height, width, seed), random_boxes(count, height, width, seed), np.arange(count), None, (height, width)
    )


def tensor(image):
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def bounding_boxes(sample):
    return BoundingBoxes(torch.from_numpy(sample.boxes), format="XYXY", canvas_size=sample.size)


def difference(image, theirs):
    return np.abs(image.transpose(2, 0, 1).astype(int) - theirs.numpy().astype(int)).max()


@pytest.mark.parametrize("factor", [0.5, 0.83, 1.21, 1.5])
def test_contrast_is_what_torchvision_calls_brightness(factor):
    image = smooth()
    # torchvision cuts off where we round.
    assert difference(adjust_colours(image, contrast=factor), functional.adjust_brightness(tensor(image), factor)) <= 1


def test_brightness_and_the_order_of_contrast():
    image = smooth()
    for change in (-32.0, -7.4, 12.6, 32.0):
        expected = np.clip(np.rint(image + change), 0, 255)
        np.testing.assert_array_equal(adjust_colours(image, change), expected)
        np.testing.assert_array_equal(
            adjust_colours(image, change, 1.3),
            np.clip(np.rint(expected * 1.3), 0, 255),
            err_msg="brightness comes first",
        )
    first = adjust_colours(adjust_colours(image, 20.0, 1.4), 0.0, 1.0, 0.6, 11.0)
    last = adjust_colours(adjust_colours(image, 20.0, 1.0, 0.6, 11.0), contrast=1.4)
    np.testing.assert_array_equal(adjust_colours(image, 20.0, 1.4, 0.6, 11.0), first)
    np.testing.assert_array_equal(adjust_colours(image, 20.0, 1.4, 0.6, 11.0, contrast_last=True), last)
    assert (first != last).mean() > 0.1
    np.testing.assert_array_equal(adjust_colours(image), image)


@pytest.mark.parametrize("steps", [-18, -5, 1, 9, 18])
def test_hue_is_torchvisions(steps):
    image = smooth()
    found = adjust_colours(image, hue=float(steps))
    theirs = functional.adjust_hue(tensor(image), steps / 180)
    # OpenCV rounds hue to steps of 2 degrees, of which 60 are 255 levels at most: half a step is 4.25. Rounding value
    # and saturation adds one level each, and converting back another.
    assert difference(found, theirs) <= 8
    assert np.abs(found.transpose(2, 0, 1).astype(int) - theirs.numpy()).mean() < 1.5
    assert np.abs(found.astype(int) - image).mean() > (1 if steps == 1 else 5)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.2, 1.5])
def test_saturation_stretches_the_distance_from_the_largest_channel(factor):
    image = smooth().astype(np.float64)
    largest, smallest = image.max(axis=2, keepdims=True), image.min(axis=2, keepdims=True)
    limit = largest / np.maximum(largest - smallest, 1e-9)  # where the smallest channel is 0
    expected = largest - (largest - image) * np.minimum(factor, limit)
    found = adjust_colours(image.astype(np.uint8), saturation=factor)
    assert np.abs(found - expected).max() <= 8  # as for the hue, which passes through the same table
    assert np.abs(found - expected).mean() < 1.5


def test_each_colour_changes_half_the_time(monkeypatch):
    seen = []
    monkeypatch.setattr(
        module, "adjust_colours", lambda _, *changes, contrast_last: seen.append((*changes, contrast_last))
    )
    for seed in range(600):
        distort(np.zeros((2, 2, 3), np.uint8), np.random.default_rng(seed))
    seen = np.array(seen, float)
    neutral = np.array([0, 1, 1, 0])
    changed = seen[:, :4] != neutral
    assert (abs(changed.mean(axis=0) - 0.5) < 0.08).all() and abs(seen[:, 4].mean() - 0.5) < 0.08  # 4 deviations
    assert (np.abs(np.corrcoef(changed.T)[np.triu_indices(4, 1)]) < 0.17).all()  # each on its own
    reach = np.array([32, 0.5, 0.5, 18])
    amounts = (seen[:, :4] - neutral) / reach
    assert np.abs(amounts).max() <= 1
    assert (amounts.max(axis=0) > 0.95).all() and (amounts.min(axis=0) < -0.95).all()


def test_expansion_is_torchvisions_padding():
    ratios, places = [], []
    for seed in range(300):
        sample = sample_of(40, 50)
        result = expand(sample, np.random.default_rng(seed))
        (height, width) = result.size
        assert result.image.shape == (height, width, 3)
        if result.size == sample.size:
            np.testing.assert_array_equal(result.boxes, sample.boxes)
            continue
        left, top = np.rint(result.boxes[0, :2] - sample.boxes[0, :2]).astype(int).tolist()
        padding = [left, top, width - 50 - left, height - 40 - top]
        theirs = functional.pad(tensor(sample.image), padding, fill=list(RGB.padding))
        assert difference(result.image, theirs) == 0
        expected = functional.pad(bounding_boxes(sample), padding)
        np.testing.assert_allclose(result.boxes, expected.numpy(), rtol=1e-6)
        assert abs(width / 50 - height / 40) <= 1 / 40  # in proportion, to a pixel
        ratios.append(width / 50)
        places.append((top / max(height - 40, 1), left / max(width - 50, 1)))
    assert 110 < len(ratios) < 190  # half of 300, +- 4.6 deviations
    assert 1 <= min(ratios) < 1.2 and 3.8 < max(ratios) <= 4 and abs(np.mean(ratios) - 2.5) < 0.3
    places = np.array(places)
    assert places.min() >= 0 and places.max() <= 1 and (abs(places.mean(axis=0) - 0.5) < 0.1).all()


def holds_centre(window, box):
    x, y = (float(box[0]) + float(box[2])) / 2, (float(box[1]) + float(box[3])) / 2
    return window[0] < x < window[2] and window[1] < y < window[3]


@pytest.mark.parametrize("overlap", [value for value in OVERLAPS if value is not None])
def test_windows_keep_every_constraint(overlap):
    height, width = 120, 160
    cut = 0
    for seed in range(250):
        boxes = random_boxes(1 + seed % 5, height, width, seed)
        if seed % 2:
            boxes[-1] = (8, 6, 152, 114)  # large enough for the large overlaps
        window = sample_window(boxes, height, width, np.random.default_rng(seed), (overlap,))
        x1, y1, x2, y2 = window.tolist()
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        if (x1, y1, x2, y2) == (0, 0, width, height):
            continue  # no window of the fifty would do
        cut += 1
        assert box_iou(torch.from_numpy(window[None]).double(), torch.from_numpy(boxes).double()).max() >= overlap
        assert any(holds_centre(window, box) for box in boxes)
        share_x, share_y = (x2 - x1) / width, (y2 - y1) / height
        pixel = 1 / height  # rounding moves an edge by half of one
        assert math.sqrt(share_x * share_y) >= 0.3 - pixel
        assert 0.5 - 3 * pixel / share_y <= share_x / share_y <= 2 + 3 * pixel / share_y
    assert cut > (25 if overlap == 0.9 else 100)


def slow_window(boxes, height, width, rng):
    """(the overlap asked for, the window): sample_window's draws gone through one by one."""
    order, draws = rng.permutation(len(OVERLAPS)), rng.random((len(OVERLAPS), TRIALS, 4))
    for way in order:
        if OVERLAPS[way] is None:
            break
        for draw in draws[way].tolist():
            scale = 0.3 + 0.7 * draw[0]
            aspect = max(min(0.5 + 1.5 * draw[1], scale**-2), scale**2)
            w = min(max(round(scale * math.sqrt(aspect) * width), 1), width)
            h = min(max(round(scale / math.sqrt(aspect) * height), 1), height)
            x, y = int(draw[2] * (width - w + 1)), int(draw[3] * (height - h + 1))
            window = [x, y, x + w, y + h]
            overlaps = box_iou(torch.tensor([window]).double(), torch.from_numpy(boxes).double())[0].tolist()
            if any(holds_centre(window, box) for box in boxes) and max(overlaps) >= OVERLAPS[way]:
                return OVERLAPS[way], window
    return None, [0, 0, width, height]


def test_the_first_window_that_fits_is_taken():
    taken = set()
    for seed in range(120):
        boxes = random_boxes(seed % 4, 90, 130, seed)
        if seed % 2:
            boxes[0] = (5, 4, 126, 87)
        overlap, expected = slow_window(boxes, 90, 130, np.random.default_rng(seed))
        assert sample_window(boxes, 90, 130, np.random.default_rng(seed)).tolist() == expected
        taken.add(overlap)
    assert taken == set(OVERLAPS)


def test_ways_that_can_be_gone_are_equally_likely():
    boxes = np.float32([[1, 1, 99, 99]])  # nearly everything: windows of any overlap are found
    windows = [sample_window(boxes, 100, 100, np.random.default_rng(seed)).tolist() for seed in range(1400)]
    whole = sum(window == [0, 0, 100, 100] for window in windows)
    assert 140 < whole < 260  # a seventh is 200, +- 4.6 deviations
    # Too small an object for 0.9: the other two ways share the draws.
    small, ways = np.float32([[40, 40, 60, 60]]), (None, 0.9, 0.0)
    windows = [sample_window(small, 100, 100, np.random.default_rng(seed), ways).tolist() for seed in range(600)]
    whole = sum(window == [0, 0, 100, 100] for window in windows)
    assert 245 < whole < 355  # a half is 300, +- 4.5 deviations


def test_crop_keeps_objects_by_their_centre():
    """Against torchvision's crop of picture and boxes, objects chosen one by one."""
    dropped = 0
    for seed in range(80):
        sample = sample_of(seed=seed)
        window = sample_window(sample.boxes, *sample.size, np.random.default_rng(seed), (0.1, 0.0))
        x1, y1, x2, y2 = window.tolist()
        result = crop(sample, window)
        assert difference(result.image, functional.crop(tensor(sample.image), y1, x1, y2 - y1, x2 - x1)) == 0
        kept = [index for index, box in enumerate(sample.boxes) if holds_centre(window, box)]
        assert result.labels.tolist() == kept and len(kept) >= 1 and result.size == (y2 - y1, x2 - x1)
        moved = functional.crop(bounding_boxes(sample), y1, x1, y2 - y1, x2 - x1)
        theirs = clip_boxes_to_image(moved.as_subclass(torch.Tensor), result.size)
        np.testing.assert_allclose(result.boxes, theirs.numpy()[kept], atol=1e-4)
        dropped += len(sample.boxes) - len(kept)
    assert dropped > 80


@pytest.mark.parametrize(
    ("interpolation", "name", "levels"),
    [(cv2.INTER_LINEAR, "BILINEAR", 1), (cv2.INTER_NEAREST, "NEAREST", 0), (cv2.INTER_CUBIC, "BICUBIC", 2)],
)
def test_warp_is_torchvisions_resize(interpolation, name, levels):
    sample = sample_of(60, 90)
    result = warp(sample, 77, interpolation)
    mode = v2.InterpolationMode[name]
    theirs = functional.resize(tensor(sample.image), [77, 77], interpolation=mode, antialias=False)
    assert difference(result.image, theirs) <= levels  # fixed-point weights in OpenCV
    expected = functional.resize(bounding_boxes(sample), [77, 77])
    np.testing.assert_allclose(result.boxes, expected.numpy(), atol=1e-4)
    assert result.size == (77, 77)


def painted():
    """A red rectangle on blue, its box, and its outline as a polygon."""
    image = np.zeros((150, 210, 3), np.uint8)
    image[..., 2] = 255
    image[30:96, 40:121] = (255, 0, 0)
    polygon = np.array([[40, 30], [121, 30], [121, 96], [40, 96]], np.float64)
    return Sample(image, np.float32([[40, 30, 121, 96]]), np.array([2]), ([polygon],), (150, 210))


def test_boxes_and_masks_follow_the_pixels(monkeypatch):
    monkeypatch.setattr(module, "distort", lambda image, rng: image)  # red stays red
    sample, seen = painted(), set()
    for seed in range(60):
        result = SSDTransform(300)(sample, np.random.default_rng(seed))
        red = (result.image[..., 0].astype(int) - result.image[..., 2] > 0) & (result.image[..., 1] < 60)
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        (box,) = result.boxes
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        # A source pixel is up to 300 / (0.21 * 150) = 9 pixels here, and interpolation blurs the edge by half of it.
        source_pixel = max(box[2] - box[0], box[3] - box[1]) / 66
        np.testing.assert_allclose(box, edges, atol=1.01 + source_pixel / 2)
        assert rasterise(result.segmentations[0], box).mean() > 0.97
        seen.add(tuple(np.round(box / 30)))
    assert len(seen) > 30


def test_boxes_and_masks_follow_the_pixels_of_huge_images(monkeypatch):
    """Limits that make the painted image huge, with every canvas smaller than the network's input asks for."""
    monkeypatch.setattr(module, "MOST_PIXELS", 1)
    monkeypatch.setattr(module, "MOST_CANVAS_PIXELS", 40_000)
    monkeypatch.setattr(module, "distort", lambda image, rng: image)
    seen = []
    monkeypatch.setattr(module, "crop", lambda sample, window: seen.append(sample) or crop(sample, window))
    sample = painted()
    for seed in range(40):
        result = SSDTransform(30)(sample, np.random.default_rng(seed))
        canvas = seen[-1]
        assert canvas.image.shape[0] * canvas.image.shape[1] <= 40_000
        red = (canvas.image[..., 0] > 128) & (canvas.image[..., 1] < 60)
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(canvas.boxes[0], edges, atol=1.01)
        np.testing.assert_allclose(
            np.ptp(canvas.segmentations[0][0], axis=0), canvas.boxes[0, 2:] - canvas.boxes[0, :2], atol=1e-3
        )
        assert result.image.shape == (30, 30, 3) and len(result.boxes) == 1
    assert len({canvas.size for canvas in seen}) > 5


def test_ordinary_images_are_not_reduced():
    sample = painted()
    assert reduce(sample, 150 * 210) is sample
    smaller = reduce(sample, 150 * 210 // 4)
    assert smaller.size == (75, 105)
    np.testing.assert_allclose(smaller.boxes, sample.boxes / 2)
    np.testing.assert_allclose(smaller.segmentations[0][0], sample.segmentations[0][0] / 2)


def test_result_is_a_square_and_draws_hang_on_the_generator_alone():
    sample = sample_of(70, 100)
    before = sample.image.copy(), sample.boxes.copy()
    for seed in range(40):
        rngs = [np.random.default_rng(seed) for _ in range(3)]
        first, second = (SSDTransform(96)(sample, rng) for rng in rngs[:2])
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.boxes, second.boxes)
        assert first.image.shape == (96, 96, 3) and first.size == (96, 96) and first.image.dtype == np.uint8
        assert first.image.flags.c_contiguous and first.boxes.dtype == np.float32
        sizes = first.boxes[:, 2:] - first.boxes[:, :2]
        assert first.boxes.min(initial=0) >= 0 and first.boxes.max(initial=0) <= 96 and (sizes >= 1).all()
        SSDTransform(33)(sample_of(31, 20, 2), rngs[2])
        assert rngs[0].random() == rngs[2].random()  # as many values were drawn
    np.testing.assert_array_equal(sample.image, before[0])
    np.testing.assert_array_equal(sample.boxes, before[1])


def test_all_interpolations_and_flips_occur(monkeypatch):
    used, flips = [], []
    monkeypatch.setattr(module, "warp", lambda sample, size, method: used.append(method) or warp(sample, size, method))
    monkeypatch.setattr(module, "hflip", lambda sample: flips.append(1) or sample)
    for seed in range(300):
        SSDTransform(16)(sample_of(20, 24, 1), np.random.default_rng(seed))
    assert {*used} == {*INTERPOLATIONS} and all(30 < used.count(method) < 90 for method in INTERPOLATIONS)
    assert 110 < len(flips) < 190


def test_samples_without_objects():
    for shapes in (None, ()):
        empty = Sample(smooth(), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), shapes, (60, 90))
        for seed in range(10):
            result = SSDTransform(50)(empty, np.random.default_rng(seed))
            assert result.boxes.shape == (0, 4) and result.segmentations == shapes and result.size == (50, 50)


def test_batches_of_squares_that_are_no_multiple_of_32(synthetic):
    padding = Padding(divisor=1, masks=False)
    loader = make_loader(load_dataset(synthetic, "train"), SSDTransform(100), Sampling(4), padding)
    images, targets = next(iter(loader))
    assert images.shape == (4, 3, 100, 100) and (targets["sizes"] == 100).all()
    assert targets["valid"].any() and targets["boxes"].max() <= 100
