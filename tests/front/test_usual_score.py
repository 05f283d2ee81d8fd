"""Which detections `infer` keeps where no score is asked for."""

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_infer_ids import interrupted
from tiny_artefact import CATEGORY_IDS, CLASSES, write_dataset
from videos import write_video

from directdet import Detector
from directdet.common.errors import UsageProblem, UserError
from directdet.data.dataset import load_dataset
from directdet.front import self_training
from directdet.front.cli import main
from directdet.infer.predict.images import predict
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predictor import USUAL_SCORE


@pytest.mark.parametrize(
    ("suggested", "words", "least", "told"),
    [
        (None, (), 0.3, "scores of at least 0.3 are kept (the default)"),
        ({"score": 0.65}, (), 0.65, "scores of at least 0.65 are kept (of the best F1 when it was exported)"),
        ({"score": 0.65}, ("--score", "0"), 0.0, ""),
        ({"score": "high"}, (), 0.3, "scores of at least 0.3 are kept (the default)"),
        ({"score": True}, (), 0.3, "scores of at least 0.3 are kept (the default)"),
        ("high", (), 0.3, "scores of at least 0.3 are kept (the default)"),
        ({"score": 2}, (), 0.3, "scores of at least 0.3 are kept (the default)"),
    ],
)
def test_the_score_that_is_kept(artefact, tmp_path, capsys, suggested, words, least, told):
    picture = np.zeros((192, 256, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    meta = json.loads((artefact / "meta.json").read_text())
    if suggested is not None:
        meta["suggested_score"] = suggested
    (artefact / "meta.json").write_text(json.dumps(meta))
    every = Detector(artefact, device="cpu")(picture).scores
    assert every.min() < 0.65 < every.max()  # so that the suggestion leaves something out
    assert main(["infer", str(artefact), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert told in said if told else "are kept" not in said
    found = json.loads((tmp_path / "out" / "detections.json").read_text())["annotations"]
    assert [one["score"] for one in found] == pytest.approx([score for score in every if score >= least], abs=1e-4)


# ---- A score for each class. The tiny artefact finds a person at 0.9 and a dog at 0.6, and knows traffic lights too.

PER_CLASS = {"score": 0.3, "per_class": {"person": 0.95, "dog": 0.5}}
TOLD = "0.95 (person), 0.3 (traffic light), 0.5 (dog)"


def with_scores(artefact: Path, suggested: object = PER_CLASS) -> Path:
    meta = json.loads((artefact / "meta.json").read_text())
    (artefact / "meta.json").write_text(json.dumps({**meta, "suggested_score": suggested}))
    return artefact


@pytest.mark.parametrize(
    ("words", "kept", "told"),
    [
        ((), ["dog"], f"scores of at least {TOLD} are kept (of the best F1 when it was exported); --score"),
        (("--score", "0.7"), ["person"], ""),
        (("--score", "0"), ["person", "dog"], ""),
        (("--classes", "dog"), ["dog"], "scores of at least 0.5 (dog) are kept"),
        (("--classes", "person"), [], "scores of at least 0.95 (person) are kept"),
        (("--tiles", "640"), ["dog"], f"scores of at least {TOLD} are kept"),
    ],
)
def test_each_class_is_kept_from_its_own_score(artefact, tmp_path, capsys, words, kept, told):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((192, 256, 3), np.uint8))
    model, out = str(with_scores(artefact)), tmp_path / "out"
    assert main(["infer", model, str(tmp_path / "a.png"), "--out", str(out), *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert told in said and f" {len(kept)} detections," in said and ("are kept" in said) == bool(told)
    told = json.loads((out / "detections.json").read_text())
    names = {one["id"]: one["name"] for one in told["categories"]}
    assert [names[one["category_id"]] for one in told["annotations"]] == kept
    drawn = Detector(artefact, device="cpu")(tmp_path / "a.png", classes=kept or ["traffic light"]).draw
    assert np.array_equal(cv2.imread(str(out / "a.png")), drawn(tmp_path / "a.png"))


def test_each_class_in_videos(artefact, tmp_path, capsys):
    source, out = write_video(tmp_path / "a.avi", 4), tmp_path / "out"
    assert main(["infer", str(with_scores(artefact)), str(source), "--out", str(out), "--no-pictures"]) == 0
    lines = [json.loads(line) for line in (out / "a.jsonl").read_text().splitlines()]
    assert [[one["name"] for one in line["detections"]] for line in lines] == [["dog"]] * 4
    said = " ".join(capsys.readouterr().out.split())
    assert "4 frames, 4 detections" in said and f"scores of at least {TOLD} are kept" in said


@pytest.mark.parametrize(
    ("suggested", "usual"),
    [
        (PER_CLASS, (0.95, 0.3, 0.5)),
        ({"score": 0.4, "per_class": {"dog": 0.5, "person": "high", "cat": 0.1}}, (0.4, 0.4, 0.5)),
        ({"score": 0.4, "per_class": {"dog": 2, "person": True}}, 0.4),
        ({"score": 0.4, "per_class": [0.5]}, 0.4),
        ({"per_class": {"dog": 0.5}}, USUAL_SCORE),  # of nothing that an export writes
    ],
)
def test_what_is_none_of_an_export_is_passed_over(artefact, suggested, usual):
    assert Detector(with_scores(artefact, suggested), device="cpu").usual_scores == usual


def test_a_score_for_each_class_in_python(artefact):
    detector, image = Detector(with_scores(artefact), device="cpu"), np.zeros((192, 256, 3), np.uint8)
    assert detector(image, score=detector.usual_scores).names == ["dog"]
    assert [one.names for one in detector([image, image], score=[0.0, 1.0, 1.0])] == [["person"]] * 2
    with pytest.raises(UsageProblem, match="score: 2 numbers for 3 classes; give one, or 3"):
        detector(image, score=(0.5, 0.5))
    with pytest.raises(UsageProblem, match=r"score: 1\.5; give a number from 0 to 1"):
        detector(image, score=(0.5, 0.5, 1.5))


def test_an_interrupted_run_goes_on_with_the_same_scores(artefact, tmp_path):
    detector = Detector(artefact, device="cpu")
    for number in range(5):
        (tmp_path / "in").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), np.full((192, 256, 3), number, np.uint8))
    options = PredictOptions((0.95, 0.3, 0.5), pictures=False)
    interrupted(detector, tmp_path / "in", tmp_path / "out", options)
    with pytest.raises(UserError, match=r"was started with score \[0\.95, 0\.3, 0\.5\], not 0\.5; use that"):
        predict(detector, tmp_path / "in", tmp_path / "out", PredictOptions(0.5, pictures=False), resume=True)
    summary = predict(detector, tmp_path / "in", tmp_path / "out", options, resume=True, progress=False)
    assert (summary.n_resumed, summary.n_images, summary.n_detections) == (3, 5, 5)


def test_pseudo_labels_of_each_class(artefact, tmp_path, monkeypatch):
    """The first step of self-training; the second one, the training, is left out."""
    monkeypatch.setattr(self_training, "run_training", lambda *given, **more: None)
    images = write_dataset(tmp_path).records
    (tmp_path / "data" / "train2017").mkdir(parents=True)
    images[0].path.rename(tmp_path / "data" / "train2017" / "1.png")
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    names = [{"id": number, "name": name} for number, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
    labels = {"images": [{"id": 1, "file_name": "1.png", "width": 256, "height": 192}], "annotations": [entry]}
    (tmp_path / "data" / "annotations").mkdir()
    (tmp_path / "data" / "annotations" / "instances_train2017.json").write_text(
        json.dumps({**labels, "categories": names})
    )
    said: list[str] = []
    call = {"data": tmp_path / "data", "out": tmp_path / "out", "recipe": "retinanet_r18_slim", "device": "cpu"}
    self_training.self_train(with_scores(artefact), tmp_path / "images", **call, say=said.append)
    assert "2 pseudo-labels in 2 of 2 pictures" in said
    pseudo = load_dataset(tmp_path / "out" / "pseudo-labels", "train")
    assert {pseudo.classes[label] for record in pseudo.records for label in record.labels} == {"dog"}
    assert f"with scores of at least {TOLD}\n" in (tmp_path / "out" / "pseudo-labels" / "dataset.toml").read_text()
    # The command that it says, which finds the scores in the artefact as well.
    command = shlex.split(said[0].split(": ", 1)[1])[1:]
    command[command.index("--out") + 1] = str(tmp_path / "by-hand")
    assert "--score" not in command and main([*command, "--device", "cpu"]) == 0
    files = [folder / "pseudo_labels.json" for folder in (tmp_path / "out" / "pseudo-labels", tmp_path / "by-hand")]
    assert files[0].read_bytes() == files[1].read_bytes()
    self_training.self_train(artefact, tmp_path / "images", **call, resume=True, say=said.append)
    assert f"1 of 2: kept: {tmp_path / 'out' / 'pseudo-labels'}" in said
    with pytest.raises(UserError, match=re.escape(f"score was {TOLD}, now 0.3; resume with the same")):
        self_training.self_train(artefact, tmp_path / "images", **call, resume=True, score=0.3)
    about = tmp_path / "out" / "round.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "per_class": [0.5]}))
    with pytest.raises(UserError, match=r"round\.json: per_class: 1 of 3 numbers; restore it"):
        self_training.self_train(artefact, tmp_path / "images", **call, resume=True)
