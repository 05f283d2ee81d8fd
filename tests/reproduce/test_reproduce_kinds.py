"""Every comparison runs: a row or two of each for a few steps and an evaluation, and its picture."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from comparison_helpers import micro_options
from slim_models import saved

from directdet.common.errors import UserError
from directdet.data.dataset import load_dataset
from directdet.models.build import build_model
from directdet.models.checkpoint import load_checkpoint
from directdet.reproduce import run as module
from directdet.reproduce.experiments import EXPERIMENTS
from directdet.reproduce.figure_plot import draw_figure
from directdet.reproduce.run import reproduce

pytestmark = pytest.mark.usefixtures("unmeasured")

# By comparison: the scale, and rows that are like no row of the comparisons before. Those of equal time, and Tables 2
# and 5, are run in test_reproduce_runs.py.
ROWS = {
    "direct/table4": ("micro", ("p1x_2x", "p2x_1x")),
    "direct/table6": ("micro", ("scratch_sync_3x_ms", "p1x_2x_ms")),
    "direct/table9": ("micro", ("voc_direct",)),
    "direct/table10": ("micro", ("dropblock_sync_3x",)),
    "direct/section3.2": ("micro", ("stitcher_style",)),
    "direct/figure1b": ("micro", ("p1x_1x", "scratch_gn_6x")),
    "direct/figure2": ("micro", ("direct_224_b2", "direct_640_b8")),
    "direct/figure4": ("micro", ("p1x_6epochs", "p1x_24epochs")),
    "scratchdet/section4": ("smoke", ("resnet18_a", "dsod300_no_bn", "vgg16_bn", "vgg16_no_bn")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_two_steps_and_an_evaluation(shapes, tmp_path, name):
    scale, rows = ROWS[name]
    options = replace(micro_options(rows=rows, steps=2), scale=scale)
    found = reproduce(name, shapes, tmp_path, options)
    assert found.finished and sorted(row["key"] for row in found.rows) == sorted(rows)
    for row in found.rows:
        assert 0 <= row["box_ap"] <= 1
        planned = found.plan["steps"][row["key"]]
        assert {phase["name"]: phase["steps"] for phase in row["phases"]} == planned
    result = json.loads((tmp_path / "results.json").read_text())
    axis = EXPERIMENTS[name].axis
    assert bool(axis) == ("/figure" in name)
    if axis:
        assert draw_figure(result, tmp_path / "figure.png", axis)
        assert cv2.imread(str(tmp_path / "figure.png")).std() > 5


def state_of(out: Path, file: str) -> dict[str, torch.Tensor]:
    return load_checkpoint(out / "shared" / "pretrain" / "checkpoints" / file)["model"]


@pytest.mark.slow
def test_a_longer_pretraining_goes_on_from_a_shorter_one(shapes, tmp_path):
    """P2x is P1x trained on: as good as one that was P2x from the start, and what P1x was is kept."""

    def run(folder: str, *rows: str):
        return reproduce("direct/table4", shapes, tmp_path / folder, micro_options(rows=rows, steps=3))

    both, short, long = run("both", "p1x_1x", "p2x_1x"), run("short", "p1x_1x"), run("long", "p2x_1x")
    assert both.plan["steps"]["shared"] == {"pretrain": 6}
    for file, alone in (("step3.pt", tmp_path / "short"), ("step6.pt", tmp_path / "long")):
        expected = state_of(alone, file)
        assert all(torch.equal(value, expected[key]) for key, value in state_of(tmp_path / "both", file).items())
    for row, alone in zip(both.rows, (short.rows[0], long.rows[0]), strict=True):
        assert row["bbox"] == alone["bbox"] and row["phases"][0]["steps"] == alone["phases"][0]["steps"]
    assert run("both", "p1x_1x", "p2x_1x").rows == both.rows


@pytest.mark.slow
def test_each_imagenet_row_takes_the_file_that_fits(shapes, tmp_path, monkeypatch):
    files, names = [], load_dataset(shapes, "train").classes
    for norm in ("none", "bn"):
        settings = {"backbone": "vgg16", "width": 8, "norm": norm, "head_norm": norm == "bn"}
        torch.manual_seed(len(norm))
        model = build_model({"detector": "ssd", "num_classes": len(names), **settings})
        files.append(str(saved(model, tmp_path / f"{norm}.pt", names)))
    options = micro_options(rows=["imagenet_none_lr001", "imagenet_both_lr001"], steps=2)
    options = replace(options, scale="smoke")
    found = reproduce("scratchdet/table1", shapes, tmp_path / "out", replace(options, imagenet=files))
    assert found.finished and all("box_ap" in row for row in found.rows)
    assert found.plan["imagenet"] == files
    monkeypatch.setattr(module, "_run_trial", lambda *_: None)
    one = reproduce("scratchdet/table1", shapes, tmp_path / "one", replace(options, imagenet=files[1]))
    assert ["skipped" in row for row in one.rows] == [True, False] and one.plan["imagenet"] == files[1]


def test_too_few_pictures_are_told_before_the_work(shapes, tmp_path):
    for name, key, says in (
        ("direct/table9", "coco10_direct", "coco10_direct takes batches of 8, and has 1 of the 12 images"),
        ("direct/figure2", "direct_448_b16", "direct_448_b16 takes batches of 16, and has 12 images"),
    ):
        with pytest.raises(UserError, match=f"{says}; leave the row out with --rows"):
            reproduce(name, shapes, tmp_path / "out", micro_options(rows=[key], steps=2))
    assert not (tmp_path / "out").exists()
