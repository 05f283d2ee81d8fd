"""Pseudo-labels as a dataset, and a round of self-training on them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys

import numpy as np
import pytest
import torch

from directdet.common.errors import UserError
from directdet.data.dataset import find_splits, load_dataset
from directdet.data.synthetic import make_synthetic
from directdet.front.cli import main
from directdet.infer.predict.images import predict
from directdet.infer.predict.options import PredictOptions
from directdet.infer.runtimes.load import load

TINY = ["model.width=16", "model.fpn_channels=16", "pretrain.size=64,64", "pretrain.eval_size=64,64"]
TINY += ["pretrain.batch_size=2", "pretrain.base_batch=2", "pretrain.max_steps=2", "pretrain.warmup_iterations=1"]
TINY += ["pretrain.workers=0", "model.score_threshold=0.001"]
SETTINGS = [part for setting in TINY for part in ("--set", setting)]
COMMON = ["--phase", "pretrain", "--device", "cpu", *SETTINGS]
SCORE = 0.0099  # an untrained RetinaNet gives 0.01 and a little more or less


def command(*parts):
    return main([str(part) for part in parts])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("labelled") / "data", 4, 2, seed=1, size=(64, 96))


@pytest.fixture(scope="module")
def teacher(labelled, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "run"
    assert command("train", "retinanet_r18_slim", "--data", labelled, "--out", out, *COMMON) == 0
    return out


@pytest.fixture(scope="module")
def pictures(labelled, tmp_path_factory):
    """A folder of unlabelled pictures, and links to all labelled ones, whose folder the user gives as it is."""
    folder = tmp_path_factory.mktemp("pictures") / "all of them"
    more = make_synthetic(tmp_path_factory.mktemp("more") / "data", 5, 1, seed=2, size=(64, 96))
    shutil.copytree(more / "train2017", folder)
    for split in ("train2017", "val2017"):
        for path in (labelled / split).iterdir():
            (folder / f"{split}_{path.name}").symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def round_one(labelled, teacher, pictures, tmp_path_factory):
    """The folder of a round."""
    out = tmp_path_factory.mktemp("round") / "one"
    assert command("self-train", teacher, pictures, "--out", out, "--score", SCORE, *COMMON) == 0
    return out


def test_pseudo_labels_are_a_dataset_of_what_was_found(teacher, pictures, tmp_path):
    (tmp_path / "a\rname").symlink_to(teacher)  # that no comment of a dataset.toml may hold
    detector = load(tmp_path / "a\rname", device="cpu")
    predict(detector, pictures, tmp_path / "usual", PredictOptions(SCORE, pictures=False))
    usual = json.loads((tmp_path / "usual" / "detections.json").read_text())
    best: dict[int, float] = {}
    for entry in usual["annotations"]:
        best[entry["image_id"]] = max(entry["score"], best.get(entry["image_id"], 0.0))
    score = sorted(best.values())[len(best) // 2]  # in half of the pictures, nothing is left
    options = PredictOptions(score, pictures=False, results="dataset")
    summary = predict(detector, pictures, tmp_path / "set", options)
    assert 0 < summary.n_empty < summary.n_images
    assert find_splits(tmp_path / "set") == ["train"]
    found = load_dataset(tmp_path / "set", "train")
    assert found.classes == detector.classes and found.category_ids == detector.category_ids and found.has_weights
    names = {image["id"]: image["file_name"] for image in usual["images"]}
    expected = {}
    for entry in usual["annotations"]:
        if entry["score"] >= score:
            expected.setdefault(names[entry["image_id"]], []).append(entry)
    assert {str(record.path) for record in found.records} == expected.keys()
    assert len(found) == summary.n_images - summary.n_empty
    for record in found.records:
        entries = expected[str(record.path)]
        boxes = np.array([entry["bbox"] for entry in entries])
        boxes[:, 2:] += boxes[:, :2]
        assert np.allclose(record.boxes, boxes, atol=1e-3)
        assert record.weights.tolist() == np.float32([entry["score"] for entry in entries]).tolist()
        ids = [detector.category_ids[label] for label in record.labels]
        assert ids == [entry["category_id"] for entry in entries]


def test_a_round_joins_both_sets_and_trains(round_one, labelled, capsys):
    own, joined = load_dataset(labelled, "train"), load_dataset(round_one, "train")
    pseudo = load_dataset(round_one / "pseudo-labels", "train")
    assert 0 < len(pseudo) <= 5 and len(joined) == len(own) + len(pseudo)
    assert not {record.path.name.split("_")[0] for record in pseudo.records} & {"train2017", "val2017"}
    weights = np.concatenate([record.weights for record in joined.records[: len(own)]])
    assert (weights == 1).all()
    for record, theirs in zip(joined.records[len(own) :], pseudo.records, strict=True):
        assert np.array_equal(record.weights, theirs.weights) and (record.weights < 1).all()
    assert len(load_dataset(round_one, "val")) == len(load_dataset(labelled, "val"))
    about = json.loads((round_one / "run" / "pretrain" / "run.json").read_text())
    assert about["images"] == len(joined) and about["recipe"]["name"] == "retinanet_r18_slim"


def test_the_commands_that_it_says_do_the_same(teacher, pictures, labelled, tmp_path, capsys):
    out = tmp_path / "round"
    assert command("self-train", teacher, pictures, "--out", out, "--score", SCORE, *COMMON) == 0
    said = [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines() if " of 2: directdet" in line]
    infer, train = (shlex.split(line)[1:] for line in said)
    infer[infer.index("--out") + 1] = str(tmp_path / "by-hand")
    train[train.index("--out") + 1] = str(tmp_path / "run")
    assert command(*infer, "--device", "cpu") == command(*train, "--device", "cpu") == 0
    texts = [folder / "pseudo_labels.json" for folder in (out / "pseudo-labels", tmp_path / "by-hand")]
    assert texts[0].read_bytes() == texts[1].read_bytes()
    models = [
        torch.load(run / "pretrain" / "checkpoints" / "last.pt", weights_only=True)["model"]
        for run in (out / "run", tmp_path / "run")
    ]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_second_call_needs_resume_and_keeps_what_is_there(round_one, teacher, pictures, tmp_path, capsys):
    call = ["self-train", teacher, pictures, "--score", SCORE, *COMMON]
    assert command(*call, "--out", round_one) == 1
    assert "holds a round of self-training already; give --resume" in capsys.readouterr().err
    out = tmp_path / "one"
    shutil.copytree(round_one, out)
    shutil.rmtree(out / "run")  # stopped between the two steps
    before = (out / "pseudo-labels" / "pseudo_labels.json").stat().st_mtime_ns
    assert command(*call, "--out", out, "--resume") == 0
    assert (
        "1 of 2: kept" in capsys.readouterr().out and (out / "run" / "pretrain" / "checkpoints" / "last.pt").is_file()
    )
    assert (out / "pseudo-labels" / "pseudo_labels.json").stat().st_mtime_ns == before
    assert command(*call, "--out", out, "--resume") == 0  # nothing is left to do


def test_pseudo_labels_of_another_model_or_score_are_not_gone_on_with(round_one, teacher, pictures, tmp_path, capsys):
    call = ["self-train", teacher, pictures, *COMMON, "--resume"]
    out = tmp_path / "one"
    shutil.copytree(round_one, out)
    assert command(*call, "--out", out, "--score", 0.0098) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "round.json: the pseudo-labels were made otherwise: score was 0.0099, now 0.0098; resume with" in error
    moved = tmp_path / "teacher"
    shutil.copytree(teacher, moved)
    assert command("self-train", moved, *call[2:], "--out", out, "--score", SCORE) == 0  # the same by another name
    for path in (moved / "pretrain" / "checkpoints").iterdir():  # as if it had been trained on
        torch.save({**torch.load(path, weights_only=True), "more": 1}, path)
    capsys.readouterr()
    assert command("self-train", moved, *call[2:], "--out", out, "--score", SCORE) == 1
    assert f"model was {teacher}, now {moved}, or another version of it" in capsys.readouterr().err.replace("\n", " ")
    (out / "round.json").unlink()  # as rounds of before have none
    assert command("self-train", moved, *call[2:], "--out", out, "--score", SCORE) == 0


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no such names")
def test_a_folder_whose_name_no_toml_can_hold_is_refused_at_once(teacher, pictures, labelled, tmp_path, capsys):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(pictures, odd, symlinks=True)
    more = ["--score", SCORE, "--device", "cpu", "--out", tmp_path / "out"]
    assert command("infer", teacher, odd, "--format", "dataset", "--no-pictures", *more) == 1
    said = "its name is not UTF-8, which no dataset.toml can hold; rename it"
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
    shutil.copytree(labelled, odd / "data")
    assert command("self-train", teacher, pictures, "--data", odd / "data", *more) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_cannot_be_is_refused(teacher, labelled, pictures, tmp_path, capsys):
    assert command("self-train", tmp_path / "none", pictures, "--out", tmp_path / "a") == 1
    assert "none: not found; give an artefact folder, a run folder" in capsys.readouterr().err
    checkpoint = teacher / "pretrain" / "checkpoints" / "last.pt"
    assert command("self-train", checkpoint, pictures, "--out", tmp_path / "a") == 2
    assert "--data DATA is missing" in capsys.readouterr().err
    assert command("self-train", teacher, labelled / "train2017", "--out", tmp_path / "b", "--device", "cpu") == 1
    assert "all of its 4 images are in" in capsys.readouterr().err
    assert command("self-train", teacher, pictures, "--out", tmp_path / "c", "--score", 0.99, "--device", "cpu") == 1
    assert "no score reaches 0.99; give a lower --score, and --resume" in capsys.readouterr().err
    call = ["self-train", teacher, pictures, "--out", tmp_path / "c", "--resume"]
    assert command(*call, "--score", 0.99, "--device", "cpu") == 1  # and trains on none then either
    assert command(*call, "--score", SCORE, *COMMON) == 0
    assert len(load_dataset(tmp_path / "c" / "pseudo-labels", "train")) > 0


def test_a_set_may_be_a_dataset_but_not_itself(labelled, tmp_path):
    (tmp_path / "dataset.toml").write_text(f'[[sets]]\ndata = "{labelled}"\n')
    for split in ("train", "val"):
        found, theirs = load_dataset(tmp_path, split), load_dataset(labelled, split)
        assert [record.path for record in found.records] == [record.path for record in theirs.records]
        assert (found.classes, found.category_ids) == (theirs.classes, theirs.category_ids)
    for text, message in (
        ('data = "."', "joins itself"),
        (f'data = "{labelled}"\nfolder = "."', "give either data, or folder"),
        ('data = "nowhere"', "dataset folder not found"),
    ):
        (tmp_path / "dataset.toml").write_text(f"[[sets]]\n{text}\n")
        with pytest.raises(UserError, match=message):
            load_dataset(tmp_path, "train")
