"""AP of masks and matches by hotcoco against pycocotools, with what the two could see differently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from directdet.data.masks import decode_mask
from directdet.data.records import Dataset, Record, Segmentation
from directdet.infer.accuracy import coco_ap
from directdet.infer.detections import Detections

CLASSES = ("a", "b", "c")
IDS = (7, 2, 90)  # neither in order nor without gaps
KINDS = ("polygon", "polygons", "beyond the picture", "no area", "pixel", "empty", "whole picture", "holes")


def ellipse(rng: np.random.Generator, box: np.ndarray) -> np.ndarray:
    turns = 2 * np.pi * np.sort(rng.random(rng.integers(3, 12)))
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return (middle + np.stack([np.cos(turns), np.sin(turns)], 1) * half).ravel().astype(np.float64)


def segmentation(rng: np.random.Generator, kind: str, box: np.ndarray, height: int, width: int) -> Segmentation:
    if kind in ("polygon", "polygons"):
        return tuple(ellipse(rng, box) for _ in range(1 + (kind == "polygons")))
    if kind == "beyond the picture":
        return (rng.uniform([-width, -height], [2 * width, 2 * height], (5, 2)).ravel(),)
    if kind == "no area":
        return (box[[0, 1, 2, 1, 0, 1]].astype(np.float64),)
    pixels = np.full((height, width), kind == "whole picture", np.uint8)
    if kind == "pixel":
        pixels[rng.integers(height), rng.integers(width)] = 1
    if kind == "holes":
        x0, y0, x1, y1 = box.astype(int)
        pixels[y0 : y1 + 1, x0 : x1 + 1] = rng.random(pixels[y0 : y1 + 1, x0 : x1 + 1].shape) < 0.8
    return run_lengths(pixels, bool(rng.integers(2)))


def run_lengths(pixels: np.ndarray, compressed: bool) -> dict:
    """As COCO's files have them: of crowd regions as numbers, of results as text."""
    encoded = coco_mask.encode(np.asfortranarray(pixels))
    if compressed:
        return {**encoded, "counts": encoded["counts"].decode()}
    changes = np.flatnonzero(np.diff(pixels.T.ravel(), prepend=0))
    return {**encoded, "counts": np.diff(changes, prepend=0, append=pixels.size).tolist()}


def made(seed: int, pictures: int = 14) -> tuple[Dataset, list[tuple[int, Detections]], list[dict]]:
    """Pictures of any size with objects and crowd regions, detections near them with scores that are often equal, and
    results whose mask is that of an object."""
    rng = np.random.default_rng(seed)
    records, found, exact = [], [], []
    for number in rng.permutation(10**10 + np.arange(pictures)).tolist():
        width, height = rng.integers(1, 220, 2).tolist()
        count = int(rng.integers(0, 7))
        corners = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4)
        boxes = (corners * [width, height, width, height]).astype(np.float32)
        names = [str(rng.choice(KINDS)) for _ in range(count)]
        shapes = tuple(segmentation(rng, *one, height, width) for one in zip(names, boxes, strict=True))
        labels, crowd = rng.integers(0, 3, count), rng.random(count) < 0.15
        areas = np.array([decode_mask(shape, height, width).sum() for shape in shapes], np.float32)
        nothing = np.zeros(count, bool)
        parts = (boxes, labels, crowd, nothing, shapes, tuple(range(count)), areas)
        records.append(Record(number, Path("none.jpg"), width, height, *parts))
        times = 260 if len(records) == 4 else int(rng.integers(0, 12))
        chosen = rng.integers(0, count, times) if count else np.zeros(0, np.int64)
        sizes = np.tile(boxes[chosen, 2:] - boxes[chosen, :2], 2)
        moved = boxes[chosen] + rng.normal(0, 0.1, sizes.shape) * sizes
        moved = np.sort(np.clip(moved, 0, [width, height] * 2).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        named = np.where(rng.random(len(chosen)) < 0.2, rng.integers(0, 3, len(chosen)), labels[chosen])
        scores, masks = rng.random(len(chosen)).round(1), 0.4 + 0.6 * rng.random((len(chosen), 8, 8))
        found.append((number, Detections(moved, scores, named, masks, (height, width))))
        for label, shape in zip(labels.tolist(), shapes, strict=True):
            if rng.random() < 0.4:
                entry = {"image_id": number, "category_id": IDS[label], "bbox": [0.0, 0.0, 1.0, 1.0]}
                mask = run_lengths(decode_mask(shape, height, width), True)
                exact.append({**entry, "score": round(float(rng.random()), 1), "segmentation": mask})
    return Dataset(Path("made"), "val", "coco", CLASSES, IDS, tuple(records)), found, exact


def results_of(seed: int) -> tuple[Dataset, list[dict]]:
    dataset, found, exact = made(seed)
    return dataset, [entry for number, one in found for entry in one.to_coco(number, IDS)] + exact


def both(results: list[dict], dataset: Dataset, monkeypatch) -> tuple[coco_ap.Scores, coco_ap.Scores]:
    """Scores by hotcoco and by pycocotools."""
    if coco_ap.hotcoco is None:
        pytest.skip("hotcoco has no wheel for this machine")
    assert coco_ap._fast(results, dataset, dataset.records, "segm") is not None
    fast = coco_ap.score(results, dataset, dataset.records, "segm")
    with monkeypatch.context() as patch:
        patch.setattr(coco_ap, "hotcoco", None)
        return fast, coco_ap.score(results, dataset, dataset.records, "segm")


@pytest.mark.parametrize("seed", range(5))
def test_masks_are_scored_as_by_pycocotools(monkeypatch, seed):
    """To the last bit, all twelve numbers, each class, size and IoU."""
    dataset, results = results_of(seed)
    most = max(np.unique([(one["image_id"], one["category_id"]) for one in results], axis=0, return_counts=True)[1])
    kinds = {type(shape) for record in dataset.records for shape in record.segmentations}
    crowds = sum(int(record.crowd.sum()) for record in dataset.records)
    assert kinds == {tuple, dict} and crowds and any(not len(record.boxes) for record in dataset.records)
    fast, slow = both(results, dataset, monkeypatch)
    assert fast == slow
    assert all(0.01 < value < 0.99 for value in fast.twelve[:3]) and len(set(fast.per_class)) == 3
    assert seed or most > 100


@pytest.mark.parametrize("kept", [0, 1])
def test_masks_of_nothing_or_one_thing_found(monkeypatch, kept):
    dataset, results = results_of(0)
    fast, slow = both(results[-1:] * kept, dataset, monkeypatch)
    assert fast == slow and (max(fast.twelve) > 0) == bool(kept)


def test_detections_on_other_pictures_do_not_count(monkeypatch):
    dataset, results = results_of(1)
    half = replace(dataset, records=dataset.records[:7])
    fast, slow = both(results, half, monkeypatch)
    assert fast == slow and fast != both(results, dataset, monkeypatch)[0]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_matches_are_those_of_pycocotools(monkeypatch, kind):
    """By class, in the order of the pictures' ids; pycocotools also says where a class has nothing in a picture."""
    dataset, found, _ = made(3)
    fast = coco_ap.evaluated(found, dataset, dataset.records, kind)
    monkeypatch.setattr(coco_ap, "hotcoco", None)
    slow = coco_ap.evaluated(found, dataset, dataset.records, kind)
    assert len(fast) == len(slow) == len(CLASSES)
    for ours, theirs in zip(fast, slow, strict=True):
        assert len(ours) == len(theirs) > 5
        for one, other in zip(ours, theirs, strict=True):
            for name in ("image_id", "category_id", "dtIds", "gtIds", "dtScores", "gtIgnore", "dtMatches", "dtIgnore"):
                assert np.array_equal(np.asarray(one[name], float), np.asarray(other[name], float)), name
    assert any(np.any(cell["dtIgnore"]) for cells in slow for cell in cells)


@pytest.mark.parametrize("what", ["difficult", "no mask"])
def test_what_hotcoco_cannot_ignore_is_left_to_pycocotools(what):
    """An object that is found and one that is not, both to be ignored: neither costs anything."""
    dataset, _ = results_of(2)
    record = next(one for one in dataset.records if len(one.boxes) > 1)
    plain = np.zeros(len(record.boxes), bool)
    record = replace(record, crowd=plain, labels=np.zeros(len(plain), np.int64))
    pixels = [np.zeros((record.height, record.width), np.uint8) for _ in plain]
    for number, one in enumerate(pixels):
        one.ravel()[number] = 1
    shapes = tuple(run_lengths(one, True) for one in pixels)
    result = {"image_id": record.image_id, "category_id": IDS[0], "bbox": [0, 0, 1, 1], "segmentation": shapes[0]}
    odd = np.arange(len(plain)) > 0
    if what == "difficult":
        record = replace(record, segmentations=shapes, difficult=odd)
    else:
        record = replace(record, segmentations=(shapes[0], *[None] * (len(plain) - 1)))
    alone = replace(dataset, records=(record,))
    assert coco_ap._fast([{**result, "score": 0.5}], alone, alone.records, "segm") is None
    scores = coco_ap.score([{**result, "score": 0.5}], alone, alone.records, "segm")
    assert scores.twelve[0] == pytest.approx(1)
