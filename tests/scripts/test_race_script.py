"""scripts/race.py: what it tells the other tools, what it makes of their boxes, how it fills the time."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from directdet.recipes.by_name import get_recipe
from directdet.train.data import load_splits

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_what_the_others_are_told_scores_as_the_truth(shapes, tmp_path):
    """The boxes of the task, handed back as detections, have an AP of 100; without the last picture's, less."""
    from race import detections_of, figures, task_of

    from directdet.infer.accuracy.evaluate import score_detections

    train, val = load_splits(shapes)
    task = task_of(train, val, Namespace(minutes=1.0, device="cpu"), 3, tmp_path)
    assert json.loads(json.dumps(task)) == task and task["seed"] == 3 and task["seconds"] == 60
    assert [one["image_id"] for one in task["train"]] == [record.image_id for record in train.records]
    rows = [
        [one["image_id"], label, 0.9, *box]
        for one in task["val"]
        for box, label in zip(one["boxes"], one["labels"], strict=True)
    ]
    assert figures(score_detections(detections_of(rows, val), val))["AP"] == pytest.approx(100)
    rows = rows[: len(rows) // 2]
    assert figures(score_detections(detections_of(rows, val), val))["AP"] < 100


def test_yolo_files_give_the_boxes_back(shapes, tmp_path):
    from race import task_of
    from race_others import yolo_dataset

    train, val = load_splits(shapes)
    task = task_of(train, val, Namespace(minutes=1.0, device="cpu"), 0, tmp_path)
    yaml = yolo_dataset(task, tmp_path / "yolo")
    assert f"path: {tmp_path / 'yolo'}" in yaml.read_text()
    for split, dataset in (("train", train), ("val", val)):
        for record in dataset.records:
            text = (tmp_path / "yolo" / "labels" / split / f"{record.image_id}.txt").read_text()
            rows = np.array([line.split() for line in text.splitlines()], np.float64).reshape(-1, 5)
            centre, sides = rows[:, 1:3], rows[:, 3:]
            corners = np.hstack([centre - sides / 2, centre + sides / 2]) * np.tile([record.width, record.height], 2)
            used = ~record.crowd
            np.testing.assert_allclose(corners, record.boxes[used], atol=1e-3)
            np.testing.assert_array_equal(rows[:, 0], record.labels[used])
            picture = next((tmp_path / "yolo" / "images" / split).glob(f"{record.image_id}.*"))
            assert picture.resolve() == record.path.resolve()


def test_phases_fill_the_time():
    from race import scaled

    recipe = get_recipe("mask_rcnn_r18_slim")
    longer = recipe.with_phase("finetune", **scaled(recipe.phase("finetune"), 2.0)).phase("finetune")
    assert (longer.epochs, longer.milestones) == (20, (12, 18))
    assert scaled(recipe.phase("finetune"), 0.01) == {"epochs": 1}
    assert scaled(get_recipe("ssd300_vgg16_slim").phases[0], 0.5) == {"iterations": 600}
