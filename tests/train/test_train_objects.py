"""The objects that training sees: counted as the transforms keep them, told before the first step, never none."""

import json
from dataclasses import replace

import numpy as np
import pytest

from directdet.common.errors import UserError
from directdet.data.augment.sample import Sample
from directdet.data.augment.ssd_transforms import SSDTransform
from directdet.data.augment.transforms import EdgesTransform, PretrainTransform
from directdet.data.dataset import load_dataset
from directdet.data.records import AnnotatedObject, Dataset, make_record
from directdet.data.synthetic import make_synthetic
from directdet.front.cli import main
from directdet.recipes.recipe import Phase
from directdet.train.objects import count_objects, usual_sides

WIDTH, HEIGHT = 400, 200


def dataset(tmp_path, sides, crowd=()):
    """One picture of 400 x 200 with boxes of the given (width, height), none near its border."""
    objects = [
        AnnotatedObject(i, 0, [150.0, 80.0, 150.0 + w, 80.0 + h], w * h, crowd=i in crowd)
        for i, (w, h) in enumerate(sides)
    ]
    record = make_record(1, tmp_path / "a.png", WIDTH, HEIGHT, objects)
    return Dataset(tmp_path, "train", "coco", ("a",), (1,), (record,))


def ever_kept(transform, found, draws=300):
    """How many objects are in the samples of `draws` random draws, once or more often."""
    record = found.records[0]
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    kept = set()
    for seed in range(draws):
        labels = np.arange(len(record.boxes))
        sample = Sample(image, record.boxes, labels, None, (HEIGHT, WIDTH))
        kept |= set(transform(sample, np.random.default_rng(seed)).labels.tolist())
    return len(kept)


@pytest.mark.parametrize(
    ("phase", "transform"),
    [
        (Phase("pretrain", size=(100, 100), resize="direct", scale=(0.8, 1.2)), PretrainTransform(100, (0.8, 1.2))),
        (Phase("pretrain", size=(50, 120), resize="edges"), EdgesTransform(50, 120)),
        (Phase("pretrain", size=(50, 120), resize="edges", shrink=2.0), EdgesTransform(50, 120, shrink=2.0)),
        (
            Phase("pretrain", size=(50, 300), resize="edges", short_edges=(40, 80)),
            EdgesTransform(50, 300, short_edges=(40, 80)),
        ),
    ],
)
def test_the_count_is_what_the_transforms_keep(tmp_path, phase, transform):
    found = dataset(
        tmp_path, [(side, 60.0) for side in np.arange(0.5, 9, 0.5)] + [(60.0, side) for side in (1.0, 3.0, 9.0)]
    )
    count = count_objects(phase, found)
    assert count.objects == 20 and 0 < count.seen < 20
    assert count.seen == ever_kept(transform, found)


def test_no_object_that_ssd_keeps_is_counted_as_unseen(tmp_path):
    phase = Phase("scratch", size=(100, 100), eval_size=(100, 100), resize="warp")
    found = dataset(tmp_path, [(side, 60.0) for side in np.arange(0.1, 6, 0.1)])
    count = count_objects(phase, found)
    assert ever_kept(SSDTransform(100), found) <= count.seen < count.objects


def test_crowd_regions_do_not_count(tmp_path):
    phase = Phase("pretrain", size=(100, 100), resize="direct")
    assert count_objects(phase, dataset(tmp_path, [(50.0, 50.0)] * 3, crowd=(1,))).objects == 2
    with pytest.raises(UserError, match=r"no object to train on \(2 crowd regions, 0 left out for their boxes\)"):
        count_objects(phase, dataset(tmp_path, [(50.0, 50.0)] * 2, crowd=(0, 1)))
    with pytest.raises(UserError, match="no object to train on; check-data"):
        count_objects(phase, replace(dataset(tmp_path, []), records=()))


def changed(root, change):
    for split in ("train", "val"):
        file = root / "annotations" / f"instances_{split}2017.json"
        content = json.loads(file.read_text())
        content["annotations"] = [entry for entry in map(change, content["annotations"]) if entry is not None]
        file.write_text(json.dumps(content))
    return root


def command(root, out):
    settings = ["pretrain.size=64,64", "pretrain.eval_size=64,64", "pretrain.batch_size=4", "pretrain.base_batch=4"]
    sets = [part for setting in settings for part in ("--set", setting)]
    start = ["train", "retinanet_r18_slim", "--data", str(root), "--out", str(out), "--phase", "pretrain"]
    return [*start, "--device", "cpu", *sets]


def test_training_on_nothing_ends_before_the_first_step(tmp_path, capsys):
    root = make_synthetic(tmp_path / "none", 4, 2, seed=1)
    assert main(command(changed(root, lambda entry: None), tmp_path / "run")) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no object to train on" in error and not (tmp_path / "run").exists()

    root = make_synthetic(tmp_path / "normalised", 4, 2, seed=1)
    shrunk = changed(root, lambda entry: {**entry, "bbox": [value / 1000 for value in entry["bbox"]]})
    objects = sum(int((~record.crowd).sum()) for record in load_dataset(root, "train").records)
    assert main(command(shrunk, tmp_path / "run")) == 1
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1
        and f"none of the {objects} objects is a pixel wide" in error
        and "pretrain.size" in error
    )
    assert not (tmp_path / "run").exists()


def test_the_banner_tells_what_is_never_seen(tmp_path, capsys):
    root = make_synthetic(tmp_path / "data", 4, 2, seed=1)
    first = []

    def shrink_one(entry):
        first.append(entry["id"])
        return {**entry, "bbox": [*entry["bbox"][:2], 0.5, 0.5]} if len(first) == 1 else entry

    objects = sum(int((~record.crowd).sum()) for record in load_dataset(root, "train").records)
    assert main([*command(root, tmp_path / "run"), "--dry-run"]) == 0
    assert f"4 train images with {objects} objects," in " ".join(capsys.readouterr().out.split())
    assert main([*command(changed(root, shrink_one), tmp_path / "run"), "--dry-run"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"with {objects - 1} objects (1 more are never seen: below a pixel at this size)" in words


@pytest.mark.parametrize(
    ("phase", "transform"),
    [
        (Phase("pretrain", size=(100, 100), resize="direct", scale=(0.5, 2.0)), PretrainTransform(100, (1.0, 1.0))),
        (Phase("pretrain", size=(50, 120), resize="edges"), EdgesTransform(50, 120)),
        (Phase("pretrain", size=(50, 120), resize="edges", shrink=2.0), EdgesTransform(50, 120, shrink=2.0)),
        (Phase("pretrain", size=(50, 300), resize="edges", short_edges=(80, 60, 40)), EdgesTransform(60, 300)),
    ],
)
def test_usual_sides_are_those_after_resizing(tmp_path, phase, transform):
    found = dataset(tmp_path, [(40.0, 20.0), (80.0, 60.0), (16.0, 90.0)], crowd=(1,))
    boxes = found.records[0].boxes[[0, 2]]
    sample = Sample(np.zeros((HEIGHT, WIDTH, 3), np.uint8), boxes, np.arange(2), None, (HEIGHT, WIDTH))
    resized = transform(sample, np.random.default_rng(0)).boxes
    assert usual_sides(phase, found) == pytest.approx(resized[:, 2:] - resized[:, :2], rel=0.02)


def test_usual_sides_of_a_warp_follow_both_edges(tmp_path):
    phase = Phase("scratch", size=(100, 100), eval_size=(100, 100), resize="warp")
    assert usual_sides(phase, dataset(tmp_path, [(40.0, 20.0)])) == pytest.approx(np.array([[10.0, 10.0]]))
    assert usual_sides(phase, dataset(tmp_path, [])).shape == (0, 2)
