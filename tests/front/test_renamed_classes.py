"""Classes renamed by dataset.toml are to every command what they would be in an annotation file rewritten by hand."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_artefact import write_dataset

from directdet.data.synthetic import make_synthetic
from directdet.front.cli import main

# The tiny artefact knows person, traffic light and dog.
RENAMED = """
format = "coco"
[classes]
man = "person"
woman = "person"
signal = "traffic light"
bicycle = false
"""
OLD = {3: "man", 4: "signal", 6: "woman", 8: "dog", 9: "bicycle"}
NEW = {3: "person", 4: "traffic light", 8: "dog"}
FILE = "annotations/instances_val2017.json"


def call(*arguments):
    return main([str(argument) for argument in arguments])


def entry(number, image, category, box, **more):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        **more,
    }


@pytest.fixture
def both(tmp_path):
    """The same set twice: with dataset.toml, and with its annotation file rewritten by hand."""
    (tmp_path / "source").mkdir()
    dataset = write_dataset(tmp_path / "source")
    images, annotations = [], []
    for record in dataset.records:
        number = record.image_id
        images.append({"id": number, "file_name": record.path.name, "width": record.width, "height": record.height})
        for row, (x0, y0, x1, y1) in enumerate(record.boxes.tolist()):
            old = (6 if number == 2 else 3) if row == 0 else 8
            wide = x1 - x0 - 12 * (number == 3)  # so AP is not 1
            annotations.append(entry(10 * number + row, number, old, [x0, y0, wide, y1 - y0]))
        annotations.append(entry(10 * number + 5, number, 9, [5, 5, 50, 50]))
    annotations += [
        entry(1, 1, 6, [130, 100, 40, 40], difficult=1),
        entry(2, 1, 3, [0, 0, 256, 192], iscrowd=1),
        entry(3, 1, 4, [5, 150, 20, 20]),
    ]
    rewritten = [
        {**one, "category_id": {6: 3}.get(one["category_id"], one["category_id"])}
        for one in annotations
        if one["category_id"] != 9
    ]
    for name, names, objects in (("renamed", OLD, annotations), ("by_hand", NEW, rewritten)):
        shutil.copytree(dataset.records[0].path.parent, tmp_path / name / "val2017")
        (tmp_path / name / "annotations").mkdir()
        categories = [{"id": number, "name": text} for number, text in names.items()]
        content = {"images": images, "annotations": objects, "categories": categories}
        (tmp_path / name / FILE).write_text(json.dumps(content))
    (tmp_path / "renamed" / "dataset.toml").write_text(RENAMED)
    return tmp_path / "renamed", tmp_path / "by_hand"


def test_eval_and_benchmark_see_the_new_classes(both, artefact, tmp_path, capsys):
    renamed, by_hand = both
    found = {}
    for data in both:
        out = tmp_path / f"{data.name}.json"
        results = tmp_path / f"{data.name}_results.json"
        assert call("eval", artefact, "--data", data, "--json", out, "--results", results, "--device", "cpu") == 0
        found[data] = json.loads(out.read_text())["bbox"], json.loads(results.read_text())
    assert found[renamed] == found[by_hand] and 0.2 < found[renamed][0]["AP"] < 0.9
    # Ids are those of the file, so pycocotools alone finds the same on the file that was rewritten.
    content = json.loads((by_hand / FILE).read_text())
    # Nothing is found near the difficult object, so ignoring it and leaving it out are the same.
    content["annotations"] = [one for one in content["annotations"] if not one.get("difficult")]
    alone = pycocotools_ap(content, tmp_path / "renamed_results.json", tmp_path)
    assert alone == pytest.approx(found[renamed][0]["AP"], abs=1e-9)
    aps = []
    for data in both:
        out = tmp_path / f"{data.name}_benchmark"
        few = ("--iterations", 2, "--warmup", 1, "--device", "cpu", "--runtime", "onnxruntime")
        assert call("benchmark", artefact, "--data", data, "--out", out, *few) == 0
        (cell,) = json.loads((out / "benchmark.json").read_text())["cells"]
        aps.append(cell["metrics"]["bbox"]["AP"])
    assert aps == [found[renamed][0]["AP"]] * 2
    (renamed / "dataset.toml").write_text('format = "coco"')
    assert call("eval", artefact, "--data", renamed, "--device", "cpu") == 1
    assert "only in the dataset: ['man'" in capsys.readouterr().err


@pytest.mark.usefixtures("both")
def test_infer_on_joined_sets_has_ids_of_its_own(artefact, tmp_path):
    """Both sets have images 1, 2 and 3 of the same names; a third names pictures of the second once more."""
    (tmp_path / "dataset.toml").write_text(
        '[[sets]]\nformat = "coco"\nfolder = "renamed"\n'
        'classes = {man = "person", woman = "person", signal = "traffic light", bicycle = false}\n'
        '[[sets]]\nformat = "coco"\nfolder = "by_hand"\n'
    )
    assert call("eval", artefact, "--data", tmp_path, "--json", tmp_path / "eval.json", "--device", "cpu") == 0
    order = ("infer", artefact, tmp_path, "--split", "val", "--out", tmp_path / "out", "--score", 0, "--device", "cpu")
    assert call(*order) == 0
    convert = ("convert", tmp_path, "--to", "coco", "--out", tmp_path / "merged")
    assert call(*convert) == 0
    content = json.loads((tmp_path / "merged" / FILE).read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4, 5, 6]
    content["annotations"] = [one for one in content["annotations"] if not one.get("difficult")]
    found = json.loads((tmp_path / "eval.json").read_text())["bbox"]["AP"]
    assert pycocotools_ap(content, tmp_path / "out" / "detections.json", tmp_path) == pytest.approx(found, abs=1e-9)
    with open(tmp_path / "dataset.toml", "a") as file:
        file.write(f'[[sets]]\nimages = "by_hand/val2017"\nannotations = "by_hand/{FILE}"\nsplit = "val"\n')
    assert call(*order[:-6], "--out", tmp_path / "again", "--score", 0, "--device", "cpu") == 0
    boxes = json.loads((tmp_path / "again" / "detections.json").read_text())
    assert len(boxes) == 12 and {one["image_id"] for one in boxes} == {1, 2, 3, 4, 5, 6}


def pycocotools_ap(content, results, tmp_path):
    """AP by pycocotools alone, from the files."""
    (tmp_path / "truth.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


def test_training_learns_the_new_classes_and_resumes_on_them_alone(tmp_path, capsys):
    data = make_synthetic(tmp_path / "renamed", 6, 2, (64, 80))
    shutil.copytree(data, tmp_path / "by_hand")
    for split in ("train", "val"):
        path = tmp_path / "by_hand" / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        first, second, *others = content["categories"]
        content["categories"] = [{**first, "name": "shape"}, *others[1:]]
        content["annotations"] = [
            {**one, "category_id": first["id"] if one["category_id"] == second["id"] else one["category_id"]}
            for one in content["annotations"]
            if one["category_id"] != others[0]["id"]
        ]
        path.write_text(json.dumps(content))
    line = f'"{first["name"]}" = "shape"\n"{second["name"]}" = "shape"\n"{others[0]["name"]}" = false\n'
    (data / "dataset.toml").write_text(f'format = "coco"\n[classes]\n{line}')
    stored, weights = [], []
    for name in ("renamed", "by_hand"):
        assert train(tmp_path / name, tmp_path / f"run_{name}") == 0
        stored.append(json.loads((tmp_path / f"run_{name}" / "pretrain" / "run.json").read_text()))
        last = tmp_path / f"run_{name}" / "pretrain" / "checkpoints" / "last.pt"
        weights.append(torch.load(last, weights_only=True))
    assert "->shape" in re.sub(r"[^->a-z]", "", capsys.readouterr().out)  # what was renamed is told before training
    assert stored[0]["content"] == stored[1]["content"] and stored[0]["classes"][0] == "shape"
    for key in ("classes", "category_ids"):
        assert weights[0][key] == weights[1][key]
    assert weights[0]["model"].keys() == weights[1]["model"].keys()
    assert all(torch.equal(value, weights[1]["model"][key]) for key, value in weights[0]["model"].items())
    assert train(data, tmp_path / "run_renamed", "--resume") == 0
    (data / "dataset.toml").write_text(f'format = "coco"\n[classes]\n{line.replace("shape", "thing")}')
    assert train(data, tmp_path / "run_renamed", "--resume") == 1
    assert "was started on data with other classes" in capsys.readouterr().err


def train(data, run, *more):
    small = ("pretrain.size=64", "pretrain.batch_size=2", "pretrain.max_steps=2", "pretrain.workers=0", "model.width=8")
    given = [part for one in (*small, "pretrain.eval_every=0", "model.fpn_channels=16") for part in ("--set", one)]
    order = ("train", "rtmdet_nano", "--data", data, "--out", run, "--phase", "pretrain", "--device", "cpu")
    return call(*order, *given, *more)
