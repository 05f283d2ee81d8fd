"""Fixtures that every room's tests share."""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
from pathlib import Path

import pytest


def real_data_folder() -> Path:
    """Where real test images are looked for: $DIRECTDET_DATA, else ../shared/data beside the repository."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    return Path(os.environ.get("DIRECTDET_DATA", default))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with coco-mini, penn-fudan and voc2007mini; the test is skipped where it is absent."""
    folder = real_data_folder()
    if not folder.is_dir():
        pytest.skip(f"real test images not found at {folder}; set DIRECTDET_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def data_cases() -> Path:
    """Folder of small datasets that once failed, beside the real images; the test is skipped where it is absent."""
    folder = real_data_folder().parent / "cases" / "data"
    if not folder.is_dir():
        pytest.skip(f"case folders not found at {folder}")
    return folder


if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: each computes in one thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")


TRACES = "DIRECTDET_TEST_TRACES"  # the folder where a worker process that crashes leaves its stack


@pytest.hookimpl(trylast=True)  # after pytest's own: a worker's standard error is far from the summary, or lost
def pytest_configure(config):
    """A shell starts what runs in the background deaf to Ctrl-C, nohup to the terminal's end; some tests send them."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        config.crash_trace = open(Path(os.environ[TRACES], worker), "w")  # noqa: SIM115  as long as the process
        faulthandler.enable(config.crash_trace)
    else:
        config.crash_traces = tempfile.TemporaryDirectory(prefix="test-traces-")
        os.environ[TRACES] = config.crash_traces.name
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """How a worker process ended that crashed: a signal, or an exit code."""
    if error and (code := node.gateway._io.wait()):
        with open(Path(os.environ[TRACES], node.gateway.id), "a") as file:
            file.write(f"ended with exit code {code}\n")


def pytest_terminal_summary(terminalreporter):
    """Where a worker process was when it crashed; nothing is known of one that was killed from outside."""
    for file in sorted(Path(os.environ[TRACES]).iterdir()):
        if trace := file.read_text():
            terminalreporter.section(f"stack of {file.name}, which crashed")
            terminalreporter.write_line("\n".join(trace.splitlines()[:30]))  # below that is pytest itself


# What follows is imported by those who use it, after the environment is set.


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A COCO dataset of 12 train and 4 val pictures."""
    from directdet.data.synthetic import make_synthetic

    return make_synthetic(tmp_path_factory.mktemp("shapes"), images_train=12, images_val=4, size=(64, 96))


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """Artefact of batch 1 with masks, input 96 x 128."""
    from tiny_artefact import write_artefact

    return write_artefact(tmp_path / "artefact")


@pytest.fixture
def tiny_dataset(tmp_path: Path):
    """Three images of 192 x 256 on which the tiny artefact is right: its boxes, doubled, are the ground truth."""
    from tiny_artefact import write_dataset

    return write_dataset(tmp_path)
