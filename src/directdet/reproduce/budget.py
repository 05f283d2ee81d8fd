"""How many steps each row of a comparison makes: equal shares of a budget, from the time that a step takes here."""

import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from directdet.common.cores import usable_cores
from directdet.common.errors import UserError
from directdet.common.files import write_json_atomic
from directdet.common.json_files import read_json
from directdet.common.settings import Count
from directdet.common.terminal import terminal
from directdet.data.records import Dataset
from directdet.infer.accuracy.evaluate import detect
from directdet.infer.runtimes.torch_runtime import TorchPredictor
from directdet.models.build import build_model
from directdet.recipes.recipe import Phase, Recipe
from directdet.reproduce.tables.trials import SHARED, Experiment, Trial
from directdet.reproduce.timing import timed_steps
from directdet.train.loop import Trainer
from directdet.train.prepare import apply_norm, load_weights, network_of

PRETRAIN_SHARE = 0.7  # of a row's time, as in P3x + 1x (direct pre-training, Table 3)
SHARED_SHARE = 0.4  # of the whole time, for a pre-training that all rows share
FEWEST_STEPS = 10
TIMED_STEPS = 4  # after one that warms up


PLAN_FIX = "restore it, or choose another --out"


@dataclass(frozen=True)
class _PlanFile:
    """What is read of plan.json beside the settings that were asked for."""

    steps: dict[str, dict[str, Count]]


@dataclass(frozen=True)
class Setup:
    """What all rows of a comparison share.

    Attributes:
        data: folder of the dataset.
        train, val: its splits.
        out: folder of the comparison.
        device, seed: as in train.run.train.
        imagenet: "imagenet", or files with a backbone's weights each, for the rows that start from them.
    """

    data: str | Path
    train: Dataset
    val: Dataset
    out: Path
    device: torch.device
    seed: int
    imagenet: Sequence[str]


@dataclass(frozen=True)
class Pace:
    """Seconds of one training step, and of one evaluation of the whole val split."""

    step: float
    evaluation: float


Paces = Mapping[str, Mapping[str, Pace]]  # by row and phase, in the order of the rows and phases
Steps = dict[str, dict[str, int]]  # by row and phase


def make_plan(asked: dict[str, Any], experiment: Experiment, trials: list[Trial], setup: Setup) -> dict[str, Any]:
    """The steps of every phase of every row: from plan.json if it exists, else as asked for, or from measurements.

    Args:
        asked: the settings of the comparison, as plan.json keeps them.

    Raises:
        UserError: plan.json is of other settings, the budget is too small, or ImageNet weights fit no row.
    """
    path = setup.out / "plan.json"
    if path.is_file():
        plan, file = read_json(path, _PlanFile, PLAN_FIX)
        other = [key for key, value in asked.items() if plan.get(key) != value]
        if other:
            raise UserError(f"{path}: {other[0]}: was {plan.get(other[0])!r}; give the same, or another --out")
        _check_steps(path, file.steps, trials)
        return plan
    running = _startable(trials, setup)
    if asked["phase_steps"]:
        found = {"steps": _fixed_steps(experiment, running, asked["phase_steps"])}
    else:
        found = _measured_steps(experiment, running, asked["budget_s"], setup)
    plan = {**asked, "equal": experiment.equal, **found}
    write_json_atomic(path, plan)
    return plan


def _check_steps(path: Path, steps: Mapping[str, Mapping[str, int]], trials: list[Trial]) -> None:
    """UserError if a row of plan.json lacks a phase; rows without ImageNet weights are not in it."""
    for trial in trials:
        if trial.key not in steps and trial.needs_imagenet:
            continue
        for phase in trial.recipe.phases:
            key = SHARED if trial.shares_pretrain and phase.name == "pretrain" else trial.key
            if phase.name not in steps.get(key, {}):
                raise UserError(f"{path}: steps: {key}: {phase.name} is missing; {PLAN_FIX}")


def _measured_steps(experiment: Experiment, trials: list[Trial], budget: float, setup: Setup) -> dict[str, Any]:
    """Measure what a step of every phase takes here: "seconds_per_step", and the "steps" that fill the budget.

    Raises UserError if they are too few.
    """
    terminal().print(f"measuring {len(trials)} rows, to give each its share of {budget / 60:.0f} minutes")
    paces: dict[str, dict[str, Pace]] = {}
    shared: Pace | None = None
    for trial in trials:
        paces[trial.key] = {}
        for phase in trial.recipe.phases:
            if trial.shares_pretrain and phase.name == "pretrain":
                shared = shared or seconds_of_steps(trial.recipe, phase, setup.train, setup.val, setup.device)
                continue
            paces[trial.key][phase.name] = seconds_of_steps(trial.recipe, phase, setup.train, setup.val, setup.device)
    steps, needed = _steps(experiment, trials, budget, paces, shared)
    if min(min(row.values()) for row in steps.values()) < FEWEST_STEPS:
        raise UserError(
            f"--budget: {budget / 60:.1f} minutes are too few for {len(trials)} rows here; give at least "
            f"{math.ceil(needed / 60)}m, or a smaller --scale"
        )
    measured = {key: {name: asdict(pace) for name, pace in row.items()} for key, row in paces.items()}
    return {"seconds_per_step": measured, "steps": steps}


def _startable(trials: list[Trial], setup: Setup) -> list[Trial]:
    """The rows that can run: all except those that need ImageNet weights which `imagenet` does not have.

    Raises UserError if it has none for any row, so that the user learns it before the work and not hours later.
    """
    running, errors = [], []
    for trial in trials:
        if trial.needs_imagenet:
            if not setup.imagenet:
                continue
            try:
                weights_of(trial, setup)
            except UserError as error:
                errors.append(error)
                continue
        running.append(trial)
    if errors and not any(trial.needs_imagenet for trial in running):
        raise errors[0]
    return running


def weights_of(trial: Trial, setup: Setup) -> str:
    """The first of the ImageNet weights given that fit the network of a row.

    Raises:
        UserError: none does; says why the first does not.
    """
    errors = []
    for source in setup.imagenet:
        model = {"detector": trial.recipe.detector, "num_classes": len(setup.train.classes), **trial.recipe.model}
        try:
            load_weights(build_model(model), source, setup.train.classes)
        except UserError as error:
            errors.append(error)
        else:
            return source
    raise errors[0]


def _fixed_steps(experiment: Experiment, trials: list[Trial], count: int) -> Steps:
    """`count` steps for every phase of every row, and for the pre-training that rows share; or for 1x."""
    if experiment.equal == "schedule":
        return _scheduled(trials, Fraction(count))
    steps: Steps = {}
    for trial in trials:
        steps[trial.key] = {phase.name: count for phase in trial.recipe.phases}
        if trial.shares_pretrain:
            steps[SHARED] = {"pretrain": steps[trial.key].pop("pretrain")}
    return steps


def _scheduled(trials: list[Trial], steps_of_1x: Fraction) -> Steps:
    """Steps in the paper's proportions; rows that share a pre-training each have as many of it as they start after."""
    steps: Steps = {
        trial.key: {name: max(1, int(length * steps_of_1x)) for name, length in trial.lengths.items()}
        for trial in trials
    }
    shared = [steps[trial.key]["pretrain"] for trial in trials if trial.shares_pretrain]
    return steps | ({SHARED: {"pretrain": max(shared)}} if shared else {})


def _steps(
    experiment: Experiment, trials: list[Trial], budget: float, paces: Paces, shared: Pace | None
) -> tuple[Steps, float]:
    """Steps by row and phase, and a budget that would give each phase at least FEWEST_STEPS.

    `shared` is the pace of the pre-training that all rows share, if they do. Each row is evaluated once, at its end.
    """
    evaluating = sum(list(row.values())[-1].evaluation for row in paces.values())
    training = budget - evaluating
    if experiment.equal == "schedule":
        steps, needed = _paper_schedules(trials, training, paces, shared)
    elif experiment.equal == "time":
        steps, needed = _equal_times(trials, training, paces)
    elif shared is None:
        steps, needed = _equal_steps(trials, training, paces)
    else:
        steps, needed = _equal_steps_after(shared, trials, training, paces)
    return steps, needed + evaluating


def _paper_schedules(trials: list[Trial], training: float, paces: Paces, shared: Pace | None) -> tuple[Steps, float]:
    """As many steps of 1x as the time is enough for, for rows that keep the paper's schedules."""
    lengths = [(trial, name, length) for trial in trials for name, length in trial.lengths.items()]
    firsts = [length for trial, name, length in lengths if trial.shares_pretrain and name == "pretrain"]
    own = [(trial, name, length) for trial, name, length in lengths if name in paces[trial.key]]
    seconds = sum(float(length) * paces[trial.key][name].step for trial, name, length in own)
    if shared is not None:
        seconds += float(max(firsts)) * shared.step
    steps = _scheduled(trials, Fraction(max(0, int(training / seconds))))
    shortest = min(length for _, _, length in lengths)
    return steps, math.ceil(FEWEST_STEPS / shortest) * seconds


def _equal_times(trials: list[Trial], training: float, paces: Paces) -> tuple[Steps, float]:
    """Equal time for every row; where it has two phases, split like the paper's P3x + 1x."""
    steps: Steps = {}
    needed, each = 0.0, training / len(trials)
    for trial in trials:
        steps[trial.key] = {}
        shares = (1.0,) if len(trial.recipe.phases) == 1 else (PRETRAIN_SHARE, 1 - PRETRAIN_SHARE)
        for phase, share in zip(trial.recipe.phases, shares, strict=True):
            seconds = paces[trial.key][phase.name].step
            steps[trial.key][phase.name] = int(each * share / seconds)
            needed = max(needed, FEWEST_STEPS * seconds / share)
    return steps, needed * len(trials)


def _equal_steps(trials: list[Trial], training: float, paces: Paces) -> tuple[Steps, float]:
    """Equal steps for every row, each of one phase."""
    seconds = sum(next(iter(paces[trial.key].values())).step for trial in trials)
    steps = {trial.key: dict.fromkeys(paces[trial.key], int(training / seconds)) for trial in trials}
    return steps, FEWEST_STEPS * seconds


def _equal_steps_after(shared: Pace, trials: list[Trial], training: float, paces: Paces) -> tuple[Steps, float]:
    """Equal steps for every row, after a pre-training that all rows share."""
    seconds = sum(paces[trial.key]["finetune"].step for trial in trials)
    first = int(training * SHARED_SHARE / shared.step)
    rest = int(training * (1 - SHARED_SHARE) / seconds)
    needed = FEWEST_STEPS * max(shared.step / SHARED_SHARE, seconds / (1 - SHARED_SHARE))
    return {SHARED: {"pretrain": first}, **{trial.key: {"finetune": rest} for trial in trials}}, needed


def seconds_of_steps(recipe: Recipe, phase: Phase, dataset: Dataset, val: Dataset, device: torch.device) -> Pace:
    """Measure a training step with its share of reading, and the evaluation of the whole val split.

    This process reads the data here; in training, the phase's workers share that work.
    """
    torch.manual_seed(0)
    model = network_of(recipe, phase, len(dataset.classes))
    apply_norm(model, phase, trained=False, known=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model.to(device), replace(phase, workers=0), dataset, None, Path(folder), recipe.name, 0)
        readers = max(1, min(phase.workers, usable_cores()))
        times = [step + read / readers for read, step in timed_steps(trainer, 1 + TIMED_STEPS)]
        if phase.name == "montage":  # no detector
            return Pace(statistics.median(times[1:] or times), 0.0)
        detector = TorchPredictor.from_model(
            model.eval(), trainer.preprocess, dataset.classes, dataset.category_ids, device
        )
        detect(detector, val, val.records[:1])
        started = time.perf_counter()
        detect(detector, val, val.records[1:4])
        evaluation = (time.perf_counter() - started) / max(1, len(val.records[1:4])) * len(val)
    return Pace(statistics.median(times[1:] or times), evaluation)
