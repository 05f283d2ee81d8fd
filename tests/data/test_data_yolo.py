"""YOLO's labels in every arrangement that its users have."""

import numpy as np
import pytest
from layout_files import boxes, write

from directdet.common.errors import UserError
from directdet.data.check import check_data
from directdet.data.dataset import find_splits, load_dataset

YAML = "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: bolt\n  1: nut\n"


def test_yolo_boxes_polygons_and_empty_pictures(picture):
    root = picture("images/train/a.png", "images/train/b.png", "images/train/c.png", "images/val/d.png")
    write(root / "data.yaml", YAML)
    write(root / "labels/train/a.txt", b"\xef\xbb\xbf1 0.5 0.5 0.5 0.5\r\n0 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6\r\n")
    write(root / "labels/train/b.txt", "")
    write(root / "labels/val/d.txt", "0 .25 .5 .5 1\n")
    assert find_splits(root) == ["train", "val"]
    train = load_dataset(root, "train")
    assert (train.layout, train.classes, train.category_ids) == ("yolo", ("bolt", "nut"), (0, 1))
    assert boxes(train) == {"a.png": [[10, 5, 30, 15], [4, 4, 12, 12]], "b.png": [], "c.png": []}
    box, polygon = train.records[0].segmentations
    assert box is None and np.allclose(polygon[0], [4, 4, 12, 4, 12, 12, 4, 12])
    assert "1 of 3 pictures have no label file" in train.notes[0]
    assert boxes(load_dataset(root / "data.yaml", "val")) == {"d.png": [[0, 0, 20, 20]]}
    assert not check_data(root).fatal


@pytest.mark.parametrize(
    ("yaml", "image", "label"),
    [
        ("train: ../train/images\nnames: [a, b]", "train/images/x.png", "train/labels/x.txt"),  # Roboflow
        ("train: train\nnames: [a, b]\nnc: 2", "train/images/x.png", "train/labels/x.txt"),
        ("path: /nowhere\ntrain: images\nnames: [a, b]", "images/x.png", "labels/x.txt"),
        ("path: ../datasets/coco8\ntrain: [images/one, images/two]\nnames: [a, b]", "images/two/x.png", None),
        ("train: train.txt\nnames: {0: a, 1: b}", "images/deep/x.png", "labels/deep/x.txt"),
        ("train: pictures\nnames: [a, b]", "pictures/x.png", "pictures/x.txt"),
        (None, "train/images/x.png", "train/labels/x.txt"),
        (None, "images/train/x.png", "labels/train/x.txt"),
        (None, "images/x.png", "labels/x.txt"),
        (None, "x.png", "x.txt"),
    ],
)
def test_yolo_arrangements(picture, yaml, image, label):
    root = picture(image, *(["images/one/y.png"] if label is None else []))
    write(root / (label or "labels/two/x.txt"), "1 0.5 0.5 0.5 0.5\n")
    write(root / "train.txt" if yaml and "train.txt" in yaml else root / "notes.md", "./images/deep/x.png\n")
    write(root / "classes.txt" if yaml is None else root / "data.yaml", yaml or "a\nb\n")
    train = load_dataset(root, "train")
    assert boxes(train)["x.png"] == [[10, 5, 30, 15]] and train.classes == ("a", "b")
    assert train.records[-1].labels.tolist() == [1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 .5 .5 .5 .5", r"a\.txt: line 2: class 2 is not one of the 2 classes \(0 to 1\)"),
        ("-1 .5 .5 .5 .5", "line 2: class -1 is not one"),
        ("0.5 .5 .5 .5 .5", "line 2: class 0.5 is not one"),
        ("0 .5 .5 .5", "line 2: 4 numbers; expected a class and x, y, width, height, or at least three points"),
        ("0 .1 .1 .2 .2 .3", "line 2: 6 numbers; expected"),
        ("0 20 10 20 10", "line 2: 20 10 20 10 are no shares of the picture's width and height"),
        ("0 .5 nan .5 .5", "line 2: '0 .5 nan .5 .5' is not a list of finite numbers"),
        ("nut .5 .5 .5 .5", "line 2: 'nut .5 .5 .5 .5' is not a list"),
    ],
)
def test_yolo_lines_that_cannot_be_read(picture, line, message):
    root = picture("images/train/a.png")
    write(root / "data.yaml", YAML.replace("val: images/val\n", ""))
    write(root / "labels/train/a.txt", f"0 .5 .5 .5 .5\r\n{line}\r\n")
    with pytest.raises(UserError, match=message):
        load_dataset(root, "train")
    left = load_dataset(root, "train", leave_out=True)
    assert boxes(left) == {"a.png": [[10, 5, 30, 15]]} and len(left.errors) == 1


def test_yolo_box_beyond_the_picture_is_clipped_and_told(picture):
    root = picture("images/train/a.png")
    write(root / "data.yaml", YAML.replace("val: images/val\n", ""))
    write(root / "labels/train/a.txt", "0 .9 .5 .4 .5\n0 1.5 .5 .2 .5\n")
    train = load_dataset(root, "train")
    assert boxes(train) == {"a.png": [[28, 5, 40, 15]]}
    assert [(problem.kind, problem.action) for problem in train.problems] == [
        ("clipped-box", "clipped"),
        ("outside-box", "dropped"),
    ]
    assert "a.txt: line 2" in train.problems[1].file


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: ../../elsewhere\nnames: [a]", r"data\.yaml: train: '../../elsewhere' not found"),
        ("train: images/train\nnames: [a]\nnc: 2", "nc is 2, but there are 1 names"),
        ("train: images/train\nnames: {0: a, 2: b}", "names: the keys are not 0, 1, 2"),
        ("train: images/train\nnames: 3", "names: expected a list"),
        ("names: [a]", "train and val are missing"),
        ("train: [", "not readable YAML"),
        ("!!python/object/apply:os.system ['true']", "not readable YAML"),
    ],
)
def test_yolo_descriptions_that_cannot_be_read(picture, yaml, message):
    root = picture("images/train/a.png")
    write(root / "data.yaml", yaml)
    with pytest.raises(UserError, match=message):
        load_dataset(root, "train")


def test_yolo_without_names_or_labels(picture):
    root = picture("images/train/a.png")
    write(root / "labels/train/a.txt", "0 .5 .5 .5 .5")
    with pytest.raises(UserError, match=r"nothing names the classes.*\{train: images/train, names: \["):
        find_splits(root)
    write(root / "data.yaml", YAML)
    (root / "labels/train/a.txt").unlink()
    (root / "images/val").mkdir()
    with pytest.raises(UserError, match=r"a\.txt: label file not found, nor one for any of the 1 pictures"):
        load_dataset(root, "train")


def test_yolo_list_may_not_leave_its_folder(picture, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    root = picture("images/a.png")
    write(root / "labels/a.txt", "0 .5 .5 .5 .5")
    write(root / "train.txt", f"images/a.png\n../x.png\n{outside}/b.png\n")
    write(root / "data.yaml", "train: train.txt\nnames: [a]")
    left = load_dataset(root, "train", leave_out=True)
    assert len(left) == 1 and len(left.errors) == 2 and all("may point outside" in error for error in left.errors)
    write(outside / "data.yaml", f"train: {root / 'images'}\nnames: [a]")
    assert f"{root / 'images'} is outside" in load_dataset(outside, "train").notes[0]


def test_yolo_labels_beside_the_pictures_of_a_set_below_a_folder_called_images(picture):
    root = picture("images/project/train/x.png") / "images" / "project"
    write(root / "train/x.txt", "1 0.5 0.5 0.5 0.5\n")
    write(root / "data.yaml", "train: train\nnames: [a, b]\n")
    assert boxes(load_dataset(root, "train")) == {"x.png": [[10, 5, 30, 15]]}
