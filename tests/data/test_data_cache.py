"""The file that keeps what was read of large annotations, and is never trusted."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
from compared import everything

from directdet import __version__
from directdet.common.errors import UserError
from directdet.data.dataset import load_dataset
from directdet.data.digest import describe_content
from directdet.data.flat import cache
from directdet.data.formats import coco

pytestmark = pytest.mark.usefixtures("small_pieces")

FILE = "annotations/instances_train2017.json"
SQUARE = [[2, 2, 12, 2, 12, 12.5, 2, 12]]
GOOD = {"bbox": [1, 2, 5, 6]}


def kept_files():
    return list(cache.cache_folder().glob("*"))


def test_it_is_read_once(write_coco, monkeypatch):
    root = write_coco([GOOD, {"bbox": [-5, 3, 20, 20]}, {"bbox": []}, {**GOOD, "segmentation": SQUARE}])
    first = load_dataset(root, "train", leave_out=True)
    assert len(kept_files()) == 1 and len(first.problems) == len(first.errors) == 1
    monkeypatch.setattr(coco, "_read", None)
    again = load_dataset(root, "train", leave_out=True)
    assert everything(again) == everything(first) and describe_content(again) == describe_content(first)
    assert isinstance(again.records.columns, cache.KeptColumns)


def test_small_files_leave_nothing_behind(write_coco, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("DIRECTDET_CACHE", "/nowhere")
    load_dataset(write_coco([GOOD]), "train")
    assert not Path("/nowhere").exists()


def test_another_content_is_read_anew(write_coco):
    root = write_coco([GOOD])
    load_dataset(root, "train")
    status = (root / FILE).stat()
    (root / FILE).write_text((root / FILE).read_text().replace("[1, 2, 5, 6]", "[1, 2, 5, 7]"))
    os.utime(root / FILE, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (root / FILE).stat().st_size == status.st_size  # neither time nor size tells
    assert load_dataset(root, "train").records[0].boxes.tolist() == [[1, 2, 6, 9]]
    assert len(kept_files()) == 1


def test_sizes_of_image_files_are_not_kept(write_coco, write_image):
    root = write_coco([GOOD], images=[{"id": 7, "file_name": "a.png"}])
    assert load_dataset(root, "train").records[0].width == 40
    write_image(root / "train2017" / "a.png", 30, 50)
    assert load_dataset(root, "train").records[0].width == 50 and not kept_files()


def test_the_users_limit_counts(write_coco, monkeypatch):
    root = write_coco([GOOD])
    load_dataset(root, "train")
    monkeypatch.setenv("DIRECTDET_MAX_PIXELS", "100")
    with pytest.raises(UserError, match="more than 100 in all"):
        load_dataset(root, "train")


def test_the_placeholder_depends_on_the_other_splits(write_coco, tmp_path):
    root = write_coco([GOOD], categories=[{"id": 0, "name": "all", "supercategory": "none"}, {"id": 3, "name": "cat"}])
    other = tmp_path / "annotations" / "instances_val2017.json"
    other.write_text((root / FILE).read_text())
    assert load_dataset(root, "train").classes == load_dataset(root, "train").classes == ("cat",)
    other.write_text(other.read_text().replace('"category_id": 3', '"category_id": 0'))
    assert load_dataset(root, "train").classes == ("all", "cat")


def test_the_placeholder_depends_on_which_splits_there_are(write_coco, tmp_path):
    root = write_coco([GOOD], categories=[{"id": 0, "name": "all", "supercategory": "none"}, {"id": 3, "name": "cat"}])
    (root / "other.json").write_text((root / FILE).read_text().replace('"category_id": 3', '"category_id": 0'))
    train = f'train = {{images = "train2017", annotations = "{FILE}"}}\n'
    both = train + 'val = {images = "train2017", annotations = "other.json"}\n'
    for content, classes in ((train, ("cat",)), (both, ("all", "cat")), (train, ("cat",))):
        (root / "dataset.toml").write_text(content)
        assert load_dataset(root, "train").classes == load_dataset(root, "train").classes == classes


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "longer", "foreign", "header", "folder"])
def test_a_damaged_file_is_made_anew(write_coco, damage):
    root = write_coco([GOOD, {**GOOD, "segmentation": SQUARE}])
    expected = everything(load_dataset(root, "train"))
    (file,) = kept_files()
    content = file.read_bytes()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        middle = len(content) // 2
        file.write_bytes(
            {
                "empty": b"",
                "cut": content[:-1],
                "bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "longer": content + b"\0",
                "foreign": pickle.dumps({"boxes": 1}),
                "header": content.replace(b'"firsts"', b'"fursts"', 1),
            }[damage]
        )
    assert everything(load_dataset(root, "train")) == expected
    if damage != "folder":
        assert file.read_bytes() == content


def test_a_file_with_a_right_digest_and_wrong_arrays_is_no_file(write_coco):
    root = write_coco([GOOD])
    load_dataset(root, "train")
    (file,) = kept_files()
    body = file.read_bytes()[:-32]
    for old, new in (
        (b'"labels": [', b'"labels": [9999999'),
        (b"annotations 2", b"annotations 0"),
        (f"directdet {__version__}".encode(), f"directdet {'9' * len(__version__)}".encode()),
        (b'"boxes": [', b'"boxes": [-9, '),
        (b"{", b"{{"),
    ):
        header, _, rest = body.partition(b"\n")
        changed = header.replace(old, new, 1).ljust(len(header))[: len(header)] + b"\n" + rest
        file.write_bytes(changed + hashlib.sha256(changed).digest())
        assert cache.find(file) is None


def test_a_folder_that_cannot_be_written_is_told_once(write_coco, monkeypatch, tmp_path, capsys):
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("DIRECTDET_CACHE", str(tmp_path / "blocked" / "cache"))
    root = write_coco([GOOD])
    for _ in range(2):
        assert len(load_dataset(root, "train")) == 1
    told = capsys.readouterr().err
    assert told.count("annotations are not cached") == 1 and "DIRECTDET_CACHE=off" in told


def test_a_name_that_no_folder_can_have_is_told(write_coco, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DIRECTDET_CACHE", str(tmp_path / ("x" * 300)))
    assert len(load_dataset(write_coco([GOOD]), "train")) == 1
    assert "annotations are not cached" in capsys.readouterr().err


def test_turned_off(write_coco, monkeypatch):
    monkeypatch.setenv("DIRECTDET_CACHE", "off")
    assert len(load_dataset(write_coco([GOOD]), "train")) == 1 and cache.cache_folder() is None


def test_other_processes_are_sent_its_name(write_coco):
    dataset = load_dataset(write_coco([{**GOOD, "segmentation": SQUARE}] * 3000), "train")
    sent = pickle.dumps(dataset)
    assert len(sent) < 2000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(describe_content, (dataset,))
    assert found == describe_content(dataset)
    kept_files()[0].unlink()
    with pytest.raises(UserError, match="start again"):
        pickle.loads(sent)


def test_without_a_file_the_arrays_are_sent(write_coco, monkeypatch):
    monkeypatch.setenv("DIRECTDET_CACHE", "off")
    dataset = load_dataset(write_coco([{**GOOD, "segmentation": SQUARE}]), "train")
    assert everything(pickle.loads(pickle.dumps(dataset))) == everything(dataset)
