"""The picture of a comparison."""

from pathlib import Path

import cv2
import pytest

from directdet.reproduce.comparison import Comparison
from directdet.reproduce.comparison_plot import draw_comparison


def drawn(rows: list[dict], path: Path):
    plan = {
        "experiment": "direct/scratch",
        "metric": "coco",
        "scale": "micro",
        "seed": 0,
        "budget_s": 90.0,
        "device": "cpu",
    }
    draw_comparison(Comparison(path.parent, {**plan, "equal": "time"}, rows, True).to_dict(), path)
    return cv2.imread(str(path)) if path.exists() else None


def test_the_picture_has_a_bar_for_each_row(tmp_path):
    def row(label: str, box_ap: float | None, paper: float | None) -> dict:
        figures = {"paper": None if paper is None else {"box_ap": paper}}
        return {"key": label, "label": label, **figures, **({} if box_ap is None else {"box_ap": box_ap})}

    assert (
        drawn([row("to come", None, 40.0), {**row("x", None, None), "skipped": "no weights"}], tmp_path / "no.png")
        is None
    )
    rows = [row("first", 0.4, 41.5), row("second", 0.2, None), row("third", 0.0, 36.1)]
    picture = drawn([*rows, row("to come", None, 40.0)], tmp_path / "three.png")

    def painted(colour: str, image) -> list[int]:
        """Widths of the bars of a colour, in the rows of pixels where it changes."""
        wanted = [int(colour[i : i + 2], 16) for i in (5, 3, 1)]
        widths = (abs(image.astype(int) - wanted).max(2) < 8).sum(1)
        return [int(w) for w, before in zip(widths[1:], widths[:-1], strict=True) if w != before and w > 5]

    ours, paper = painted("#1f6f8b", picture), painted("#b9c3c9", picture)
    assert max(ours) == pytest.approx(2 * sorted(set(ours))[0], rel=0.03)  # 40 beside 20; 0 has no bar
    assert max(paper) / sorted(set(paper))[0] == pytest.approx(41.5 / 36.1, rel=0.03)
    one = drawn(rows[1:2], tmp_path / "one.png")  # no figure of the paper at all
    assert one.shape[0] < picture.shape[0] and one.std() > 5
