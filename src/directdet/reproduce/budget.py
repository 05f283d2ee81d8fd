"""How many steps each row of a comparison makes: equal shares of a budget, from what a step takes here."""

import json
import math
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from directdet.common.errors import UserError
from directdet.common.files import write_json_atomic
from directdet.data.records import Dataset
from directdet.infer.accuracy.evaluate import detect
from directdet.infer.runtimes.torch_runtime import TorchPredictor
from directdet.models.build import build_model
from directdet.recipes.recipe import Phase, Recipe
from directdet.reproduce.experiments import SHARED, Experiment, Trial
from directdet.reproduce.timing import timed_steps
from directdet.train.loop import Trainer
from directdet.train.prepare import apply_norm, load_weights

PRETRAIN_SHARE = 0.7  # of a row's time, as P3x of P3x + 1x (Table 3)
SHARED_SHARE = 0.4  # of the whole time, for a pre-training that all rows share
FEWEST_STEPS = 10
TIMED_STEPS = 4  # after one that warms up


def make_plan(
    path: Path,
    asked: dict[str, Any],
    experiment: Experiment,
    trials: list[Trial],
    dataset: Dataset,
    val: Dataset,
    device: torch.device,
    imagenet: str | None,
) -> dict[str, Any]:
    """Steps of every phase of every row: those of plan.json, as asked for, or by what a step takes here."""
    if path.is_file():
        plan = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key, value in asked.items() if plan.get(key) != value]
        if other:
            raise UserError(f"{path}: {other[0]}: was {plan.get(other[0])!r}; give the same, or another --out")
        return plan
    running = _startable(trials, dataset, imagenet)
    if asked["phase_steps"]:
        found = {"steps": _fixed_steps(running, asked["phase_steps"])}
    else:
        found = _measured_steps(experiment, running, asked["budget_s"], dataset, val, device)
    plan = {**asked, "equal": experiment.equal, **found}
    write_json_atomic(path, plan)
    return plan


def _measured_steps(
    experiment: Experiment, trials: list[Trial], budget: float, dataset: Dataset, val: Dataset, device: torch.device
) -> dict[str, Any]:
    """Measure what a step of every phase takes here: "seconds_per_step", and the "steps" that fill the budget.

    Raises UserError if they are too few.
    """
    Console().print(f"measuring {len(trials)} rows, to give each its share of {budget / 60:.0f} minutes")
    pace: dict[str, dict[str, float]] = {}
    shared: dict[str, float] | None = None
    for trial in trials:
        pace[trial.key] = {}
        for phase in trial.recipe.phases:
            if trial.shares and phase.name == "pretrain":
                shared = shared or _seconds(trial.recipe, phase, dataset, val, device)
                continue
            pace[trial.key][phase.name] = _seconds(trial.recipe, phase, dataset, val, device)
    evaluation = {key: rows[list(rows)[-1]]["evaluation"] for key, rows in pace.items()}
    steps, needed = _steps(experiment, trials, budget, pace, shared, evaluation)
    if min(min(row.values()) for row in steps.values()) < FEWEST_STEPS:
        raise UserError(
            f"--budget: {budget / 60:.1f} minutes are too few for {len(trials)} rows here; give at least "
            f"{math.ceil(needed / 60)}m, or a smaller --scale"
        )
    return {"seconds_per_step": pace, "steps": steps}


def _startable(trials: list[Trial], dataset: Dataset, imagenet: str | None) -> list[Trial]:
    """The rows that can run: all but those that need ImageNet weights of a backbone which `imagenet` has none of.

    Raises UserError if it has none of any: that is to be told before the work, not hours later.
    """
    running, errors = [], []
    for trial in trials:
        if trial.needs_imagenet and imagenet is None:
            continue
        if trial.needs_imagenet:
            model = {"detector": trial.recipe.detector, "num_classes": len(dataset.classes), **trial.recipe.model}
            try:
                load_weights(build_model(model), imagenet, dataset.classes)
            except UserError as error:
                errors.append(error)
                continue
        running.append(trial)
    if errors and not any(trial.needs_imagenet for trial in running):
        raise errors[0]
    return running


def _fixed_steps(trials: list[Trial], count: int) -> dict[str, dict[str, int]]:
    """`count` steps for every phase of every row, and for what they share."""
    steps = {}
    for trial in trials:
        steps[trial.key] = {phase.name: count for phase in trial.recipe.phases}
        if trial.shares:
            steps[SHARED] = {"pretrain": steps[trial.key].pop("pretrain")}
    return steps


def _steps(
    experiment: Experiment,
    trials: list[Trial],
    budget: float,
    pace: dict[str, dict[str, Any]],
    shared: dict[str, float] | None,
    evaluation: dict[str, float],
) -> tuple[dict[str, dict[str, int]], float]:
    """Steps by row and phase, and a budget that would give each phase at least FEWEST_STEPS.

    Rows that share their pre-training make equal steps; others get equal time, split as the paper's P3x + 1x.
    """
    training = budget - sum(evaluation.values())
    if experiment.equal == "steps" and shared is None:
        row_step = sum(next(iter(pace[trial.key].values()))["step"] for trial in trials)
        steps = {trial.key: dict.fromkeys(pace[trial.key], int(training / row_step)) for trial in trials}
        return steps, FEWEST_STEPS * row_step + sum(evaluation.values())
    if experiment.equal == "steps":
        row_step = sum(pace[trial.key]["finetune"]["step"] for trial in trials)
        first = int(training * SHARED_SHARE / shared["step"])
        rest = int(training * (1 - SHARED_SHARE) / row_step)
        needed = FEWEST_STEPS * max(shared["step"] / SHARED_SHARE, row_step / (1 - SHARED_SHARE))
        steps = {SHARED: {"pretrain": first}, **{trial.key: {"finetune": rest} for trial in trials}}
        return steps, needed + sum(evaluation.values())
    steps, needed, each = {}, 0.0, training / len(trials)
    for trial in trials:
        steps[trial.key] = {}
        shares = (1.0,) if len(trial.recipe.phases) == 1 else (PRETRAIN_SHARE, 1 - PRETRAIN_SHARE)
        for phase, share in zip(trial.recipe.phases, shares, strict=True):
            seconds = pace[trial.key][phase.name]["step"]
            steps[trial.key][phase.name] = int(each * share / seconds)
            needed = max(needed, FEWEST_STEPS * seconds / share)
    return steps, needed * len(trials) + sum(evaluation.values())


def _seconds(recipe: Recipe, phase: Phase, dataset: Dataset, val: Dataset, device: torch.device) -> dict[str, float]:
    """Seconds of a training step with its share of reading, and of the evaluation of the whole val split, measured.

    Data is read here by this process, in training by the phase's workers, which share the work.
    """
    torch.manual_seed(0)
    model = build_model({"detector": recipe.detector, "num_classes": len(dataset.classes), **recipe.model})
    apply_norm(model, phase, trained=False, known=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model.to(device), replace(phase, workers=0), dataset, None, Path(folder), recipe.name, 0)
        readers = max(1, min(phase.workers, os.cpu_count() or 1))
        times = [step + read / readers for read, step in timed_steps(trainer, 1 + TIMED_STEPS)]
        detector = TorchPredictor.from_model(
            model.eval(), trainer.preprocess, dataset.classes, dataset.category_ids, device
        )
        detect(detector, val, val.records[:1])
        started = time.perf_counter()
        detect(detector, val, val.records[1:4])
        evaluation = (time.perf_counter() - started) / max(1, len(val.records[1:4])) * len(val)
    return {"step": statistics.median(times[1:] or times), "evaluation": evaluation}
