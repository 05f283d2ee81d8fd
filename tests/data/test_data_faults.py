"""Annotation files with many faults, and names that no file can have."""

from __future__ import annotations

import json
import unicodedata

import pytest

from directdet.common.errors import UserError
from directdet.data.check import check_data
from directdet.data.dataset import load_dataset
from directdet.data.formats import reading
from directdet.front.cli import main

GOOD = {"bbox": [1, 2, 5, 6]}
IMAGE = {"id": 7, "file_name": "a.png", "width": 40, "height": 30}


def errors(root):
    """What check-data tells, without the file's name."""
    return [line.partition("train2017.json: ")[2] for line in check_data(root, progress=False).errors]


def test_all_are_listed_the_worst_first_and_each_once(write_coco):
    images = [IMAGE, {**IMAGE, "id": 8, "width": "x"}, IMAGE, {**IMAGE, "id": 9, "file_name": "../a.png"}, 5]
    categories = [{"id": 3, "name": "cat"}, {"id": 4}, {"id": 3, "name": "dog"}]
    objects = [
        GOOD,
        {**GOOD, "image_id": 8},  # its image is told already
        {**GOOD, "category_id": 4},  # its category is told already
        {**GOOD, "id": 1},
        {**GOOD, "bbox": [1, 2]},
        {**GOOD, "category_id": 17},
        "text",
        GOOD,
    ]
    root = write_coco(objects, images=images, categories=categories)
    told = errors(root)
    assert [line[:30] for line in told] == [
        "categories: entry 1 has no int",
        "categories: id 3 is used twice",
        "image 8: width 'x' and height ",
        "image 7: id is used twice; giv",
        "image 9: file_name: path '../a",
        "images: entry 4 has no integer",
        "annotation 1: id is used twice",
        "annotation 5: bbox [1, 2] is n",
        "annotation 6: category_id 17 i",
        "annotations: entry 6 is not an",
    ]
    with pytest.raises(UserError, match=r"categories: entry 1 .*\(and 9 more: check-data lists them\)$"):
        load_dataset(root, "train")
    report = check_data(root, progress=False)
    assert report.fatal and report.splits[0].objects == 2 and report.splits[0].unreadable_entries == 10


def test_their_number_is_limited(write_coco, monkeypatch):
    monkeypatch.setattr(reading, "MOST_ERRORS", 3)
    told = load_dataset(write_coco([{"bbox": []}] * 10), "train", leave_out=True).errors
    assert len(told) == 4 and told[3] == "... and 7 more objects that cannot be read"


def test_a_split_that_cannot_be_read_does_not_hide_the_other(write_coco):
    root = write_coco([GOOD])
    (root / "annotations" / "instances_val2017.json").write_text("{")
    report = check_data(root, progress=False)
    assert report.fatal and [split.split for split in report.splits] == ["train"]
    assert "instances_val2017.json: line 1, column 2: not valid JSON" in report.errors[0]


@pytest.mark.parametrize("entry", [{}, {"width": None, "height": None}, {"width": 0, "height": 0}, {"width": 40}])
def test_sizes_that_are_missing_are_measured(write_coco, entry):
    dataset = load_dataset(write_coco([GOOD], images=[{"id": 7, "file_name": "a.png", **entry}]), "train")
    assert (dataset.records[0].width, dataset.records[0].height) == (40, 30)
    assert "1 images (the first: 7) have no width or height" in dataset.notes[0]


def test_sizes_of_missing_files_are_an_error(write_coco):
    root = write_coco([GOOD], images=[{"id": 7, "file_name": "b.png"}])
    with pytest.raises(UserError, match=r"b\.png: image file not found"):
        load_dataset(root, "train")


NAMES = {
    "long": "x" * 260 + ".png",
    "surrogate": "\ud800.png",
    "lone byte": "\udcff.png",
    "folder": "y" * 300 + "/a.png",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_that_no_file_has_are_missing_files(write_coco, capsys, tmp_path, name):
    root = write_coco([GOOD], images=[{**IMAGE, "file_name": name}], categories=[{"id": 3, "name": "\ud800"}])
    for ending in ("json", "html", "txt"):
        assert main(["check-data", str(root), "--report", str(tmp_path / f"report.{ending}")]) == 1
        assert (tmp_path / f"report.{ending}").stat().st_size
    report = check_data(root, progress=False)
    assert len(report.splits[0].missing_files) == 1
    assert main(["check-data", str(root), "--no-images"]) == 1
    printed = capsys.readouterr()
    assert "image file not found" in printed.out and "Traceback" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        (unicodedata.normalize("NFD", "Prüfling.png"), "Prüfling.png"),
        ("Prüfling 1.png", "Pr%C3%BCfling%201.png"),
        ("a1.PNG", "a1.png"),
        ("A1.png", "a1.jpg"),
    ],
)
def test_a_file_of_nearly_the_same_name_is_told(write_coco, write_image, there, asked):
    root = write_coco([GOOD], images=[{**IMAGE, "file_name": asked}])
    write_image(root / "train2017" / there, 30, 40)
    (missing,) = check_data(root, progress=False).splits[0].missing_files
    assert missing.message.endswith(
        f"not found; there is {there}, whose name differs in form; correct one of the two names"
    )
    with pytest.raises(UserError, match="whose name differs in form"):
        load_dataset_image(root)


def load_dataset_image(root):
    from directdet.data.dataset import read_record_image

    read_record_image(load_dataset(root, "train").records[0])


def test_toml_and_json_with_a_byte_order_mark(write_coco):
    root = write_coco([GOOD])
    file = root / "annotations" / "instances_train2017.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    table = f'[train]\nimages = "train2017"\nannotations = {json.dumps("annotations/" + file.name)}\n'
    (root / "dataset.toml").write_bytes(b"\xef\xbb\xbf" + table.encode())
    assert load_dataset(root, "train").layout == "toml" and len(load_dataset(root, "train")) == 1


@pytest.mark.parametrize("key", ["val_fraction = 0.3", "val_count = 1"])
def test_one_image_cannot_be_divided(write_coco, key):
    root = write_coco([GOOD])
    content = f'images = "train2017"\nannotations = "annotations/instances_train2017.json"\n{key}\n'
    (root / "dataset.toml").write_text(content)
    with pytest.raises(UserError, match=rf"{key.split()[0]}: 1 image cannot be divided.*\[train\], without \[val\]"):
        load_dataset(root, "train")
