"""Scores of pseudo-labels: read, written, and carried with their objects into the batches as weights of losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from directdet.common.errors import UserError
from directdet.data.augment.compose import Compose
from directdet.data.augment.mixing import CopyPaste, MixUp, Mosaic
from directdet.data.augment.ssd_transforms import SSDTransform
from directdet.data.augment.steps import Flip, Resized, Turn, ZoomAndCrop
from directdet.data.augment.transforms import EdgesTransform, PretrainTransform
from directdet.data.check import check_data
from directdet.data.check_report import split_rows
from directdet.data.dataset import load_dataset
from directdet.data.formats import coco
from directdet.data.formats.write.convert import convert
from directdet.data.loader import make_loader
from directdet.data.padding import Padding
from directdet.data.records import Records, only_objects
from directdet.data.sampling import Sampling

BOX = {"bbox": [1, 2, 5, 6]}
SCORED = [{**BOX, "score": 0.25}, BOX, {**BOX, "score": 1}, {**BOX, "score": 0}, {**BOX, "score": None}]
SCORED += [{**BOX, "score": float("nan")}]
SQUARE = Resized(PretrainTransform(96))
AUGMENTED = {
    "pretrain": PretrainTransform(96),
    "edges": EdgesTransform(96, 160),
    "ssd": SSDTransform(96),
    "mosaic": Compose((Turn(0.5),), (Mosaic(1.0, 96, (0.5, 1.5)), Flip(0.5))),
    "mixup": Compose((ZoomAndCrop(),), (SQUARE, MixUp(1.0, PretrainTransform(96)))),
    "copy-paste": Compose((), (SQUARE, CopyPaste(1.0, PretrainTransform(96)))),
}


@pytest.fixture(scope="module")
def dataset(synthetic):
    return load_dataset(synthetic, "train")


def numbered(dataset):
    """The dataset with a weight for each class, which an object can be known by."""
    records = [replace(one, weights=((one.labels + 1) / 8).astype(np.float32)) for one in dataset.records]
    return replace(dataset, records=tuple(records))


def test_a_score_is_a_weight_and_none_is_one(write_coco):
    found = load_dataset(write_coco(SCORED), "train")
    assert found.records[0].weights.tolist() == [0.25, 1, 1, 0, 1, 1] and found.has_weights
    assert not load_dataset(write_coco([BOX, {**BOX, "score": 1.0}]), "train").has_weights


@pytest.mark.parametrize("score", ["0.5", 1.5, -0.1, True, [0.5]])
def test_a_score_that_is_none_is_refused(write_coco, score):
    with pytest.raises(UserError, match=r"annotation 2: score .* is not a number from 0 to 1"):
        load_dataset(write_coco([BOX, {**BOX, "score": score}]), "train")


def test_check_data_counts_scores(write_coco):
    report = check_data(write_coco(SCORED))
    assert report.splits[0].scored == 2 and ("  with score below 1", ["2"]) in split_rows(report)


def test_scores_are_written_where_the_format_has_them(write_coco, tmp_path):
    root = write_coco(SCORED)
    assert convert(root, "coco", tmp_path / "coco") == []
    before, after = load_dataset(root, "train"), load_dataset(tmp_path / "coco", "train")
    assert np.array_equal(before.records[0].weights, after.records[0].weights)
    for to in ("yolo", "voc"):
        assert "2 scores of objects, which count fully" in convert(root, to, tmp_path / to)


def test_chosen_objects_keep_their_weights(write_coco):
    record = load_dataset(write_coco(SCORED), "train").records[0]
    assert only_objects(record, np.array([1, 0, 0, 1, 0, 0], bool)).weights.tolist() == [0.25, 0]


@pytest.mark.parametrize("large", [False, True])
def test_difficult_objects_of_weight_nothing_stay(write_coco, monkeypatch, tmp_path, large):
    monkeypatch.setenv("DIRECTDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(coco, "LARGE", 0 if large else 10**9)
    objects = [{**BOX, "score": 0, "difficult": 1}, {**BOX, "score": 0.5, "difficult": 1}, {**BOX, "difficult": 1}, BOX]
    found = load_dataset(write_coco(objects), "train")
    assert isinstance(found.records, Records) == large and found.difficult_objects() == 2
    assert found.without_difficult().records[0].weights.tolist() == [0, 1]


@pytest.mark.parametrize("transform", AUGMENTED.values(), ids=AUGMENTED)
def test_augmentation_keeps_weights_beside_their_objects(dataset, transform):
    loader = make_loader(numbered(dataset), transform, Sampling(4, seed=1), Padding(masks=False))
    seen: set[float] = set()
    for _, targets in loader:
        valid, weights = targets["valid"], targets["weights"]
        assert weights.dtype == torch.float32 and weights.shape == valid.shape
        assert torch.equal(weights[valid], (targets["labels"][valid] + 1) / 8) and not weights[~valid].any()
        seen |= set(weights[valid].tolist())
    assert len(seen) > 1


@pytest.mark.parametrize("transform", AUGMENTED.values(), ids=AUGMENTED)
def test_batches_are_otherwise_the_same(dataset, transform):
    usual = list(make_loader(dataset, transform, Sampling(4, seed=1)))
    weighted = list(make_loader(numbered(dataset), transform, Sampling(4, seed=1)))
    for (images, targets), (other, others) in zip(usual, weighted, strict=True):
        assert torch.equal(images, other) and {*targets, "weights"} == others.keys() != targets.keys()
        assert all(torch.equal(targets[key], others[key]) for key in targets)
