"""Signals that reach the worker processes of a loader."""

import os
import signal

import pytest

from directdet.data.augment.transforms import PretrainTransform
from directdet.data.dataset import load_dataset
from directdet.data.loader import make_loader
from directdet.data.sampling import Sampling
from directdet.data.synthetic import make_synthetic

SQUARE = PretrainTransform(64, (1.0, 1.0))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset(make_synthetic(tmp_path_factory.mktemp("data"), 12, 2, size=(64, 64)), "train")


def signalled(sample, rng):
    os.kill(os.getpid(), signal.SIGTERM)
    return SQUARE(sample, rng)


def test_sigterm_ends_a_worker_only_if_the_training_process_sends_it(dataset):
    """A scheduler's reaches every process of a job; the last steps before the run is saved still need batches."""
    loader = make_loader(dataset, signalled, Sampling(4), workers=2)
    assert len(list(loader)) == 3
    first, second = loader._processes
    second.terminate()
    second.join(20)
    assert second.exitcode == 128 + signal.SIGTERM
    assert first.is_alive()
