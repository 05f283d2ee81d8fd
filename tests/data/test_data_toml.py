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


def test_splits_by_list_and_folds(root):
    (root / "val.txt").write_bytes(b"\xef\xbb\xbf3.png\r\n\r\n7\r\n")
    (root / "dataset.toml").write_text(SINGLE + 'val_list = "val.txt"')
    assert names(load_dataset(root, "val")) == ["3.png", "7.png"] and len(load_dataset(root, "train")) == 18
    (root / "val.txt").write_text("3.png\n99.png\n")
    with pytest.raises(UserError, match=r"val\.txt: line 2: '99\.png' is none of the images"):
        load_dataset(root, "val")
    seen = []
    for fold in range(3):
        (root / "dataset.toml").write_text(SINGLE + f"folds = 3\nfold = {fold}\nseed = 1")
        val = names(load_dataset(root, "val"))
        assert len(val) in (6, 7) and not set(val) & set(names(load_dataset(root, "train")))
        seen += val
    assert sorted(seen) == sorted(f"{index}.png" for index in range(20))


def test_splits_by_group_keep_neighbours_together(write_coco):
    images = [
        {"id": 10 * clip + frame, "file_name": f"clip{clip}_{frame}.png", "width": 40, "height": 30}
        for clip in range(5)
        for frame in range(clip + 1)
    ]
    root = write_coco(images=images)
    content = SINGLE + "group = '^(clip[0-9]+)_'\n"
    for more in ("val_count = 2", "val_fraction = 0.4", "folds = 5\nfold = 3", "val_count = 2\nseed = 9"):
        (root / "dataset.toml").write_text(content + more)
        train, val = (names(load_dataset(root, split)) for split in ("train", "val"))
        clips = [{name.split("_")[0] for name in part} for part in (train, val)]
        assert not clips[0] & clips[1] and len(clips[1]) == (1 if "folds" in more else 2)
        assert sorted(train + val) == sorted(image["file_name"] for image in images)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("folds = 21", "folds: 21 is not an integer from 2 to the number of images, 20"),
        ("folds = 3\nfold = 3", "fold: 3 is not one of the 3 folds, 0 to 2"),
        ("val_count = 2\nfold = 1", "fold: says which of the folds"),
        ("val_count = 2\nfolds = 2", "give either val_fraction"),
        ("val_count = 2\ngroup = '('", r"group: '\(' is not a regular expression"),
        ("val_count = 2\ngroup = 'a'", "group: 'a' has 0 groups"),
        ("val_count = 2\ngroup = '(x)'", r"group: '\(x\)' does not match the file name '0\.png'"),
        ("val_count = 2\ngroup = '(png)'", "all images are of one group"),
        ("val_list = '../val.txt'", "val_list: path '../val.txt' may point outside"),
    ],
)
def test_mistakes_in_splits_are_named(root, more, message):
    (root / "dataset.toml").write_text(SINGLE + more)
    with pytest.raises(UserError, match=message):
        load_dataset(root, "val")


def test_formats(root, tmp_path_factory):
    (root / "dataset.toml").write_text('format = "coco"\nval_count = 6\nseed = 5')
    assert len(load_dataset(root, "val")) == 6 and len(load_dataset(root, "train")) == 14
    (root / "dataset.toml").write_text('format = "cooc"')
    with pytest.raises(UserError, match="format: 'cooc' is not one of coco, voc, yolo"):
        find_splits(root)
    (root / "dataset.toml").write_text('format = "labelme"')
    with pytest.raises(UserError, match="format: nothing of 'labelme' in"):
        find_splits(root)
    other = tmp_path_factory.mktemp("other") / "dataset.toml"
    other.write_text(f'train = {{format = "coco", folder = "{root}"}}')
    train = load_dataset(other, "train")
    assert len(train) == 20 and f"reads {root}, outside its own folder" in train.notes[-1]
    other.write_text('train = {format = "coco", folder = "../x"}')
    with pytest.raises(UserError, match=r"\[train\]: folder: path '\.\./x' may point outside"):
        load_dataset(other, "train")
