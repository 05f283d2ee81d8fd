"""What a person sees of a run: in a terminal of 80 columns, through a pipe, and when it is stopped."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from terminal80 import COLUMNS, in_a_terminal

from directdet.train.watch import display as module
from directdet.train.watch.callbacks import EvaluationNumbers, PhaseEnd, PhaseFacts, StepNumbers
from directdet.train.watch.display import Display
from directdet.train.watch.pace import Pace, clock, duration, short


def words(data: Path, out: Path, *settings: str) -> list[str]:
    """train, of a network so small that a step takes a fraction of a second."""
    every = ["model.width=8", "pretrain.size=64", "batch_size=4", "workers=0", "warmup_iterations=2", *settings]
    options = [word for setting in every for word in ("--set", setting)]
    return ["train", "retinanet_r18_slim", "--data", str(data), "--out", str(out), "--phase", "pretrain", *options]


SHORT = ("pretrain.epochs=8", "pretrain.eval_every=4")


def test_a_terminal_of_80_columns(shapes, tmp_path):
    seen = in_a_terminal([*words(shapes, tmp_path / "run", *SHORT), "--device", "cpu"])
    assert seen.code == 0, seen.raw
    bars = [line for line in seen.drawn() if line.startswith("pretrain ") and "ETA" in line]
    assert min(map(len, bars)) >= COLUMNS - 1 and max(map(len, bars)) == COLUMNS  # the whole width, never two lines
    assert "\x1b[1A" not in seen.raw  # so nothing went up a line to draw it again
    assert any("loss" in line and "AP" in line and "━" in line for line in bars)
    assert any("evaluating 4 images" in line for line in bars)
    assert "24/24 ETA 0:00" in bars[-1]
    stays = [line.rstrip() for line in seen.lines if line.startswith("pretrain: ")]
    assert stays[0].startswith("pretrain: about ") and " to go: 18 steps of " in stays[0]
    assert [line.split(",")[0] for line in stays[1:3]] == ["pretrain: step 12", "pretrain: step 24"]
    assert "box AP" in stays[1] and stays[1].endswith(", best")


def test_a_pipe_has_lines_and_nothing_else(shapes, tmp_path):
    command = [sys.executable, "-m", "directdet", *words(shapes, tmp_path / "run", *SHORT), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stderr == ""
    assert not {"\r", "\x1b"} & set(done.stdout) and "ETA" not in done.stdout  # it takes less than half a minute
    lines = [line for line in done.stdout.splitlines() if line.startswith("pretrain: ")]
    starts = ["about", "step 12, epoch 4: box AP", "step 24, epoch 8: box AP", "best box AP"]
    assert len(lines) == 4 and all(
        line.startswith(f"pretrain: {start}") for line, start in zip(lines, starts, strict=True)
    )


def test_ctrl_c_in_a_terminal(shapes, tmp_path):
    """The keys, not a signal; the cursor is there again, and the line stands by itself."""
    run = tmp_path / "run"
    typed = in_a_terminal(
        [*words(shapes, run, "pretrain.epochs=300", "pretrain.eval_every=0"), "--device", "cpu"],
        lambda text: "loss" in text,
    )
    assert typed.code == 130, typed.raw
    assert typed.raw.rindex("\x1b[?25h") > typed.raw.rindex("\x1b[?25l")
    text = " ".join("".join(typed.lines).split())
    assert "stopped by Ctrl-C at step" in text and f"go on: directdet train --resume {run}" in text


def facts(**changes):
    known = {"recipe": "r", "phase": "pretrain", "folder": Path(), "steps": 1000, "step": 0, "steps_per_epoch": 100}
    return PhaseFacts(**{**known, "evaluate_every": 200, "settings": {}, **changes})


def numbers(step, **changes):
    known = {"epoch": step / 100, "lr": 0.01, "loss": 1.5, "losses": {"a": 1.5}, "positives": 30.0}
    return StepNumbers(step, **{**known, "seconds_per_step": 2.0, "data_seconds": 0.1, **changes})


def evaluation(step):
    ap = {"AP": 0.25, "AP50": 0.5}
    return EvaluationNumbers(step, step // 100, ap, None, {}, 60.0, 50, best=True)


@pytest.fixture
def told(monkeypatch):
    """(a display into a file, the clock, what it says)."""
    text, now = io.StringIO(), [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return Display(console=Console(file=text, width=80)), now, text


def test_a_line_each_half_minute_at_most(told):
    shown, now, text = told
    shown.start(facts())
    for step in range(10, 110, 10):
        now[0] += 20.0
        shown.step(numbers(step))
    shown.end(PhaseEnd("stopped", 100))
    lines = text.getvalue().splitlines()
    assert lines[0] == "pretrain: about 33 min to go: 980 steps of 2 s, 5 evaluations not counted"
    assert lines[1] == "pretrain: 40/1000, ETA 32:00, loss 1.5, lr 0.01, 2 s a step"
    assert [line.split(",")[0] for line in lines[1:]] == [f"pretrain: {step}/1000" for step in (40, 60, 80, 100)]


def test_evaluations_are_lines_and_in_the_time_that_is_left(told):
    shown, now, text = told
    shown.start(facts(step=180))
    for step in (190, 200):
        shown.step(numbers(step))
    shown.evaluation(evaluation(200))
    now[0] += 40
    shown.step(numbers(220))
    _, at, line = text.getvalue().splitlines()
    assert at == "pretrain: step 200, epoch 2: box AP 25.0, AP50 50.0, best"
    assert "ETA 30:00, loss 1.5  AP 25.0" in line  # 780 steps of 2 s and 4 evaluations of 60 s


def test_what_is_odd_is_told_once_in_a_run(told):
    shown, _, text = told
    for phase in ("pretrain", "finetune"):
        shown.start(facts(phase=phase))
        for step in (10, 20, 30):
            shown.step(numbers(step, mask_dropped=4.0, nms_undecided=2.0 if step == 20 else 0.0))
    lines = [line for line in text.getvalue().splitlines() if "to go" not in line]
    assert lines == [
        "pretrain: step 10: 4 of 30 positives of a batch get no mask RoI; raise model.mask_slots",
        "pretrain: step 20: 2 boxes of a batch are undecided in NMS, and kept",
    ]


def test_no_time_is_told_where_none_is_left(told):
    shown, _, text = told
    shown.start(facts(step=980))
    for step in (990, 1000):
        shown.step(numbers(step))
    assert text.getvalue() == ""


def test_a_quiet_display_says_nothing(capsys):
    shown = Display(quiet=True)
    shown.start(facts())
    for step in (10, 20, 30):
        shown.step(numbers(step))
    shown.evaluation(evaluation(200))
    shown.end(PhaseEnd("finished", 1000))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("done", "left"), [(0, 5), (199, 5), (200, 4), (999, 1), (1000, 0)])
def test_evaluations_that_are_left(done, left):
    assert Pace(1000, 200).evaluations(done) == left


def test_the_last_step_is_evaluated_as_well():
    assert Pace(1000, 300).evaluations(0) == 4 and Pace(1000, None).evaluations(0) == 0


def test_times_in_words():
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 3600, 360000)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "100:00:00",
    ]
    assert [duration(seconds) for seconds in (3.2, 89, 90, 5340, 5401)] == [
        "3 s",
        "89 s",
        "2 min",
        "89 min",
        "1 h 30 min",
    ]
    assert [short(seconds) for seconds in (0.0123, 0.52, 4.26, 31.9)] == ["12 ms", "0.52 s", "4.3 s", "32 s"]
