"""Augmentation on boxes and masks, against torchvision's transforms and plain drawings."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from directdet.data.augment.compose import Compose
from directdet.data.augment.mixing import CopyPaste, MixUp, Mosaic, paste
from directdet.data.augment.sample import Sample
from directdet.data.augment.steps import Colour, Flip, Turn, ZoomAndCrop, quarter_turn, shift_hsv
from directdet.data.augment.transforms import PretrainTransform
from directdet.data.image import fit_size
from directdet.data.masks import coco_mask, decode_mask, draw_pixels, rasterise, to_shape
from directdet.data.pixels.format import RGB


def picture(seed: int, height: int = 90, width: int = 130, objects: int = 4, kind: str = "both") -> Sample:
    """A smooth picture with random stars as objects: masks as polygons, as run lengths, or by turns."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.integers(0, 256, (1, 3, 6, 6), dtype=np.uint8)).float()
    image = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 255)[0]
    boxes, shapes = [], []
    for index in range(objects):
        centre = rng.uniform((20, 20), (width - 20, height - 20))
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        points = centre + rng.uniform(6, 19, (7, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
        segmentation: Any = [points.reshape(-1)]
        if kind == "rle" or (kind == "both" and index % 2):
            mask = decode_mask(segmentation, height, width)
            segmentation = coco_mask().encode(np.asfortranarray(mask))
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        else:
            boxes.append([*points.min(0), *points.max(0)])
        shapes.append(to_shape(segmentation, height, width))
    array = image.permute(1, 2, 0).round().byte().numpy()
    return Sample(array, np.float32(boxes), np.arange(objects), tuple(shapes), (height, width))


def pixel_masks(sample: Sample) -> torch.Tensor:
    """The masks on the whole canvas, bool [G, H, W]; only what is inside the boxes counts."""
    masks = np.zeros((len(sample.boxes), *sample.image.shape[:2]), bool)
    for mask, shape, box in zip(masks, sample.segmentations or (), sample.boxes, strict=True):
        drawn = draw_pixels(shape, box)
        left, top, right, bottom = (int(v) for v in drawn.box)
        bottom, right = min(bottom, mask.shape[0]), min(right, mask.shape[1])
        mask[top:bottom, left:right] = drawn.mask[: bottom - top, : right - left]
    return torch.from_numpy(masks)


def as_tv(sample: Sample) -> tuple[torch.Tensor, tv_tensors.BoundingBoxes, tv_tensors.Mask]:
    image = torch.from_numpy(sample.image.copy()).permute(2, 0, 1)
    boxes = tv_tensors.BoundingBoxes(torch.from_numpy(sample.boxes), format="XYXY", canvas_size=sample.size)
    return image, boxes, tv_tensors.Mask(pixel_masks(sample))


def iou(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one & other).sum((1, 2)) / (one | other).sum((1, 2)).clamp(min=1)


def unused(_: np.random.Generator) -> Sample:
    raise AssertionError("no other picture is needed")


class Recorded:
    """A generator that notes what it drew."""

    def __init__(self, seed: int) -> None:
        self.rng, self.drawn = np.random.default_rng(seed), []

    def __getattr__(self, name: str) -> Any:
        def draw(*args: Any) -> Any:
            self.drawn.append(getattr(self.rng, name)(*args))
            return self.drawn[-1]

        return draw


# ---- One picture


def test_drawn_pixels_are_pycocotools():
    outlines = picture(3, kind="polygon")
    whole = [[points.reshape(-1) for points in shape] for shape in outlines.segmentations or ()]
    masks = torch.stack([torch.from_numpy(decode_mask(one, 90, 130)).bool() for one in whole])
    assert torch.equal(pixel_masks(picture(3, kind="rle")), masks)
    assert iou(pixel_masks(outlines), masks).min() > 0.9  # pycocotools draws outlines by another rule
    x1, y1, x2, y2 = outlines.boxes[0]
    half = np.array([x1, y1, round((x1 + x2) / 2), y2])
    left = draw_pixels((outlines.segmentations or ())[0], half)
    whole_one = pixel_masks(outlines)[0, int(y1) : int(np.ceil(y2)), int(x1) : int(half[2])]
    np.testing.assert_array_equal(left.mask, whole_one)


@pytest.mark.parametrize("quarters", [1, 2, 3, 4])
def test_quarter_turns_are_torchvisions(quarters):
    sample = picture(1)
    image, boxes, masks = as_tv(sample)
    turned = sample
    for _ in range(quarters):
        turned = quarter_turn(turned)
    expected = F.rotate(image, 90.0 * quarters, expand=True)
    assert turned.size == turned.image.shape[:2] == tuple(expected.shape[1:])
    np.testing.assert_array_equal(turned.image, expected.permute(1, 2, 0).numpy())
    np.testing.assert_allclose(turned.boxes, F.rotate(boxes, 90.0 * quarters, expand=True).numpy(), atol=1e-3)
    wanted = F.rotate(masks, 90.0 * quarters, expand=True).bool()
    assert iou(pixel_masks(turned), wanted).min() > 0.93  # the sides of pixels on which an outline runs change
    runs = picture(1, kind="rle")
    assert torch.equal(pixel_masks(quarter_turn(runs)), F.rotate(as_tv(runs)[2], 90.0, expand=True).bool())


def test_turns_are_equally_likely_and_can_be_switched_off():
    sample = picture(0, 40, 60, 1)
    counts = {shape: 0 for shape in ((40, 60), (60, 40))}
    for seed in range(300):
        counts[Turn(1.0)(sample, np.random.default_rng(seed), unused).size] += 1
    assert 75 < counts[40, 60] < 125  # one of three: 100 +- 3 standard deviations
    assert Turn(0.0)(sample, np.random.default_rng(0), unused) is sample


def test_flip_is_torchvisions():
    sample = picture(2)
    image, boxes, masks = as_tv(sample)
    flipped = Flip(1.0)(sample, np.random.default_rng(0), unused)
    np.testing.assert_array_equal(flipped.image, F.horizontal_flip(image).permute(1, 2, 0).numpy())
    np.testing.assert_allclose(flipped.boxes, F.horizontal_flip(boxes).numpy(), atol=1e-4)
    assert iou(pixel_masks(flipped), F.horizontal_flip(masks).bool()).min() > 0.93
    assert Flip(0.0)(sample, np.random.default_rng(0), unused) is sample


@pytest.mark.parametrize("steps", [(7, 0, 0), (-40, 0, 0), (0, 25, 0), (0, -30, 12), (5, -20, -25)])
def test_hsv_is_that_of_the_standard_library(steps):
    levels = np.random.default_rng(0).integers(20, 236, (12, 12, 3), dtype=np.uint8)
    changed = shift_hsv(levels, *steps).reshape(-1, 3)
    hue, saturation, value = steps
    for before, after in zip(levels.reshape(-1, 3).tolist(), changed.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(level / 255 for level in before))
        s, v = (min(max(one + step / 255, 0.0), 1.0) for one, step in ((s, saturation), (v, value)))
        expected = [255 * one for one in colorsys.hsv_to_rgb((h + hue / 180) % 1.0, s, v)]
        assert after == pytest.approx(expected, abs=4)  # whole steps of hue (2 degrees) and of saturation
    np.testing.assert_array_equal(shift_hsv(levels, 0, 0, 0), levels)


@pytest.mark.parametrize("kind", ["hsv", "photometric"])
def test_colours_leave_the_padding_and_the_input(kind):
    sample = PretrainTransform(96, (0.5, 0.5), 0.0)(picture(5), np.random.default_rng(0))
    before = sample.image.copy()
    images = [Colour(kind)(sample, np.random.default_rng(seed), unused).image for seed in range(20)]
    height, width = sample.size
    for image in images:
        assert (image[height:] == RGB.padding).all() and (image[:, width:] == RGB.padding).all()
    assert len({image.tobytes() for image in images}) > 12
    np.testing.assert_array_equal(sample.image, before)


def test_zoom_and_crop_follows_the_pixels():
    sizes = set()
    for seed in range(25):
        image = np.zeros((80, 120, 3), np.uint8)
        image[..., 2] = 255
        image[30:61, 40:81] = (255, 0, 0)
        outline = np.array([[40, 30], [81, 30], [81, 61], [40, 61]], np.float64)
        sample = Sample(image, np.float32([[40, 30, 81, 61]]), np.array([0]), ([outline],), (80, 120))
        result = ZoomAndCrop()(sample, np.random.default_rng(seed), unused)
        red = torch.from_numpy((result.image == (255, 0, 0)).all(-1))[None]
        assert torch.equal(pixel_masks(result), red)
        np.testing.assert_array_equal(result.boxes, masks_to_boxes(red) + torch.tensor([0, 0, 1, 1]))
        sizes.add(result.size)
    assert len(sizes) > 10


# ---- Several pictures


def test_mosaic_is_torchvisions_resize_paste_and_crop():
    """The four pictures resized one by one, put on a canvas, and a window cut out of that."""
    windows = set()
    for seed in range(30):
        others = [picture(10 * seed + i, 60 + 11 * i, 150 - 17 * i) for i in range(4)]
        rest, rng = iter(others[1:]), Recorded(seed)
        read = []

        def another(_: Any, rest: Any = rest, read: list = read) -> Sample:
            read.append(next(rest))
            return read[-1]

        length = 96
        result = Mosaic(1.0, length, (0.3, 2.0))(others[0], rng, another)
        _, alpha, centre, starts = rng.drawn
        side, limit = int(2 * length * alpha), int(length * alpha)
        shown = min(side, length)
        left, top = (int(v) for v in starts)
        canvas = torch.tensor(RGB.padding, dtype=torch.uint8)[:, None, None].repeat(1, 6 * side, 6 * side)
        x, y = (int(c * side - s) + 2 * side for c, s in zip(centre, starts, strict=True))  # of the window, not cut off
        boxes, masks, labels = [], [], []
        remaining = iter(read)
        inside = torch.zeros(canvas.shape[1:], dtype=torch.bool)
        inside[2 * side : 2 * side + shown, 2 * side : 2 * side + shown] = True
        for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
            corner = (x if right else x - limit, y if below else y - limit)
            seen = all(2 * side - limit < edge < 2 * side + shown for edge in corner)
            if not seen:
                continue
            part = others[0] if not (right or below) else next(remaining)
            image, part_boxes, part_masks = as_tv(part)
            height, width = fit_size(*part.size, limit, limit)
            image = F.resize(image, [height, width], antialias=False)
            part_boxes = F.resize(part_boxes, [height, width])
            part_masks = F.resize(part_masks.byte(), [height * 8, width * 8], InterpolationMode.NEAREST)
            x0, y0 = x if right else x - width, y if below else y - height
            canvas[:, y0 : y0 + height, x0 : x0 + width] = image
            for box, mask, label in zip(part_boxes, part_masks, part.labels, strict=True):
                box = box + torch.tensor([x0, y0, x0, y0]) - 2 * side
                box = box.clamp(0, shown)
                if (box[2:] - box[:2] >= 1).all():
                    whole = torch.zeros(canvas.shape[1:], dtype=torch.float)
                    shares = torch.nn.functional.avg_pool2d(mask[None].float(), 8)[0]
                    whole[y0 : y0 + height, x0 : x0 + width] = shares
                    boxes.append(box)
                    masks.append((whole >= 0.5)[2 * side :, 2 * side :][:shown, :shown])
                    labels.append(int(label))
        window = canvas[:, 2 * side : 2 * side + shown, 2 * side : 2 * side + shown]
        assert next(remaining, None) is None  # nothing was read that is not seen
        difference = np.abs(result.image[:shown, :shown].astype(int) - window.permute(1, 2, 0).numpy())
        assert result.image.shape == (length, length, 3) and result.size == (shown, shown)
        assert np.percentile(difference, 99) <= 4 and difference.mean() < 1.5  # OpenCV works in 32nds of a pixel
        assert (result.image[shown:] == RGB.padding).all() and (result.image[:, shown:] == RGB.padding).all()
        assert result.labels.tolist() == labels
        if boxes:
            np.testing.assert_allclose(result.boxes, torch.stack(boxes).numpy(), atol=1e-3)
        found = pixel_masks(result)[:, :shown, :shown]
        for own, wanted, box in zip(found, masks, result.boxes, strict=True):
            if (box[2:] - box[:2]).min() >= 8:
                assert iou(own[None], wanted[None]) > 0.75
        windows.add((left, top, len(read), shown < length))
    assert len(windows) > 20 and {read for _, _, read, _ in windows} >= {1, 2, 3}
    assert {padded for *_, padded in windows} == {True, False}


def test_without_a_mosaic_the_picture_is_resized():
    sample, resize = picture(0), PretrainTransform(64, (0.8, 1.2), 0.0)
    expected = resize(sample, Recorded(4))
    rng = np.random.default_rng(4)

    def same(one: Sample, rng: np.random.Generator) -> Sample:
        return resize(one, Recorded(4))

    found = Mosaic(0.0, 64, (1.0, 1.0), same)(sample, rng, unused)
    np.testing.assert_array_equal(found.image, expected.image)
    assert Mosaic(0.0, 64, (1.0, 1.0))(sample, rng, unused) is sample


def test_mixup_is_the_mean_with_all_objects():
    resize = PretrainTransform(100, (0.6, 0.9), 0.0)
    sample = resize(picture(0), np.random.default_rng(0))
    rng = np.random.default_rng(1)
    probe = np.random.default_rng(1)
    probe.random()
    other = resize(picture(7), probe)
    mixed = MixUp(1.0, resize)(sample, rng, lambda _: picture(7))
    mean = (sample.image.astype(float) + other.image) / 2
    assert np.abs(mixed.image - mean).max() <= 0.5
    assert mixed.size == tuple(np.maximum(sample.size, other.size))
    np.testing.assert_array_equal(mixed.boxes, np.concatenate([sample.boxes, other.boxes]))
    np.testing.assert_array_equal(mixed.labels, np.concatenate([sample.labels, other.labels]))
    both = torch.cat([pixel_masks(sample), pixel_masks(other)])
    assert torch.equal(pixel_masks(mixed), both)
    assert MixUp(0.0, resize)(sample, rng, unused) is sample


@pytest.mark.parametrize("kind", ["polygon", "rle", "both"])
def test_pasted_objects_cover_what_is_below(kind):
    covered = 0
    for seed in range(20):
        below, above = picture(seed, objects=8, kind=kind), picture(seed + 100, objects=5, kind=kind)
        image, boxes, masks = below.image.copy(), below.boxes.copy(), pixel_masks(below)
        result = paste(below, above)
        alpha = pixel_masks(above).any(0)
        np.testing.assert_array_equal(result.image, np.where(alpha.numpy()[..., None], above.image, below.image))
        left = masks & ~alpha
        kept = left.flatten(1).any(1)
        assert result.labels.tolist() == [*below.labels[kept.numpy()], *above.labels]
        assert torch.equal(pixel_masks(result), torch.cat([left[kept], pixel_masks(above)]))
        untouched = (left == masks).flatten(1).all(1)
        for index, box in zip(np.flatnonzero(kept), result.boxes, strict=False):
            tight = masks_to_boxes(left[index][None])[0] + torch.tensor([0, 0, 1, 1])
            np.testing.assert_array_equal(box, boxes[index] if untouched[index] else tight)
        np.testing.assert_array_equal(result.boxes[int(kept.sum()) :], above.boxes)
        np.testing.assert_array_equal(below.image, image)  # nothing in place
        np.testing.assert_array_equal(below.boxes, boxes)
        covered += int((~untouched & kept).sum())
    assert covered > 20
    twice = paste(below, below)  # each object is covered by itself
    np.testing.assert_array_equal(twice.boxes, below.boxes)
    assert twice.labels.tolist() == below.labels.tolist()


def test_copy_paste_takes_half_of_another_picture_that_fits():
    counts = []
    resize = PretrainTransform(160, (0.5, 1.0), 0.0)
    sample = PretrainTransform(160, (0.7, 0.7), 0.0)(picture(0), np.random.default_rng(0))
    for seed in range(60):
        result = CopyPaste(1.0, resize)(sample, np.random.default_rng(seed), lambda _: picture(50, objects=10))
        assert result.size == sample.size and (result.image[sample.size[0] :] == RGB.padding).all()
        assert (result.boxes[:, 2:] <= np.array(sample.size[::-1])).all() and (result.boxes >= 0).all()
        counts.append(len(result.boxes) - 4)
    assert 3 < np.mean(counts) < 5.5 and min(counts) < 3 and max(counts) > 6
    assert CopyPaste(0.0, resize)(sample, np.random.default_rng(0), unused) is sample


def test_the_masks_of_everything_together_fit_their_boxes():
    """After all steps in a row, each mask still fills its box as the drawing of its pixels does."""
    resize = PretrainTransform(160, (0.3, 1.5), 0.0)
    steps = (Mosaic(0.7, 160, (0.3, 1.5), resize), CopyPaste(0.7, resize), Colour("hsv"), Flip(0.5), MixUp(0.5, resize))
    compose = Compose((Turn(0.5), ZoomAndCrop()), steps)
    assert compose.pictures == 6 and compose.needs_masks and not Compose((), (Flip(0.5),)).needs_masks
    seen = 0
    for seed in range(25):

        def another(rng: np.random.Generator) -> Sample:
            return picture(int(rng.integers(1000)))

        result = compose(picture(seed), np.random.default_rng(seed), another)
        again = compose(picture(seed), np.random.default_rng(seed), another)
        np.testing.assert_array_equal(result.image, again.image)
        np.testing.assert_array_equal(result.boxes, again.boxes)
        assert len(result.boxes) <= 4 * compose.pictures
        masks = pixel_masks(result)
        for mask, shape, box in zip(masks, result.segmentations, result.boxes, strict=True):
            if (box[2:] - box[:2]).min() < 12:
                continue
            x1, y1, x2, y2 = (round(float(v)) for v in box)
            share = mask[y1:y2, x1:x2].float().mean().item()
            assert rasterise(shape, box).mean() == pytest.approx(share, abs=0.1)
            seen += 1
    assert seen > 60
