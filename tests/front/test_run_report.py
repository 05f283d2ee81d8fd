"""`directdet train` leaves a page about the run, which costs no evaluation and never the run."""

from __future__ import annotations

import json

import pytest
from page_reader import loads_nothing, read

from directdet.front import evaluation_report
from directdet.front.cli import main
from directdet.train import loop

MODEL = {"width": 8, "fpn_channels": 16, "box_convs": 1, "box_features": 16, "mask_convs": 1, "mask_channels": 8}
FEW = {"train_pre_nms": 64, "train_proposals": 32, "test_pre_nms": 64, "test_proposals": 32, "candidates": 64}


def command(data, out, *more):
    settings = [f"model.{name}={value}" for name, value in {**MODEL, **FEW}.items()]
    for phase, size in (("pretrain", "64,64"), ("finetune", "64,96")):
        once = {"batch_size": 4, "epochs": 1, "workers": 0, "eval_every": 1, "size": size, "eval_size": "64,64"}
        settings += [f"{phase}.{name}={value}" for name, value in once.items()]
    start = ["train", "mask_rcnn_r18_slim", "--data", str(data), "--out", str(out), "--device", "cpu"]
    return [*start, *(word for one in settings for word in ("--set", one)), *more]


@pytest.mark.slow
def test_a_run_ends_with_its_page(shapes, tmp_path, capsys, monkeypatch):
    evaluations, detect = [], loop.detect
    monkeypatch.setattr(loop, "detect", lambda *given: evaluations.append(1) or detect(*given))
    out = tmp_path / "run"
    assert main(command(shapes, out)) == 0
    assert len(evaluations) == 2  # one a phase, none for the page
    printed = capsys.readouterr().out.rstrip().splitlines()
    assert printed[-2] == f"report: {out / 'report.html'}"
    assert printed[-1] == f"next: directdet export {out} --out ARTEFACT"
    page = (out / "report.html").read_text()
    assert loads_nothing(page)
    text = read(page).text
    for words in ("Learning rate.", "pretrain", "finetune", "Score threshold", "end of the finetune phase"):
        assert words in text
    told = json.loads((out / "report.json").read_text())
    rows = [json.loads(line) for line in (out / "finetune" / "log.jsonl").read_text().splitlines()]
    assert told["bbox"] == rows[-1]["bbox"] and told["recipe"] == "mask_rcnn_r18_slim"
    # Resumed when it is at its end, it makes no evaluation, and the page stays.
    before = (out / "report.html").read_bytes()
    assert main(command(shapes, out, "--resume")) == 0
    assert "report:" not in capsys.readouterr().out
    assert (out / "report.html").read_bytes() == before and len(evaluations) == 2


@pytest.mark.slow
def test_a_fault_of_the_page_is_one_line(shapes, tmp_path, capsys, monkeypatch):
    def fails(*given):
        raise ValueError("no ink")

    monkeypatch.setattr(evaluation_report, "write_evaluation", fails)
    out = tmp_path / "run"
    assert main(command(shapes, out, "--phase", "pretrain")) == 0
    assert (out / "pretrain" / "checkpoints" / "last.pt").is_file()
    told = capsys.readouterr()
    assert f"warning: {out / 'report.html'}: not written: no ink" in told.err and "Traceback" not in told.err
    assert "report:" not in told.out
