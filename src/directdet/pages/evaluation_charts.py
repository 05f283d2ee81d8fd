"""Charts of an analysis: precision by recall, F1 by score, AP by IoU, calibration. SVG text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from directdet.infer.accuracy.analysis import Analysis
from directdet.infer.accuracy.score_curves import BINS, RECALLS, SCORES
from directdet.pages.curves import FIRST, INK, SECOND, svg

MOST_LINES = 20  # classes that get a faint line of their own


def precision_chart(analysis: Analysis) -> str:
    """Precision by recall at IoU 0.5: the mean of the classes, as in COCO, and each class faintly."""

    def draw(axes: Axes) -> None:
        known = analysis.precision[analysis.precision[:, 0] >= 0]
        if len(known) <= MOST_LINES:
            for values in known:
                axes.plot(100 * RECALLS, 100 * values, color=FIRST, linewidth=0.8, alpha=0.4)
        if len(known):
            axes.plot(100 * RECALLS, 100 * known.mean(axis=0), color=FIRST, linewidth=2)
        _percent(axes, "recall (%)", "precision (%)")

    return svg(draw, grid="both")


def score_chart(analysis: Analysis) -> str:
    """F1, precision and recall by score, and the threshold."""

    def draw(axes: Axes) -> None:
        curve = analysis.overall
        for name, values, tint, width in (
            ("F1", curve.f1, FIRST, 2.0),
            ("precision", curve.precision, SECOND, 1.0),
            ("recall", curve.recall, INK, 1.0),
        ):
            axes.plot(SCORES, 100 * values, color=tint, linewidth=width, label=name)
        axes.axvline(analysis.threshold, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.annotate(f"{analysis.threshold:.3f}", (analysis.threshold, 1), (3, 4), ("data", "axes fraction"),
                      "offset points", fontsize=9)  # fmt: skip
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 102)
        axes.set_xlabel("score threshold")
        axes.set_ylabel("%")
        axes.legend(frameon=False, loc="best", fontsize=9)  # where the curves are not

    return svg(draw, grid="both")


def iou_chart(by_iou: Sequence[float]) -> str:
    """AP at each IoU threshold, 0.5 to 0.95."""

    def draw(axes: Axes) -> None:
        values = [100 * max(value, 0.0) for value in by_iou]
        axes.plot(np.linspace(0.5, 0.95, len(values)), values, color=FIRST, linewidth=2, marker="o", markersize=4)
        axes.set_xlabel("IoU threshold")
        axes.set_ylabel("AP (%)")
        axes.set_ylim(0, 102)

    return svg(draw)


def calibration_chart(analysis: Analysis) -> str:
    """The share of right detections by score; the dashed line is where scores are probabilities."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 100], color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        for one in analysis.bins:
            axes.bar(one.low + 0.5 / BINS, 100 * one.right, 0.86 / BINS, color=FIRST)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 102)
        axes.set_xlabel("score")
        axes.set_ylabel("right (%)")

    return svg(draw)


def _percent(axes: Axes, across: str, up: str) -> None:
    axes.set_xlim(0, 101)
    axes.set_ylim(0, 102)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
