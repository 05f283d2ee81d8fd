"""SVG charts, such as the loss and AP curves of a run, which take their colours from the page they are in."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# matplotlib does not support CSS variables: it draws in these colours, which are then replaced in its output, so that
# one chart suits both a light and a dark page.
INK, FAINT, FIRST, SECOND, THIRD = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {
    INK: "var(--muted)",
    FAINT: "var(--line)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    THIRD: "var(--third)",
}
SIZE = (4.4, 2.9)  # inches at 72 dpi: small, so that text stays readable where a phone shrinks the chart
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "directdet",  # the same rows give the same bytes
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
}

Log = dict[str, list[dict[str, Any]]]  # phase -> rows of its log.jsonl, in the order of the phases


def loss_chart(log: Log) -> str:
    """Total loss over the steps of all phases: faint raw values and their running median. SVG text."""

    def draw(axes: Axes, starts: dict[str, int]) -> None:
        for phase, rows in log.items():
            rows = [row for row in rows if row["kind"] == "step"]
            steps = [starts[phase] + row["step"] for row in rows]
            losses = [row["loss"] for row in rows]
            axes.plot(steps, losses, color=FIRST, linewidth=0.8, alpha=0.35)
            axes.plot(steps, _running_median(losses), color=FIRST, linewidth=1.8)
        axes.set_ylabel("training loss")
        axes.set_ylim(bottom=0)

    return _chart(log, draw)


def rate_chart(log: Log) -> str:
    """Learning rate over the steps of all phases. SVG text."""

    def draw(axes: Axes, starts: dict[str, int]) -> None:
        for phase, rows in log.items():
            rows = [row for row in rows if row["kind"] == "step" and "lr" in row]
            axes.plot([starts[phase] + row["step"] for row in rows], [row["lr"] for row in rows], color=SECOND)
        axes.set_ylabel("learning rate")
        axes.set_ylim(bottom=0)

    return _chart(log, draw)


def ap_chart(log: Log) -> str:
    """Box AP50, box AP and mask AP on the val split, in percent. SVG text."""
    curves = (
        ("box AP50", "bbox", "AP50", FIRST),
        ("box AP", "bbox", "AP", SECOND),
        ("mask AP", "segm", "AP", THIRD),
    )

    def draw(axes: Axes, starts: dict[str, int]) -> None:
        for name, kind, metric, tint in curves:
            points = [
                (starts[phase] + row["step"], 100 * row[kind][metric])
                for phase, rows in log.items()
                for row in rows
                if row["kind"] == "eval" and row.get(kind)
            ]
            if points:
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, color=tint, linewidth=1.8, marker="o", markersize=3.5, label=name)
        axes.set_ylabel("AP on val (%)")
        axes.set_ylim(0, 100)
        if axes.get_lines():
            axes.legend(frameon=False, loc="upper left", fontsize=9)

    return _chart(log, draw)


def _chart(log: Log, draw: Callable[[Axes, dict[str, int]], None]) -> str:
    starts, total = _starts(log)

    def steps(axes: Axes) -> None:
        draw(axes, starts)
        axes.set_xlim(0, max(total, 1))
        axes.set_xlabel("step")
        for phase, start in starts.items():
            if start:
                axes.axvline(start, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
            # Phase names are above the frame, where no curve crosses them.
            axes.annotate(phase, (start, 1), (3, 4), ("data", "axes fraction"), "offset points", fontsize=9)

    return svg(steps)


def svg(draw: Callable[[Axes], None], size: tuple[float, float] = SIZE, grid: Literal["x", "y", "both"] = "y") -> str:
    """SVG text of one chart of `size` (inches), drawn by `draw`, in the page's style. `grid`: axes with grid lines."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(size, dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.grid(axis=grid, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", length=0)
        for edge in ("top", "right", "left"):
            axes.spines[edge].set_visible(False)
        draw(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(stream.getvalue())


def _starts(log: Log) -> tuple[dict[str, int], int]:
    """The first step of each phase, counted over all phases, and the total number of steps."""
    starts, total = {}, 0
    for phase, rows in log.items():
        starts[phase] = total
        total += max((row["step"] for row in rows), default=0)
    return starts, total


def _running_median(values: Sequence[float]) -> list[float]:
    """Median of each value and its neighbours on either side; longer curves use more neighbours."""
    found, reach = [], max(1, len(values) // 25)
    for index in range(len(values)):
        near = sorted(values[max(0, index - reach) : index + reach + 1])
        found.append(near[len(near) // 2])
    return found


def _for_page(svg: str) -> str:
    """Only the <svg> element, which scales with its column and takes its colours from the page."""
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    # Width and height in points would fix the size; the viewBox keeps the shape.
    words = [word for word in head.split(" ") if not word.startswith(("width=", "height="))]
    svg = " ".join(words) + ' role="img">' + rest
    for tint, variable in _VARIABLES.items():
        svg = svg.replace(tint, variable)
    return svg
