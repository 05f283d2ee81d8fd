"""The three panels of ScratchDet's Figures 1 and 7: loss, gradient norm, and the norm's fluctuation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from directdet.common.files import write_bytes_atomic

_COLOURS = ("#2b6cb0", "#c53030", "#2f855a")  # as in the paper: blue without, red with normalisation, green at 10x
_PANELS = {"loss": "training loss", "norm": "L2 norm of the gradient", "fluctuation": "its fluctuation, smoothed"}


def draw_landscape(result: dict[str, Any], path: Path, smoothing: int) -> None:
    """Write a PNG with a row for each figure of the paper and a column for each panel.

    Args:
        result: as landscape() returns it.
        smoothing: steps of the fluctuation's moving average.
    """
    runs = {run["name"]: run for run in result["runs"]}
    figures = result["figures"]
    figure = Figure(figsize=(13, 3.6 * len(figures)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(figures), len(_PANELS), squeeze=False)
    for row, (title, names) in zip(grid, figures.items(), strict=True):
        for axes, (key, label) in zip(row, _PANELS.items(), strict=True):
            for name, colour in zip(names, _COLOURS, strict=True):
                _curve(axes, runs[name], key, colour, smoothing)
            axes.set_yscale("log")
            axes.set_title(f"{title}: {label}", fontsize=10)
            axes.set_xlabel("step", fontsize=9)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].legend(fontsize=7.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    write_bytes_atomic(path, buffer.getvalue())


def _curve(axes: Axes, run: dict[str, Any], key: str, colour: str, smoothing: int) -> None:
    values = np.asarray(run[key], float)
    steps = np.arange(len(values)) + (key == "fluctuation")  # which is the change from the step before
    label = run["label"] + (f" (not finite at step {run['stopped']})" if run["stopped"] is not None else "")
    if key == "fluctuation":
        values = smoothed(values, smoothing)
    else:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
        values = smoothed(values, 5)
    axes.plot(steps, values, color=colour, linewidth=1.6, label=label)


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the last `width` values at each step, or of as many as there are."""
    # Each mean by itself: in a running sum, one huge value of a diverging loss would leave only rounding errors.
    return np.array([values[max(0, last - width) : last].mean() for last in range(1, len(values) + 1)])
