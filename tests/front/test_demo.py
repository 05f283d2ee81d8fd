"""The demo's chain, end to end, in its smallest form; what it reaches at its full length is the demo's own business."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from directdet.front import cli, demo
from directdet.recipes.by_name import get_recipe
from directdet.recipes.settings import apply_settings

TINY = ("size=64", "eval_size=64", "epochs=1", "milestones=()", "workers=0", "batch_size=4")


@pytest.fixture
def tiny(monkeypatch):
    recipe = apply_settings(get_recipe("demo"), TINY)
    monkeypatch.setattr(demo, "get_recipe", lambda name: replace(recipe, name=name))
    monkeypatch.setattr(demo, "_TRAIN", 8)
    monkeypatch.setattr(demo, "_VAL", 4)
    monkeypatch.setattr(demo, "_ITERATIONS", 3)
    monkeypatch.setattr(demo, "_WARMUP", 1)


@pytest.mark.slow
def test_the_whole_chain(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["demo", "--out", str(out), "--device", "cpu"]) == 0
    end = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[0] for line in end] == ["report", "box", "verification", "seconds"]
    assert end[0].split()[-1] == str(out / "report.html") and end[2].split()[-1] == "PASS"
    page = (out / "report.html").read_text("utf-8")
    for text in ("PyTorch, fp32, 64x64", "ONNX Runtime, fp32, 64x64", "odd aspect ratio", "not comparable"):
        assert text in page
    assert json.loads((out / "artefact" / "meta.json").read_text("utf-8"))["verification"]["passed"] is True
    before = sorted(out.rglob("*"))
    assert cli.main(["demo", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(out) in error and error.count("\n") == 1
    assert sorted(out.rglob("*")) == before
