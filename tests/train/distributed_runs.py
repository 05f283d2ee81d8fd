"""What tests of several processes share: the tiny recipe, starting torchrun, and what a run left."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from distributed_worker import PATIENCE, SETTINGS, double_precision
from torch import Tensor

from directdet.models.build import build_model
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.by_name import get_recipe
from directdet.recipes.recipe import Recipe
from directdet.recipes.settings import apply_settings
from directdet.train.log import read_log

# Runs in double precision that are to be the same: its rounding, 1e-16, which every step lets grow.
NOISE = 1e-10


def recipe(*settings: str) -> Recipe:
    """The tiny recipe with group normalisation, and with `settings`."""
    return apply_settings(get_recipe("mask_rcnn_r18_slim"), (*SETTINGS, *settings))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As in the processes compared with: torch divides its sums among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def checkpoint_of(run: Path, name: str = "last.pt") -> dict:
    return load_checkpoint(run / "pretrain" / "checkpoints" / name)


def rows_of(run: Path, kind: str) -> list[dict]:
    return [row for row in read_log(run / "pretrain" / "log.jsonl") if row["kind"] == kind]


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype in (torch.float64, torch.int64)
        assert float((one[name] - other[name]).abs().max()) <= NOISE, name


def assert_learnt(checkpoint: dict) -> None:
    """That weights of a run in double precision of seed 0 have moved."""
    with double_precision():
        torch.manual_seed(0)
        start = build_model(checkpoint["model_config"]).state_dict()
    assert max(float((checkpoint["model"][name] - start[name]).abs().max()) for name in start) > 0.01


def torchrun(*arguments: str | Path) -> subprocess.Popen:
    """Start torchrun with two processes; `arguments` name what they run."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], env=environment, **pipes)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; a failure where it hangs."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun then ends its processes
        pytest.fail(f"torchrun did not end within {PATIENCE:.0f} s: {process.communicate()}")
    return process.returncode, out, err


def command_line(data: Path, out: Path) -> list[str | Path]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    start = ["train", "mask_rcnn_r18_slim", "--data", data, "--out", out]
    return [*start, "--phase", "pretrain", "--device", "cpu", *settings]
