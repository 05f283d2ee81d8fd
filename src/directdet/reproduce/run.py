"""`directdet reproduce`: one of the paper's comparisons, scaled down, with equal budgets for its rows.

How many steps each row makes is measured once, at the start, and kept in plan.json, so that a comparison that was
stopped goes on as the same comparison. Results are written after every row.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table

from directdet.common.errors import UsageProblem, UserError
from directdet.common.files import require_writable, write_json_atomic
from directdet.data.records import Dataset
from directdet.infer.machine import hardware, versions
from directdet.recipes.recipe import Recipe
from directdet.reproduce.budget import make_plan
from directdet.reproduce.experiments import EXPERIMENTS, SCALES, SHARED, Experiment, Scale, Trial
from directdet.reproduce.time_limit import StopAfter, TimeIsUp
from directdet.train.log import read_log
from directdet.train.loop import Diverged
from directdet.train.prepare import IMAGENET
from directdet.train.run import choose_device, load_splits, train

DIVERGED = "diverged.json"
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
    pace = " + ".join(f"{phase['seconds_per_step']:.3f}" for phase in row["phases"])
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
    steps: int | None = None,
    ssd_batch: int | None = None,
) -> Comparison:
    """Run the comparison called `name` (a key of EXPERIMENTS) on the dataset in `data`, into the folder `out`.

    Args:
        budget: seconds of training and evaluation for the whole comparison.
        scale: a key of SCALES; None is "medium" on a GPU and "small" on a CPU.
        imagenet: "imagenet" or a file with a backbone's weights, for the rows that start from them; without it they
            are left out.
        time_limit: stop after so many seconds; the same call goes on.
        rows: keys of the rows to run, where there is no time for all; none given: all.
        steps: of every phase of every row, instead of a budget; for comparisons whose rows make equal steps.
        ssd_batch: images per step of ScratchDet's comparisons, instead of the scale's; the learning rates stay.

    Raises:
        UserError: the data does not do, the budget is too small, or `out` holds another comparison.
    """
    if name not in EXPERIMENTS:
        raise UsageProblem(f"{name}: unknown; there are {', '.join((*EXPERIMENTS, 'direct/table7'))}")
    place = choose_device(device)
    scale = scale or ("medium" if place.type == "cuda" else "small")
    if scale not in SCALES:
        raise UsageProblem(f"--scale {scale}: there are {', '.join(SCALES)}")
    if steps and EXPERIMENTS[name].equal != "steps":
        raise UsageProblem(f"--steps {steps}: the rows of {name} get equal {EXPERIMENTS[name].equal}: give a --budget")
    size = SCALES[scale] if ssd_batch is None else replace(SCALES[scale], ssd_batch=ssd_batch)
    out = Path(out)
    require_writable(out, folder=True)
    train_set, val = load_splits(data)
    if val is None:
        raise UserError(f"{data}: has no val split to measure AP on")
    asked = {"experiment": name, "scale": scale, "seed": seed, "device": place.type, "ssd_batch": ssd_batch}
    asked |= {"budget_s": None if steps else budget, "phase_steps": steps}
    asked |= {"data": str(data), "images": [len(train_set), len(val)], "imagenet": imagenet}
    trials = _chosen(_trials(EXPERIMENTS[name], size, train_set), rows)
    asked["rows"] = [trial.key for trial in trials]
    started = time.perf_counter()
    plan = make_plan(out / "plan.json", asked, EXPERIMENTS[name], trials, train_set, val, place, imagenet)
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


def _trials(experiment: Experiment, scale: Scale, dataset: Dataset) -> list[Trial]:
    """The rows, without masks where the data has none."""
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
    """The trials with these keys, in their own order; all if none is named."""
    known = [trial.key for trial in trials]
    for key in rows:
        if key not in known:
            raise UsageProblem(f"--rows {key}: there are {', '.join(known)}")
    return [trial for trial in trials if not rows or trial.key in rows]


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
