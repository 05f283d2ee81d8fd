"""Shards that are lost, cut, exchanged or added are told by their list; what was read of large ones is kept."""

import json
import shutil
import tarfile

import pytest
from tars import write_tar

from directdet.common.errors import UserError
from directdet.data.dataset import find_splits, load_dataset
from directdet.data.digest import describe_content
from directdet.data.formats.packed import kept as keeping
from directdet.data.image import read_bytes
from directdet.data.inside import members


def lose(root, file):
    file.unlink()


def cut(root, file):
    file.write_bytes(file.read_bytes()[:-512])


def exchange(root, file):
    """By another tar of the same length."""
    with tarfile.open(file) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]
    members[-1] = ("more.txt", members[-1][1])
    length = file.stat().st_size
    write_tar(file, members)
    assert file.stat().st_size == length


def add(root, file):
    shutil.copy(file, root / "train-000099.tar")


def add_split(root, file):
    shutil.copy(file, root / "test-000000.tar")


def listing(change):
    """Changes shards.json."""

    def apply(root, file):
        content = json.loads((root / "shards.json").read_text())
        (root / "shards.json").write_text(json.dumps(change(content)))

    return apply


def first_entry(**changes):
    return listing(lambda content: {"shards": [{**content["shards"][0], **changes}, *content["shards"][1:]]})


@pytest.mark.parametrize(
    ("damage", "named", "message"),
    [
        (lose, "train-000001.tar", r"is not there, but shards.json lists it with \d+ pictures; copy it there again"),
        (cut, "train-000001.tar", r"has \d+ bytes, but shards.json says \d+; copy it there again"),
        (add, "train-000099.tar", "is not listed in shards.json; remove it, or list it"),
        (add_split, "test-000000.tar", "is not listed in shards.json"),
        (exchange, "train-000001.tar", r"\d+.jpg: has no \d+.json beside it"),
        (first_entry(samples=7000), "train-000000.tar", r"holds \d+ samples, but shards.json says 7000"),
        (listing(lambda content: {}), "shards.json", "shards: expected a list of"),
        (listing(lambda content: []), "shards.json", "not a list of shards: expected an object with shards"),
        (listing(lambda content: {"shards": [3]}), "shards.json", "shards: entry 0 is not an object"),
        (first_entry(name="../train-000000.tar"), "shards.json", "shards: entry 0: name '../train-000000.tar' is not"),
        (first_entry(name=None), "shards.json", "shards: entry 0: name None is not"),
        (first_entry(bytes=-1), "shards.json", "shards: entry 0: bytes -1 is not a number of bytes"),
        (first_entry(samples="many"), "shards.json", "shards: entry 0: samples 'many' is not a number of samples"),
        (first_entry(name="train-000001.tar"), "shards.json", "shards: train-000001.tar is listed twice"),
    ],
)
def test_a_list_of_shards_notices_what_is_lost_cut_or_added(damage, named, message, shards, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(shards, root)
    damage(root, root / "train-000001.tar")
    with pytest.raises(UserError, match=f"^{root}/{named}: {message}") as error:
        for split in find_splits(root):
            load_dataset(root, split)
    assert "\n" not in str(error.value)


def test_the_list_says_what_is_there_and_may_be_missing(shards, tmp_path):
    entries = json.loads((shards / "shards.json").read_text())["shards"]
    assert {entry["name"]: entry["bytes"] for entry in entries} == {
        file.name: file.stat().st_size for file in shards.glob("*.tar")
    }
    assert sum(entry["samples"] for entry in entries if entry["name"].startswith("train")) == 12
    root = tmp_path / "set"
    shutil.copytree(shards, root)
    (root / "shards.json").unlink()
    (root / "train-000001.tar").unlink()  # nothing tells of it
    assert 0 < len(load_dataset(root, "train")) < 12


@pytest.fixture
def kept(shards, tmp_path, monkeypatch):
    """A copy of the shards, whose annotations and indices are kept as those of large ones are."""
    monkeypatch.setenv("DIRECTDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(keeping, "LARGE", 0)
    monkeypatch.setattr(members, "KEPT", 0)
    monkeypatch.setattr(members, "_indices", {})
    shutil.copytree(shards, tmp_path / "set")
    return tmp_path / "set"


def forget(monkeypatch):
    """As another process: nothing is in memory, and no tar may be listed."""
    monkeypatch.setattr(members, "_indices", {})
    monkeypatch.setattr(members, "_members", lambda file, wanted: pytest.fail(f"{file} is listed again"))


def test_a_second_opening_reads_no_tar_but_the_pictures(kept, synthetic, monkeypatch):
    first = load_dataset(kept, "train")
    forget(monkeypatch)
    second = load_dataset(kept, "train")
    assert describe_content(first) == describe_content(second) == describe_content(load_dataset(synthetic, "train"))
    assert second.records.columns.file.is_file()
    for one, other in zip(load_dataset(synthetic, "train").records, second.records, strict=True):
        assert read_bytes(one.path) == read_bytes(other.path)


def replaced(root):
    file = root / "train-000001.tar"
    content = file.read_bytes()
    place = content.index(b'"category_id": ') + len('"category_id": ')
    other = {b"1": b"2", b"2": b"1"}.get(content[place : place + 1], b"1")
    file.write_bytes(content[:place] + other + content[place + 1 :])


def classes(root):
    content = json.loads((root / "classes.json").read_text())
    content["categories"][0]["name"] = "another"
    (root / "classes.json").write_text(json.dumps(content))


@pytest.mark.parametrize("change", [replaced, classes])
def test_what_was_changed_is_read_anew(change, kept, monkeypatch):
    first = load_dataset(kept, "train")
    change(kept)
    monkeypatch.setattr(members, "_indices", {})
    second = load_dataset(kept, "train")
    labels = [[record.labels.tolist() for record in dataset.records] for dataset in (first, second)]
    assert first.classes != second.classes or labels[0] != labels[1]


def test_a_damaged_cache_is_replaced(kept, tmp_path, monkeypatch):
    before = describe_content(load_dataset(kept, "train"))
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 1 + len(list(kept.glob("train-*.tar")))
    whole = [file.read_bytes() for file in files]
    for file, content in zip(files, whole, strict=True):
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr(members, "_indices", {})
    dataset = load_dataset(kept, "train")
    assert describe_content(dataset) == before and all(read_bytes(record.path) for record in dataset.records)
    assert [file.read_bytes() for file in files] == whole


def test_small_shards_are_not_kept(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("DIRECTDET_CACHE", str(tmp_path / "cache"))
    load_dataset(shards, "train")
    assert not (tmp_path / "cache").exists()
