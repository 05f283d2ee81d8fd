"""Comparisons of tiny networks."""

import pytest
import torch
from slim_models import MICRO

from directdet.reproduce import budget
from directdet.reproduce import run as module
from directdet.reproduce.budget import Pace
from directdet.reproduce.scales import SCALES


@pytest.fixture(autouse=True)
def micro(monkeypatch):
    """A scale of networks that take a fraction of a second a step."""
    torch.set_num_threads(1)
    monkeypatch.setitem(SCALES, "micro", MICRO)


@pytest.fixture
def unmeasured(monkeypatch):
    """Steps take a second and evaluations nothing: a budget says how many steps there are."""
    monkeypatch.setattr(budget, "seconds_of_steps", lambda *_: Pace(1.0, 0.0))
    monkeypatch.setattr(budget, "FEWEST_STEPS", 2)


@pytest.fixture
def paced(monkeypatch):
    """Steps of ten seconds and evaluations of none, not measured: a budget then says how many steps there are."""
    monkeypatch.setattr(budget, "seconds_of_steps", lambda *_: Pace(10.0, 0.0))
    monkeypatch.setattr(budget, "FEWEST_STEPS", 2)


@pytest.fixture
def idle(monkeypatch):
    """Plans are made, rows are not run."""
    monkeypatch.setattr(module, "_run_trial", lambda *_: None)
