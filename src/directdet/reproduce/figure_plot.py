"""A figure of a paper from the rows of its comparison: AP here and in the paper, in curves along one axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from directdet.common.files import write_bytes_atomic
from directdet.reproduce.comparison import minutes
from directdet.reproduce.comparison_plot import png, size_words

_COLOURS = ("#1f6f8b", "#c0392b", "#2f855a", "#b7791f", "#6b46c1", "#4a5568")


def draw_figure(result: dict[str, Any], path: Path, axis: str) -> bool:
    """Write a PNG with two panels, each with scales of its own; whether there was anything to draw.

    The right one has those of the rows whose AP the paper prints; it is left out where there are none.

    Args:
        result: as Comparison.to_dict() makes it, with "curve" and "x" of every row.
        axis: the title of the x axis; where a row has no x, it is the minutes that it trained, and in the paper days.
    """
    timed = any(row["x"] is None for row in result["rows"])
    ours = _curves((row, _reached(row)) for row in result["rows"] if "box_ap" in row)
    if not ours:
        return False
    printed = [row for row in result["rows"] if "box_ap" in (row["paper"] or {})]
    theirs = _curves(
        (row, (row["x"] if row["x"] is not None else row["paper"]["days"], row["paper"]["box_ap"], 0.0))
        for row in printed
        if row["x"] is not None or "days" in row["paper"]
    )
    panels = [(f"here ({size_words(result)})", axis, ours)]
    if theirs:
        panels.append(("in the paper (COCO)", "days of its training" if timed else axis, theirs))
    figure = Figure(figsize=(5.6 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    curves = list(dict.fromkeys(row["curve"] for row in result["rows"]))
    for axes, (title, below, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, found, curves, joined=not timed)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(below, fontsize=9)
    figure.suptitle(f"{result['plan']['experiment']}: box AP", fontsize=11)
    write_bytes_atomic(path, png(figure))
    return True


def _reached(row: dict[str, Any]) -> tuple[float, float, float]:
    """Where a row is: x, AP in per cent and its standard deviation over seeds."""
    spread = row.get("spread", {}).get("box_ap") or 0.0
    own = row["minutes"] if "minutes" in row else minutes(row)
    return (own if row["x"] is None else row["x"]), 100 * row["box_ap"], 100 * spread


def _curves(
    points: Iterable[tuple[dict[str, Any], tuple[float, float, float]]],
) -> dict[str, list[tuple[float, float, float]]]:
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row, point in points:
        found.setdefault(row["curve"], []).append(point)
    return {name: sorted(values) for name, values in found.items()}


def _panel(axes: Axes, found: Mapping[str, list[tuple[float, float, float]]], curves: list[str], joined: bool) -> None:
    for name, points in found.items():
        x, y, spread = zip(*points, strict=True)
        colour = _COLOURS[curves.index(name) % len(_COLOURS)]
        reach = spread if any(math.isfinite(one) and one for one in spread) else None
        line = "-" if joined else "none"
        axes.errorbar(x, y, yerr=reach, color=colour, linestyle=line, marker="o", markersize=5, capsize=3, label=name)
    axes.set_ylabel("AP", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
