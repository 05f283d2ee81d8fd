"""Comparisons run to their end, stopped and gone on with; Table 7's timing; and the picture of what came out."""

import json
import os
import shutil
import signal
import statistics
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import cv2
import pytest
import torch
from rich.console import Console
from slim_models import MICRO, backbone_file, without_masks

from directdet.common.errors import UserError
from directdet.models.checkpoint import load_checkpoint
from directdet.reproduce import budget as planning
from directdet.reproduce import run as module
from directdet.reproduce import time_limit, timing
from directdet.reproduce.comparison_plot import draw_comparison
from directdet.reproduce.experiments import EXPERIMENTS, SCALES
from directdet.reproduce.run import Comparison, reproduce
from directdet.train import loop
from directdet.train.loop import Trainer


@pytest.fixture(autouse=True)
def micro(monkeypatch):
    """Networks that take a fraction of a second a step; steps are not measured: the budget says how many there are."""
    torch.set_num_threads(1)
    monkeypatch.setitem(SCALES, "micro", MICRO)
    monkeypatch.setattr(planning, "_seconds", lambda *_: {"step": 1.0, "evaluation": 0.0})
    monkeypatch.setattr(planning, "FEWEST_STEPS", 2)


def only(monkeypatch: pytest.MonkeyPatch, name: str, *keys: str) -> None:
    """Leave the comparison with some of its rows."""
    whole = EXPERIMENTS[name]
    rows = replace(whole, trials=lambda scale: [trial for trial in whole.trials(scale) if trial.key in keys])
    monkeypatch.setitem(EXPERIMENTS, name, rows)


def printed(renderable: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


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
    given = {"data": shapes, "budget": budget, "scale": "micro", "device": "cpu", "time_limit": 1000.0}
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
    assert "Not finished: the same command goes on." in printed(found[0].table())
    assert [row["key"] for row in found[0].rows] == [row["key"] for row in whole.rows]
    again = reproduce(name, out=tmp_path / "parts", **given)  # nothing is left to do
    assert again.rows == found[-1].rows
    check_results(tmp_path / "parts", name)


def check_results(out: Path, name: str) -> None:
    """results.json says what ran, on what, when, and that it is not the paper's AP."""
    result = json.loads((out / "results.json").read_text())
    assert result["caution"] == module.CAUTION and result["finished"] is True
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
    given = ("direct/scratch", shapes, tmp_path, 4.0, "micro", "cpu")
    stopped_at(monkeypatch, {2}, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        reproduce(*given, time_limit=1000.0)
    assert load_checkpoint(tmp_path / "scratch_bn" / "scratch" / "checkpoints" / "last.pt")["step"] == 2
    assert reproduce(*given, time_limit=1000.0).finished


@pytest.mark.slow
def test_an_imagenet_row_starts_from_its_file(shapes, tmp_path, monkeypatch):
    only(monkeypatch, "direct/table1", "imagenet")
    file = backbone_file(tmp_path / "r18.pth")
    given = {"data": shapes, "out": tmp_path / "out", "budget": 3.0, "scale": "micro", "device": "cpu"}
    stopped_at(monkeypatch, {2}, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        reproduce("direct/table1", imagenet=str(file), **given)
    assert reproduce("direct/table1", imagenet=str(file), **given).finished
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
    found = reproduce("direct/table5", data, tmp_path / "out", 6.0, "micro", "cpu")
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
    given = ("direct/scratch", shapes, tmp_path / "a", 4.0, "micro", "cpu")
    for _ in range(2):  # and the second time nothing is tried again
        found = reproduce(*given)
        assert found.finished and ["diverged" in row for row in found.rows] == [True, False]
    only(monkeypatch, "direct/table2", "sync", "fixed")
    found = reproduce("direct/table2", shapes, tmp_path / "b", 7.0, "micro", "cpu")
    assert found.finished and all("diverged" in row for row in found.rows)  # what they share did not come about
    assert not (tmp_path / "b" / "sync").exists()
    draw_comparison(found.to_dict(), tmp_path / "none.png")


# ---- Table 7


@pytest.mark.slow
def test_timing_of_table7(shapes, tmp_path):
    result = timing.time_table7(shapes, tmp_path / "out", "micro", "cpu", rounds=2, steps=1)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(result))
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == [row["method"] for row in result["paper"]["rows"]]
    for row in rows.values():
        for key in ("seconds", "fps"):
            assert len(row["rounds"][key]) == 2 and min(row["rounds"][key]) > 0
            assert row["medians"][key] == statistics.median(row["rounds"][key])
            base = rows["Scratch (SyncBN)"]["rounds"][key]
            assert row["to_sync"][key] == statistics.median(
                a / b for a, b in zip(row["rounds"][key], base, strict=True)
            )
    assert rows["Scratch (SyncBN)"]["to_sync"] == {"seconds": 1.0, "fps": 1.0}
    assert result["data_seconds"].keys() == {"pretrain", "finetune"} and min(result["data_seconds"].values()) > 0
    assert result["hardware"] and result["versions"]["torch"] == torch.__version__
    text = printed(timing.timing_table(result))
    assert "One process: SyncBN has nobody to synchronise with" in text and timing.CAUTION in text
    direct = next(line for line in text.splitlines() if "Direct" in line)
    # the paper's 0.424 s and 8.6 fps, 0.88 of SyncBN's 0.483 s
    assert "0.424" in direct and "0.88" in direct and direct.rstrip("│ ").endswith("8.6")


def test_variants_of_table7_are_its_rows():
    found = {
        name: (phase.norm, phase.frozen_stages, model.get("norm", "bn"), phase.size)
        for name, (phase, model) in timing.variants(MICRO).items()
    }
    assert found == {
        "ImageNet": ("affine", 1, "bn", (64, 96)),
        "Scratch (GN)": ("live", -1, "gn", (64, 96)),
        "Scratch (SyncBN)": ("sync", -1, "bn", (64, 96)),
        "Direct": ("fixed", 1, "bn", (64, 96)),
    }


def test_timing_needs_pictures_to_time_on(shapes, tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").symlink_to(shapes / "train2017")
    name = "annotations/instances_train2017.json"
    (tmp_path / name).write_text((shapes / name).read_text())
    with pytest.raises(UserError, match="has no val split to take frame rates on"):
        timing.time_table7(tmp_path, tmp_path / "out", "micro", "cpu")


# ---- The picture


def drawn(rows: list[dict], path: Path):
    plan = {"experiment": "direct/scratch", "scale": "micro", "seed": 0, "budget_s": 90.0, "device": "cpu"}
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
