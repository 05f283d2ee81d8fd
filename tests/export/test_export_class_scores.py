"""An export on pictures where the classes need thresholds of their own, and what then reads them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from export_helpers import SIZE, canvases

from directdet.data.dataset import load_dataset
from directdet.export.run import export, report
from directdet.front.cli import main
from directdet.infer.accuracy.class_scores import class_scores
from directdet.infer.accuracy.evaluate import detect
from directdet.infer.accuracy.matches import match
from directdet.infer.accuracy.score_curves import score_curve
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.load import load

sys.path.append(str(Path(__file__).parents[2] / "examples" / "standalone"))
import run_onnx

pytestmark = pytest.mark.slow  # an export and its verification

PICTURES = 40
SHARES = (0.2, 1.0, 1.0, 0.4)  # of what is found of a class, the best are objects


@pytest.fixture(scope="module")
def truth(checkpoint, tmp_path_factory) -> Path:
    """Pictures whose objects are what the checkpoint finds, of each class from another score on."""
    folder, detector = tmp_path_factory.mktemp("truth"), load(checkpoint, device="cpu")
    (folder / "val2017").mkdir()
    pixels = canvases(PICTURES, SIZE, 5, Preprocess(SIZE))[0]
    found = [detector(image) for image in pixels]
    scores, labels = (np.concatenate([getattr(one, name) for one in found]) for name in ("scores", "labels"))
    least = [np.quantile(scores[labels == label], 1 - share) for label, share in enumerate(SHARES)]
    images, annotations = [], []
    for number, (image, one) in enumerate(zip(pixels, found, strict=True), start=1):
        cv2.imwrite(str(folder / "val2017" / f"{number}.png"), image)
        images.append({"id": number, "file_name": f"{number}.png", "width": SIZE[1], "height": SIZE[0]})
        for entry in one.above(least).without_masks().to_coco(number):
            area = entry["bbox"][2] * entry["bbox"][3]
            annotations.append({**entry, "id": len(annotations) + 1, "area": area, "iscrowd": 0})
            del annotations[-1]["score"]
    names = [{"id": number, "name": name} for number, name in zip(detector.category_ids, detector.classes, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": names}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


def test_the_scores_of_the_classes_from_export_to_use(checkpoint, truth, tmp_path, capsys):
    result = export(checkpoint, tmp_path / "artefact", data=truth)
    report(result)
    assert "F1 is better with a score threshold for each class" in capsys.readouterr().out
    artefact, dataset = result.artefact, load_dataset(truth, "val")
    detector = load(artefact, device="cpu")
    matches = match(detect(detector, dataset, dataset.records), dataset.records)
    told, common = class_scores(matches, 4, range(PICTURES)), score_curve(matches, 4).suggestion
    assert told.help and min(told.f1) > max(told.common_f1)
    suggested = json.loads((artefact / "meta.json").read_text())["suggested_score"]
    own = {detector.classes[label]: score for label, score in told.scores.items()}
    assert suggested == {
        **common,
        "images": PICTURES,
        "per_class": own,
        "held_out_f1": {"common": list(told.common_f1), "per_class": list(told.f1)},
    }
    usual = detector.usual_scores
    assert usual == tuple(own.get(name, common["score"]) for name in detector.classes) and len(set(usual)) > 1
    text = (artefact / "README.md").read_text()
    assert "| label | category id | name | least score |\n| --- | --- | --- | --- |" in text
    for label, (number, name) in enumerate(zip(detector.category_ids, detector.classes, strict=True)):
        assert f"| {label} | {number} | {name} | {usual[label]:g} |" in text
    assert "Better is a least score for each class" in text
    # What is kept without a score, by each program.
    picture = truth / "val2017" / "7.png"
    image = cv2.imread(str(picture))
    expected = detector(image).above(usual)
    assert 0 < len(expected) != len(detector(image).above(common["score"]))
    assert main(["infer", str(artefact), str(picture), "--out", str(tmp_path / "out"), "--no-pictures"]) == 0
    entries = json.loads((tmp_path / "out" / "detections.json").read_text())
    entries = entries["annotations"] if isinstance(entries, dict) else entries
    assert [one["score"] for one in entries] == pytest.approx(expected.scores.tolist(), abs=1e-6)
    meta, session = run_onnx.load(artefact)
    found = run_onnx.detect(meta, session, image, run_onnx.least_scores(meta, None))
    assert [one["label"] for one in found] == expected.labels.tolist()
