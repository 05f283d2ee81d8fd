"""Round trips among COCO, YOLO and VOC, and the folder that convert writes."""

import json
import os

import numpy as np
import pytest

from directdet.common.errors import UserError
from directdet.data.dataset import load_dataset
from directdet.data.formats.write.convert import convert
from directdet.front.cli import main

SQUARE = [[3.5, 4.25, 13.5, 4.25, 13.5, 12.75, 3.5, 12.75]]
OBJECTS = [
    {"bbox": [1.123456, 2.654321, 30.111111, 20.222222]},
    {"bbox": [3.5, 4.25, 10, 8.5], "segmentation": SQUARE, "category_id": 9},
    {"bbox": [0, 0, 40, 30], "difficult": 1},
]


def same_boxes(first, second, tolerance=1e-4):
    for left, right in zip(first.records, second.records, strict=True):
        assert (left.path.name, left.width, left.height) == (right.path.name, right.width, right.height)
        assert np.abs(left.boxes - right.boxes).max(initial=0) <= tolerance
        assert [first.classes[k] for k in left.labels] == [second.classes[k] for k in right.labels]


def test_coco_yolo_coco(write_coco, tmp_path):
    root = write_coco(OBJECTS)
    lost = convert(root, "yolo", tmp_path / "yolo")
    assert lost == ["1 marks of difficult objects", "2 category ids, which become 0, 1, ..."]
    assert convert(tmp_path / "yolo", "coco", tmp_path / "back") == []
    before, after = load_dataset(root, "train"), load_dataset(tmp_path / "back", "train")
    same_boxes(before, after)
    assert after.classes == before.classes == ("cat", "dog")
    masks = after.records[0].segmentations
    assert masks[0] is None and np.abs(masks[1][0] - SQUARE[0]).max() < 1e-4


def test_coco_voc_coco(write_coco, tmp_path):
    root = write_coco(OBJECTS)
    lost = convert(root, "voc", tmp_path / "voc")
    assert lost == ["1 masks", "2 category ids, which become those of the sorted names"]
    assert convert(tmp_path / "voc", "coco", tmp_path / "back") == []
    before, after = load_dataset(root, "train"), load_dataset(tmp_path / "back", "train")
    same_boxes(before, after)
    assert after.records[0].difficult.tolist() == [False, False, True]


def test_coco_to_coco_is_the_same(synthetic, tmp_path):
    convert(synthetic, "coco", tmp_path / "copy", link=True)
    for split in ("train", "val"):
        before, after = load_dataset(synthetic, split), load_dataset(tmp_path / "copy", split)
        same_boxes(before, after, 1e-5)
        assert before.category_ids == after.category_ids
        for left, right in zip(before.records, after.records, strict=True):
            assert (left.image_id, left.annotation_ids) == (right.image_id, right.annotation_ids)
            assert left.areas.tolist() == right.areas.tolist() and right.path.is_symlink()
            for one, other in zip(left.segmentations, right.segmentations, strict=True):
                if isinstance(one, dict):
                    assert one == other
                else:
                    assert len(one) == len(other) and all(map(np.array_equal, one, other))


def test_synthetic_keeps_its_boxes_in_every_format(synthetic, tmp_path):
    for to in ("yolo", "voc"):
        convert(synthetic, to, tmp_path / to)
        for split in ("train", "val"):
            before, after = load_dataset(synthetic, split), load_dataset(tmp_path / to, split)
            assert len(before) == len(after)
            by_name = {record.path.stem: record for record in after.records}
            for record in before.records:
                # A polygon's outline stands for its box in YOLO, up to a pixel away; crowd regions are left out.
                boxes = by_name[record.path.stem].boxes
                assert np.abs(boxes - record.boxes[~record.crowd]).max(initial=0) <= (1 if to == "yolo" else 1e-4)


def test_what_yolo_cannot_hold_is_counted(write_coco, tmp_path):
    other = [[3.5, 4.25, 8.5, 4.25, 8.5, 12.75]]
    root = write_coco(
        [
            {"bbox": [1, 1, 5, 5], "iscrowd": 1},
            {"bbox": [3.5, 4.25, 10, 8.5], "segmentation": SQUARE + other},
            {"bbox": [3.5, 4.25, 10, 8.5], "segmentation": other},
        ]
    )
    lost = convert(root, "yolo", tmp_path / "yolo")
    words = ["crowd regions", "masks of several polygons", "masks of objects whose box is another", "category ids"]
    assert all(f"{count} {what}" in line for line, count, what in zip(lost, (1, 1, 1, 2), words, strict=True))
    assert len((tmp_path / "yolo/labels/train/a.txt").read_text().splitlines()) == 2
    assert any("crowd regions" in line for line in convert(root, "voc", tmp_path / "voc"))


def test_only_its_own_folder_is_overwritten(write_coco, tmp_path, monkeypatch):
    root = write_coco(OBJECTS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("")
    with pytest.raises(UserError, match="mine: is not empty and was not written by convert"):
        convert(root, "yolo", tmp_path / "mine")
    with pytest.raises(UserError, match="holds the data at"):
        (root / "directdet-convert.json").write_text("{}")
        convert(root, "yolo", root)
    convert(root, "yolo", tmp_path / "out")
    convert(root, "voc", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "Annotations", "ImageSets", "JPEGImages", "directdet-convert.json",
    ]  # fmt: skip
    (root / "train2017" / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png: image file not found"):
        convert(root, "coco", tmp_path / "out")
    assert (tmp_path / "out" / "Annotations" / "a.xml").is_file()  # the older one stays
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".out")]


def test_pictures_of_one_name_stay_apart(write_coco, tmp_path):
    root = write_coco(OBJECTS)
    (root / "val2017").mkdir()
    (root / "val2017" / "a.png").write_bytes((root / "train2017" / "a.png").read_bytes())
    content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps({**content, "annotations": []}))
    convert(root, "voc", tmp_path / "voc")
    names = sorted(os.listdir(tmp_path / "voc" / "JPEGImages"))
    assert names == ["train_a.png", "val_a.png"]
    convert(root, "yolo", tmp_path / "yolo")
    assert (tmp_path / "yolo/images/train/a.png").is_file() and (tmp_path / "yolo/labels/val/a.txt").read_text() == ""


def test_the_command(write_coco, tmp_path, capsys):
    root = write_coco(OBJECTS)
    assert main(["convert", str(root), "--to", "voc", "--out", str(tmp_path / "voc")]) == 0
    assert "not held by voc: 1 masks" in capsys.readouterr().out
    assert main(["convert", str(root), "--to", "voc", "--out", str(root / "train2017")]) == 1
    assert "is not empty and was not written by convert" in capsys.readouterr().err
