"""`directdet reproduce`: one of the paper's comparisons, scaled down, with equal budgets for its rows.

How many steps each row makes is measured once, at the start, and kept in plan.json, so that a comparison that was
stopped goes on as the same comparison. Results are written after every row.
"""

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.table import Table

from ..data.records import Dataset
from ..errors import UsageProblem, UserError
from ..files import require_writable, write_json_atomic
from ..infer.evaluate import detect
from ..infer.machine import hardware, versions
from ..infer.torch_runtime import TorchDetector
from ..models.build import build_model
from ..models.checkpoint import CheckpointError
from .experiments import EXPERIMENTS, SCALES, SHARED, Experiment, Trial
from .log import read_log
from .loop import Diverged, Trainer
from .prepare import IMAGENET, apply_norm, load_weights
from .recipe import Phase, Recipe
from .run import choose_device, load_splits, train
from .time_limit import StopAfter, TimeIsUp

PRETRAIN_SHARE = 0.7  # of a row's time, as P3x of P3x + 1x (Table 3)
SHARED_SHARE = 0.4  # of the whole time, for a pre-training that all rows share
FEWEST_STEPS = 10
DIVERGED = "diverged.json"
TIMED_STEPS = 4  # after one that warms up
CAUTION = "Scaled down: these figures compare rows with each other, not with the paper's AP."


@dataclass
class Comparison:
    """What a comparison found so far; `rows` in the experiment's order."""

    out: Path
    plan: dict[str, Any]
    rows: list[dict[str, Any]]
    finished: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        metric = EXPERIMENTS[self.plan["experiment"]].metric
        return {"caution": CAUTION, "finished": self.finished, "metric": metric, "plan": self.plan, "rows": self.rows}

    def table(self) -> Group:
        """Ours beside the paper's."""
        experiment = EXPERIMENTS[self.plan["experiment"]]
        about = f"{self.plan['experiment']}: {experiment.title}; scale {self.plan['scale']}, seed {self.plan['seed']}"
        table = Table(title=about, title_justify="left")
        table.add_column("")
        measured = ("box AP", "AP50", "mask AP") if experiment.metric == "coco" else ("mAP", "fps", "loss")
        for name in (*measured, "steps", "s/step", "min"):
            table.add_column(name, justify="right")
        table.add_column("in the paper")
        for row in self.rows:
            table.add_row(row["label"], *_cells(row, experiment.metric), _paper_words(row["paper"]))
        notes = [f"{CAUTION} Equal {experiment.equal} for every row."]
        if any(row["key"] == "sync" for row in self.rows):
            notes.append("One process: SyncBN has nobody to synchronise with, its row is live batch normalisation.")
        notes += [] if self.finished else ["Not finished: the same command goes on."]
        return Group(table, *notes)


def _cells(row: dict[str, Any], metric: str) -> list[str]:
    if "skipped" in row:
        return [f"({row['skipped']})", *[""] * 5]
    if "diverged" in row:
        return ["NaN", "", f"after step {row['diverged']}", *[""] * 3]
    if "box_ap" not in row:
        return ["to come", *[""] * 5]
    mask = "-" if row["mask_ap"] is None else f"{100 * row['mask_ap']:.1f}"
    steps = "+".join(str(phase["steps"]) for phase in row["phases"])
    pace = "+".join(f"{phase['seconds_per_step']:.3f}" for phase in row["phases"])
    minutes = sum(phase["seconds"] for phase in row["phases"]) / 60
    found = [f"{100 * row['box_ap']:.1f}", f"{100 * row['box_ap50']:.1f}", mask]
    if metric == "voc":
        loss = row["phases"][-1]["last_loss"]
        found = [f"{100 * row['voc']['mAP_11point']:.1f}", f"{row['images_per_second']:.1f}", f"{loss:.2f}"]
    return [*found, steps, pace, f"{minutes:.1f}"]


def _paper_words(paper: dict[str, float | None] | None) -> str:
    if paper is None:
        return "-"
    names = {"box_ap": "box {}", "mask_ap": "mask {}", "s_per_iter": "{} s/iter", "days": "{} days"}
    names |= {"map": "mAP {}", "fps": "{} fps"}
    return ", ".join(names[key].format("NaN" if value is None else value) for key, value in paper.items())


def reproduce(
    name: str,
    data: str | Path,
    out: str | Path,
    budget: float = 1200.0,
    scale: str | None = None,
    device: str = "auto",
    seed: int = 0,
    imagenet: str | None = None,
    time_limit: float | None = None,
    rows: Sequence[str] = (),
) -> Comparison:
    """Run the comparison called `name` (a key of EXPERIMENTS) on the dataset in `data`, into the folder `out`.

    Args:
        budget: seconds of training and evaluation for the whole comparison.
        scale: a key of SCALES; None is "medium" on a GPU and "small" on a CPU.
        imagenet: "imagenet" or a file with a backbone's weights, for the rows that start from them; without it they
            are left out.
        time_limit: stop after so many seconds; the same call goes on.
        rows: keys of the rows to run, where there is no time for all; none given: all.

    Raises:
        UserError: the data does not do, the budget is too small, or `out` holds another comparison.
    """
    if name not in EXPERIMENTS:
        raise UsageProblem(f"{name}: unknown; there are {', '.join((*EXPERIMENTS, 'direct/table7'))}")
    place = choose_device(device)
    scale = scale or ("medium" if place.type == "cuda" else "small")
    if scale not in SCALES:
        raise UsageProblem(f"--scale {scale}: there are {', '.join(SCALES)}")
    out = Path(out)
    require_writable(out, folder=True)
    train_set, val = load_splits(data)
    if val is None:
        raise UserError(f"{data}: has no val split to measure AP on")
    asked = {"experiment": name, "scale": scale, "budget_s": budget, "seed": seed, "device": place.type}
    asked |= {"data": str(data), "images": [len(train_set), len(val)], "imagenet": imagenet}
    trials = _chosen(_trials(EXPERIMENTS[name], scale, train_set), rows)
    asked["rows"] = [trial.key for trial in trials]
    started = time.perf_counter()
    plan = _plan(out / "plan.json", asked, EXPERIMENTS[name], trials, train_set, val, place, imagenet)
    left = None if time_limit is None else time_limit - (time.perf_counter() - started)
    rows = _read_rows(out, trials, plan)
    try:
        with StopAfter(left):
            for index, trial in enumerate(trials):
                if not _is_done(rows[index]):
                    _run_trial(trial, plan, data, out, str(place), seed, imagenet)
                    rows = _read_rows(out, trials, plan)
                    _write(out, plan, rows)
    except TimeIsUp:
        pass
    rows = _read_rows(out, trials, plan)
    return _write(out, plan, rows)


def _trials(experiment: Experiment, scale: str, dataset: Dataset) -> list[Trial]:
    """The rows, without masks where the data has none."""
    trials = []
    for trial in experiment.trials(SCALES[scale]):
        recipe = trial.recipe
        if recipe.model.get("masks") and not dataset.has_masks:
            recipe = replace(recipe, model={**recipe.model, "masks": False})
        trials.append(replace(trial, recipe=recipe))
    if not dataset.has_masks:
        trials = [trial for trial in trials if trial.key != "mask"]  # Table 5's last row would repeat the one before
    return trials


def _chosen(trials: list[Trial], rows: Sequence[str]) -> list[Trial]:
    """The trials with these keys, in their own order; all if none is named."""
    known = [trial.key for trial in trials]
    for key in rows:
        if key not in known:
            raise UsageProblem(f"--rows {key}: there are {', '.join(known)}")
    return [trial for trial in trials if not rows or trial.key in rows]


def _plan(
    path: Path,
    asked: dict[str, Any],
    experiment: Experiment,
    trials: list[Trial],
    dataset: Dataset,
    val: Dataset,
    device: torch.device,
    imagenet: str | None,
) -> dict[str, Any]:
    """Steps of every phase of every row: those of plan.json, or measured now."""
    if path.is_file():
        plan = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key, value in asked.items() if plan.get(key) != value]
        if other:
            raise UserError(f"{path}: {other[0]}: was {plan.get(other[0])!r}; give the same, or another --out")
        return plan
    running = _startable(trials, dataset, imagenet)
    Console().print(f"measuring {len(running)} rows, to give each its share of {asked['budget_s'] / 60:.0f} minutes")
    pace: dict[str, dict[str, float]] = {}
    shared: dict[str, float] | None = None
    for trial in running:
        pace[trial.key] = {}
        for phase in trial.recipe.phases:
            if trial.shares and phase.name == "pretrain":
                shared = shared or _seconds(trial.recipe, phase, dataset, val, device)
                continue
            pace[trial.key][phase.name] = _seconds(trial.recipe, phase, dataset, val, device)
    evaluation = {key: rows[list(rows)[-1]]["evaluation"] for key, rows in pace.items()}
    steps, needed = _steps(experiment, running, asked["budget_s"], pace, shared, evaluation)
    if min(min(row.values()) for row in steps.values()) < FEWEST_STEPS:
        raise UserError(
            f"--budget: {asked['budget_s'] / 60:.1f} minutes are too few for {len(running)} rows here; give at least "
            f"{math.ceil(needed / 60)}m, or a smaller --scale"
        )
    plan = {**asked, "equal": experiment.equal, "seconds_per_step": pace, "steps": steps}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, plan)
    return plan


def _startable(trials: list[Trial], dataset: Dataset, imagenet: str | None) -> list[Trial]:
    """The rows that can run: all but those that need ImageNet weights of a backbone which `imagenet` has none of.

    Raises UserError or CheckpointError if it has none of any: that is to be told before the work, not hours later.
    """
    running, errors = [], []
    for trial in trials:
        if trial.needs_imagenet and imagenet is None:
            continue
        if trial.needs_imagenet:
            model = {"detector": trial.recipe.detector, "num_classes": len(dataset.classes), **trial.recipe.model}
            try:
                load_weights(build_model(model), imagenet, dataset.classes)
            except (UserError, CheckpointError) as error:
                errors.append(error)
                continue
        running.append(trial)
    if errors and not any(trial.needs_imagenet for trial in running):
        raise errors[0]
    return running


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
        times = []
        readers = max(1, min(phase.workers, os.cpu_count() or 1))
        batches = iter(trainer.loader)
        model.train()
        for _ in range(1 + TIMED_STEPS):
            started = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            read = time.perf_counter()
            losses, _ = trainer.step([batch])
            float(sum(losses.values()))  # waits for the device
            times.append(time.perf_counter() - read + (read - started) / readers)
        detector = TorchDetector.from_model(
            model.eval(), trainer.preprocess, dataset.classes, dataset.category_ids, device
        )
        detect(detector, val, val.records[:1])
        started = time.perf_counter()
        detect(detector, val, val.records[1:4])
        evaluation = (time.perf_counter() - started) / max(1, len(val.records[1:4])) * len(val)
    return {"step": statistics.median(times[1:] or times), "evaluation": evaluation}


def _with_steps(recipe: Recipe, steps: dict[str, int]) -> Recipe:
    """The recipe with the lengths of its phases set; milestones and warm-up in proportion."""
    for phase in recipe.phases:
        number = steps[phase.name]
        drops = () if phase.name == "pretrain" else (number * 2 // 3, number * 11 // 12)
        warmup = min(phase.warmup_iterations, number // 10)
        recipe = recipe.with_phase(phase.name, iterations=number, milestones=drops, warmup_iterations=warmup)
    return recipe


def _run_trial(
    trial: Trial, plan: dict[str, Any], data: str | Path, out: Path, device: str, seed: int, imagenet: str | None
) -> None:
    """Train what a row still lacks."""
    steps = dict(plan["steps"][trial.key])
    if trial.shares:
        steps["pretrain"] = plan["steps"][SHARED]["pretrain"]
    recipe, device = _with_steps(trial.recipe, steps), device.partition(":")[0]
    folder, init, phase = out / trial.key, imagenet if trial.needs_imagenet else None, None
    if trial.shares:
        init, phase = out / SHARED / "pretrain" / "checkpoints" / "last.pt", recipe.phases[-1].name
        first = _with_steps(replace(trial.recipe, phases=trial.recipe.phases[:1]), steps)
        _train(first, data, out / SHARED, None, "pretrain", device, seed)
        if (out / SHARED / DIVERGED).is_file():
            return
    if init is not None and not trial.shares and str(init) != IMAGENET:
        recipe = replace(recipe, init="random")
    _train(recipe, data, folder, init, phase, device, seed)


def _train(
    recipe: Recipe, data: str | Path, out: Path, init: str | Path | None, phase: str | None, device: str, seed: int
) -> None:
    begun = any(out.glob("*/checkpoints/last.pt"))
    try:
        train(recipe, data, out, phase=phase, init=None if begun else init, resume=begun, device=device, seed=seed)
    except Diverged as error:  # a result, as in ScratchDet's Table 1
        steps = [row["step"] for log in out.glob("*/log.jsonl") for row in read_log(log)]
        write_json_atomic(out / DIVERGED, {"after_step": max(steps, default=0), "message": str(error)})


def _read_rows(out: Path, trials: list[Trial], plan: dict[str, Any]) -> list[dict[str, Any]]:
    """What the runs' own logs say of every row."""
    rows = []
    for trial in trials:
        row: dict[str, Any] = {"key": trial.key, "label": trial.label, "paper": trial.paper}
        if trial.key not in plan["steps"]:
            row["skipped"] = f"needs ImageNet weights of {trial.recipe.model['backbone']}: --imagenet FILE"
            rows.append(row)
            continue
        ends = [out / key / DIVERGED for key in ((SHARED, trial.key) if trial.shares else (trial.key,))]
        if end := next(filter(Path.is_file, ends), None):
            row["diverged"] = json.loads(end.read_text(encoding="utf-8"))["after_step"]
            rows.append(row)
            continue
        names = [phase.name for phase in trial.recipe.phases]
        folders = [out / (SHARED if trial.shares and name == "pretrain" else trial.key) / name for name in names]
        logs = [read_log(folder / "log.jsonl") if (folder / "log.jsonl").is_file() else [] for folder in folders]
        found = [entry for entry in logs[-1] if entry["kind"] == "eval"]
        if found and found[-1]["step"] == plan["steps"][trial.key][names[-1]]:
            segm = found[-1].get("segm")
            row |= {"box_ap": found[-1]["bbox"]["AP"], "box_ap50": found[-1]["bbox"]["AP50"]}
            row |= {"mask_ap": segm["AP"] if segm else None, "bbox": found[-1]["bbox"], "segm": segm}
            row |= {"voc": found[-1].get("voc"), "images_per_second": found[-1].get("images_per_second")}
            row["phases"] = [_phase_facts(name, log) for name, log in zip(names, logs, strict=True)]
            row["recipe"] = asdict(trial.recipe)
        rows.append(row)
    return rows


def _phase_facts(name: str, log: list[dict[str, Any]]) -> dict[str, Any]:
    """Steps, seconds and memory of a phase from its log."""
    steps = [entry for entry in log if entry["kind"] == "step"]
    before = [0, *(entry["step"] for entry in steps)]
    seconds = sum(
        entry["seconds_per_step"] * (entry["step"] - first) for first, entry in zip(before, steps, strict=False)
    )
    facts = {"name": name, "steps": steps[-1]["step"], "seconds": seconds, "last_loss": steps[-1]["loss"]}
    facts["seconds_per_step"] = statistics.median(entry["seconds_per_step"] for entry in steps)
    facts["data_seconds"] = statistics.median(entry["data_seconds"] for entry in steps)
    if "memory_gib" in steps[-1]:
        facts["memory_gib"] = max(entry["memory_gib"] for entry in steps)
    return facts


def _is_done(row: dict[str, Any]) -> bool:
    return any(key in row for key in ("box_ap", "skipped", "diverged"))


def _write(out: Path, plan: dict[str, Any], rows: list[dict[str, Any]]) -> Comparison:
    """Write results.json."""
    comparison = Comparison(out, plan, rows, all(_is_done(row) for row in rows))
    facts = {**comparison.to_dict(), "date": datetime.now(UTC).isoformat(timespec="seconds"), "hardware": hardware()}
    write_json_atomic(out / "results.json", {**facts, "versions": {**versions(), "torch": torch.__version__}})
    return comparison
