"""What was measured here beside a paper's table of frame rates: ratios to the same row, each within its own table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from directdet.recipes.published import PaperTable


def runtime_words(cell: dict[str, Any]) -> str:
    """The runtime's name; "compiled" after torch's where it is."""
    return f"{cell['runtime']}, compiled" if cell["compiled"] else cell["runtime"]


def setting(cell: dict[str, Any]) -> str:
    """What a cell ran in, in words: only cells of one setting are compared with each other."""
    size = "x".join(str(edge) for edge in cell["size"])
    return f"{runtime_words(cell)}, {cell['precision']}, {cell['batch']}x{size}"


def beside(table: PaperTable, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The table as plain values, with the detectors of its rows that were timed here.

    A model belongs to a row if it was trained by the row's recipe.

    Args:
        table: one of `papers.speed_tables`.
        cells: those of a benchmark that did not fail.

    Returns:
        `PaperTable.to_dict()` with "reference" (the first row that was timed, or the first of all) and in each row
        "ratio", its frame rate to the reference's in the paper, and "ours": for each cell "model", "setting",
        "fps_end_to_end", "fps_device_only" and their "ratio_..." to the reference's in the same setting (None where the
        reference was not timed in it).
    """
    timed = {cell["recipe"] for cell in cells}
    reference = next((row for row in table.rows if row.recipe in timed), table.rows[0])
    rows = []
    for row in table.rows:
        ours = [_ours(cell, reference.recipe, cells) for cell in cells if cell["recipe"] == row.recipe]
        rows.append({**asdict(row), "ratio": row.fps / reference.fps, "ours": ours})
    return {**table.to_dict(), "rows": rows, "reference": reference.method}


def _ours(cell: dict[str, Any], reference: str, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = {"model": cell["path"], "setting": setting(cell)}
    same = next((other for other in cells if other["recipe"] == reference and setting(other) == setting(cell)), None)
    for name in ("end_to_end", "device_only"):
        found[f"fps_{name}"] = cell[f"fps_{name}"]
        found[f"ratio_{name}"] = None if same is None else cell[f"fps_{name}"] / same[f"fps_{name}"]
    return found
