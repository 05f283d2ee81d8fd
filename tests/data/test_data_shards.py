"""Datasets in tar files: records, pictures and batches as from the folder they were made from; hostile tars."""

import json
import os
import subprocess
import tarfile

import numpy as np
import pytest
import torch
from tars import write_tar

from directdet.common.errors import UserError
from directdet.data.augment.transforms import PretrainTransform
from directdet.data.check import check_data
from directdet.data.dataset import find_splits, load_dataset, read_record_image
from directdet.data.formats.write.convert import MARKER, convert
from directdet.data.formats.write.tiles import Cutting
from directdet.data.image import read_bytes
from directdet.data.inside.members import find_member, list_members, read_member
from directdet.data.loader import make_loader
from directdet.data.sampling import Sampling
from directdet.front.cli import main

CATEGORIES = {"categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]}
OBJECT = {"bbox": [1, 2, 5, 6], "category_id": 9}


@pytest.fixture(scope="module")
def picture(synthetic):
    return read_bytes(load_dataset(synthetic, "train").records[0].path)


def sample(name, picture, **content):
    text = {"width": 10, "height": 20, "annotations": [OBJECT], **content}
    return [(f"{name}.jpg", picture), (f"{name}.json", json.dumps(text).encode())]


def make_set(folder, members, **options):
    (folder / "classes.json").write_text(json.dumps(CATEGORIES))
    write_tar(folder / "train-000000.tar", members, **options)
    return folder


def test_records_and_pictures_are_those_of_the_folder(synthetic, shards):
    assert find_splits(shards) == find_splits(synthetic)
    assert len(list(shards.glob("train-*.tar"))) > 1
    for split in find_splits(synthetic):
        before, after = load_dataset(synthetic, split), load_dataset(shards, split)
        assert (before.classes, before.category_ids) == (after.classes, after.category_ids)
        assert len(before) == len(after) > 0 and not after.errors and not after.problems
        for left, right in zip(before.records, after.records, strict=True):
            assert (left.image_id, left.width, left.height) == (right.image_id, right.width, right.height)
            assert left.annotation_ids == right.annotation_ids and left.path.name == right.path.name
            for name in ("boxes", "labels", "crowd", "difficult", "areas"):
                one, other = getattr(left, name), getattr(right, name)
                assert one.dtype == other.dtype and np.array_equal(one, other), name
            for one, other in zip(left.segmentations, right.segmentations, strict=True):
                same = one == other if isinstance(one, dict) else all(map(np.array_equal, one, other))
                assert same
            assert read_bytes(left.path) == read_bytes(right.path)
            assert np.array_equal(read_record_image(left), read_record_image(right))


def test_batches_are_those_of_the_folder_with_workers_processes_and_resume(synthetic, shards):
    settings = [Sampling(2, seed=4, rank=rank, world_size=2) for rank in (0, 1)]
    dataset = load_dataset(shards, "train")
    folder = [make_loader(load_dataset(synthetic, "train"), PretrainTransform(64), setting) for setting in settings]
    tars = [make_loader(dataset, PretrainTransform(64), setting, workers=2) for setting in settings]
    seen = []
    for first, second in zip(folder, tars, strict=True):
        for start in (0, 1):
            first.set_epoch(1, start)
            second.set_epoch(1, start)
            batches = list(zip(first, second, strict=True))
            assert len(batches) == first.batches_per_epoch - start > 0
            for (images, targets), (others, their_targets) in batches:
                assert torch.equal(images, others)
                assert all(torch.equal(targets[key], their_targets[key]) for key in targets)
        second.set_epoch(1)
        seen += [index for batch in second._sampler for _, _, index in batch]
    assert sorted(seen) == list(range(len(dataset)))  # each once


def test_shards_are_the_same_bytes_again_and_convert_back(synthetic, shards, tmp_path):
    convert(shards, "shards", tmp_path / "again", shard_mb=1000)
    convert(synthetic, "shards", tmp_path / "whole", shard_mb=1000)
    names = sorted(file.name for file in (tmp_path / "whole").glob("*.tar"))
    assert names == ["train-000000.tar", "val-000000.tar"]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    convert(shards, "coco", tmp_path / "coco")
    back = load_dataset(tmp_path / "coco", "train")
    for one, other in zip(load_dataset(synthetic, "train").records, back.records, strict=True):
        assert read_bytes(one.path) == read_bytes(other.path) and np.array_equal(one.boxes, other.boxes)
    with pytest.raises(UserError, match="lies inside a file, to which there are no links"):
        convert(shards, "coco", tmp_path / "links", link=True)


def test_tiles_of_shards_are_those_of_the_files(synthetic, shards, tmp_path):
    """Also of pictures that stay whole."""
    for side in (64, 1000):
        folders = [tmp_path / f"{name}{side}" for name in ("files", "shards")]
        for root, out in zip((synthetic, shards), folders, strict=True):
            convert(root, "coco", out, cutting=Cutting(side))
        ours, theirs = (
            {path.name: path.read_bytes() for path in out.rglob("*.*") if path.name != MARKER} for out in folders
        )
        assert ours == theirs and len(ours) > 12


def test_check_data_reads_them(shards, picture, tmp_path):
    report = check_data(shards)
    assert not report.fatal
    make_set(tmp_path, [*sample("a", picture[:-100]), *sample("b", picture)])
    broken = check_data(tmp_path)
    assert broken.fatal and "train-000000.tar/a.jpg: image file is truncated" in str(broken.to_dict())


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_form_have_the_members_that_tarfile_finds(form, tmp_path):
    members = [("a.jpg", b"1"), ("folder/b.json", b"23" * 600), ("empty.txt", b""), ("p" * 90 + "/" + "n" * 60, b"x")]
    if form != tarfile.USTAR_FORMAT:
        members += [("é" * 120 + ".jpg", b"long"), ("ü/ä.png", b"\0" * 512)]
    file = write_tar(tmp_path / "x.tar", members, format=form)
    with tarfile.open(file) as tar:
        wanted = [(info.name, info.offset_data, info.size) for info in tar]
    assert [(one.name, one.offset, one.size) for one in list_members(file)] == wanted
    for name, content in members:
        assert read_member(file, name) == content == read_bytes(file / name)
    assert read_member(file, "folder/b.json", 5) == b"23232"
    assert find_member(file, "absent") is None and find_member(file, "") is None
    with pytest.raises(UserError, match=r"x.tar: no member 'absent.jpg' in it"):
        read_bytes(file / "absent.jpg")


def test_a_tar_of_the_system_s_own_tool(tmp_path, picture):
    (tmp_path / "in").mkdir()
    for name, content in sample("0001", picture):
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "classes.json").write_text(json.dumps(CATEGORIES))
    subprocess.run(["tar", "-cf", "../train-0.tar", "."], cwd=tmp_path / "in", check=True)
    dataset = load_dataset(tmp_path, "train")
    assert dataset.records[0].labels.tolist() == [1] and dataset.classes == ("cat", "dog")
    assert read_bytes(dataset.records[0].path) == picture


def test_a_tar_that_was_replaced_is_read_anew(tmp_path):
    file = write_tar(tmp_path / "x.tar", [("a", b"1"), ("b", b"2")])
    assert read_member(file, "b") == b"2"
    write_tar(tmp_path / "y.tar", [("b", b"333")])
    os.replace(tmp_path / "y.tar", file)
    assert read_member(file, "b") == b"333" and find_member(file, "a") is None


def link(kind, target):
    info = tarfile.TarInfo("evil.jpg")
    info.type, info.linkname = kind, target
    return [(info, b"")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (link(tarfile.SYMTYPE, "/etc/passwd"), "member 'evil.jpg' is a symbolic link; write the tar with plain files"),
        (link(tarfile.LNKTYPE, "../../x"), "member 'evil.jpg' is a hard link"),
        (link(tarfile.FIFOTYPE, ""), "member 'evil.jpg' is no plain file"),
        ([("/etc/a.jpg", b"x")], "member '/etc/a.jpg' may point outside; write the tar with paths inside"),
        ([("../a.jpg", b"x")], r"member '\.\./a.jpg' may point outside"),
        ([("..\\a.jpg", b"x")], "may point outside"),
        ([("C:\\a.jpg", b"x")], "may point outside"),
        ([("a.jpg", b"x"), ("./a.jpg", b"y")], "two members are called 'a.jpg'; give each its own name"),
        ([("n" * 1100, b"x")], "has more than 1024 bytes; give it a shorter name"),
    ],
)
def test_hostile_members(members, message, tmp_path):
    root = make_set(tmp_path, members)
    with pytest.raises(UserError, match=f"^{root}/train-000000.tar: .*{message}") as error:
        load_dataset(root, "train")
    assert "\n" not in str(error.value)


def test_damaged_tars(tmp_path, picture):
    file = write_tar(tmp_path / "whole.tar", sample("a", picture) + sample("b", picture))
    whole = file.read_bytes()
    bad = tmp_path / "bad.tar"

    def message(content):
        bad.write_bytes(content)
        with pytest.raises(UserError) as error:
            list_members(bad)
        text = str(error.value)
        assert text.startswith(f"{bad}: ") and "\n" not in text
        return text

    second = list_members(file)[2].offset
    assert "member 'b.jpg' ends at byte" in message(whole[: second + 10]) and "was cut short" in message(whole[:second])
    assert "has no end, so it was cut short after 'a.json'" in message(whole[: second - 512])
    assert "has no end" in message(b"")
    assert "damaged at byte" in message(whole[: second - 500] + b"\xff" + whole[second - 499 :])
    assert "is compressed (gzip); unpack it" in message(b"\x1f\x8b" + whole)
    assert "not a tar file, or damaged at byte 0" in message(b"x" * 2000)
    size = whole[:124] + b"77777777777\0" + whole[136:]
    header = bytearray(size[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert "'a.jpg' ends at byte 8589935103, but the file has" in message(bytes(header) + size[512:])
    header[124:136] = b"\xff" * 12  # a negative size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert "damaged at byte 0" in message(bytes(header) + size[512:])
    rng = np.random.default_rng(0)
    for _ in range(300):  # any byte of the headers: an error of one line, or still the members
        content = bytearray(whole)
        content[int(rng.integers(512))] ^= int(rng.integers(1, 256))
        bad.write_bytes(content)
        try:
            list_members(bad)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (lambda p: [("a.jpg", p)], "a.jpg: has no a.json beside it; write one"),
        (lambda p: sample("a", p)[1:], "a.json: the tar holds no picture for it"),
        (lambda p: [*sample("a", p), ("a.png", p)], "the tar holds a.jpg and a.png for one name"),
        (lambda p: [("a.jpg", p), ("a.json", b"{'x'")], "a.json: not valid JSON: Expecting property name"),
        (lambda p: [("a.jpg", p), ("a.json", b"\xff\xfe")], "a.json: not valid JSON"),
        (lambda p: [("a.jpg", p), ("a.json", b"[" * 100_000)], "a.json: not valid JSON"),
        (lambda p: [("a.jpg", p), ("a.json", b"[]")], 'a.json: expected an object with a list "annotations"'),
        (lambda p: sample("a", p, width=-3), "a.json: width -3 and height 20 are not both positive integers"),
        (lambda p: sample("a", p, image_id="x"), "a.json: image_id 'x' is no integer, or used twice"),
        (
            lambda p: sample("a", p, image_id=5) + sample("b", p, image_id=5),
            "b.json: image_id 5 is no integer, or used",
        ),
        (
            lambda p: sample("a", p, annotations=[{"bbox": [1, 2, 3, 4]}]),
            "a.json: annotation 1: key 'category_id' is miss",
        ),
        (lambda p: sample("a", p, annotations=[{**OBJECT, "bbox": [1, 2]}]), "a.json: annotation 1: bbox"),
        (
            lambda p: sample("a", p, annotations=[{**OBJECT, "category_id": 4}]),
            "a.json: annotation 1: category_id 4 is not",
        ),
        (lambda p: sample("a", p, annotations=[7]), "a.json: annotations: entry 0 is not an object"),
    ],
)
def test_faults_name_the_tar_and_the_member(members, message, tmp_path, picture):
    root = make_set(tmp_path, [*members(picture), *sample("good", picture)])
    with pytest.raises(UserError) as error:
        load_dataset(root, "train")
    assert str(error.value).startswith(f"{root}/train-000000.tar: ") and message in str(error.value)
    kept = load_dataset(root, "train", leave_out=True)
    assert kept.errors and kept.records[len(kept) - 1].path.name in ("good.jpg", "a.jpg")


def test_sizes_and_ids_may_be_left_out(tmp_path, picture):
    text = json.dumps({"annotations": [OBJECT, {**OBJECT, "category_id": 3}]}).encode()
    make_set(tmp_path, [("a.jpg", picture), ("a.json", text), ("b.json", text), ("b.jpg", picture)])
    dataset = load_dataset(tmp_path, "train")
    assert [record.image_id for record in dataset.records] == [1, 2]
    assert [record.annotation_ids for record in dataset.records] == [(1, 2), (3, 4)]
    for record in dataset.records:
        assert read_record_image(record).shape[:2] == (record.height, record.width)
    assert "2 images have no width or height" in dataset.notes[0]


def test_the_command(synthetic, tmp_path, capsys):
    assert main(["convert", str(synthetic), "--to", "shards", "--out", str(tmp_path / "out"), "--shard-mb", "1"]) == 0
    assert (tmp_path / "out" / "train-000000.tar").is_file()
    arguments = ["convert", str(synthetic), "--to", "shards", "--out", str(tmp_path / "other"), "--link"]
    assert main(arguments) == 2
    assert "shards files hold the pictures themselves" in capsys.readouterr().err
