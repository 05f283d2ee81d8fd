"""Shards at an address: as on disk, read in parts, and refused in one line; a server of HTTP and fsspec's memory."""

import functools
import http.server
import json
import os
import re
import shutil
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from directdet.common.errors import MissingLibraryError, UserError
from directdet.common.urls import absolute, shown, url_of
from directdet.data.augment.transforms import PretrainTransform
from directdet.data.check import check_data
from directdet.data.dataset import find_splits, load_dataset, read_record_image
from directdet.data.digest import describe_content
from directdet.data.formats.write.convert import convert
from directdet.data.image import is_picture_file, read_bytes
from directdet.data.inside import files, members
from directdet.data.loader import make_loader
from directdet.data.sampling import Sampling

fsspec = pytest.importorskip("fsspec")


class Ranged(http.server.SimpleHTTPRequestHandler):
    """A server that sends parts, as object stores do; what was asked for is in `asked`."""

    asked: list[tuple[str, str]]

    def log_message(self, *_):
        pass

    def do_GET(self):
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.asked.append((self.path, self.headers.get("Range", "")))
        path = self.translate_path(self.path)
        if part is None or not os.path.isfile(path):
            return super().do_GET()
        start, stop = int(part[1]), int(part[2]) + 1
        with open(path, "rb") as stream:
            stream.seek(start)
            content = stream.read(stop - start)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{os.path.getsize(path)}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None


class Whole(Ranged):
    """Python's own server, which sends whole files."""

    do_GET = http.server.SimpleHTTPRequestHandler.do_GET


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Nothing is known from other tests, and the cache is this test's."""
    monkeypatch.setattr(files, "_states", {})
    monkeypatch.setattr(members, "_indices", {})
    monkeypatch.setenv("DIRECTDET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def serve():
    """``serve(folder, handler)``: the address of a server of a folder."""
    pytest.importorskip("aiohttp")
    servers = []

    def start(folder, handler=Ranged):
        own = type("Own", (handler,), {"asked": []})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(own, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", own.asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def memory(shards):
    """The shards in fsspec's memory, and its file system."""
    system = fsspec.filesystem("memory")
    system.put(f"{shards}/", "/bucket/set/", recursive=True)
    yield "memory://bucket/set"
    system.rm("/bucket", recursive=True)


def same(one, other):
    assert describe_content(one) == describe_content(other)
    for left, right in zip(one.records, other.records, strict=True):
        assert is_picture_file(right.path) and read_bytes(left.path) == read_bytes(right.path)
        assert np.array_equal(read_record_image(left), read_record_image(right))


def test_addresses_pass_through_pathlib():
    for url in ("s3://bucket/a/b.tar", "file:///a/x", "https://host:80/a", "hf://datasets/u/r@main/x"):
        assert url_of(url) == url_of(Path(url)) == shown(Path(url)) == absolute(Path(url)) == url
    for path in ("/a/b", "a/b", "C:/x", "a:b", "x/s3://b", ""):
        assert url_of(path) is None
    assert shown(Path("a/b")) == "a/b" and absolute("a") == os.path.abspath("a")


def test_shards_at_every_address_are_those_on_disk(shards, memory, serve):
    address, asked = serve(shards.parent)
    for url in (memory, f"file://{shards}", f"{address}/set"):
        assert find_splits(url) == find_splits(shards)
        for split in ("train", "val"):
            same(load_dataset(shards, split), load_dataset(url, split))
        assert not check_data(url).fatal
    tars = [part for path, part in asked if path.endswith(".tar")]
    assert len(tars) > 12 and all(tars)  # parts alone


def test_a_second_opening_asks_for_no_part_of_a_tar(shards, serve, monkeypatch):
    monkeypatch.setattr(members, "KEPT", 0)
    address, asked = serve(shards)
    first = load_dataset(address, "train")
    monkeypatch.setattr(members, "_indices", {})
    asked.clear()
    second = load_dataset(address, "train")
    assert describe_content(first) == describe_content(second) and not [path for path, _ in asked if ".tar" in path]
    read_bytes(second.records[0].path)
    (_, part), *others = [one for one in asked if ".tar" in one[0]]
    assert not others and part  # the picture, at its place
    content = json.loads((shards / "classes.json").read_text())
    assert content["categories"][0]["name"] in second.classes


def test_what_changed_there_is_read_anew(shards, memory):
    first = load_dataset(memory, "val")
    system = fsspec.filesystem("memory")
    classes = json.loads(system.cat("/bucket/set/classes.json"))
    classes["categories"][0]["name"] = "another"
    system.pipe("/bucket/set/classes.json", json.dumps(classes).encode())
    assert load_dataset(memory, "val").classes == ("another", *first.classes[1:])
    system.pipe("/bucket/set/val-000000.tar", (shards / "val-000000.tar").read_bytes()[:-512])
    with pytest.raises(UserError, match=r"^memory://bucket/set/val-000000.tar: has \d+ bytes, but shards.json says"):
        load_dataset(memory, "val")


def test_workers_and_processes_read_each_once(synthetic, shards, serve):
    address, _ = serve(shards)
    dataset, seen = load_dataset(address, "train"), []
    for rank in (0, 1):
        setting = Sampling(2, seed=4, rank=rank, world_size=2)
        folder = make_loader(load_dataset(synthetic, "train"), PretrainTransform(64), setting)
        far = make_loader(dataset, PretrainTransform(64), setting, workers=2)
        for start in (0, 1):
            folder.set_epoch(1, start)
            far.set_epoch(1, start)
            batches = list(zip(folder, far, strict=True))
            assert batches and all(torch.equal(one[0], other[0]) for one, other in batches)
        far.set_epoch(1)
        seen += [index for batch in far._sampler for _, _, index in batch]
    assert sorted(seen) == list(range(len(dataset)))


def test_dataset_toml_may_name_an_address(shards, memory, tmp_path, monkeypatch):
    for line in (f'format = "shards"\nfolder = "{memory}"', f'[[sets]]\ndata = "{memory}"'):
        (tmp_path / "dataset.toml").write_text(line + "\n")
        dataset = load_dataset(tmp_path, "train")
        assert describe_content(dataset) == describe_content(load_dataset(shards, "train"))
    (tmp_path / "dataset.toml").write_text(f'format = "shards"\nfolder = "{memory}"\n')
    assert f"reads {memory}, outside its own folder" in load_dataset(tmp_path, "train").notes[-1]
    monkeypatch.chdir(tmp_path)  # where pathlib has the address inside "."
    assert f"reads {memory}, outside its own folder" in load_dataset(".", "train").notes[-1]
    (tmp_path / "dataset.toml").write_text(f'format = "coco"\nfolder = "{memory}"\n')
    with pytest.raises(UserError, match=f"folder: {memory}: of an address, only shards are read; copy the set here"):
        find_splits(tmp_path)


def test_convert_from_an_address(shards, memory, tmp_path):
    convert(memory, "coco", tmp_path / "coco")
    assert describe_content(load_dataset(tmp_path / "coco", "val")) == describe_content(load_dataset(shards, "val"))


def message(url, split="train"):
    with pytest.raises(UserError) as error:
        load_dataset(url, split)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_errors_name_the_address(shards, memory, serve, tmp_path, monkeypatch):
    shutil.copytree(shards, tmp_path / "set")
    (tmp_path / "set" / "train-000001.tar").unlink()
    address, _ = serve(tmp_path)
    assert message(f"{address}/set") == f"{address}/set/train-000001.tar: not found; check the address"
    assert message(f"{address}/none").startswith(f"{address}/none: no classes.json there: of an address, only shards")
    assert message("memory://nothing").startswith("memory://nothing: no classes.json there")
    assert message("nosuch://x").startswith("nosuch://x/classes.json: cannot be read: ValueError: Protocol not known")
    plain, _ = serve(shards, Whole)
    record = load_dataset(plain, "val").records[0]  # these are read as a whole
    with pytest.raises(UserError, match=r"000\.tar: the server sends the whole file where a part is asked for"):
        read_bytes(record.path)
    monkeypatch.setattr(files, "_BLOCK", 1024)
    assert message(plain).endswith(": the server sends the whole file where a part is asked for; copy the set here")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingLibraryError, match=r"^memory://bucket/set/classes.json: needs fsspec .*\[remote"):
        load_dataset(memory, "train")


def test_a_server_that_fails_is_not_taken_for_a_missing_file(shards, serve):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{listening.getsockname()[1]}/set"
        assert message(closed).startswith(f"{closed}/classes.json: cannot be read: ClientConnectorError")

    class Failing(Ranged):
        def send_head(self):
            return super().send_head() if self.path.endswith("classes.json") else self.send_error(503)

        def do_GET(self):
            return super().do_GET() if self.path.endswith("classes.json") else self.send_error(503)

    address, _ = serve(shards, Failing)  # else it would go on without its list
    assert re.match(rf"{address}/shards.json: cannot be read: ClientResponseError: 503", message(address))


def test_without_a_list_the_folder_is_listed(shards, memory):
    fsspec.filesystem("memory").rm("/bucket/set/shards.json")
    same(load_dataset(shards, "train"), load_dataset(memory, "train"))


def test_no_annotation_file_names_an_address(shards, memory, write_coco, write_image, tmp_path, monkeypatch):
    """Below the folder ".", pathlib makes an address of its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "_at", lambda file: pytest.fail(f"{file} is asked for"))
    name = f"{memory}/train-000000.tar/000000100001.jpg"
    for given in (name, f"./{name}"):
        write_coco([], images=[{"id": 7, "file_name": given, "width": 193, "height": 163}])
        (tmp_path / "dataset.toml").write_text(
            '[train]\nimages = "."\nannotations = "annotations/instances_train2017.json"\n'
        )
        with pytest.raises(UserError, match="may point outside"):
            load_dataset(".", "train")
    (tmp_path / "dataset.toml").unlink()
    folder = tmp_path / "yolo"
    write_image(folder / "images" / "a.png", 20, 40)
    (folder / "data.yaml").write_text("train: list.txt\nnames: [a]\n")
    (folder / "list.txt").write_text(f"{name}\n")
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="may point outside"):
        load_dataset("data.yaml", "train")
