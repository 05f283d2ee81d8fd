"""Charts of a dataset's objects: where they are, how large, and how many a picture has. SVG text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from directdet.pages.curves import FIRST, INK, SECOND, THIRD, svg

_CELLS = 24  # of a side of a map
_BARS = 40  # of a histogram at most
_SQUARE = (4.0, 3.6)  # inches
_SMALL = (3.0, 2.9)
_TINTS = (FIRST, SECOND, THIRD)


def centre_map(boxes: np.ndarray, sizes: np.ndarray, small: bool = False) -> str:
    """Where in their pictures the centres of boxes [N, 4] (xyxy) are; ``sizes`` [N, 2] are those of the pictures."""
    centres = np.clip((boxes[:, :2] + boxes[:, 2:]) / 2 / sizes, 0, 1)
    edges = np.linspace(0, 1, _CELLS + 1)
    counts, _, _ = np.histogram2d(centres[:, 0], centres[:, 1], bins=(edges, edges))

    def draw(axes: Axes) -> None:
        _cells(axes, counts, 100 * edges, 100 * edges)
        axes.set_xlim(0, 100)
        axes.set_ylim(100, 0)
        axes.set_xlabel("across (%)")
        axes.set_ylabel("down (%)")

    return svg(draw, _SMALL if small else _SQUARE, grid="both")


def size_map(sides: np.ndarray, small: bool = False) -> str:
    """Widths and heights [N, 2] in pixels, on logarithmic axes; the dashed lines are COCO's limits of sizes."""
    logs = np.log10(np.maximum(sides, 0.1))
    low, high = np.floor(logs.min() * 4) / 4, np.ceil(logs.max() * 4) / 4
    edges = np.linspace(low, max(high, low + 0.5), _CELLS + 1)
    counts, _, _ = np.histogram2d(logs[:, 0], logs[:, 1], bins=(edges, edges))

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.set_yscale("log")
        _cells(axes, counts, 10**edges, 10**edges)
        for limit in (32, 96):  # width times height: a falling line where axes are logarithmic
            ends = np.array([10 ** edges[0], 10 ** edges[-1]])
            axes.plot(ends, limit**2 / ends, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(10, subs=(1.0, 3.0) if edges[-1] - edges[0] < 2.2 else (1.0,)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlim(10 ** edges[0], 10 ** edges[-1])
        axes.set_ylim(10 ** edges[0], 10 ** edges[-1])
        axes.set_xlabel("width (pixels)")
        axes.set_ylabel("height (pixels)")

    return svg(draw, _SMALL if small else _SQUARE, grid="both")


def count_chart(per_picture: np.ndarray) -> str:
    """How many pictures have how many objects."""
    most = int(per_picture.max(initial=0))
    step = -(-(most + 1) // _BARS)
    counts = np.bincount(per_picture // step, minlength=1)

    def draw(axes: Axes) -> None:
        places = np.arange(len(counts)) * step + (step - 1) / 2
        axes.bar(places, counts, 0.86 * step, color=FIRST)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("objects in a picture" + (f" (bars of {step})" if step > 1 else ""))
        axes.set_ylabel("pictures")

    return svg(draw)


def seen_chart(sides: Sequence[tuple[str, np.ndarray]], limits: Sequence[float]) -> str:
    """Shares of objects whose shorter side is at most so many pixels, a line for each (name, sides [N, 2])."""

    def draw(axes: Axes) -> None:
        for (name, values), tint in zip(sides, _TINTS, strict=False):
            shorter = np.sort(np.maximum(values.min(axis=1), 0.1))
            shares = 100 * np.arange(1, len(shorter) + 1) / len(shorter)
            axes.plot(shorter, shares, color=tint, linewidth=1.8, label=name)
        for limit in limits:
            axes.axvline(limit, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0, 102)
        axes.set_xlabel("shorter side at training's size (pixels)")
        axes.set_ylabel("objects up to there (%)")
        if len(sides) > 1:
            axes.legend(frameon=False, loc="upper left", fontsize=9)

    return svg(draw)


def _cells(axes: Axes, counts: np.ndarray, across: np.ndarray, up: np.ndarray) -> None:
    """Counts [X, Y] as cells whose colour is the deeper the more they hold; none where there is nothing."""
    # By the root of the count: a few objects should be seen beside very many.
    shares = np.sqrt(counts / max(counts.max(), 1))
    filled = np.argwhere(counts > 0).tolist()
    around = ((0, 0), (1, 0), (1, 1), (0, 1))
    outlines = [[(across[x + right], up[y + above]) for right, above in around] for x, y in filled]
    tints = [to_rgba(FIRST, round(0.12 + 0.88 * float(shares[x, y]), 3)) for x, y in filled]
    axes.add_collection(PolyCollection(outlines, facecolors=tints, edgecolors="none", linewidths=0), autolim=False)
