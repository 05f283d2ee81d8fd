"""Every row gets its equal share of the budget, and what steps take is measured on the real thing."""

import itertools
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from comparison_helpers import DIRECT_NAMES, micro_options, trials_of

from directdet.common.errors import UserError
from directdet.data.dataset import load_dataset
from directdet.reproduce import budget as planning
from directdet.reproduce import timing
from directdet.reproduce.budget import Pace
from directdet.reproduce.experiments import EXPERIMENTS
from directdet.reproduce.run import reproduce
from directdet.reproduce.tables.trials import SHARED, Trial

SHARED_PACE = Pace(0.9, 1000.0)
EVALUATION = 1.5  # seconds


def paces_of(trials: list[Trial]) -> dict[str, dict[str, Pace]]:
    """Made-up seconds of every phase, all different. Only a row's last phase is evaluated: others say 1000."""
    seconds = iter(range(3, 100))
    return {
        trial.key: {
            phase.name: Pace(next(seconds) / 17, EVALUATION if phase is trial.recipe.phases[-1] else 1000.0)
            for phase in trial.recipe.phases
            if not (trial.shares_pretrain and phase.name == "pretrain")
        }
        for trial in trials
    }


def check_proportions(trials: list[Trial], steps: planning.Steps) -> None:
    """Steps are as the lengths of the paper's schedules, rounded down."""
    pairs = [(steps[t.key][name], length) for t in trials for name, length in t.lengths.items()]
    least = max(count / length for count, length in pairs)
    most = min((count + 1) / length for count, length in pairs)
    assert least < most  # there is a 1x that makes all of them
    firsts = [steps[trial.key]["pretrain"] for trial in trials if trial.shares_pretrain]
    assert not firsts or steps[SHARED] == {"pretrain": max(firsts)}


@pytest.mark.parametrize("name", DIRECT_NAMES)
def test_budgets_are_equal_and_kept(name):
    experiment, trials, budget = EXPERIMENTS[name], trials_of(name), 2000.0
    paces, evaluating = paces_of(trials), EVALUATION * len(trials)
    shared = SHARED_PACE if any(trial.shares_pretrain for trial in trials) else None
    steps, _ = planning._steps(experiment, trials, budget, paces, shared)
    every = {SHARED: {"pretrain": SHARED_PACE}, **paces}
    spent = {
        key: {phase: count * every[key][phase].step for phase, count in row.items() if phase in every[key]}
        for key, row in steps.items()
    }
    total = sum(sum(row.values()) for row in spent.values()) + evaluating
    longest = sum(phase.step for row in paces.values() for phase in row.values()) + 0.9
    if experiment.equal == "schedule":  # a step of 1x for all rows is as long as their lengths
        unit = sum(float(t.lengths[name]) * paces[t.key][name].step for t in trials for name in paces[t.key])
        unit += 0.9 * max((float(t.lengths["pretrain"]) for t in trials if t.shares_pretrain), default=0.0)
        assert budget - unit - longest <= total <= budget
        check_proportions(trials, steps)
        return
    assert budget - longest <= total <= budget
    if experiment.equal == "steps":
        assert len({tuple(row.items()) for key, row in steps.items() if key != SHARED}) == 1
        # 40 % of the time for what all rows share
        assert spent[SHARED]["pretrain"] == pytest.approx(0.4 * (budget - evaluating), abs=0.9)
        return
    each = (budget - evaluating) / len(trials)
    for key, row in spent.items():
        assert each - sum(paces[key][phase].step for phase in row) <= sum(row.values()) <= each
        if len(row) == 2:  # split as P3x + 1x of Table 3: 1.07 of 1.52 days
            first = next(iter(row))
            assert first in ("pretrain", "montage") and row[first] / each == pytest.approx(1.07 / 1.52, abs=0.02)


@pytest.mark.parametrize("name", DIRECT_NAMES)
def test_the_least_budget_is_the_least(name):
    experiment, trials = EXPERIMENTS[name], trials_of(name)
    shared = SHARED_PACE if any(trial.shares_pretrain for trial in trials) else None

    def fewest(budget: float) -> tuple[int, float]:
        steps, needed = planning._steps(experiment, trials, budget, paces_of(trials), shared)
        return min(count for row in steps.values() for count in row.values()), needed

    _, needed = fewest(1.0)
    assert fewest(needed + 1e-6)[0] == planning.FEWEST_STEPS > fewest(needed * 0.999)[0]


def test_too_small_a_budget_names_one_that_does(shapes, tmp_path, monkeypatch, idle):
    monkeypatch.setattr(planning, "seconds_of_steps", lambda *_: Pace(0.5, 2.0))
    with pytest.raises(
        UserError, match=r"--budget: 0\.2 minutes are too few for 3 rows here; give at least (\d+)m"
    ) as no:
        reproduce("direct/scratch", shapes, tmp_path / "out", micro_options(10.0))
    assert "\n" not in str(no.value) and not (tmp_path / "out").exists()
    enough = 60.0 * int(re.search(r"least (\d+)m", str(no.value))[1])
    plan = reproduce("direct/scratch", shapes, tmp_path / "out", micro_options(enough)).plan
    assert min(count for row in plan["steps"].values() for count in row.values()) >= planning.FEWEST_STEPS


def test_measuring_takes_steps_of_the_real_thing(shapes, tmp_path):
    dataset, val = load_dataset(shapes, "train"), load_dataset(shapes, "val")
    recipe = trials_of("direct/scratch")[1].recipe
    found = planning.seconds_of_steps(recipe, recipe.phases[0], dataset, val, torch.device("cpu"))
    assert 0.001 < found.step < 20 and 0.001 < found.evaluation < 20


def test_reading_is_shared_by_the_workers(shapes, tmp_path, monkeypatch):
    """Budgets are to be used up: on a machine with many cores reading hardly takes time."""
    dataset, val = load_dataset(shapes, "train"), load_dataset(shapes, "val")
    recipe = trials_of("direct/scratch")[1].recipe
    phase = replace(recipe.phases[0], workers=10)
    clock = itertools.count()  # a second between any two looks at it
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr(planning, "usable_cores", lambda: 10)
    assert planning.seconds_of_steps(recipe, phase, dataset, val, torch.device("cpu")).step == pytest.approx(1.1)
