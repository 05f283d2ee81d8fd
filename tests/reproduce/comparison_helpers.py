"""What the tests of the comparisons share."""

from dataclasses import replace

import pytest
from rich.console import Console
from slim_models import MICRO

from directdet.reproduce.experiments import EXPERIMENTS
from directdet.reproduce.run import ReproduceOptions
from directdet.reproduce.scales import Scale
from directdet.reproduce.tables.trials import Trial

DIRECT_NAMES = [name for name in EXPERIMENTS if name.startswith("direct/")]


def trials_of(name: str, scale: Scale = MICRO) -> list[Trial]:
    """The rows of a comparison."""
    return EXPERIMENTS[name].trials(scale)


def only(monkeypatch: pytest.MonkeyPatch, name: str, *keys: str) -> None:
    """Leave the comparison with some of its rows."""
    whole = EXPERIMENTS[name]
    rows = replace(whole, trials=lambda scale: [trial for trial in whole.trials(scale) if trial.key in keys])
    monkeypatch.setitem(EXPERIMENTS, name, rows)


def micro_options(budget: float = 1200.0, **changes) -> ReproduceOptions:
    """Of networks that take a fraction of a second a step, on the CPU."""
    return ReproduceOptions(budget, "micro", "cpu", **changes)


def printed(renderable: object) -> str:
    """The text of a table."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()
