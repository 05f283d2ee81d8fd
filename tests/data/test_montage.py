"""Montages: what is cut out of a set, and where each sample ends up, pixel by pixel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from directdet.common.errors import UserError
from directdet.data.augment.sample import Sample
from directdet.data.dataset import load_dataset
from directdet.data.montage.assemble import Montage, regions
from directdet.data.montage.crops import Crops, cut_crops
from directdet.data.records import Dataset, Record
from directdet.recipes.recipe import Phase
from directdet.train.data import make_phase_loader


def record_of(boxes, width=200, height=100, labels=None, crowd=(), difficult=(), path="a.png") -> Record:
    count = len(boxes)
    flags = [np.isin(np.arange(count), which) for which in (crowd, difficult)]
    return Record(
        image_id=0,
        path=Path(path),
        width=width,
        height=height,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels or [0] * count, np.int64),
        crowd=flags[0],
        difficult=flags[1],
        segmentations=(None,) * count,
        annotation_ids=tuple(range(count)),
    )


def many(count: int) -> list[Record]:
    """Pictures with two objects each, of all shapes."""
    rng = np.random.default_rng(1)
    records = []
    for _ in range(count):
        corners = rng.uniform(0, (120, 60), (2, 2))
        sides = rng.uniform(2, (70, 35), (2, 2))
        records.append(record_of(np.concatenate([corners, corners + sides], 1), labels=[0, 2]))
    return records


def overlap(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((np.maximum(one[:2], other[:2]) < np.minimum(one[2:], other[2:])).all())


def test_objects_are_enlarged_within_their_pictures_by_up_to_twice():
    records = many(300)
    crops = cut_crops(records, 3, seed=0)
    boxes = np.concatenate([record.boxes for record in records])
    found = crops.boxes[:600]
    assert (crops.labels[:600] == [0, 2] * 300).all() and (crops.images[:600] == np.repeat(np.arange(300), 2)).all()
    assert (found[:, :2] <= boxes[:, :2]).all() and (found[:, 2:] >= boxes[:, 2:]).all()
    assert (found[:, :2] >= 0).all() and (found[:, 2:] <= (200, 100)).all()
    outward = np.abs(found - boxes) / np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    assert (np.abs(found - boxes) <= np.tile(boxes[:, 2:] - boxes[:, :2], 2) / 2 + 1).all()
    free = (found > 0) & (found < (200, 100, 200, 100))  # not cut off
    assert 0.2 < outward[free].mean() < 0.35 and outward[free].max() > 0.45


def test_pieces_of_background_touch_no_object_and_are_a_tenth():
    records = many(300)
    crops = cut_crops(records, 3, seed=0)
    assert len(crops) == 600 + 60 and (crops.labels[600:] == 3).all() and crops.background == 3
    for image, box in zip(crops.images[600:], crops.boxes[600:], strict=True):
        assert (box[:2] >= 0).all() and (box[2:] <= (200, 100)).all() and (box[2:] > box[:2]).all()
        assert not any(overlap(box, other) for other in crops.boxes[:600][crops.images[:600] == image])


def test_what_is_not_learnt_is_neither_object_nor_background():
    half = [(0, 0, 100, 100)]
    others = [record_of([(0, 0, 60, 60), *half], crowd=[1]) for _ in range(30)]
    others += [record_of([(0, 0, 60, 60), *half], difficult=[1]) for _ in range(30)]
    crops = cut_crops(others, 1, seed=0, skip_difficult=True)
    assert (crops.labels == 0).sum() == 60 and (crops.labels == 1).sum() == 6
    assert (crops.boxes[60:, 0] >= 100).all()
    assert (cut_crops(others, 1, seed=0).labels == 0).sum() == 90  # difficult ones are objects unless they are skipped


def test_groups_are_by_the_aspect_ratio_of_what_is_cut_out():
    crops = cut_crops(many(100), 3, seed=0)
    ratios = (crops.boxes[:, 2] - crops.boxes[:, 0]) / (crops.boxes[:, 3] - crops.boxes[:, 1])
    assert sorted(np.concatenate([crops.square, crops.tall, crops.wide])) == list(range(len(crops)))
    assert ((ratios[crops.square] >= 0.5) & (ratios[crops.square] <= 1.5)).all()
    assert (ratios[crops.tall] < 0.5).all() and (ratios[crops.wide] > 1.5).all()
    assert min(map(len, (crops.square, crops.tall, crops.wide))) > 5
    pieces = int((crops.labels == 3).sum())
    assert f"of 200 objects and {pieces} pieces of background: {len(crops.square)} square" in crops.in_words()


def test_the_same_seed_cuts_the_same_and_another_seed_others():
    one, same, other = (cut_crops(many(50), 3, seed) for seed in (4, 4, 5))
    assert (one.boxes == same.boxes).all() and (one.images == same.images).all()
    assert (one.boxes[:100] != other.boxes[:100]).any(1).mean() > 0.9


@pytest.mark.parametrize(
    "box", [(10, 10, 11, 11), (199, 99, 200, 100), (199.6, 99.6, 200, 100), (0, 0, 0.2, 0.2), (7, 3, 7, 3)]
)
def test_objects_of_a_pixel_and_less_have_a_pixel_of_their_own(box):
    crops = cut_crops([record_of([box])] * 3, 1, seed=0)
    assert len(crops) >= 3
    assert ((crops.boxes[:, 2:] - crops.boxes[:, :2]) >= 1).all()
    assert (crops.boxes >= 0).all() and (crops.boxes[:, 2:] <= (200, 100)).all()


def test_a_picture_without_objects_gives_background():
    full = [record_of([(0, 0, 200, 100)])] * 20
    assert (cut_crops(full, 1, seed=0).labels == 0).all()  # nowhere is background
    crops = cut_crops([*full, record_of([])], 1, seed=0)
    assert len(crops) == 22 and (crops.images[20:] == 20).all()  # a tenth of 20
    assert len(cut_crops([record_of([])], 1, seed=0)) == 0


def test_regions_cover_the_picture_once():
    for side in (64, 96, 128, 224, 448):
        count = np.zeros((side, side), int)
        for x1, y1, x2, y2 in regions(side):
            count[y1:y2, x1:x2] += 1
        assert (count == 1).all()
        small, wide, tall, large = regions(side)
        assert small[2] == small[3] <= large[2] - large[0] and (regions(side) % 32 == 0).all()
        assert wide[2] - wide[0] >= wide[3] and tall[3] - tall[1] >= tall[2]
    assert regions(224).tolist() == [[0, 0, 96, 96], [96, 0, 224, 96], [0, 96, 96, 224], [96, 96, 224, 224]]


def coded(width: int, height: int, image: int) -> Sample:
    """A picture whose every pixel says where it is: (x, y, number of the picture)."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x, y, np.full_like(x, image)], -1).astype(np.uint8)
    return Sample(pixels, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), None, (height, width))


def crops_of(boxes, square, tall, wide, classes=9) -> Crops:
    count = len(boxes)
    groups = (np.array(one, np.int64) for one in (square, tall, wide))
    boxes = np.array(boxes, np.int64)
    weights = np.linspace(0.5, 1, count).astype(np.float32)
    return Crops(np.arange(count), boxes, np.arange(count), weights, classes, *groups)


# Of pictures of 250 x 250: two square samples, a tall and a wide one.
BOXES = [(10, 20, 70, 80), (5, 6, 205, 246), (30, 40, 50, 90), (0, 0, 150, 31)]


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_each_sample_is_in_its_region_pixel_by_pixel(flip):
    crops = crops_of(BOXES, square=[0, 1], tall=[2], wide=[3])
    montage = Montage(crops, 224, (1.0, 1.0), flip)
    sizes = [tuple(regions(224)[k, 2:] - regions(224)[k, :2]) for k in range(4)]
    seen = set()
    for number in range(40):
        sample = montage(lambda image: coded(250, 250, image + 1), np.random.default_rng(number))
        assert sample.image.shape == (224, 224, 3) and sample.image.dtype == np.uint8
        assert (sample.boxes == regions(224)).all() and sample.size == (224, 224)
        ids = sample.labels.tolist()
        assert ids[1:3] == [3, 2] and ids[0] in (0, 1) and ids[3] in (0, 1)
        areas = [(BOXES[k][2] - BOXES[k][0]) * (BOXES[k][3] - BOXES[k][1]) for k in ids]
        assert areas[0] <= areas[3]
        assert (sample.weights == crops.weights[sample.labels]).all()
        seen.add((ids[0], ids[3]))
        for k, (x1, y1, x2, y2) in zip(ids, regions(224), strict=True):
            width, height = sizes[list(regions(224)[:, 0] * 1000 + regions(224)[:, 1]).index(x1 * 1000 + y1)]
            left, top, right, bottom = BOXES[k]
            shown = sample.image[y1:y2, x1:x2]
            inside = shown[:, :, 2] == k + 1
            wide, high = min(right - left, width), min(bottom - top, height)
            pad_x, pad_y = (width - wide) // 2, (height - high) // 2
            wanted = np.zeros((height, width), bool)
            wanted[pad_y : pad_y + high, pad_x : pad_x + wide] = True
            assert (inside == wanted).all() and (shown[~wanted] == 0).all()
            columns, rows = shown[pad_y, pad_x : pad_x + wide, 0], shown[pad_y : pad_y + high, pad_x, 1]
            step = -1 if flip else 1
            assert (np.diff(columns.astype(int)) == step).all() and (np.diff(rows.astype(int)) == 1).all()
            assert left <= columns.min() and columns.max() < right and top <= rows.min() and rows.max() < bottom
    assert seen == {(0, 0), (0, 1), (1, 1)}


def test_a_sample_is_resized_by_the_same_factor_along_both_sides():
    crops = crops_of([(0, 0, 40, 40)] * 4, [0, 1], [2], [3])
    montage = Montage(crops, 224, (0.5, 1.5), 0.0)
    factors = []
    for number in range(60):
        image = montage(lambda image: coded(250, 250, image + 1), np.random.default_rng(number)).image
        corner = image[96:, 96:, 2] > 0  # of the large square
        rows, columns = corner.any(1).sum(), corner.any(0).sum()
        assert rows == columns
        factors.append(rows / 40)
    assert 0.5 <= min(factors) < 0.6 and 1.4 < max(factors) <= 1.5


@pytest.mark.parametrize("group", ["square", "tall", "wide"])
def test_a_set_of_one_shape_fills_all_regions(group):
    groups = {name: [0, 1] if name == group else [] for name in ("square", "tall", "wide")}
    crops = crops_of([(0, 0, 30, 30)] * 2, **groups)
    sample = Montage(crops, 64, (1.0, 1.0), 0.0)(lambda image: coded(40, 40, image + 1), np.random.default_rng(0))
    assert set(sample.labels.tolist()) <= {0, 1}
    assert all((sample.image[y1:y2, x1:x2, 2] > 0).sum() == 900 for x1, y1, x2, y2 in regions(64))


def test_one_object_of_one_pixel_is_enough():
    crops = cut_crops([record_of([(3, 4, 4, 5)])], 1, seed=0)
    sample = Montage(crops, 64, (0.8, 1.5), 0.5)(lambda _: coded(200, 100, 7), np.random.default_rng(0))
    assert sample.labels.tolist() == [0] * 4 and (sample.image[..., 2] == 7).sum() >= 4


def phase_of(**changes) -> Phase:
    settings = {"batch_size": 4, "workers": 0, "eval_every": 0, **changes}
    return Phase(name="montage", resize="direct", size=(64, 64), **settings)


@pytest.fixture(scope="module")
def pictures(shapes) -> Dataset:
    return load_dataset(shapes, "train")


def batches(dataset: Dataset, seed: int = 0, epoch: int = 0, start: int = 0, **changes):
    loader = make_phase_loader(phase_of(**changes), dataset, True, seed, False)
    loader.set_epoch(epoch, start)
    return list(loader)


def same(one, other) -> bool:
    return torch.equal(one[0], other[0]) and all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def test_a_batch_depends_on_seed_epoch_and_position_alone(pictures):
    plain = batches(pictures)
    assert len(plain) == 3 and plain[0][0].shape == (4, 3, 64, 64) and "masks" not in plain[0][1]
    assert plain[0][1]["valid"].sum(1).tolist() == [4] * 4
    assert all(map(same, plain, batches(pictures, workers=2)))
    assert same(plain[2], batches(pictures, start=2)[0])
    for other in (batches(pictures, seed=1), batches(pictures, epoch=1)):
        assert not any(torch.equal(one[0], another[0]) for one, another in zip(plain, other, strict=True))


def test_labels_are_those_of_what_is_shown(shapes, pictures):
    """Of pictures that a rectangle of one colour nearly fills, or that hold none, the colour tells the class."""
    paints = {0: (250, 0, 0), 1: (0, 250, 0)}
    records = []
    for number in range(16):
        label, empty = number % 2, number >= 14
        image = np.full((100, 200, 3), 120, np.uint8)
        if not empty:
            image[5:95, 5:195] = paints[label][::-1]
        path = shapes.parent / f"painted{number}.png"
        cv2.imwrite(str(path), image)
        records.append(record_of([] if empty else [(5, 5, 195, 95)], labels=[label] * (not empty), path=str(path)))
    dataset = replace(pictures, classes=("red", "green"), category_ids=(1, 2), records=tuple(records))
    seen: list[int] = []
    for epoch in range(4):
        for images, targets in batches(dataset, epoch=epoch):
            for image, labels in zip(images.numpy(), targets["labels"].numpy(), strict=True):
                for (x1, y1, x2, y2), label in zip(regions(64), labels, strict=False):
                    part = image[:, y1:y2, x1:x2].astype(int)
                    red, green = ((part[one] - part[two] > 150).any() for one, two in ((0, 1), (1, 0)))
                    assert (red, green) == {0: (True, False), 1: (False, True), 2: (False, False)}[int(label)]
                    seen.append(int(label))
    assert len(seen) == 4 * 16 * 4 and set(seen) == {0, 1, 2}


def test_a_set_without_objects_is_told(pictures):
    empty = replace(pictures, records=tuple(record_of([]) for _ in range(4)))
    with pytest.raises(UserError, match="no object to cut out; check-data tells more"):
        batches(empty)
