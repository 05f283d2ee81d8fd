"""Result tables of `reproduce --seeds`: the rows' means and spreads, and the verdicts on the paper's claims."""

from typing import Any

import numpy as np
from tables_cells import Cell, Row, Table, written

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


TABLES = {
    f"{kind}_{name}": table
    for name in COMPARISONS
    for kind, table in (
        (
            "seeds",
            Table(
                (f"seeds_{name}",),
                lambda content: content["rows"],
                {
                    "three seeds": lambda row: row["label"],
                    "box AP": spread("box_ap"),
                    "mask AP": spread("mask_ap"),
                },
            ),
        ),
        (
            "claims",
            Table(
                (f"seeds_{name}",),
                judged,
                {
                    "claim": lambda row: row["text"],
                    "verdict": lambda row: row["verdict"],
                    "points of AP": points("mean"),
                    "95 %, seeds": points("over_seeds"),
                    "95 %, pictures": points("over_pictures"),
                    "in the paper": lambda row: row["source"],
                },
            ),
        ),
    )
}
