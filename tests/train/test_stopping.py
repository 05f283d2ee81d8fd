"""Signals to stop, in real processes: the step is finished and saved, and the line says where to go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from directdet.common.errors import Stopped
from directdet.models.checkpoint import load_checkpoint
from directdet.train import interrupt as interrupt_module
from directdet.train import loop
from directdet.train.interrupt import Interrupt
from directdet.train.run import train

PATIENCE = 120.0


def command(data: Path, out: Path) -> list[str]:
    settings = ["model.width=8", "pretrain.size=64", "pretrain.batch_size=4", "pretrain.workers=2"]
    settings += ["pretrain.max_steps=600", "pretrain.epochs=300", "pretrain.eval_every=0"]
    options = [word for setting in settings for word in ("--set", setting)]
    words = ["train", "retinanet_r18_slim", "--data", str(data), "--out", str(out), "--phase", "pretrain", *options]
    return [sys.executable, "-m", "directdet", *words, "--device", "cpu"]


@pytest.mark.parametrize(
    ("number", "name", "group"),
    [
        (signal.SIGINT, "Ctrl-C", True),
        (signal.SIGTERM, "SIGTERM", False),
        (signal.SIGTERM, "SIGTERM", True),  # a scheduler signals the workers as well
        (signal.SIGHUP, "SIGHUP", True),
    ],
)
def test_a_signal_saves_and_says_so(shapes, tmp_path, number, name, group):
    out = tmp_path / "run"
    log, last = out / "pretrain" / "log.jsonl", out / "pretrain" / "checkpoints" / "last.pt"
    process = subprocess.Popen(
        command(shapes, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    limit = time.monotonic() + PATIENCE
    while not (log.is_file() and log.read_text().count("step") > 2) and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.05)
    (os.killpg if group else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=PATIENCE)
    lines = [line for line in err.splitlines() if line.strip()]
    step = load_checkpoint(last)["step"]
    assert process.returncode == 128 + number, err
    assert lines[-1] == f"stopped by {name} at step {step}; saved: {last}; go on: directdet train --resume {out}"
    assert len(lines) == 1 and 0 < step < 600


def test_a_second_signal_stops_at_once_but_not_a_copy_and_an_ignored_one_is_let_be(monkeypatch):
    """A scheduler signals torchrun and its processes, and torchrun passes its own signal on to them."""
    now = time.monotonic()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        reached = []
        with Interrupt() as interrupt, pytest.raises(Stopped) as caught, interrupt.deferred():
            signal.raise_signal(signal.SIGHUP)
            assert not interrupt.requested
            signal.raise_signal(signal.SIGTERM)
            reached.append(interrupt.requested)
            signal.raise_signal(signal.SIGTERM)
            reached.append("after a copy")
            monkeypatch.setattr(interrupt_module.time, "monotonic", lambda: now + interrupt_module.COPY_SECONDS + 1)
            signal.raise_signal(signal.SIGTERM)
            reached.append("after the second")
        assert reached == [True, "after a copy"]
        assert caught.value.number == signal.SIGTERM and caught.value.exit_code == 143
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_twice_stops_at_once():
    reached = []
    with Interrupt() as interrupt, pytest.raises(Stopped), interrupt.deferred():
        signal.raise_signal(signal.SIGINT)
        reached.append("after the first")
        signal.raise_signal(signal.SIGINT)
        reached.append("after the second")
    assert reached == ["after the first"]


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_a_signal_while_an_evaluation_saves_waits_for_it(shapes, tiny, tmp_path, monkeypatch, name):
    """The evaluation is not lost, and both files are whole."""
    save = loop.save_checkpoint

    def interrupted(path, content):
        if path.name == name and content["evaluated"]:
            signal.raise_signal(signal.SIGTERM)
        save(path, content)

    monkeypatch.setattr(loop, "save_checkpoint", interrupted)
    with pytest.raises(Stopped, match=r"stopped by SIGTERM at step 3; saved: .*last\.pt") as caught:
        train(tiny, shapes, tmp_path / "run", phase="pretrain")
    assert caught.value.saved
    for file in ("best.pt", "last.pt"):
        assert load_checkpoint(tmp_path / "run" / "pretrain" / "checkpoints" / file)["evaluated"] == 3
    monkeypatch.setattr(loop, "save_checkpoint", save)
    train(tiny, shapes, tmp_path / "run", phase="pretrain", resume=True)


def test_a_signal_while_the_processes_agree_is_not_lost(shapes, tiny, tmp_path, monkeypatch):
    """Python runs handlers where a function begins: here after the flag was read."""
    agree = loop.distributed.any_of

    def interrupted(flag, device):
        signal.raise_signal(signal.SIGTERM)
        return agree(flag, device)

    monkeypatch.setattr(loop.distributed, "any_of", interrupted)
    with pytest.raises(Stopped, match="stopped by SIGTERM at step 3; saved"):
        train(tiny, shapes, tmp_path / "run", phase="pretrain")
