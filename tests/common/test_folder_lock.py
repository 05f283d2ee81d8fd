"""Two commands in one folder: the second is refused, whatever became of the first."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from directdet.common.errors import UserError
from directdet.common.folder_lock import hold_folder

HOLDER = """
import os, sys, time
from directdet.common.folder_lock import hold_folder
with hold_folder(sys.argv[1], "train", beside=sys.argv[2] == "beside"):
    child = os.fork()  # as a worker that reads data
    if not child:
        print(os.getpid(), flush=True)  # only now has it let go of what it inherited
    time.sleep(600)
"""


def holder(folder: Path, where: str = "inside") -> tuple[subprocess.Popen[str], int]:
    """A process that holds the folder, and the number of a child of its own."""
    words = [sys.executable, "-c", HOLDER, str(folder), where]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("where", ["inside", "beside"])
def test_the_second_is_told_who_is_there_and_may_begin_once_the_first_was_killed(tmp_path, where):
    folder = tmp_path / "run"
    process, child = holder(folder, where)
    try:
        with (
            pytest.raises(UserError, match=rf"run: directdet train \(process {process.pid} on .*, since .*choose"),
            hold_folder(folder, "train", beside=where == "beside"),
        ):
            pytest.fail("two at once")
        process.kill()
        process.wait()
        os.kill(child, 0)  # a worker lives on for a while: it does not keep the lock
        with hold_folder(folder, "train", beside=where == "beside"):
            pass
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_folder_in_which_nothing_was_written_is_not_left(tmp_path):
    with hold_folder(tmp_path / "a", "infer"):
        assert (tmp_path / "a").is_dir()
    assert not (tmp_path / "a").exists()
    with hold_folder(tmp_path / "a" / "b" / "c", "infer"):
        (tmp_path / "a" / "result").write_text("1")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]


def test_what_is_no_folder_is_told_as_always(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: is a file; give a folder"), hold_folder(tmp_path / "file", "infer"):
        pass
    monkeypatch.chdir(tmp_path)
    for beside in (True, False):
        with hold_folder(".", "demo", beside=beside):
            pass
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_lock_file_that_nobody_holds_is_taken(tmp_path):
    (tmp_path / ".directdet.lock").write_text("directdet train (process 1)")
    with hold_folder(tmp_path, "train"):
        pass
    assert not list(tmp_path.iterdir())


def test_one_that_waits_for_a_removed_file_does_not_hold_it(tmp_path, monkeypatch):
    """Between opening the file and locking it, its holder may end and a third command begin."""
    from directdet.common import folder_lock

    flock, done = folder_lock.fcntl.flock, []

    def late(descriptor, how):
        if not done:
            done.append(1)
            (tmp_path / ".directdet.lock").unlink()
            (tmp_path / ".directdet.lock").write_text("")
        flock(descriptor, how)

    monkeypatch.setattr(folder_lock.fcntl, "flock", late)
    with (
        hold_folder(tmp_path, "train"),
        pytest.raises(UserError, match="is writing here"),
        hold_folder(tmp_path, "train"),
    ):
        pytest.fail("two at once")


@pytest.mark.parametrize("command", ["train", "infer", "export", "benchmark", "reproduce", "landscape", "demo"])
def test_every_command_that_writes_a_folder_is_refused(tmp_path, shapes, checkpoint, capsys, command):
    from directdet.front import cli

    folder = tmp_path / "out"
    process, child = holder(folder, "beside" if command in ("export", "demo") else "inside")
    data = ["--data", str(shapes), "--out", str(folder)]
    words = {
        "train": ["demo", *data],
        "infer": [str(checkpoint), str(shapes / "val2017"), "--out", str(folder)],
        "export": [str(checkpoint), "--out", str(folder)],
        "benchmark": [str(checkpoint), *data],
        "reproduce": ["direct/table2", *data],
        "landscape": data,
        "demo": ["--out", str(folder)],
    }[command]
    try:
        assert cli.main([command, *words]) == 1
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
    error = capsys.readouterr().err
    assert f"directdet train (process {process.pid} on " in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A folder that passes for an artefact, and a checkpoint beside it."""
    from directdet.infer.preprocess import Preprocess
    from directdet.models.build import build_model, describe_model
    from directdet.models.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("models")
    model = build_model({"detector": "retinanet", "num_classes": 3, "backbone": "resnet18", "width": 8})
    content = {
        "model_config": describe_model(model.config),
        "model": model.state_dict(),
        "classes": ["a", "b", "c"],
        "category_ids": [1, 2, 3],
        "preprocess": Preprocess((64, 96)).to_dict(),
        "recipe": "demo",
        "phase": "finetune",
    }
    save_checkpoint(folder / "model.pt", content)
    return folder / "model.pt"
