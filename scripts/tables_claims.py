"""Result tables of `reproduce --seeds`: the rows' means and spreads, and the verdicts on the paper's claims."""

from typing import Any

import numpy as np
from tables_cells import Cell, Row, Table, cell, written

COMPARISONS = ("direct_table2", "direct_table5")


def spread(name: str) -> Cell:
    """A column of percentages over the seeds: the mean, and the sample standard deviation."""
    return lambda row: f"{written(row[name], 'percent')} -+ {written(row['spread'][name], 'percent')}"


def points(name: str) -> Cell:
    """A column of differences of AP, or of the ends of an interval."""
    return lambda row: " to ".join(f"{100 * value:+.1f}" for value in np.atleast_1d(row[name]))


def judged(content: Any) -> list[Row]:
    """The claims whose rows were trained."""
    return [claim for claim in content["claims"] if claim["mean"] is not None]


ROWS = {"three seeds": cell("label"), "box AP": spread("box_ap"), "mask AP": spread("mask_ap")}
CLAIMS = {
    "claim": cell("text"),
    "verdict": cell("verdict"),
    "points of AP": points("mean"),
    "95 %, seeds": points("over_seeds"),
    "95 %, pictures": points("over_pictures"),
    "in the paper": cell("source"),
}
TABLES = {f"seeds_{name}": Table((f"seeds_{name}",), lambda content: content["rows"], ROWS) for name in COMPARISONS}
TABLES |= {f"claims_{name}": Table((f"seeds_{name}",), judged, CLAIMS) for name in COMPARISONS}
