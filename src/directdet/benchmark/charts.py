"""Charts of a benchmark as SVG: accuracy against latency, and the spread of the times of every stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from directdet.benchmark.cell import Cell
from directdet.benchmark.tables import STAGE_NAMES
from directdet.pages.curves import FAINT, FIRST, INK, SECOND, SIZE, THIRD, svg

_TINTS = {"prepare": SECOND, "device": FIRST, "postprocess": THIRD, "end_to_end": INK}
_SHOWN_AT_LEAST = 1e-3  # milliseconds: a logarithmic axis has no zero


def ap_latency_chart(cells: Sequence[Cell]) -> str | None:
    """Box AP against the median end-to-end time, with a line to the 95th percentile; points show the cells' numbers.

    None where no AP was measured.
    """
    points = []
    for number, cell in enumerate(cells, start=1):
        if cell.metrics is not None and cell.metrics.bbox["AP"] >= 0:
            points.append((number, cell.milliseconds["end_to_end"], 100 * cell.metrics.bbox["AP"]))
    if not points:
        return None

    def draw(axes: Axes) -> None:
        for number, times, accuracy in points:
            axes.plot([times.median, times.p95], [accuracy] * 2, color=FIRST, linewidth=1.2, alpha=0.55)
            axes.plot(times.median, accuracy, color=FIRST, marker="o", markersize=6, linestyle="none")
            # Above and below in turn: the same model in two runtimes is one point next to the other.
            above = (0, 6) if number % 2 else (0, -14)
            axes.annotate(str(number), (times.median, accuracy), above, textcoords="offset points", ha="center")
        values = [value for _, times, _ in points for value in (times.median, times.p95)]
        _time_axis(axes, min(values) * 0.7, max(values) * 1.3)
        heights = [accuracy for _, _, accuracy in points]
        margin = max(2.0, 0.25 * (max(heights) - min(heights)))
        axes.set_ylim(max(0, min(heights) - margin), min(104, max(heights) + margin))
        axes.set_ylabel("box AP (%)")

    return svg(draw, grid="both")


def spread_chart(cell: Cell, limits: tuple[float, float]) -> str:
    """The times of every stage of one cell as box plots.

    A box from the 25th to the 75th percentile with the median in it, whiskers to the 5th and 95th, a dot at the
    slowest. `limits`: milliseconds at both ends of the time axis, the same for all cells of a page.
    """

    def draw(axes: Axes) -> None:
        for place, stage in enumerate(STAGE_NAMES):
            low, first, median, third, high, slowest = (
                max(_SHOWN_AT_LEAST, float(np.percentile(cell.samples_ms[stage], at)))
                for at in (5, 25, 50, 75, 95, 100)
            )
            tint = _TINTS[stage]
            axes.plot([low, high], [place, place], color=tint, linewidth=1.2, solid_capstyle="butt")
            axes.plot([first, third], [place, place], color=tint, linewidth=9, alpha=0.45, solid_capstyle="butt")
            axes.plot([median, median], [place - 0.3, place + 0.3], color=tint, linewidth=2)
            axes.plot(slowest, place, color=tint, marker="o", markersize=3, linestyle="none")
        axes.set_yticks(range(len(STAGE_NAMES)), list(STAGE_NAMES.values()))
        axes.set_ylim(len(STAGE_NAMES) - 0.4, -0.6)
        _time_axis(axes, *limits)

    return svg(draw, size=(SIZE[0], 2.0), grid="x")


def spread_limits(cells: Sequence[Cell]) -> tuple[float, float]:
    """Limits in milliseconds of a time axis that has room for the spreads of all cells."""
    values = np.concatenate([cell.samples_ms[stage] for cell in cells for stage in STAGE_NAMES])
    return max(_SHOWN_AT_LEAST, float(values.min())) * 0.8, float(values.max()) * 1.25


def _time_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis of milliseconds whose ticks are plain numbers, few enough not to overlap."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    decades = np.log10(high / low)
    steps = (1, 2, 5) if decades < 1.9 else (1,)
    if decades < 0.5:
        steps = tuple(range(1, 10))
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.spines["bottom"].set_edgecolor(FAINT)
    axes.set_xlabel("milliseconds per batch")
