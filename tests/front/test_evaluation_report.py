"""The page that tells where a model errs: whole, self-contained, and made by `eval --report`."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from page_reader import loads_nothing, read

from directdet.data.dataset import load_dataset
from directdet.data.synthetic import make_synthetic
from directdet.front.cli import main
from directdet.infer.accuracy.analysis import analyse
from directdet.infer.accuracy.evaluate import Evaluation, score_detections
from directdet.infer.detections import Detections
from directdet.pages.evaluation import EvaluationPage, render, write_evaluation

EVIL = "<script>alert('&')</script>"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset(make_synthetic(tmp_path_factory.mktemp("page") / "data", 1, 6, (64, 80)), "val")


def detections(dataset, seed=0):
    """Objects moved a little, one of four in another class, and a confident box in a corner."""
    rng, found = np.random.default_rng(seed), []
    for record in dataset.records:
        boxes = np.concatenate([record.boxes + rng.uniform(0, 2, record.boxes.shape), [[0, 0, 5, 5]]])
        labels = np.append(np.where(rng.random(len(boxes) - 1) < 0.25, 0, record.labels), 0)
        size = (record.height, record.width)
        found.append((record.image_id, Detections(boxes, 0.5 + rng.random(len(boxes)) / 2, labels, None, size)))
    return found


def evaluation(dataset, found):
    return Evaluation(score_detections(found, dataset), found, dataset, dataset.records)


def rendered(page):
    one = page.evaluation
    return render(page, analyse(one.found, one.dataset, one.records))


def test_texts_are_escaped_and_nothing_is_loaded(dataset):
    evil = replace(dataset, classes=tuple(f"{EVIL}{number}" for number in range(len(dataset.classes))))
    page = rendered(EvaluationPage(EVIL, EVIL, evaluation(evil, detections(evil)), {EVIL: EVIL}, comparison=EVIL))
    assert loads_nothing(page) and "<script" not in page
    assert read(page).text.count(EVIL) >= 10


def test_numbers_are_those_of_the_evaluation(dataset, tmp_path):
    one = evaluation(dataset, detections(dataset))
    path = write_evaluation(EvaluationPage("t", "i", one), tmp_path / "new", {"model": "m"})
    told = json.loads((tmp_path / "new" / "report.json").read_text())
    assert told["model"] == "m" and told["bbox"] == one.metrics.bbox
    text = read(path.read_text()).text
    assert f"{100 * one.metrics.bbox['AP']:.1f}" in text and f"{told['suggested']['score']:.3f}" in text
    for name, suggested in told["suggested_per_class"].items():
        assert name in text and f"{suggested['score']:.3f}" in text
    for heading in ("Accuracy", "Score threshold", "Errors", "Calibration", "Worst pictures", "Likely label errors"):
        assert heading in text
    assert "Learning" not in text and "Compared" not in text


def test_every_picture_is_a_small_jpeg_with_a_name(dataset):
    page = rendered(EvaluationPage("t", "i", evaluation(dataset, detections(dataset))))
    images = [attributes for tag, attributes in read(page).seen if tag == "img"]
    assert len(images) > 2 * len(dataset) and all(image["alt"] for image in images)
    assert all(image["src"].startswith("data:image/jpeg;base64,") and len(image["src"]) < 100_000 for image in images)


def test_whether_the_classes_need_their_own_thresholds(dataset, tmp_path):
    """Objects of the first class are found at 0.75, of the others at 0.375; beside them one of the first is seen at 0.5
    and one of each other at 0.125, so that any score for all takes something wrong or misses something."""
    assert "A threshold for each class" not in rendered(EvaluationPage("t", "i", evaluation(dataset, [])))  # too few
    many, found = load_dataset(make_synthetic(tmp_path / "data", 1, 40, (64, 80)), "val"), []
    for record in many.records:
        labels = np.append(record.labels, np.arange(len(many.classes)))
        boxes = np.concatenate([record.boxes, np.tile([[0, 0, 2, 2]], (len(many.classes), 1))])
        scores = np.where(labels == 0, 0.75, 0.375) - np.where(np.arange(len(labels)) < len(record.labels), 0, 0.25)
        found.append((record.image_id, Detections(boxes, scores, labels, None, (64, 80))))
    path = write_evaluation(EvaluationPage("t", "i", evaluation(many, found)), tmp_path / "new", {})
    told = json.loads((tmp_path / "new" / "report.json").read_text())["class_scores"]
    common = " and ".join(f"{100 * f1:.1f}" for f1 in told["held_out_f1"]["common"])
    assert told["help"] and told["held_out_f1"]["per_class"] == [1.0, 1.0]
    said = f"the other half is {common} % with one for all, 100.0 and 100.0 % with one for each class"
    assert "A threshold for each class is better" in path.read_text() and said in path.read_text()


@pytest.mark.parametrize("case", ["no detections", "no objects", "one picture", "nothing wrong"])
def test_parts_may_be_missing(dataset, case):
    found = detections(dataset)
    if case == "no detections":
        found = []
    elif case == "no objects":
        records = tuple(without_objects(record) for record in dataset.records)
        dataset = replace(dataset, records=records)
    elif case == "one picture":
        dataset, found = replace(dataset, records=dataset.records[:1]), found[:1]
    else:
        found = [
            (r.image_id, Detections(r.boxes, np.ones(len(r.boxes)), r.labels, None, (r.height, r.width)))
            for r in dataset.records
        ]
    page = rendered(EvaluationPage("t", "i", evaluation(dataset, found)))
    assert loads_nothing(page)
    assert ("Worst pictures" in page) == (case != "nothing wrong")


def without_objects(record):
    empty = {"segmentations": (), "annotation_ids": ()}
    arrays = ("boxes", "labels", "crowd", "difficult", "areas", "weights")
    return replace(record, **empty, **{name: getattr(record, name)[:0] for name in arrays})


def test_many_classes_list_their_confusions(dataset):
    names = tuple(f"class {number}" for number in range(40))
    many = replace(dataset, classes=names, category_ids=tuple(range(1, 41)))
    page = rendered(EvaluationPage("t", "i", evaluation(many, detections(many))))
    assert 'class="matrix"' not in page and "most frequent confusions" in page
    assert 'class="matrix"' in rendered(EvaluationPage("t", "i", evaluation(dataset, detections(dataset))))


def test_curves_of_a_run(dataset):
    log = {"one": [{"kind": "step", "step": 1, "loss": 2.0, "lr": 0.1}, {"kind": "step", "step": 2, "loss": 1.0}]}
    page = rendered(EvaluationPage("t", "i", evaluation(dataset, detections(dataset)), log=log))
    text = read(page).text
    assert "Learning rate." in text and "training loss" in text


def test_eval_writes_it(artefact, tiny_data, tmp_path, capsys):
    out = tmp_path / "report"
    command = ["eval", str(artefact), "--data", str(tiny_data), "--device", "cpu", "--report", str(out)]
    assert main(command) == 0
    assert f"written: {out / 'report.html'}" in capsys.readouterr().out.replace("\n", "")
    told = json.loads((out / "report.json").read_text())
    assert told["model"]["runtime"] == "onnxruntime" and told["bbox"]["AP"] == pytest.approx(1)
    assert told["dataset"] == {"root": str(tiny_data), "split": "val"}
    assert loads_nothing((out / "report.html").read_text())


def test_against_another_model(artefact, tiny_data, tmp_path, capsys):
    command = ["eval", str(artefact), "--data", str(tiny_data), "--device", "cpu", "--against"]
    numbers, out = tmp_path / "numbers.json", tmp_path / "report"
    assert main([*command, str(artefact), "--json", str(numbers), "--report", str(out)]) == 0
    sentence = f"{artefact} and {artefact} are not told apart by 3 pictures; fewer than 10 never do: box AP 100.0 "
    assert sentence in capsys.readouterr().out
    told = json.loads(numbers.read_text())["against"]
    assert told["box"]["verdict"] == "not told apart"
    assert sentence in read((out / "report.html").read_text()).text
    assert main([*command, str(tmp_path / "none")]) == 1
    told = capsys.readouterr()
    assert str(tmp_path / "none") in told.err and "COCO AP" not in told.out  # before the evaluation


def test_a_place_that_cannot_be_written_is_told_first(artefact, tiny_data, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    command = ["eval", str(artefact), "--data", str(tiny_data), "--device", "cpu", "--report", str(tmp_path / "file")]
    assert main(command) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err.replace("\n", "")


@pytest.fixture
def tiny_data(tiny_dataset, tmp_path):
    """The tiny dataset as a COCO folder."""
    root = tmp_path / "coco"
    (root / "val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    annotations = []
    for record in tiny_dataset.records:
        cv2.imwrite(str(root / "val2017" / f"{record.image_id}.png"), cv2.imread(str(record.path)))
        for box, label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
            x0, y0, x1, y1 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": tiny_dataset.category_ids[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    names = zip(tiny_dataset.category_ids, tiny_dataset.classes, strict=True)
    content = {
        "images": [
            {"id": r.image_id, "file_name": f"{r.image_id}.png", "width": r.width, "height": r.height}
            for r in tiny_dataset.records
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in names],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root
