"""Worker processes of a loader: what they are given, how they are ended, and how their errors come back."""

import os
import pickle
import shutil
import signal
import time

import pytest
import torch
from compared import assert_equal_batches, at_epoch

from directdet.common.errors import UserError
from directdet.data.augment.transforms import PretrainTransform
from directdet.data.dataset import load_dataset
from directdet.data.loader import WorkerError, make_loader
from directdet.data.sampling import Sampling

SQUARE = PretrainTransform(96)


@pytest.fixture(scope="module")
def dataset(synthetic):
    return load_dataset(synthetic, "train")


def test_what_workers_are_given_can_be_pickled(dataset):
    """Where processes are spawned rather than forked it has to be."""
    options = make_loader(dataset, SQUARE, Sampling(2))._open
    copy = pickle.loads(pickle.dumps((*options.args, options.keywords)))
    assert len(copy[0]) == 12


def test_closing_and_starting_again(dataset):
    loader = make_loader(dataset, SQUARE, Sampling(6), workers=1)
    first = list(loader)
    loader.close()
    assert_equal_batches(first, loader)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["cut", "missing", "size"])
def test_broken_images_are_one_readable_line(synthetic, tmp_path, workers, damage, write_image):
    root = tmp_path / "copy"
    shutil.copytree(synthetic, root)
    dataset = load_dataset(root, "train")
    victim = dataset.records[3].path
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-50])
    elif damage == "missing":
        victim.unlink()
    else:
        write_image(victim, 20, 20)
    with pytest.raises(UserError, match=victim.name) as caught:
        list(make_loader(dataset, SQUARE, Sampling(4), workers=workers))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def fails_in(what):
    """A transform that fails in a worker as `what` says."""

    def transform(sample, rng):
        if what == "error":
            raise ValueError("two\nlines")
        if what == "memory":
            raise MemoryError
        os.kill(os.getpid(), getattr(signal, what))
        return SQUARE(sample, rng)

    return transform


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("error", r"\.jpg: a data worker failed: ValueError: two lines"),
        ("memory", r"\.jpg: a data worker ran out of memory"),
        ("SIGKILL", "a data worker was killed, probably because memory ran out"),
        ("SIGBUS", "bus error, probably because /dev/shm has too little room"),
        ("SIGSEGV", "a data worker was ended by SIGSEGV"),
    ],
)
def test_a_worker_that_fails_or_dies_is_one_line(dataset, what, says):
    handler = signal.getsignal(signal.SIGCHLD)
    started = time.perf_counter()
    with pytest.raises(WorkerError, match=says) as caught:
        list(make_loader(dataset, fails_in(what), Sampling(4), workers=2))
    # Torch looks for dead workers every five seconds, and may first end those of an earlier test.
    assert "\n" not in str(caught.value) and time.perf_counter() - started < 45
    assert signal.getsignal(signal.SIGCHLD) == handler  # nothing is raised in the middle of a step


def test_a_worker_that_dies_between_two_epochs_is_one_line(dataset):
    loader = make_loader(dataset, SQUARE, Sampling(4), workers=2)
    assert len(list(loader)) == 3
    os.kill(loader._processes[1].pid, signal.SIGKILL)
    loader._processes[1].join()
    with pytest.raises(WorkerError, match="a data worker was killed, probably because memory ran out"):
        list(at_epoch(loader, 1))
    assert len(list(at_epoch(loader, 1))) == 3  # with new ones


def test_without_workers_an_error_of_the_code_keeps_its_traceback(dataset):
    with pytest.raises(ValueError, match="two"):
        list(make_loader(dataset, fails_in("error"), Sampling(4)))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RuntimeError("unable to allocate shared memory(shm) for file </x>: No space left"),
            "/dev/shm has too little room",
        ),
        (OSError(24, "Too many open files"), "a batch of 4 images: a data worker failed: OSError.*Too many open files"),
    ],
)
def test_a_batch_that_cannot_be_sent_is_one_line(dataset, monkeypatch, error, says):
    """Pickled by torch, on a side thread, the main process would wait for ever."""

    def fail(*_):
        raise error

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", fail)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", fail)
    with pytest.raises(WorkerError, match=says):
        list(make_loader(dataset, SQUARE, Sampling(4), workers=1))
