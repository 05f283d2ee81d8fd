"""`directdet reproduce`: times and names are understood, and a comparison leaves its numbers, table and picture."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click
import cv2
import pytest

from directdet.data.synthetic import make_synthetic
from directdet.front import cli
from directdet.reproduce.experiments import EXPERIMENTS, TIMED

HEADS = {"fpn_channels": 16, "box_features": 16, "mask_convs": 1, "mask_channels": 8, "box_convs": 1}
FEW = {"train_pre_nms": 32, "train_proposals": 16, "test_pre_nms": 32, "test_proposals": 16, "rpn_samples": 16}
MODEL = {**HEADS, **FEW, "roi_samples": 16, "mask_slots": 4, "candidates": 64, "backbone": "resnet18", "width": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """8 train and 2 val pictures."""
    return make_synthetic(tmp_path_factory.mktemp("data"), 8, 2, size=(64, 96))


@pytest.fixture
def micro(monkeypatch):
    """A scale of networks that take a fraction of a second a step, and steps of a second each to plan with."""
    import torch

    from directdet.reproduce import budget
    from directdet.reproduce.scales import SCALES, Scale

    torch.set_num_threads(1)
    monkeypatch.setitem(SCALES, "micro", Scale("micro", (64, 96), 0.15, {"rcnn": MODEL}, workers=0))
    monkeypatch.setattr(budget, "seconds_of_steps", lambda *_: budget.Pace(1.0, 0.0))
    monkeypatch.setattr(budget, "FEWEST_STEPS", 2)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, list[str]]:
    """Exit code, stdout and the lines of stderr."""
    code = cli.main(["reproduce", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, [line for line in output.err.splitlines() if line.strip()]


@pytest.fixture
def times() -> click.ParamType:
    """What --budget takes."""
    cli.add_verbs(cli.directdet)
    return next(p.type for p in cli.directdet.commands["reproduce"].params if p.name == "budget")


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("20m", 1200.0), ("1.5h", 5400.0), ("0.5s", 0.5)])
def test_times(times, text, seconds):
    assert times.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "-5m", "0s", "nanm", "infh", "5 days", "1e9h", "2H"])
def test_what_is_no_time(times, text):
    with pytest.raises(click.BadParameter, match="is not a time; write it as 90s, 20m or 2h"):
        times.convert(text, None, None)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["direct/table11"], 2, "direct/table11: unknown comparison; choose one of direct/table1"),
        (["table2"], 2, "table2: unknown comparison"),
        (["direct/table2", "--scale", "huge"], 2, "--scale huge: unknown; choose one of smoke, tiny"),
        (["direct/table7", "--scale", "huge"], 2, "--scale huge: unknown; choose one of smoke, tiny"),
        (["direct/table2", "--budget", "20"], 2, "is not a time"),
        (["direct/table2", "--time-limit", "soon"], 2, "is not a time"),
        (["direct/table2", "--steps", "0"], 2, "--steps"),
        (["direct/table2", "--seeds", "0"], 2, "--seeds"),
        (["direct/table7", "--seeds", "3"], 2, "--seeds 3: direct/table7 times steps"),
        (["direct/scratch", "--scale", "micro", "--steps", "3"], 2, "get equal time, not steps; give a --budget"),
        (["direct/table2", "--scale", "micro", "--budget", "5s"], 1, "give at least 1m"),
        (["direct/table1", "--scale", "micro", "--imagenet", "nowhere.pth"], 1, "nowhere.pth: no such checkpoint"),
    ],
)
def test_mistakes_end_in_one_line(capsys, data, tmp_path, micro, arguments, code, says):
    found, output, lines = run(capsys, *arguments, "--data", data, "--out", tmp_path / "out", "--device", "cpu")
    assert found == code and len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0], lines
    assert "written" not in output and not (tmp_path / "out").exists()


def test_without_arguments_all_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, output, lines = run(capsys)
    assert code == 0 and not lines and max(map(len, output.splitlines())) <= 80 and "…" not in output
    for name in (*EXPERIMENTS, *TIMED):
        assert any(f"│ {name} " in line for line in output.splitlines()), name
    assert output.index("Direct pre-training") < output.index("direct/table1 ") < output.index("ScratchDet")
    assert output.index("ScratchDet") < output.index("scratchdet/table1 ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["direct/table2"], "Missing option '--data'"),
        (["direct/table2", "--data", "DATA"], "Missing option '--out'"),
        (["--data", "DATA", "--out", "OUT"], "Missing argument 'COMPARISON'"),
    ],
)
def test_what_is_missing_is_named(capsys, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, _, lines = run(capsys, *arguments)
    assert code == 2 and len(lines) == 1 and says in lines[0] and not any(tmp_path.iterdir())


def test_a_figure_from_the_command_line(capsys, data, tmp_path, micro):
    out = tmp_path / "out"
    arguments = ("direct/figure4", "--data", data, "--out", out, "--scale", "micro", "--device", "cpu", "--steps", 2)
    code, output, lines = run(capsys, *arguments, "--rows", "p1x_6epochs,p1x_24epochs")
    assert code == 0 and not lines and "Every row keeps the paper's schedule." in output
    assert json.loads((out / "results.json").read_text())["rows"][0]["curve"] == "P1x"
    for name in ("comparison.png", "figure.png"):
        assert cv2.imread(str(out / name)).std() > 5


def test_data_that_is_not_there(capsys, tmp_path):
    for comparison in ("direct/table2", "direct/table7"):
        code, _, lines = run(capsys, comparison, "--data", tmp_path / "nowhere", "--out", tmp_path / "out")
        assert code == 1 and len(lines) == 1 and "nowhere" in lines[0] and "not found" in lines[0]
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_comparison_from_the_command_line(capsys, data, tmp_path, micro, monkeypatch):
    monkeypatch.setenv("COLUMNS", "170")
    out = tmp_path / "out"
    arguments = ("direct/table2", "--data", data, "--out", out, "--scale", "micro", "--device", "cpu", "--seed", 5)
    code, output, lines = run(capsys, *arguments, "--budget", "10s")
    assert code == 0 and not lines
    result = json.loads((out / "results.json").read_text())
    assert result["finished"] and result["plan"]["seed"] == 5 and result["plan"]["budget_s"] == 10.0
    table = output[output.rindex("direct/table2: ") :]
    assert [("skipped" in row) for row in result["rows"]] == [True, True, False, False, False]  # without --imagenet
    for row, paper in zip(
        result["rows"][2:], ("box 37.8, mask 33.9", "box 37.9, mask 34.0", "box 40.4, mask 36.1"), strict=True
    ):
        line = next(line for line in table.splitlines() if f"│ {row['label']} " in line)
        assert f" {100 * row['box_ap']:.1f} " in line and paper in line and "4+2" in line
    assert (
        "compare rows with each other, not with the paper's AP" in table and f"written: {out / 'results.json'}" in table
    )
    picture = cv2.imread(str(out / "comparison.png"))
    assert picture is not None and min(picture.shape[:2]) > 150 and picture.std() > 10
    before = (out / "plan.json").read_text()
    code, _, lines = run(capsys, *arguments, "--budget", "11s")  # another plan
    assert code == 1 and "plan.json: budget_s: was 10.0" in lines[0] and (out / "plan.json").read_text() == before
    assert run(capsys, *arguments, "--budget", "10s")[0] == 0
    code, output, lines = run(capsys, *arguments[:3], "--out", tmp_path / "steps", *arguments[5:], "--steps", 2)
    assert code == 0 and not lines and output.count("2+2") == 3 and (tmp_path / "steps" / "comparison.png").is_file()


def test_seeds_from_the_command_line(capsys, data, tmp_path, micro, monkeypatch):
    monkeypatch.setenv("COLUMNS", "170")
    out = tmp_path / "out"
    arguments = ("direct/table2", "--data", data, "--out", out, "--scale", "micro", "--device", "cpu", "--steps", 2)
    code, output, lines = run(capsys, *arguments, "--rows", "affine,fixed", "--seeds", 2)
    assert code == 0 and not lines
    result = json.loads((out / "results.json").read_text())
    assert result["finished"] and result["seeds"] == [0, 1] and f"written: {out / 'results.json'}" in output
    (claim,) = [line for line in output.splitlines() if "fixed > affine" in line]
    assert "not shown (fewer than 10 pictures)" in claim and "Table 2: 40.4 and 37.8" in claim
    picture = cv2.imread(str(out / "comparison.png"))
    assert picture is not None and picture.std() > 5


@pytest.mark.slow
def test_table7_from_the_command_line(capsys, data, tmp_path, micro, monkeypatch):
    from directdet.reproduce import timing

    monkeypatch.setenv("COLUMNS", "170")
    monkeypatch.setattr(timing, "time_table7", partial(timing.time_table7, rounds=1, steps=1))
    out = tmp_path / "out"
    code, output, lines = run(
        capsys, "direct/table7", "--data", data, "--out", out, "--scale", "micro", "--device", "cpu"
    )
    assert code == 0 and not lines
    rows = json.loads((out / "results.json").read_text())["rows"]
    for row in rows:
        assert any(row["method"] in line and f"{row['medians']['seconds']:.3f}" in line for line in output.splitlines())
    assert len(rows) == 4 and f"written: {out / 'results.json'}" in output
