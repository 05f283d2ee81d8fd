"""The chart of a comparison: what each row reached here, next to what the paper reports for it."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from directdet.common.files import write_bytes_atomic
from directdet.reproduce.comparison import steps_words

_OURS, _PAPER = "#1f6f8b", "#b9c3c9"


def draw_comparison(result: dict[str, Any], path: Path) -> None:
    """Write a PNG with two panels, AP here and in the paper, each on its own scale; nothing if no row has a result.

    Args:
        result: as Comparison.to_dict() makes it.
    """
    rows = [row for row in result["rows"] if "box_ap" in row or "diverged" in row]
    if not rows:
        return
    plan = result["plan"]
    voc = plan["metric"] == "voc"
    figure = Figure(figsize=(9.0, 1.4 + 0.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    here, there = figure.subplots(1, 2, sharey=True)
    labels = [row["label"] for row in rows]
    places = range(len(rows))
    spreads = [_spread(row, voc) for row in rows]
    _bars(here, places, [_reached(row, voc) for row in rows], _OURS, spreads if any(spreads) else None)
    here.set_title(f"here ({size_words(result)})", fontsize=10)
    of_voc = any("map" in (row["paper"] or {}) for row in rows)
    _bars(there, places, [_printed(row["paper"] or {}, "map" if of_voc else "box_ap") for row in rows], _PAPER)
    there.set_title(f"in the paper ({'VOC' if of_voc else 'COCO'})", fontsize=10)
    here.set_yticks(list(places), labels)
    here.set_ylim(len(rows) - 0.5, -0.5)  # from the top down, and the same height where a row has no bar
    same = "the paper's schedules" if plan["equal"] == "schedule" else f"equal {plan['equal']}"
    figure.suptitle(f"{plan['experiment']}: {'VOC mAP' if voc else 'box AP'}, {same}", fontsize=11)
    figure.supxlabel("compare rows with each other, not the two panels", fontsize=9)
    write_bytes_atomic(path, png(figure))


def size_words(result: dict[str, Any]) -> str:
    """The scale of a comparison, how long it was and what it ran on."""
    plan = result["plan"]
    length = f"{plan['budget_s'] / 60:.0f} min" if plan["budget_s"] else steps_words(plan)
    times = f"{len(result['seeds'])} x " if "seeds" in result else ""
    return f"{plan['scale']}, {times}{length}, {plan['device']}"


def _reached(row: dict[str, Any], voc: bool) -> float:
    """AP in per cent; NaN for a row whose loss did not stay finite."""
    if "diverged" in row:
        return math.nan
    return 100 * (row["voc"]["mAP_11point"] if voc else row["box_ap"])


def _printed(paper: Mapping[str, float | None], key: str) -> float | None:
    """The paper's figure: None if it has none, NaN if it prints "NaN"."""
    return math.nan if key in paper and paper[key] is None else paper.get(key)


def _spread(row: dict[str, Any], voc: bool) -> float:
    """The standard deviation over seeds in per cent; 0 where there is none."""
    return 100 * (row.get("spread", {}).get("map" if voc else "box_ap") or 0.0)


def _bars(
    axes: Axes, places: range, values: Sequence[float | None], colour: str, spreads: Sequence[float] | None = None
) -> None:
    """Horizontal bars with their values ("NaN" for NaN), and spreads if any; none where there is no value."""
    known = {place: value for place, value in zip(places, values, strict=True) if value is not None}
    lengths = [0.0 if math.isnan(value) else value for value in known.values()]
    reach = None if spreads is None else [spreads[place] for place in known]
    bars = axes.barh(list(known), lengths, xerr=reach, color=colour, height=0.6, capsize=3)
    words = ["NaN" if math.isnan(value) else f"{value:.1f}" for value in known.values()]
    axes.bar_label(bars, words, padding=3, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    axes.set_xlim(left=0)


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()
