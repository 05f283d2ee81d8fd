"""A comparison with several seeds: the same rows and steps with each, and what mean and spread say of the claims."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Group
from rich.table import Table

from directdet.common.errors import UserError
from directdet.common.files import write_json_atomic
from directdet.common.terminal import plain, terminal
from directdet.reproduce.claims import Verdict, claims_table
from directdet.reproduce.comparison import (
    CAUTION,
    Comparison,
    Row,
    equal_words,
    minutes,
    paper_words,
    remarks,
    steps_words,
    verdicts,
    write_results,
)
from directdet.reproduce.experiments import EXPERIMENTS
from directdet.reproduce.run import ReproduceOptions, reproduce


@dataclass
class SeedsComparison:
    """What a comparison has found so far with several seeds.

    Attributes:
        out: its folder, with a folder for each seed.
        seeds: those that were asked for.
        parts: the comparison with each of the first ones, as far as there is one.
    """

    out: Path
    seeds: range
    parts: list[Comparison]

    @property
    def finished(self) -> bool:
        """Whether every row is done with every seed."""
        return len(self.parts) == len(self.seeds) and all(part.finished for part in self.parts)

    def rows(self) -> list[Row]:
        """As Comparison.rows, with the means over the seeds that a row came to its end with.

        "spread" has their sample standard deviations, None with one seed; "seeds" are these seeds, and "by_seed" the
        rows of all.
        """
        by_key = [[part.rows[index] for part in self.parts] for index in range(len(self.parts[0].rows))]
        return [self._mean(rows) for rows in by_key]

    def _mean(self, rows: list[Row]) -> Row:
        row: Row = {name: rows[0][name] for name in ("key", "label", "paper", "curve", "x") if name in rows[0]}
        ended = {seed: one for seed, one in zip(self.seeds, rows, strict=False) if "box_ap" in one}
        row |= {"seeds": list(ended), "by_seed": {str(seed): one for seed, one in zip(self.seeds, rows, strict=False)}}
        if not ended:
            return {**row, **{name: rows[0][name] for name in ("skipped", "diverged") if name in rows[0]}}
        spread = row["spread"] = {}
        for name, value in _FIGURES.items():
            values = [value(one) for one in ended.values()]
            known = [one for one in values if one is not None]
            complete = len(known) == len(values)
            row[name] = fmean(known) if complete else None
            spread[name] = stdev(known) if complete and len(known) > 1 else None
        row["voc"] = None if row["map"] is None else {"mAP_11point": row["map"]}
        return row

    def verdicts(self) -> list[Verdict]:
        """On every claim; "to come" where a seed is."""
        found = verdicts(self.parts)
        if len(self.parts) == len(self.seeds):
            return found
        reason = f"seed {self.seeds[len(self.parts)]} is to come"
        return [Verdict(one.claim, "to come", reason) for one in found]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plan = {name: value for name, value in self.parts[0].plan.items() if name != "seed"}
        content = {"caution": CAUTION, "finished": self.finished, "seeds": list(self.seeds)}
        return {**content, "plan": plan, "rows": self.rows(), "claims": [one.to_dict() for one in self.verdicts()]}

    def table(self) -> Group:
        """Means with spreads next to the paper's figures, and the verdicts."""
        plan = self.parts[0].plan
        experiment = EXPERIMENTS[plan["experiment"]]
        about = f"{plan['experiment']}: {experiment.title}; scale {plan['scale']}, seeds {_words(self.seeds)}"
        table = Table(title=about, title_justify="left")
        table.add_column("")
        shown = ("box_ap", "mask_ap") if plan["metric"] == "coco" else ("map",)
        shown = (*shown, "images_per_second", "seconds_per_step")
        for name in shown:
            table.add_column(_HEADINGS[name], justify="right")
        table.add_column("seeds", justify="right")
        table.add_column("in the paper")
        for row in self.rows():
            cells = [_cell(row, name) for name in shown]
            table.add_row(plain(row["label"]), *cells, str(len(row["seeds"])), paper_words(row["paper"]))
        length = f"{plan['budget_s'] / 60:.1f} minutes" if plan["budget_s"] else steps_words(plan)
        notes = [
            f"{CAUTION} {equal_words(plan)} {length} for each seed.",
            "Means over the seeds, -+ their sample standard deviation.",
            *remarks(self.parts[0].rows, self.finished),
        ]
        judged = self.verdicts()
        return Group(table, *notes, *([claims_table(judged, len(self.seeds))] if judged else []))

    def write(self) -> None:
        """Write OUT/results.json."""
        write_results(self.out, self.to_dict())


_FIGURES: dict[str, Callable[[Row], float | None]] = {
    "minutes": minutes,
    "box_ap": lambda row: row["box_ap"],
    "box_ap50": lambda row: row["box_ap50"],
    "mask_ap": lambda row: row["mask_ap"],
    "map": lambda row: row["voc"] and row["voc"]["mAP_11point"],
    "images_per_second": lambda row: row["images_per_second"],
    "seconds_per_step": lambda row: row["phases"][-1]["seconds_per_step"],
}
_HEADINGS = {"box_ap": "box AP", "mask_ap": "mask AP", "map": "mAP"}
_HEADINGS |= {"images_per_second": "fps", "seconds_per_step": "s/step"}


def reproduce_seeds(
    name: str,
    data: str | Path,
    out: str | Path,
    seeds: int,
    options: ReproduceOptions | None = None,
    time_limit: float | None = None,
) -> SeedsComparison:
    """`reproduce` with the seeds from options.seed on, each in OUT/seedN, with an equal share of the budget.

    The steps of every row are measured with the first seed, and are the same with the others.

    Raises:
        UserError, UsageProblem: as reproduce does; `out` holds a comparison of one seed.
    """
    options, out = options or ReproduceOptions(), Path(out)
    if (out / "plan.json").is_file():
        raise UserError(f"{out / 'plan.json'}: is of a comparison of one seed; choose another --out")
    numbers = range(options.seed, options.seed + seeds)
    share = replace(options, budget=options.budget / seeds)
    if not options.steps:
        terminal().print(f"{options.budget / 60:.1f} minutes for {seeds} seeds: {share.budget / 60:.1f} minutes each")
    started = time.perf_counter()
    parts: list[Comparison] = []
    for seed in numbers:
        folder = out / f"seed{seed}"
        if parts and not (folder / "plan.json").is_file():
            write_json_atomic(folder / "plan.json", {**parts[0].plan, "seed": seed})
        left = None if time_limit is None else time_limit - (time.perf_counter() - started)
        part = reproduce(name, data, folder, replace(share, seed=seed), left)
        if parts and part.plan["steps"] != parts[0].plan["steps"]:
            raise UserError(f"{folder / 'plan.json'}: steps: not those of seed {numbers[0]}; choose another --out")
        parts.append(part)
        SeedsComparison(out, numbers, parts).write()
        if not parts[-1].finished:
            break
    return SeedsComparison(out, numbers, parts)


def _words(seeds: range) -> str:
    return f"{seeds[0]} to {seeds[-1]}"


def _cell(row: Row, name: str) -> str:
    if row.get(name) is None:
        state = next((word for word in ("skipped", "diverged") if word in row), "to come")
        return "-" if row["seeds"] else state
    percent = name not in ("images_per_second", "seconds_per_step")
    digits = {"seconds_per_step": 3}.get(name, 1)
    values = [
        None if one is None else f"{one * (100 if percent else 1):.{digits}f}"
        for one in (row[name], row["spread"][name])
    ]
    return f"{values[0]} -+ {values[1]}" if values[1] is not None else str(values[0])
