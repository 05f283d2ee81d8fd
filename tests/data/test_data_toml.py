"""dataset.toml: splits, paths and mistyped keys."""

import pytest

from directdet.common.errors import UserError
from directdet.data.dataset import find_splits, load_dataset

SINGLE = 'images = "train2017"\nannotations = "annotations/instances_train2017.json"\n'


@pytest.fixture
def root(write_coco):
    images = [{"id": index * 3, "file_name": f"{index}.png", "width": 40, "height": 30} for index in range(20)]
    return write_coco(images=images)


def names(dataset):
    return [record.path.name for record in dataset.records]


def test_one_set_is_split_the_same_way_each_time(root):
    (root / "dataset.toml").write_text(SINGLE + "val_fraction = 0.3\nseed = 5")
    assert find_splits(root) == ["train", "val"]
    train, val = load_dataset(root, "train"), load_dataset(root / "dataset.toml", "val")
    assert (train.layout, train.root, val.split) == ("toml", root, "val")
    assert len(val) == 6 and len(train) == 14 and not set(names(train)) & set(names(val))
    assert names(load_dataset(root, "val")) == names(val)
    (root / "dataset.toml").write_text(SINGLE + "val_count = 6\nseed = 5")
    assert names(load_dataset(root, "val")) == names(val)
    (root / "dataset.toml").write_text(SINGLE + "val_count = 6")
    assert names(load_dataset(root, "val")) != names(val)


def test_split_tables(root):
    (root / "other.toml").write_text(f"[train]\n{SINGLE}[test]\n{SINGLE}")
    assert find_splits(root / "other.toml") == ["train", "test"]
    assert len(load_dataset(root / "other.toml", "test")) == 20
    with pytest.raises(UserError, match="no split 'val' here; found: train, test"):
        load_dataset(root / "other.toml", "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SINGLE + "val_fracton = 0.3", "unknown key 'val_fracton'; did you mean 'val_fraction'"),
        (f"[train]\n{SINGLE}image = 'x'", r"\[train\]: unknown key 'image'; did you mean 'images'"),
        ("[trian]\nimages = 'x'", "unknown key 'trian'; did you mean 'train'"),
        (SINGLE + "zzz = 1", "unknown key 'zzz'; known: images"),
        (SINGLE, "give either val_fraction"),
        (SINGLE + "val_fraction = 0.3\nval_count = 2", "give either val_fraction"),
        (SINGLE + "val_fraction = 1.5", "val_fraction: 1.5 is not a number between"),
        (SINGLE + "val_count = 20", "val_count: 20 does not leave images for both splits; there are 20"),
        (SINGLE + "val_count = true", "val_count: True does not"),
        (SINGLE + "val_count = 2\nseed = -1", "seed: -1 is not"),
        ('images = "train2017"\nval_count = 1', "key 'annotations' is missing"),
        ("[train]\nimages = 'x'", r"\[train\]: key 'annotations' is missing"),
        (f"{SINGLE}\nval_count=2\n[train]\n{SINGLE}", "not both"),
        ("train = 3", "train: expected a table"),
        ("", "images and annotations are missing"),
        ("images = ", "not readable TOML"),
        (
            SINGLE.replace("train2017", "../train2017", 1) + "val_count = 2",
            "images: path '../train2017' may point outside",
        ),
        (
            SINGLE.replace("annotations/", "/annotations/") + "val_count = 2",
            "^/annotations/instances_train2017.json: ann",
        ),
        ("images = 3\nannotations = 'x'\nval_count = 2", "images: 3 is not a file name"),
        ("images = 'train2017'\nannotations = 'no.json'\nval_count = 2", r"no\.json: annotation file not found"),
    ],
)
def test_mistakes_are_named(root, content, message):
    (root / "dataset.toml").write_text(content)
    with pytest.raises(UserError, match=message):
        load_dataset(root, "train")
