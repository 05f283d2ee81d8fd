"""Processes that are not about to train the same thing say so at the start, in all of them."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from directdet.common.errors import UserError
from directdet.data.dataset import load_dataset
from directdet.recipes.recipe import Recipe
from directdet.train import distributed
from directdet.train.processes import agreement
from directdet.train.processes.agreement import Meeting, facts_of


def facts(recipe: Recipe, data: Path, seed: int = 0, files: tuple[Path, ...] = (), device: str = "cpu") -> dict:
    return facts_of(recipe, ["pretrain"], load_dataset(data, "train"), None, seed, device, list(files))


def outcomes(*what: dict | Exception) -> list[str]:
    """What becomes of each process that comes with these facts, or fails on its way."""
    store, found = dist.HashStore(), [""] * len(what)

    def come(rank: int) -> None:
        met = Meeting.__new__(Meeting)
        met.store = met._own = store
        met._rank, met._size, met._told = rank, len(what), False
        own = what[rank]
        try:
            met.fail(str(own)) if isinstance(own, Exception) else met.agree(own)
        except UserError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(len(what))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def test_equal_processes_go_on(shapes, tiny):
    assert outcomes(*[facts(tiny, shapes) for _ in range(3)]) == [""] * 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda recipe: {"recipe": recipe.with_phase("pretrain", epochs=5)}, "pretrain.epochs: 5, not 2"),
        (lambda recipe: {"recipe": recipe.with_phase("pretrain", base_lr=0.5)}, "pretrain.base_lr: 0.5, not"),
        (lambda recipe: {"recipe": replace(recipe, model={**recipe.model, "masks": False})}, "model.masks: False, not"),
        (lambda _: {"seed": 7}, "seed: 7, not 0"),
        (lambda _: {"device": "cuda"}, "device: cuda, not cpu"),
    ],
)
def test_what_differs_is_named_in_every_process(shapes, tiny, change, says):
    other = {"recipe": tiny, **change(tiny)}
    found = outcomes(facts(tiny, shapes), facts(tiny, shapes), facts(data=shapes, **other))
    assert len(set(found)) == 1
    assert found[0].startswith("rank 2 is not about to train what rank 0 is: ") and says in found[0]


def test_workers_may_differ(shapes, tiny):
    assert facts(tiny, shapes) == facts(tiny.with_phase("pretrain", workers=3), shapes)


def test_data_code_and_checkpoints_count(shapes, tiny, tmp_path, monkeypatch):
    one = load_dataset(shapes, "train")
    boxes = one.records[3].boxes.copy()
    boxes[0, 0] += 1
    moved = replace(one, records=(*one.records[:3], replace(one.records[3], boxes=boxes), *one.records[4:]))
    fewer = replace(one, records=one.records[:-1])
    seen = {agreement._annotations(dataset) for dataset in (one, moved, fewer, replace(one, classes=("x",) * 4))}
    assert len(seen) == 4
    last = tmp_path / "run" / "pretrain" / "last.pt"
    without = facts(tiny, shapes, files=(last,))
    last.parent.mkdir(parents=True)
    last.write_bytes(b"1")
    with_it = facts(tiny, shapes, files=(last,))
    found = outcomes(with_it, without)
    assert f"{Path('run', 'pretrain', 'last.pt')}: not there, not digest " in found[0]
    before = agreement._code()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text("1")
    monkeypatch.setattr(agreement, "_PACKAGE", tmp_path / "package")
    assert agreement._code() != before


def test_a_process_that_fails_on_its_way_is_told_to_the_others(shapes, tiny):
    begin = time.monotonic()
    found = outcomes(facts(tiny, shapes), UserError("pictures: dataset folder not found"))
    assert found == ["rank 1 ended before training began: pictures: dataset folder not found", ""]
    assert time.monotonic() - begin < 10


def test_many_differences_are_cut(shapes, tiny):
    other = tiny.with_phase("pretrain", epochs=9, base_lr=0.5, eval_every=7, warmup_iterations=3, batch_size=8)
    found = outcomes(facts(tiny, shapes), facts(other, shapes))[0]
    assert " and 1 more; start all processes with the same command, data and code" in found


def test_one_process_meets_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with agreement.meeting() as met:
        assert met is None


@pytest.mark.parametrize(
    ("world", "text", "told"),
    [
        ("2", "[third_party/gloo/pair.cc:545] Read error [127.0.0.1]:1: Connection reset by peer", True),
        ("2", "Connection closed by peer [127.0.0.1]:46497", True),
        ("2", "size mismatch", False),
        ("1", "gloo", False),
    ],
)
def test_a_process_that_was_lost_is_told_in_one_line(monkeypatch, tmp_path, world, text, told):
    monkeypatch.setenv("WORLD_SIZE", world)
    wanted = r"run: another process of this run ended; see its own error, and go on with --resume$"
    kind, says = (UserError, wanted) if told else (RuntimeError, re.escape(text))
    with pytest.raises(kind, match=says), distributed.told_of_loss(tmp_path / "run"):
        raise RuntimeError(text)


def started(rank: int, port: int, words: list[str]) -> subprocess.Popen[str]:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-m", "directdet", *words], env={**os.environ, **place}, stderr=subprocess.PIPE, text=True
    )


def test_the_command_ends_in_both_processes_in_one_line_each(shapes, tmp_path):
    """As on two machines, where no torchrun ends the one that is left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["train", "demo", "--data", str(shapes), "--out", str(tmp_path / "run"), "--device", "cpu"]
    both = [started(rank, port, [*words, "--seed", str(rank)]) for rank in range(2)]
    for rank, process in enumerate(both):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        start = f"[rank {rank}] " if rank else ""
        assert err == (
            f"{start}error: rank 1 is not about to train what rank 0 is: seed: 1, not 0; start all processes with the "
            "same command, data and code\n"
        )
    assert not (tmp_path / "run").exists()
