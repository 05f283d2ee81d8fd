"""Comparisons run to their end, stopped and gone on with."""

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest
import torch
from comparison_helpers import micro_options, only, printed
from interrupting import interrupt
from slim_models import backbone_file, without_masks

from directdet.models.checkpoint import load_checkpoint
from directdet.reproduce import time_limit
from directdet.reproduce.comparison import CAUTION
from directdet.reproduce.comparison_plot import draw_comparison
from directdet.reproduce.run import reproduce
from directdet.train import loop
from directdet.train.loop import Trainer

pytestmark = pytest.mark.usefixtures("unmeasured")


def state_of(out: Path, run: str) -> dict[str, torch.Tensor]:
    return load_checkpoint(out / run / "checkpoints" / "last.pt")["model"]


def stopped_at(monkeypatch: pytest.MonkeyPatch, stops: set[int], stop) -> list[int]:
    """Have `stop` called when the steps of those numbers, counted over all runs, are under way; the count so far."""
    count, step = [0], Trainer.step

    def counted(self: Trainer, batches: list) -> tuple[dict, dict]:
        count[0] += 1
        if count[0] in stops:
            stop()
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", counted)
    return count


class Clock:
    """A timer whose time is up when it is told so."""

    running: "Clock | None" = None

    def __init__(self, seconds: float, function):
        self.seconds, self.function, self.daemon = seconds, function, False

    def start(self) -> None:
        Clock.running = self

    def cancel(self) -> None:
        Clock.running = None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "budget", "runs", "stops"),
    [
        # Shared pre-training of 4 steps, fine-tunings of 2: stopped in the first, before the last and in the last one.
        ("direct/table2", 10.0, ["shared/pretrain", "affine/finetune", "sync/finetune", "fixed/finetune"], {2, 6, 9}),
        # 7 + 3 steps, then 10.
        ("direct/scratch", 20.0, ["direct/pretrain", "direct/finetune", "scratch_bn/scratch"], {7, 9, 15}),
    ],
)
def test_stopped_by_the_time_limit_and_gone_on_with(shapes, tmp_path, monkeypatch, name, budget, runs, stops):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)  # a row of the log is a mean since the one before it
    only(monkeypatch, name, *{run.partition("/")[0] for run in runs})
    given = {"data": shapes, "options": micro_options(budget), "time_limit": 1000.0}
    whole = reproduce(name, out=tmp_path / "whole", **given)
    assert whole.finished
    (tmp_path / "parts").mkdir()
    shutil.copy(tmp_path / "whole" / "plan.json", tmp_path / "parts" / "plan.json")
    monkeypatch.setattr(time_limit.threading, "Timer", Clock)
    stopped_at(monkeypatch, stops, lambda: Clock.running.function())
    found = []
    for _ in range(len(stops) + 1):
        found.append(reproduce(name, out=tmp_path / "parts", **given))
        assert Clock.running is None
    assert [comparison.finished for comparison in found] == [False] * len(stops) + [True]
    kept = ("key", "label", "box_ap", "box_ap50", "mask_ap", "bbox", "segm", "recipe")
    for one, other in zip(whole.rows, found[-1].rows, strict=True):
        assert {key: one[key] for key in kept} == {key: other[key] for key in kept}
        assert [phase["steps"] for phase in one["phases"]] == [phase["steps"] for phase in other["phases"]]
        assert [phase["last_loss"] for phase in one["phases"]] == [phase["last_loss"] for phase in other["phases"]]
    for run in runs:
        parts = state_of(tmp_path / "parts", run)
        assert all(torch.equal(value, parts[key]) for key, value in state_of(tmp_path / "whole", run).items())
    assert "Not finished: run the same command again to continue." in printed(found[0].table())
    assert [row["key"] for row in found[0].rows] == [row["key"] for row in whole.rows]
    again = reproduce(name, out=tmp_path / "parts", **given)  # nothing is left to do
    assert again.rows == found[-1].rows
    check_results(tmp_path / "parts", name)


def check_results(out: Path, name: str) -> None:
    """results.json says what ran, on what, when, and that it is not the paper's AP."""
    result = json.loads((out / "results.json").read_text())
    assert result["caution"] == CAUTION and result["finished"] is True
    assert result["plan"] == json.loads((out / "plan.json").read_text())
    assert result["plan"]["experiment"] == name and result["plan"]["images"] == [12, 4]
    assert datetime.fromisoformat(result["date"]).utcoffset() is not None
    assert result["hardware"]["cpu"] and result["hardware"]["cores"] >= 1
    assert result["versions"]["torch"] == torch.__version__ and result["versions"]["python"]
    for row in result["rows"]:
        assert 0 <= row["box_ap"] <= row["box_ap50"] <= 1 and len(row["bbox"]) == len(row["segm"]) == 12
        for phase in row["phases"]:
            planned = result["plan"]["steps"]
            assert phase["steps"] == {**planned.get("shared", {}), **planned[row["key"]]}[phase["name"]]
            assert phase["seconds"] > 0 and phase["seconds_per_step"] > phase["data_seconds"] >= 0


@pytest.mark.slow
def test_ctrl_c_is_no_time_limit(shapes, tmp_path, monkeypatch):
    only(monkeypatch, "direct/scratch", "scratch_bn")
    given = ("direct/scratch", shapes, tmp_path, micro_options(4.0))
    stopped_at(monkeypatch, {2}, interrupt)
    with pytest.raises(KeyboardInterrupt):
        reproduce(*given, time_limit=1000.0)
    assert load_checkpoint(tmp_path / "scratch_bn" / "scratch" / "checkpoints" / "last.pt")["step"] == 2
    assert reproduce(*given, time_limit=1000.0).finished


@pytest.mark.slow
def test_an_imagenet_row_starts_from_its_file(shapes, tmp_path, monkeypatch):
    only(monkeypatch, "direct/table1", "imagenet")
    file = backbone_file(tmp_path / "r18.pth")
    given = ("direct/table1", shapes, tmp_path / "out", micro_options(3.0, imagenet=str(file)))
    stopped_at(monkeypatch, {2}, interrupt)
    with pytest.raises(KeyboardInterrupt):
        reproduce(*given)
    assert reproduce(*given).finished
    weights, state = torch.load(file, weights_only=True), state_of(tmp_path / "out", "imagenet/finetune")
    for name, value in weights.items():
        if name.startswith(("conv1", "bn1", "layer1")):  # frozen
            assert torch.equal(state[f"backbone.{name}"], value), name
        if name.startswith("layer2") and name.endswith("conv1.weight"):
            assert not torch.equal(state[f"backbone.{name}"], value), name


@pytest.mark.slow
def test_data_without_masks_runs(shapes, tmp_path, monkeypatch):
    only(monkeypatch, "direct/table5", "box", "mask")
    data = without_masks(shapes, tmp_path / "data")
    found = reproduce("direct/table5", data, tmp_path / "out", micro_options(6.0))
    assert found.finished and [row["key"] for row in found.rows] == ["box"]
    assert found.rows[0]["mask_ap"] is None and found.rows[0]["segm"] is None and found.rows[0]["box_ap"] >= 0


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_its_row_alone(shapes, tmp_path, monkeypatch):
    step = Trainer.step

    def broken(self: Trainer, batches: list) -> tuple[dict, dict]:
        losses, counts = step(self, batches)
        broken_now = self.folder.parent.name in ("scratch_bn", "shared")
        return ({**losses, "box": losses["box"] * float("nan")} if broken_now else losses), counts

    monkeypatch.setattr(Trainer, "step", broken)
    only(monkeypatch, "direct/scratch", "scratch_bn", "scratch_gn")
    given = ("direct/scratch", shapes, tmp_path / "a", micro_options(4.0))
    for _ in range(2):  # and the second time nothing is tried again
        found = reproduce(*given)
        assert found.finished and ["diverged" in row for row in found.rows] == [True, False]
    only(monkeypatch, "direct/table2", "sync", "fixed")
    found = reproduce("direct/table2", shapes, tmp_path / "b", micro_options(7.0))
    assert found.finished and all("diverged" in row for row in found.rows)  # what they share did not come about
    assert not (tmp_path / "b" / "sync").exists()
    draw_comparison(found.to_dict(), tmp_path / "none.png")


def test_montage_is_a_row_like_others(shapes, tmp_path, monkeypatch):
    only(monkeypatch, "direct/montage", "montage")
    found = reproduce("direct/montage", shapes, tmp_path, micro_options(12.0))
    assert found.finished
    (row,) = found.rows
    assert [phase["name"] for phase in row["phases"]] == ["montage", "finetune"] and row["box_ap"] >= 0
    check_results(tmp_path, "direct/montage")
