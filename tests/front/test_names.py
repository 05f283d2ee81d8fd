"""Class and file names with brackets and control characters, through the verbs that print them."""

import json
import re
import shutil

import numpy as np
import pytest

from directdet.data.synthetic import make_synthetic
from directdet.front.cli import main
from directdet.infer.detections import Detections
from directdet.infer.draw import draw

NAMES = ["bolt [M8]", "x[/hex]", ":car:", "\x1b[31mred\x1b]0;title\x07"]
SHOWN = ["bolt [M8]", "x[/hex]", ":car:", "\\x1b[31mred"]
TINY = ["model.width=16", "model.fpn_channels=16", "pretrain.size=64,64", "pretrain.eval_size=64,64"]
TINY += ["pretrain.batch_size=4", "pretrain.base_batch=4", "pretrain.max_steps=2", "pretrain.warmup_iterations=1"]


def train_and_evaluate(data, out, capsys):
    """What training a tiny detector and its evaluation by class print."""
    settings = [part for setting in TINY for part in ("--set", setting)]
    command = ["train", "retinanet_r18_slim", "--data", str(data), "--out", str(out), "--phase", "pretrain"]
    assert main([*command, "--device", "cpu", *settings]) == 0
    assert main(["eval", str(out), "--data", str(data), "--per-class"]) == 0
    return capsys.readouterr()


@pytest.fixture
def named(tmp_path):
    """A dataset in a folder "[bold]data" with names that rich or a terminal would obey."""
    root = make_synthetic(tmp_path / "[bold]data[/x]", 4, 2, seed=1, size=(64, 96))
    for split in ("train", "val"):
        file = root / "annotations" / f"instances_{split}2017.json"
        content = json.loads(file.read_text())
        for category, name in zip(content["categories"], NAMES, strict=True):
            category["name"] = name
        file.write_text(json.dumps(content))
    return root


def test_names_are_printed_as_they_are(named, tmp_path, capsys):
    assert main(["check-data", str(named)]) == 0
    checked = capsys.readouterr().out
    assert "[bold]data[/x]" in checked
    found = train_and_evaluate(named, tmp_path / "[red]run", capsys)
    assert "[red]run" in found.out
    for text in (checked, found.out):
        assert all(name in text for name in SHOWN)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)


def test_errors_do_not_reach_the_terminal_raw(tmp_path, capsys):
    assert main(["check-data", str(tmp_path / "no\x1b[2J[/x]")]) in (1, 2)
    error = capsys.readouterr().err
    assert "no\\x1b[2J[/x]" in error and "\x1b[2J" not in error


def test_every_name_can_be_drawn():
    names = (*NAMES, "caf\udce9", "\0")
    boxes = np.float32([[5, 5, 50, 40]] * len(names))
    found = Detections(boxes, np.ones(len(names), np.float32), np.arange(len(names)), None, (60, 80))
    assert draw(np.zeros((60, 80, 3), np.uint8), found, names).any()


@pytest.mark.parametrize("name", ["data", "closing"])
def test_case_class_names_in_brackets(data_cases, tmp_path, capsys, name):
    root = shutil.copytree(data_cases / "class_names_in_brackets" / name, tmp_path / "data")
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    found = train_and_evaluate(root, tmp_path / "run", capsys)
    for category in content["categories"]:
        assert f"{category['name']}, box" in found.out
