"""The results of a comparison: what the logs of its runs say, as rows for results.json and as a table."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table

from directdet.common.files import write_json_atomic
from directdet.common.json_files import read_json
from directdet.common.settings import ZeroOrMore
from directdet.common.terminal import plain
from directdet.infer.machine import hardware, versions
from directdet.reproduce.claims import Measure, SeedFigures, Verdict, claims_table, judge
from directdet.reproduce.draws import read_draws
from directdet.reproduce.experiments import EXPERIMENTS
from directdet.reproduce.pretraining import start_of
from directdet.reproduce.tables.paper_claims import CLAIMS
from directdet.reproduce.tables.trials import SHARED, Trial
from directdet.train.log import read_results

DIVERGED = "diverged.json"  # in a row's folder, if its loss did not stay finite
CAUTION = "Scaled down: these figures compare rows with each other, not with the paper's AP."

Row = dict[str, Any]  # as in results.json


@dataclass(frozen=True)
class _DivergedFile:
    """What is read of DIVERGED."""

    after_step: ZeroOrMore


@dataclass
class Comparison:
    """What a comparison has found so far.

    Attributes:
        out: its folder.
        plan: the content of plan.json.
        rows: in the experiment's order: "key", "label", "paper", of a figure "curve" and "x", and once a row is done
            its figures, or "skipped" or "diverged".
        finished: whether every row is done.
    """

    out: Path
    plan: dict[str, Any]
    rows: list[Row]
    finished: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        content = {"caution": CAUTION, "finished": self.finished, "plan": self.plan}
        return {**content, "rows": self.rows, "claims": [one.to_dict() for one in verdicts([self])]}

    def table(self) -> Group:
        """Our figures next to the paper's."""
        experiment = EXPERIMENTS[self.plan["experiment"]]
        about = f"{self.plan['experiment']}: {experiment.title}; scale {self.plan['scale']}, seed {self.plan['seed']}"
        table = Table(title=about, title_justify="left")
        table.add_column("")
        measured = ("box AP", "AP50", "mask AP") if self.plan["metric"] == "coco" else ("mAP", "fps", "loss")
        for name in (*measured, "steps", "s/step", "min"):
            table.add_column(name, justify="right")
        table.add_column("in the paper")
        for row in self.rows:
            table.add_row(plain(row["label"]), *_cells(row, self.plan["metric"]), paper_words(row["paper"]))
        notes = [f"{CAUTION} {equal_words(self.plan)}"]
        notes += remarks(self.rows, self.finished)
        judged = verdicts([self])
        return Group(table, *notes, *([claims_table(judged, 1)] if judged else []))

    def write(self) -> None:
        """Write OUT/results.json."""
        write_results(self.out, self.to_dict())


def equal_words(plan: Mapping[str, Any]) -> str:
    """What the rows of a comparison get the same of, as a sentence."""
    equal = EXPERIMENTS[plan["experiment"]].equal
    return "Every row keeps the paper's schedule." if equal == "schedule" else f"Every row gets equal {equal}."


def steps_words(plan: Mapping[str, Any]) -> str:
    """What --steps gave the rows."""
    of = "of 1x" if EXPERIMENTS[plan["experiment"]].equal == "schedule" else "a phase"
    return f"{plan['phase_steps']} steps {of}"


def minutes(row: Row) -> float:
    """That a row trained, its pre-training included."""
    return sum(phase["seconds"] for phase in row["phases"]) / 60


def write_results(out: Path, content: dict[str, Any]) -> None:
    """Write OUT/results.json, with the date, the machine and the versions."""
    facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "hardware": hardware()}
    facts["versions"] = {**versions(), "torch": torch.__version__}
    write_json_atomic(out / "results.json", {**content, **facts})


def remarks(rows: Sequence[Row], finished: bool) -> list[str]:
    """What is to be known about the rows of a table."""
    notes = [f"Skipped: {reason}." for reason in sorted({row["skipped"] for row in rows if "skipped" in row})]
    if any("sync" in row["key"] for row in rows):
        notes.append("One process: SyncBN has no other process to synchronise with, so its row is live BN.")
    return [*notes, *([] if finished else ["Not finished: run the same command again to continue."])]


def verdicts(comparisons: Sequence[Comparison]) -> list[Verdict]:
    """The verdicts on the claims that the rows suffice for; `comparisons` are the same one with several seeds.

    Raises:
        UserError: a file with the draws of the pictures is damaged.
    """
    keys = [row["key"] for row in comparisons[0].rows]
    claims = [one for one in CLAIMS.get(comparisons[0].plan["experiment"], ()) if one.concerns(keys)]
    figures = [_figures(one) for one in comparisons] if claims else []
    return [judge(claim, figures) for claim in claims]


def _figures(comparison: Comparison) -> SeedFigures:
    voc = comparison.plan["metric"] == "voc"
    ended = [row for row in comparison.rows if "box_ap" in row]
    drawn = {row["key"]: read_draws(comparison.out / row["key"]) for row in ended}
    return SeedFigures(
        comparison.plan["seed"],
        {row["key"]: _state(row) for row in comparison.rows},
        {row["key"]: _measures(row, voc) for row in ended},
        {key: found[0] for key, found in drawn.items() if found is not None},
        comparison.plan["images"][1],
    )


def _state(row: Row) -> str:
    return "done" if "box_ap" in row else next((key for key in ("skipped", "diverged") if key in row), "to come")


def _measures(row: Row, voc: bool) -> dict[Measure, float]:
    """What a row is compared by; no time where none was measured."""
    found: dict[Measure, float] = {"AP": row["voc"]["mAP_11point"] if voc else row["box_ap"]}
    if row["phases"][-1]["seconds_per_step"] > 0:
        found["s_per_step"] = row["phases"][-1]["seconds_per_step"]
    if row["images_per_second"]:
        found["images_per_second"] = row["images_per_second"]
    return found


def read_comparison(out: Path, plan: dict[str, Any], trials: list[Trial]) -> Comparison:
    """The state of a comparison, from the logs of its runs."""
    rows = [_read_row(out, plan, trial) for trial in trials]
    return Comparison(out, plan, rows, all(map(is_done, rows)))


def is_done(row: Row) -> bool:
    """Whether nothing is left to do for a row."""
    return any(key in row for key in ("box_ap", "skipped", "diverged"))


def _read_row(out: Path, plan: dict[str, Any], trial: Trial) -> Row:
    row: Row = {"key": trial.key, "label": trial.label, "paper": trial.paper}
    if trial.curve:
        row |= {"curve": trial.curve, "x": trial.x}
    if trial.key not in plan["steps"]:
        return {**row, "skipped": f"needs ImageNet weights of {trial.recipe.model['backbone']}: --imagenet FILE"}
    steps = plan["steps"][trial.key]
    kept = "pretrain" in steps and start_of(out, plan["steps"], trial.key).is_file()  # it got as far as this row needs
    waits = trial.shares_pretrain and not kept
    ends = [out / key / DIVERGED for key in ((SHARED, trial.key) if waits else (trial.key,))]
    if end := next(filter(Path.is_file, ends), None):
        return {**row, "diverged": read_json(end, _DivergedFile, "remove it to train the row again")[1].after_step}
    names = [phase.name for phase in trial.recipe.phases]
    folders = [out / (SHARED if trial.shares_pretrain and name == "pretrain" else trial.key) / name for name in names]
    logs = [read_results(folder / "log.jsonl") if (folder / "log.jsonl").is_file() else [] for folder in folders]
    found = [entry for entry in logs[-1] if entry["kind"] == "eval"]
    if found and found[-1]["step"] == plan["steps"][trial.key][names[-1]]:
        last, segm = found[-1], found[-1].get("segm")
        row |= {"box_ap": last["bbox"]["AP"], "box_ap50": last["bbox"]["AP50"]}
        row |= {"mask_ap": segm["AP"] if segm else None, "bbox": last["bbox"], "segm": segm}
        row |= {"voc": last.get("voc"), "images_per_second": last.get("images_per_second")}
        row["phases"] = [_phase_facts(name, log, steps.get(name)) for name, log in zip(names, logs, strict=True)]
        row["recipe"] = asdict(trial.recipe)
    return row


def _phase_facts(name: str, log: list[dict[str, Any]], until: int | None = None) -> dict[str, Any]:
    """Steps, seconds and memory of a phase from its log, of its first steps where it went on for other rows."""
    steps = [entry for entry in log if entry["kind"] == "step" and entry["step"] <= (until or entry["step"])]
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


def _cells(row: Row, metric: str) -> list[str]:
    if "skipped" in row:
        return ["skipped", *[""] * 5]
    if "diverged" in row:
        return ["NaN", "", f"after step {row['diverged']}", *[""] * 3]
    if "box_ap" not in row:
        return ["to come", *[""] * 5]
    mask = "-" if row["mask_ap"] is None else f"{100 * row['mask_ap']:.1f}"
    steps = "+".join(str(phase["steps"]) for phase in row["phases"])
    pace = " + ".join(f"{phase['seconds_per_step']:.3f}" for phase in row["phases"])
    found = [f"{100 * row['box_ap']:.1f}", f"{100 * row['box_ap50']:.1f}", mask]
    if metric == "voc":
        loss = row["phases"][-1]["last_loss"]
        found = [f"{100 * row['voc']['mAP_11point']:.1f}", f"{row['images_per_second']:.1f}", f"{loss:.2f}"]
    return [*found, steps, pace, f"{minutes(row):.1f}"]


def paper_words(paper: Mapping[str, float | None] | None) -> str:
    """The paper's figures of a row."""
    if paper is None:
        return "-"
    names = {"box_ap": "box {}", "mask_ap": "mask {}", "s_per_iter": "{} s/iter", "days": "{} days"}
    names |= {"map": "mAP {}", "fps": "{} fps"}
    return ", ".join(names[key].format("NaN" if value is None else value) for key, value in paper.items())
