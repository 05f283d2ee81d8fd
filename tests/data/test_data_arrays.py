"""Large sets, whose records are made when asked for, say the same as small ones, whose records are all there."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from directdet.data.dataset import find_dataset, load_dataset
from directdet.data.digest import describe_content
from directdet.data.flat.arrays import all_objects, image_files, image_sizes, learnt_counts
from directdet.data.formats import coco, pictures
from directdet.data.formats.described.classes import class_rules, with_classes
from directdet.data.records import Dataset, Records
from directdet.data.synthetic import make_synthetic
from directdet.recipes.by_name import get_recipe
from directdet.train.objects import facts_of_data, possible_objects, usual_sides
from directdet.train.processes.agreement import facts_of

FILE = "annotations/instances_train2017.json"


def both(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Dataset, Dataset]:
    """The same data read as a small set and as a large one."""
    monkeypatch.setenv("DIRECTDET_CACHE", "off")
    small = load_dataset(root, "train")
    monkeypatch.setattr(pictures, "MANY", 1)
    monkeypatch.setattr(coco, "LARGE", 1)
    large = load_dataset(root, "train")
    assert isinstance(small.records, tuple) and isinstance(large.records, Records)
    return small, large


@pytest.fixture
def datasets(tmp_path, monkeypatch) -> tuple[Dataset, Dataset]:
    """COCO with crowds, difficult objects, objects of a score, and a picture without any."""
    root = make_synthetic(tmp_path / "data", images_train=12, images_val=2, size=(64, 96))
    content = json.loads((root / FILE).read_text())
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != content["images"][2]["id"]]
    for number, one in enumerate(content["annotations"]):
        one |= {"difficult": int(number % 3 == 0), "score": (0.0, 0.5, 1.0)[number % 4 % 3]}
        one["iscrowd"] = int(number % 7 == 6)
    (root / FILE).write_text(json.dumps(content))
    return both(root, monkeypatch)


def same(one: Dataset, other: Dataset) -> None:
    """Both have the same objects in the same pictures."""
    for first, second in zip(one.records, other.records, strict=True):
        assert (first.image_id, first.path, first.width, first.height) == (
            (second.image_id, second.path, second.width, second.height)
        )
        assert first.annotation_ids == second.annotation_ids
        for name in ("boxes", "labels", "crowd", "difficult", "areas", "weights"):
            ours, theirs = getattr(first, name), getattr(second, name)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    assert describe_content(one) == describe_content(other)


def test_all_objects_of_a_large_set_are_those_of_a_small_one(datasets):
    chosen = np.array([7, 2, 0, 11])
    for small, large in (datasets, tuple(replace(one, records=_taken(one, chosen)) for one in datasets)):
        ours, theirs = all_objects(large.records), all_objects(small.records)
        for name in ("boxes", "labels", "crowd", "difficult", "weights", "counts", "learnt"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        assert ours.counts.tolist() == [len(record.boxes) for record in small.records] and 0 in ours.counts
        assert list(image_files(large.records)) == [(one.image_id, one.path) for one in small.records]
        assert image_sizes(large.records).tolist() == [[one.width, one.height] for one in small.records]
        assert learnt_counts(large.records).tolist() == [int(one.learnt.sum()) for one in small.records]


def _taken(dataset: Dataset, chosen: np.ndarray):
    records = dataset.records
    return records.take(chosen) if isinstance(records, Records) else tuple(records[place] for place in chosen)


def test_what_a_run_asks_of_a_large_set_is_what_it_asks_of_a_small_one(datasets):
    small, large = datasets
    assert facts_of_data(large) == facts_of_data(small)
    recipe = get_recipe("mask_rcnn_r50_fpn")
    for phase in recipe.phases:
        assert phase.skip_difficult
        assert possible_objects(phase, large) == possible_objects(phase, small)
        np.testing.assert_array_equal(usual_sides(phase, large), usual_sides(phase, small))
        expected = [(~record.difficult & record.learnt).sum() for record in small.records]
        assert len(usual_sides(phase, small)) == sum(expected) > 0
    facts = [facts_of(recipe, [], one, None, 0, "cpu", []) for one in datasets]
    assert facts[0] == facts[1]


def test_a_large_set_without_its_difficult_objects_stays_one(datasets):
    small, large = (one.without_difficult() for one in datasets)
    assert isinstance(large.records, Records) and small.records != datasets[0].records
    same(small, large)
    assert large.difficult_objects() == 0 < datasets[1].difficult_objects()


def test_classes_of_a_large_set_are_renamed_and_left_out_as_those_of_a_small_one(datasets):
    first, second, *others = datasets[0].classes
    table = {first: False, second: others[0]}
    small, large = (with_classes(one, class_rules(table, None, "here", "there")) for one in datasets)
    assert isinstance(large.records, Records)
    same(small, large)
    assert (large.classes, large.category_ids, large.notes) == (small.classes, small.category_ids, small.notes)
    assert first not in large.classes and second not in large.classes
    assert len(all_objects(large.records).labels) < len(all_objects(datasets[0].records).labels)


@pytest.mark.parametrize("way", ["val_fraction = 0.4", 'group = "folder"\nval_count = 1', "[[sets]]"])
def test_a_large_set_is_divided_as_a_small_one(tmp_path, monkeypatch, way):
    root = make_synthetic(tmp_path / "data", images_train=10, images_val=2, size=(64, 96))
    content = json.loads((root / FILE).read_text())
    (root / "train2017" / "more").mkdir()
    for image in content["images"][:4]:
        name = image["file_name"]
        (root / "train2017" / name).rename(root / "train2017" / "more" / name)
        image["file_name"] = f"more/{name}"
    (root / FILE).write_text(json.dumps(content))
    place = f'images = "train2017"\nannotations = "{FILE}"\n'
    joined = f"val_fraction = 0.4\n[[sets]]\n{place}classes = {{{content['categories'][0]['name']} = false}}\n"
    (root / "dataset.toml").write_text(joined if way == "[[sets]]" else f"{place}{way}\n")
    monkeypatch.setenv("DIRECTDET_CACHE", "off")
    small = [load_dataset(root, split) for split in ("train", "val")]
    monkeypatch.setattr(coco, "LARGE", 1)
    large = [load_dataset(root, split) for split in ("train", "val")]
    for one, other in zip(small, large, strict=True):
        same(one, other)
        assert len(one) in (4, 6) and one.notes == other.notes


def test_many_pictures_of_yolo_are_read_as_few_are(tmp_path, monkeypatch):
    source = make_synthetic(tmp_path / "data", images_train=5, images_val=2, size=(64, 96))
    (tmp_path / "yolo" / "images" / "train").mkdir(parents=True)
    (tmp_path / "yolo" / "labels" / "train").mkdir(parents=True)
    (tmp_path / "yolo" / "data.yaml").write_text("train: images/train\nnames: [a, b]\n")
    lines = ["0 0.5 0.5 0.3 0.4\n1 0.1 0.1 0.5 0.6\n", "1 0.1 0.1 0.6 0.2 0.4 0.9\n0 0.9 0.9 0.4 0.4\n", "0 7 7 1 1\n"]
    for number, picture in enumerate(sorted((source / "train2017").iterdir())):
        (tmp_path / "yolo" / "images" / "train" / picture.name).write_bytes(picture.read_bytes())
        if number < len(lines):
            (tmp_path / "yolo" / "labels" / "train" / f"{picture.stem}.txt").write_text(lines[number])
    monkeypatch.setattr(pictures, "MANY", 1)
    large = find_dataset(tmp_path / "yolo").read("train")
    monkeypatch.setattr(pictures, "MANY", 100)
    small = find_dataset(tmp_path / "yolo").read("train")
    assert isinstance(large.records, Records) and isinstance(small.records, tuple)
    same(small, large)
    assert [len(record.boxes) for record in small.records] == [2, 2, 0, 0, 0]
    assert large.problems == small.problems and large.problems
    assert large.errors == small.errors and len(large.errors) == 1
    assert large.notes == small.notes and "2 of 5 pictures have no label file" in large.notes[-1]
