"""Two processes that are told to stop, by a scheduler or while they save: both stop at one step, which is saved."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed_runs import checkpoint_of, command_line, finish, recipe, rows_of, torchrun
from distributed_worker import PATIENCE, Team, train_interrupted_saving

from directdet.data.synthetic import make_synthetic


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("pictures"), images_train=12, images_val=2, size=(64, 96))


@pytest.fixture(scope="module")
def pair() -> Iterator[Team]:
    processes = Team()
    yield processes
    processes.close()


def below(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # one that has just ended
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


@pytest.mark.slow
def test_a_scheduler_that_signals_every_process_has_the_run_saved(data: Path, tmp_path: Path) -> None:
    """As Slurm does: SIGTERM to torchrun, to its processes and to their data workers; torchrun passes its own on."""
    out = tmp_path / "run"
    settings = ("--set", "workers=2", "--set", "epochs=3000")
    process = torchrun("-m", "directdet", *command_line(data, out), *settings)
    limit = time.monotonic() + PATIENCE
    while not (out / "pretrain" / "log.jsonl").is_file() or not rows_of(out, "step"):
        assert time.monotonic() < limit and process.poll() is None, process.communicate()
        time.sleep(0.05)
    everyone = [process.pid, *below(process.pid)]
    assert len(everyone) >= 1 + 2 + 2  # a worker each at least
    for pid in everyone:
        os.kill(pid, signal.SIGTERM)
    code, _, err = finish(process)
    assert code != 0
    step = checkpoint_of(out)["step"]
    said = f"stopped by SIGTERM at step {step}; saved: {out / 'pretrain' / 'checkpoints' / 'last.pt'}"
    assert 0 < step < 9000 and err.count(said) == 2, err  # each process says so
    assert not any(Path(f"/proc/{pid}").exists() for pid in everyone)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_while_one_process_saves_stops_both_at_that_step(
    pair: Team, data: Path, tmp_path: Path, rank: int
) -> None:
    assert pair(train_interrupted_saving, recipe(), data, tmp_path / "run", rank, 3) == [3, 3]
    assert checkpoint_of(tmp_path / "run")["step"] == 3
