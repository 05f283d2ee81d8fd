"""Result tables of `reproduce --seeds`: the rows' means and spreads, and the verdicts on the paper's claims."""

from typing import Any

import numpy as np
from tables_cells import Cell, Row, Table, cell, written


def spread(name: str, how: str = "percent") -> Cell:
    """A column of means over the seeds, with the sample standard deviations."""
    return lambda row: f"{written(row[name], how)} -+ {written(row['spread'][name], how)}"


def difference(name: str) -> Cell:
    """A column of differences, or of the ends of an interval: points of AP, or of times a ratio."""

    def text(row: Row) -> str:
        if row[name] is None:
            return ""
        values = np.atleast_1d(row[name])
        if row["measure"] == "AP":
            return " to ".join(f"{100 * value:+.1f}" for value in values)
        return " to ".join(f"x {np.exp(value):.2f}" for value in values)

    return text


def judged(*contents: Any) -> list[Row]:
    """The claims of all comparisons whose rows were trained; of those with more seeds, where there are two."""
    found: dict[tuple[str, str], Row] = {}
    for content in contents:
        comparison, seeds = content["plan"]["experiment"], len(content["seeds"])
        for claim in content["claims"]:
            before = found.get((comparison, claim["text"]))
            if claim["mean"] is not None and (before is None or before["seeds"] < seeds):
                found[comparison, claim["text"]] = {**claim, "comparison": comparison, "seeds": seeds}
    return list(found.values())


def seeds(row: Row) -> str:
    """A column with how many there were."""
    return str(len(row["by_seed"]))


LABEL = {"row": cell("label"), "seeds": seeds}
WITH_MASKS = {**LABEL, "box AP": spread("box_ap"), "mask AP": spread("mask_ap")}
PACE = {"fps": spread("images_per_second", ".1f"), "s a step": spread("seconds_per_step", ".2f")}
SSD = {**LABEL, "mAP": spread("map"), "box AP": spread("box_ap"), **PACE}
CLAIMS = {
    "comparison": cell("comparison"),
    "claim": cell("text"),
    "verdict": cell("verdict"),
    "seeds": cell("seeds"),
    "difference": difference("mean"),
    "95 %, seeds": difference("over_seeds"),
    "95 %, pictures": difference("over_pictures"),
    "in the paper": cell("source"),
}
COMPARISONS = {
    "direct_scratch": {**WITH_MASKS, **PACE},
    "direct_scratch_5": {**WITH_MASKS, **PACE},
    "direct_table2": WITH_MASKS,
    "direct_table5": WITH_MASKS,
    "scratchdet_table1": SSD,
    "scratchdet_table2": SSD,
    "scratchdet_table2_stride": SSD,
}
TABLES = {
    f"seeds_{name}": Table((f"seeds_{name}",), lambda content: content["rows"], columns)
    for name, columns in COMPARISONS.items()
}
TABLES["claims"] = Table(tuple(f"seeds_{name}" for name in COMPARISONS), judged, CLAIMS)
