"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import signal
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


if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: each computes in one thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config):
    """A shell starts what runs in the background deaf to Ctrl-C; some tests send it, also to what they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
