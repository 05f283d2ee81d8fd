"""`directdet reproduce`: a comparison from one of the papers, scaled down, with equal budgets for its rows.

How many steps each row makes is measured once, at the start, and kept in plan.json, so that a comparison that was
stopped continues as the same comparison. Results are written after every row.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from directdet.common.errors import UsageProblem, UserError
from directdet.common.files import require_writable, write_json_atomic
from directdet.data.records import Dataset
from directdet.infer.accuracy.evaluate import Evaluation, detect
from directdet.infer.detections import Detections
from directdet.infer.runtimes.torch_runtime import load_torch
from directdet.recipes.recipe import Recipe
from directdet.reproduce.budget import Setup, make_plan, weights_of
from directdet.reproduce.comparison import DIVERGED, Comparison, is_done, read_comparison
from directdet.reproduce.draws import DRAWS_FILE, write_draws
from directdet.reproduce.experiments import EXPERIMENTS, TIMED
from directdet.reproduce.pretraining import LAST, keep, lengths_of, start_of
from directdet.reproduce.scales import Scale, choose_scale
from directdet.reproduce.tables.trials import DROPS, SHARED, Experiment, Metric, Trial
from directdet.reproduce.time_limit import StopAfter, TimeIsUp
from directdet.train.data import load_splits
from directdet.train.log import read_log
from directdet.train.loop import Diverged
from directdet.train.prepare import IMAGENET
from directdet.train.run import choose_device, train


@dataclass(frozen=True)
class ReproduceOptions:
    """How a comparison is run. With another choice it is another comparison, and needs a folder of its own.

    Attributes:
        budget: seconds of training and evaluation for the whole comparison.
        scale: a key of SCALES; None is "medium" on a GPU and "small" on a CPU.
        device, seed: as in train.run.train.
        imagenet: "imagenet", or files with a backbone's weights each, for the rows that start from them: each takes
            the first that fits. Without one that does, these rows are left out.
        rows: keys of the rows to run, where there is no time for all; none means all.
        steps: of every phase of every row, instead of a budget, or of 1x where rows keep the paper's schedules; not
            for comparisons whose rows get equal time.
        ssd_batch: images per step of SSD, instead of the scale's; the learning rates stay the same.
        metric: what claims are judged by, and what the table shows; None: what the paper measures.
    """

    budget: float = 1200.0
    scale: str | None = None
    device: str = "auto"
    seed: int = 0
    imagenet: str | Sequence[str] = ()
    rows: Sequence[str] = ()
    steps: int | None = None
    ssd_batch: int | None = None
    metric: Metric | None = None


def reproduce(
    name: str,
    data: str | Path,
    out: str | Path,
    options: ReproduceOptions | None = None,
    time_limit: float | None = None,
) -> Comparison:
    """Run the comparison called `name` (a key of EXPERIMENTS) on the dataset in `data`, into the folder `out`.

    Args:
        options: budget, scale and so on; None takes the defaults.
        time_limit: stop after this many seconds; the same call continues.

    Raises:
        UserError: the dataset cannot be used, the budget is too small, or `out` holds another comparison.
        UsageProblem: an unknown comparison, scale or row, or options that do not go together.
    """
    options, out = options or ReproduceOptions(), Path(out)
    if name not in EXPERIMENTS:
        raise UsageProblem(f"{name}: unknown comparison; choose one of {', '.join((*EXPERIMENTS, *TIMED))}")
    experiment, place = EXPERIMENTS[name], choose_device(options.device)
    scale = choose_scale(options.scale, place.type == "cuda")
    if options.steps and experiment.equal == "time":
        raise UsageProblem(
            f"--steps {options.steps}: the rows of {name} get equal {experiment.equal}, not steps; give a --budget"
        )
    if options.ssd_batch is not None:
        scale = replace(scale, ssd_batch=options.ssd_batch)
    if any(out.glob("seed*/plan.json")):
        raise UserError(f"{out}: holds a comparison of several seeds; give its --seeds, or another --out")
    require_writable(out, folder=True)
    train_set, val = load_splits(data)
    if val is None:
        raise UserError(f"{data}: has no val split to measure AP on; add one")
    imagenet = (options.imagenet,) if isinstance(options.imagenet, str) else tuple(options.imagenet)
    setup = Setup(data, train_set, val, out, place, options.seed, imagenet)
    trials = _chosen(_trials(experiment, scale, train_set), options.rows)
    _check_batches(trials, setup)
    started = time.perf_counter()
    plan = make_plan(_asked(name, scale.name, options, setup, trials), experiment, trials, setup)
    left = None if time_limit is None else time_limit - (time.perf_counter() - started)
    comparison = read_comparison(out, plan, trials)
    try:
        with StopAfter(left):
            for index, trial in enumerate(trials):
                evaluation = None
                if not is_done(comparison.rows[index]):
                    evaluation = _run_trial(trial, plan, setup)
                    comparison = read_comparison(out, plan, trials)
                if "box_ap" in comparison.rows[index] and not (out / trial.key / DRAWS_FILE).is_file():
                    found = _found_again(trial, setup) if evaluation is None else evaluation.found
                    write_draws(out / trial.key, found, val, plan["metric"])
                comparison.write()
    except TimeIsUp:
        pass
    comparison = read_comparison(out, plan, trials)
    comparison.write()
    return comparison


def _asked(name: str, scale: str, options: ReproduceOptions, setup: Setup, trials: list[Trial]) -> dict[str, Any]:
    """The settings that plan.json keeps: with others it would be another comparison."""
    return {
        "experiment": name,
        "scale": scale,
        "seed": options.seed,
        "device": setup.device.type,
        "ssd_batch": options.ssd_batch,
        "budget_s": None if options.steps else options.budget,
        "phase_steps": options.steps,
        "data": str(setup.data),
        "images": [len(setup.train), len(setup.val)],
        "imagenet": list(setup.imagenet) if len(setup.imagenet) > 1 else next(iter(setup.imagenet), None),
        "metric": options.metric or EXPERIMENTS[name].metric,
        "rows": [trial.key for trial in trials],
    }


def _trials(experiment: Experiment, scale: Scale, dataset: Dataset) -> list[Trial]:
    """The rows of an experiment, without masks if the dataset has none."""
    trials = []
    for trial in experiment.trials(scale):
        recipe = trial.recipe
        if recipe.model.get("masks") and not dataset.has_masks:
            recipe = replace(recipe, model={**recipe.model, "masks": False})
        trials.append(replace(trial, recipe=recipe))
    if not dataset.has_masks:
        trials = [trial for trial in trials if trial.key != "mask"]  # Table 5's last row would repeat the one before
    return trials


def _chosen(trials: list[Trial], rows: Sequence[str]) -> list[Trial]:
    """The trials with these keys, in the order of the trials; all of them if there are no keys."""
    known = [trial.key for trial in trials]
    for key in rows:
        if key not in known:
            raise UsageProblem(f"--rows {key}: unknown; choose from {', '.join(known)}")
    return [trial for trial in trials if not rows or trial.key in rows]


def _check_batches(trials: list[Trial], setup: Setup) -> None:
    """UserError if a row has too few pictures for a batch, before the hours that the rows before it take."""
    for trial in trials:
        images = int(len(setup.train) * trial.recipe.data_fraction)
        most = max(phase.batch_size for phase in trial.recipe.phases)
        if images < most:
            of = f" of the {len(setup.train)}" if images < len(setup.train) else ""
            raise UserError(
                f"{setup.data}: train: {trial.key} takes batches of {most}, and has {images}{of} images; leave the row "
                "out with --rows, or give more data"
            )


def _with_steps(recipe: Recipe, steps: dict[str, int], drops: Sequence[Fraction] = DROPS) -> Recipe:
    """The recipe with the lengths of its phases set; milestones and warm-up in proportion."""
    for phase in recipe.phases:
        number = steps[phase.name]
        places = dict.fromkeys(int(number * drop) for drop in drops)
        at = () if phase.name in ("pretrain", "montage") else tuple(place for place in places if place)
        warmup = min(phase.warmup_iterations, number // 10)
        recipe = recipe.with_phase(phase.name, iterations=number, milestones=at, warmup_iterations=warmup)
    return recipe


def _found_again(trial: Trial, setup: Setup) -> Sequence[tuple[int, Detections]]:
    """What the end of a row's training detects, where that is not at hand: it was trained by an earlier call."""
    last = setup.out / trial.key / trial.recipe.phases[-1].name / "checkpoints" / "last.pt"
    return detect(load_torch(last, str(setup.device)), setup.val, setup.val.records)


def _run_trial(trial: Trial, plan: dict[str, Any], setup: Setup) -> Evaluation | None:
    """Train what is left to do for a row; its evaluation, if this call made one."""
    steps = plan["steps"]
    if trial.shares_pretrain:
        return _run_shared(trial, steps, setup)
    recipe = _with_steps(trial.recipe, steps[trial.key], trial.drops)
    init = weights_of(trial, setup) if trial.needs_imagenet else None
    if init is not None and init != IMAGENET:  # a file takes the place of the recipe's own start
        recipe = replace(recipe, init="random")
    return _train(recipe, setup, trial.key, init=init)


def _run_shared(trial: Trial, steps: dict[str, dict[str, int]], setup: Setup) -> Evaluation | None:
    """Train a row that starts from the pre-training that rows share, after as much of that as it takes."""
    start = start_of(setup.out, steps, trial.key)
    lengths = lengths_of(steps)
    own = steps[trial.key].get("pretrain", lengths[-1])
    for number in lengths[: lengths.index(own) + 1]:
        target = start if number == own else start.with_name(f"step{number}.pt")
        if target.name != LAST.name and target.is_file():
            continue
        first = _with_steps(replace(trial.recipe, phases=trial.recipe.phases[:1]), {"pretrain": lengths[0]})
        first = first.with_phase("pretrain", iterations=number)  # the warm-up is that of the shortest
        _train(first, setup, SHARED, phase="pretrain")
        if (setup.out / SHARED / DIVERGED).is_file():
            return None
        keep(setup.out, target)
    own_steps = {"pretrain": own, **steps[trial.key]}
    recipe = _with_steps(trial.recipe, own_steps, trial.drops)
    return _train(recipe, setup, trial.key, init=start, phase=recipe.phases[-1].name)


def _train(
    recipe: Recipe, setup: Setup, key: str, init: str | Path | None = None, phase: str | None = None
) -> Evaluation | None:
    """Train a recipe in the folder of a row, or continue there; a loss that is not finite ends only this row."""
    out, device = setup.out / key, setup.device.type
    begun = any(out.glob("*/checkpoints/last.pt"))
    start = None if begun else init
    try:
        return train(
            recipe, setup.data, out, phase=phase, init=start, resume=begun, device=device, seed=setup.seed
        ).evaluation
    except Diverged as error:  # a result, as in ScratchDet's Table 1
        steps = [row["step"] for log in out.glob("*/log.jsonl") for row in read_log(log)]
        write_json_atomic(out / DIVERGED, {"after_step": max(steps, default=0), "message": str(error)})
        return None
