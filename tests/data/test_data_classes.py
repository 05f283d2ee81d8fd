"""Classes renamed, merged, left out and put in order by a dataset.toml."""

import json

import numpy as np
import pytest

from directdet.common.errors import UserError
from directdet.data.check import check_data
from directdet.data.dataset import check_same_classes, load_dataset

ONE = 'images = "train2017"\nannotations = "annotations/instances_train2017.json"\n'
BOTH = f"[train]\n{ONE}[val]\n{ONE}"
NAMES = {2: "car", 4: "truck", 5: "keep", 9: "traffic light", 11: "person"}
OBJECTS = [
    {"bbox": [1, 1, 5, 5], "category_id": 4, "segmentation": [[1, 1, 6, 1, 6, 6]], "area": 9},
    {"bbox": [2, 2, 5, 5], "category_id": 2, "iscrowd": 1},
    {"bbox": [3, 3, 5, 5], "category_id": 11, "difficult": 1},
    {"bbox": [4, 4, 5, 5], "category_id": 5, "segmentation": {"size": [30, 40], "counts": [0, 1200]}},
    {"bbox": [5, 5, 5, 5], "category_id": 9, "image_id": 8},
]


@pytest.fixture
def read(write_coco):
    """``read(content)``: the train split with this at the end of its dataset.toml."""
    images = [{"id": number, "file_name": f"{number}.png", "width": 40, "height": 30} for number in (7, 8)]
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    root = write_coco(OBJECTS, images=images, categories=categories)

    def read(content, above="", split="train"):
        (root / "dataset.toml").write_text(above + BOTH + content)
        return load_dataset(root, split)

    return read


def labels(dataset):
    return [[dataset.classes[label] for label in record.labels] for record in dataset.records]


def test_renamed_and_merged(read):
    found = read('[classes]\ncar = "vehicle"\ntruck = "vehicle"\n"traffic light" = "light"')
    assert found.classes == ("vehicle", "keep", "light", "person")
    assert found.category_ids == (2, 5, 9, 11)  # a merged class has the lowest of its parts'
    assert labels(found) == [["vehicle", "vehicle", "person", "keep"], ["light"]]
    check_same_classes(found, load_dataset(found.root, "val"))
    before = read("")
    for left, right in zip(before.records, found.records, strict=True):
        for name in ("boxes", "crowd", "difficult", "areas"):
            assert np.array_equal(getattr(left, name), getattr(right, name))
        assert repr(left.segmentations) == repr(right.segmentations) and left.annotation_ids == right.annotation_ids
    assert any(note.endswith("[classes]: car and truck -> vehicle; traffic light -> light") for note in found.notes)


def test_merged_into_a_class_that_is_there_and_swapped(read):
    assert read('[classes]\ntruck = "car"').classes == ("car", "keep", "traffic light", "person")
    swapped = read('[classes]\ncar = "person"\nperson = "car"')
    assert swapped.classes == ("person", "truck", "keep", "traffic light", "car")
    assert labels(swapped)[0] == ["truck", "person", "car", "keep"]


def test_left_out_objects_go_and_their_pictures_stay(read):
    found = read('[classes]\n"traffic light" = false\nkeep = false')
    assert found.classes == ("car", "truck", "person") and labels(found) == [["truck", "car", "person"], []]
    first = found.records[0]
    assert first.annotation_ids == (1, 2, 3) and first.areas.tolist() == [9, 25, 25]
    assert first.crowd.tolist() == [False, True, False] and first.difficult.tolist() == [False, False, True]
    assert [mask is not None for mask in first.segmentations] == [True, False, False]
    assert found.notes[-2].endswith("[classes]: left out: keep, traffic light (2 of 5 classes)")
    assert found.notes[-1] == (
        "train: 2 objects are of classes that are left out; 1 pictures have no others and stay, without objects"
    )


def test_kept_in_order(read):
    found = read("", 'keep_classes = ["person", "keep"]\n')
    assert (found.classes, found.category_ids) == (("person", "keep"), (1, 2))  # 11 and 5 do not rise
    assert labels(found) == [["person", "keep"], []]
    found = read('[classes]\nkeep = "kept"\ncar = "vehicle"\ntruck = "vehicle"', 'keep_classes = ["vehicle", "kept"]\n')
    assert (found.classes, found.category_ids) == (("vehicle", "kept"), (2, 5))
    assert labels(found) == [["vehicle", "vehicle", "kept"], []]


@pytest.mark.parametrize(
    ("above", "content", "message"),
    [
        ("", '[classes]\nCra = "x"', r"dataset\.toml: \[classes\]: train has no class 'Cra'; did you mean 'car'\?"),
        ("", '[classes]\nzzz = "x"', "its classes are car, truck, keep, traffic light, person"),
        ("", "[classes]\ncar = true", r"\[classes\]: car: True is neither the new name of class 'car' nor false"),
        ("", "[classes]\ncar = ' '", "car: ' ' is neither"),
        ("", "[classes]\nval_fraction = 0.2", r"val_fraction: 0.2 is neither .* belongs above \[classes\]"),
        ("classes = ['car']\n", "", r"\[classes\]: \['car'\] is not a table"),
        ("keep_classes = 'car'\n", "", "keep_classes: 'car' is not a list of names"),
        ("keep_classes = []\n", "", r"keep_classes: \[\] is not a list of names"),
        ("keep_classes = ['car', 'car']\n", "", "keep_classes: names 'car' twice"),
        ("keep_classes = ['car']\n", "[classes]\ncar = 'auto'", "keep_classes: train has no class 'car'; its class"),
        ("keep_classes = ['persn']\n", "", "keep_classes: train has no class 'persn'; did you mean 'person'"),
        ("", "[classes]\n" + "".join(f"'{name}' = false\n" for name in NAMES.values()), "leaves out all classes"),
    ],
)
def test_mistakes_are_named(read, above, content, message):
    with pytest.raises(UserError, match=message):
        read(content, above)


def test_with_a_held_out_part_and_pixels(read, write_coco):
    root = read("").root
    (root / "dataset.toml").write_text(
        f'{ONE}val_count = 1\nkeep_classes = ["person"]\n[pixels]\nchannels = 1\ndtype = "uint16"'
    )
    for split in ("train", "val"):
        found = load_dataset(root, split)
        assert found.classes == ("person",) and len(found) == 1 and found.pixels.channels == 1


def test_check_data_counts_the_new_classes(read):
    root = read('[classes]\ncar = "vehicle"\ntruck = "vehicle"\nkeep = false').root
    report = check_data(root, verify_images=False, progress=False)
    assert report.label_map == ((0, 2, "vehicle"), (1, 9, "traffic light"), (2, 11, "person"))
    assert report.splits[0].class_counts == (1, 1, 1)  # crowd regions do not count
    assert any("car and truck -> vehicle" in line for line in report.warnings)
    written = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    assert len(written["annotations"]) == len(OBJECTS)  # the file itself is as it was
