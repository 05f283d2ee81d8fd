"""Checkpoints are written atomically, and loading executes nothing in them."""

import errno
import io
import os
import pickle
import resource
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from directdet.common.errors import UserError
from directdet.models import checkpoint
from directdet.models.checkpoint import FORMAT, CheckpointError, load_checkpoint, save_checkpoint

CONTENT = {
    "model_config": {"detector": "rcnn", "num_classes": 2, "anchor_ratios": [0.5, 1.0]},
    "model": {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)},
    "classes": ["cat", "dog"],
    "category_ids": [17, 18],
    "preprocess": {"size": [448, 448], "fixed": True},
    "recipe": "small",
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
}


def refused(path: Path, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "last.pt"
    save_checkpoint(path, CONTENT)
    loaded = load_checkpoint(str(path))
    assert loaded.pop("format") == FORMAT
    assert loaded.keys() == CONTENT.keys()
    for key, value in loaded["model"].items():
        assert torch.equal(value, CONTENT["model"][key])
    assert {k: v for k, v in loaded.items() if k not in ("model", "optimizer")} == {
        k: v for k, v in CONTENT.items() if k not in ("model", "optimizer")
    }
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("moment", ["writing", "replacing"])
def test_a_crash_while_saving_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, CONTENT)

    def half_written(content: object, file: BinaryIO) -> None:
        file.write(b"PK\x03\x04 half")
        raise OSError("no space left on device")

    def not_replaced(source: Path, target: Path) -> None:
        raise OSError("input/output error")

    if moment == "writing":
        monkeypatch.setattr(checkpoint.torch, "save", half_written)
    else:
        monkeypatch.setattr(checkpoint.os, "replace", not_replaced)
    with pytest.raises(UserError, match=r"last.pt: cannot be written: (no space|input).*the earlier one is kept"):
        save_checkpoint(path, {**CONTENT, "recipe": "other"})
    monkeypatch.undo()
    assert load_checkpoint(path)["recipe"] == "small"
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


class Touch:
    """An object whose pickle creates a file when loaded."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("writer", ["torch", "legacy torch", "pickle"])
def test_code_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    path, trap = tmp_path / "evil.pt", tmp_path / "trap"
    evil = {"format": FORMAT, **CONTENT, "extra": Touch(str(trap))}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=writer == "torch")
    refused(path, "not loaded|damaged")
    assert not trap.exists()


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, CONTENT)
    whole = path.read_bytes()
    for size in [0, 1, 3, 4, 10, 100, *range(200, len(whole), 400), len(whole) - 1]:
        path.write_bytes(whole[:size])
        refused(path, "damaged or not a checkpoint")


@pytest.mark.parametrize(
    "content", [b"hello world\n", b"\x00" * 64, b"\x80\x02]q\x00.", b"\x89PNG\r\n\x1a\n", bytes(range(256))]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    refused(path, "not a (directdet )?checkpoint")


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for new in (True, False):
        torch.save({"format": FORMAT, **CONTENT}, path, _use_new_zipfile_serialization=new)
        whole = bytearray(path.read_bytes())
        generator = torch.Generator().manual_seed(0)
        for _ in range(150):
            damaged = bytearray(whole)
            for position in torch.randint(len(whole), (8,), generator=generator).tolist():
                damaged[position] ^= 0x5A
            path.write_bytes(damaged)
            try:
                load_checkpoint(path)
            except CheckpointError as error:
                assert "\n" not in str(error)


def test_wrong_content_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    refused(path, "no such checkpoint")
    refused(tmp_path, "no such checkpoint")
    torch.save(torch.zeros(3), path)
    refused(path, "not a directdet checkpoint")
    torch.save({"weight": torch.zeros(3)}, path)
    refused(path, "not a directdet checkpoint")
    torch.save({**CONTENT, "format": FORMAT + 1}, path)
    refused(path, f"format {FORMAT + 1}, this version reads {FORMAT}")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    weights = {"a": torch.zeros(3), "count": torch.tensor(1), "b": torch.tensor([1.0, float("nan")])}
    path = tmp_path / "last.pt"
    rest = {"model_config": {}, "classes": [], "category_ids": [], "preprocess": {}}
    save_checkpoint(path, {"model": weights, **rest})
    with pytest.raises(CheckpointError, match=r"last.pt: b: holds values that are not finite.*an earlier checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("write", range(0, 12, 3))
def test_what_ends_writing_is_raised_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, write: int
) -> None:
    """torch.save would make a RuntimeError of it ("unexpected pos")."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, CONTENT)
    count = iter(range(1000))

    class Failing(io.FileIO):
        def write(self, content: object) -> int:
            if next(count) >= write:
                raise error
            return super().write(content)

    monkeypatch.setattr(Path, "open", lambda self, mode, buffering=-1: Failing(self, mode))
    wanted = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted) as caught:
        save_checkpoint(path, {**CONTENT, "recipe": "other"})
    monkeypatch.undo()
    assert next(count) > write
    if wanted is UserError:
        assert str(caught.value) == f"{path}: cannot be written: No space left on device; the earlier one is kept"
    assert load_checkpoint(path)["recipe"] == "small" and [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("size", [0, 100, 4096, 300_000, 2_000_000])
def test_a_disk_that_fills_up_is_one_line(tmp_path: Path, size: int) -> None:
    """A limit on the size of files: the system refuses to write, as on a full disk."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, CONTENT)
    large = {**CONTENT, "model": {str(n): torch.zeros(200_000) for n in range(4)}}  # 3.2 MB
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(UserError) as caught:
            save_checkpoint(path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value) == f"{path}: cannot be written: File too large; the earlier one is kept"
    assert load_checkpoint(path)["recipe"] == "small" and [p.name for p in tmp_path.iterdir()] == ["last.pt"]
