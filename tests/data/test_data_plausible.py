"""Mistakes of converters that leave valid numbers behind, and sound data in which nothing is doubted."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

from directdet.data.check import check_data
from directdet.data.dataset import load_dataset
from directdet.data.plausible import doubts_about, too_small

GRID = [(x, y, 8 + x % 5, 6 + y % 3) for x in range(2, 180, 16) for y in range(3, 130, 30)]  # 60 boxes in 200 x 150


def doubts(write_coco, boxes, width=200, height=150):
    dataset = load_dataset(write_coco([{"bbox": list(box)} for box in boxes], width=width, height=height), "train")
    return [doubt.text for doubt in doubts_about(dataset)] + too_small(dataset)


def test_sound_boxes_are_not_doubted(write_coco):
    assert doubts(write_coco, GRID) == []
    assert doubts(write_coco, [(0, 0, 200.4, 150)] * 1 + GRID) == []  # one slips over the border


def test_corners_taken_for_widths(write_coco):
    (told,) = doubts(write_coco, [(x, y, x + 8, y + 6) for x, y, _, _ in GRID if x > 90 or y > 70])
    assert "boxes leave their image" in told and "x1, y1, x2, y2" in told


@pytest.mark.parametrize(("scale", "what"), [(1, "shares (0 to 1)"), (100, "per cent (0 to 100)")])
def test_scaled_boxes(write_coco, scale, what):
    boxes = [(x / 200 * scale, y / 150 * scale, w / 200 * scale, h / 150 * scale) for x, y, w, h in GRID]
    (told,) = doubts(write_coco, boxes, width=400, height=300)
    assert what in told


def test_thousandths(write_coco):
    (told,) = doubts(write_coco, [(5 * x, 6 * y, w, h) for x, y, w, h in GRID], width=2500, height=2100)
    assert "thousandths (0 to 1000)" in told


def test_a_few_objects_in_a_corner_are_no_scale(write_coco):
    assert doubts(write_coco, GRID[:10], width=4000, height=3000) == []


def test_centres_taken_for_corners(write_coco):
    boxes = [(x + w / 2, y + h / 2, w, h) for x in range(0, 161, 40) for y in range(0, 101, 50) for w, h in ((40, 50),)]
    (told,) = doubts(write_coco, boxes * 1 + [(x + 1, y, w, h) for x, y, w, h in boxes])
    assert "are x and y of bbox the centre" in told


def test_objects_that_are_there_twice(write_coco):
    (told,) = doubts(write_coco, GRID + GRID[:10])
    assert "10 of 70 objects have the box and class of another one" in told
    assert doubts(write_coco, GRID + GRID[:3]) == []


def test_images_listed_twice_under_any_spelling(write_coco):
    images = [
        {"id": 7 + i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(("a.png", "./a.png"))
    ]
    root = write_coco([{"bbox": [1, 2, 5, 6]}], images=images)
    for verify in (True, False):
        (told,) = check_data(root, verify_images=verify, progress=False).doubts
        assert "1 images are listed more than once" in told


def test_the_same_image_under_two_names_is_told(write_coco):
    images = [{"id": 7 + i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(("a.png", "b.png"))]
    root = write_coco([{"bbox": [1, 2, 5, 6]}], images=images)
    shutil.copy(root / "train2017" / "a.png", root / "train2017" / "b.png")
    report = check_data(root, progress=False)
    assert "train: 1 images occur under several names" in report.warnings and not report.doubts


@pytest.mark.parametrize(("level", "dark"), [(4095, True), (8191, True), (16383, False), (255, True)])
def test_dark_images_of_16_bits(write_coco, level, dark):
    root = write_coco([{"bbox": [1, 2, 5, 6]}])
    cv2.imwrite(str(root / "train2017" / "a.png"), np.full((30, 40), level, np.uint16))
    report = check_data(root, progress=False)
    assert [("black" in line) for line in report.doubts] == [True] * dark
    assert len(report.splits[0].dark_files) == dark


def test_roboflow_s_placeholder_is_no_class(write_coco):
    categories = [
        {"id": 0, "name": "parts", "supercategory": "none"},
        {"id": 1, "name": "bolt", "supercategory": "parts"},
        {"id": 2, "name": "nut", "supercategory": "parts"},
    ]
    root = write_coco([{"bbox": [1, 2, 5, 6], "category_id": 2}], categories=categories)
    dataset = load_dataset(root, "train")
    assert (dataset.classes, dataset.category_ids) == (
        ("bolt", "nut"),
        (1, 2),
    ) and "'parts' is no class" in dataset.notes[0]
    assert dataset.records[0].labels.tolist() == [1]
    # An object in another split is enough to make it a class, in both.
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 0
    (root / "val2017").mkdir()
    file.with_name("instances_val2017.json").write_text(json.dumps(content))
    for split in ("train", "val"):
        assert load_dataset(root, split).classes == ("parts", "bolt", "nut") and not load_dataset(root, split).notes


@pytest.mark.parametrize("names", [("none", "none"), ("", ""), ("none",)])
def test_other_categories_without_objects_are_classes(write_coco, names):
    categories = [{"id": i, "name": str(i), "supercategory": name} for i, name in enumerate(names)]
    assert len(load_dataset(write_coco([], categories=categories), "train").classes) == len(names)
