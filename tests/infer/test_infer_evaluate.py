"""AP: oracles from pycocotools itself, on the original annotation file."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from directdet.common.errors import UserError
from directdet.data import dataset as dataset_module
from directdet.data.dataset import load_dataset
from directdet.data.records import make_record
from directdet.front.cli import main
from directdet.infer.accuracy import coco_ap
from directdet.infer.accuracy.coco_ap import coco_ground_truth
from directdet.infer.accuracy.evaluate import METRIC_NAMES, evaluate, score_detections
from directdet.infer.accuracy.voc_ap import voc_precision
from directdet.infer.detections import Detections
from directdet.infer.runtimes.load import load


def truth_as_detections(dataset, keep=lambda record, index: True):
    """The ground truth's boxes (no crowds) as detections."""
    found = []
    for record in dataset.records:
        rows = [index for index in range(len(record.boxes)) if not record.crowd[index] and keep(record, index)]
        scores = np.linspace(1, 0.5, len(rows))
        size = (record.height, record.width)
        found.append((record.image_id, Detections(record.boxes[rows], scores, record.labels[rows], None, size)))
    return found


def perturbed(dataset, seed: int = 0):
    """Ground truth moved a little, some of it relabelled, doubled or lost, with random masks' scores."""
    rng = np.random.default_rng(seed)
    found = []
    for record in dataset.records:
        boxes, labels = np.repeat(record.boxes, 2, 0), np.repeat(record.labels, 2)
        keep = rng.random(len(boxes)) < 0.7
        sizes = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        boxes = boxes + rng.normal(0, 0.08, boxes.shape).astype(np.float32) * sizes
        boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1)
        labels = np.where(rng.random(len(labels)) < 0.1, rng.integers(0, len(dataset.classes), len(labels)), labels)
        masks = np.clip(rng.normal(0.8, 0.2, (len(boxes), 28, 28)), 0, 1)
        scores = rng.random(len(boxes))
        size = (record.height, record.width)
        found.append((record.image_id, Detections(boxes[keep], scores[keep], labels[keep], masks[keep], size)))
    return found


def plain_pycocotools(annotations, results, kind):
    """The twelve numbers as everybody computes them; masks without "bbox", so that areas are the masks'."""
    if kind == "segm":
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(annotations))
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRIC_NAMES, evaluation.stats, strict=True))


def test_truth_scores_one(real_data):
    dataset = load_dataset(real_data / "coco-mini", "val")
    metrics = score_detections(truth_as_detections(dataset), dataset)
    assert metrics.bbox["AP"] == pytest.approx(1) and metrics.bbox["AR100"] == pytest.approx(1)
    assert metrics.segm is None and metrics.n_images == len(dataset)
    assert all(value == pytest.approx(1) for value in metrics.per_class)
    assert metrics.voc == {"mAP_11point": 1, "mAP_area": 1}
    assert all(value == 1 for values in metrics.per_class_voc.values() for value in values)


def test_equals_pycocotools_on_the_original_file(real_data):
    dataset = load_dataset(real_data / "coco-mini", "val")
    found = perturbed(dataset)
    metrics = score_detections(found, dataset)
    results = [entry for image_id, one in found for entry in one.to_coco(image_id, dataset.category_ids)]
    file = real_data / "coco-mini" / "annotations" / "instances_val2017.json"
    for kind, ours in (("bbox", metrics.bbox), ("segm", metrics.segm)):
        theirs = plain_pycocotools(file, results, kind)
        assert 0.02 < theirs["AP"] < 0.98
        assert ours == pytest.approx(theirs, abs=1e-9), kind
    assert np.mean([value for value in metrics.per_class if value >= 0]) == pytest.approx(metrics.bbox["AP"])
    assert len(metrics.per_class_segm) == 80
    expected = voc_precision(found, dataset.records, 80)
    assert metrics.voc == expected.means() and metrics.per_class_voc == expected.per_class()
    # COCO's AP50 differs by its 101 points of recall and by what it matches a second hit with, not by much.
    assert metrics.voc["mAP_area"] == pytest.approx(metrics.bbox["AP50"], abs=0.03)


def test_nothing_found_scores_zero(real_data):
    dataset = load_dataset(real_data / "coco-mini", "val")
    metrics = score_detections([], dataset)
    assert set(metrics.bbox.values()) == {0.0} and set(metrics.segm.values()) == {0.0}
    assert set(metrics.voc.values()) == {0.0}
    empty = [(record.image_id, Detections(np.zeros((0, 4)), [], [], None, (5, 5))) for record in dataset.records]
    assert set(score_detections(empty, dataset).bbox.values()) == {0.0}


def test_no_objects_at_all(tiny_dataset):
    first = tiny_dataset.records[0]
    dataset = replace(tiny_dataset, records=(make_record(1, first.path, first.width, first.height, []),))
    metrics = score_detections([], dataset)
    assert metrics.bbox["AP"] == -1 and metrics.per_class == [-1, -1, -1]
    assert set(metrics.voc.values()) == {-1} and metrics.per_class_voc["area"] == [-1, -1, -1]
    text = io.StringIO()
    Console(file=text).print(metrics.table(), metrics.voc_table())
    assert "VOC mAP@.5: 11-point -, area -" in text.getvalue()


def test_difficult_objects_are_neither_hits_nor_misses(tiny_dataset):
    records = tuple(replace(record, difficult=np.array([False, True])) for record in tiny_dataset.records)
    dataset = replace(tiny_dataset, records=records)
    missed = score_detections(truth_as_detections(dataset, lambda record, index: index == 0), dataset)
    assert missed.bbox["AP"] == pytest.approx(1)  # the difficult one is not missed
    assert missed.voc["mAP_area"] == 1 and missed.per_class_voc["11point"] == [1, -1, -1]
    hit = score_detections(truth_as_detections(dataset), dataset)
    assert hit.bbox["AP"] == pytest.approx(1) and hit.per_class[2] == -1
    plain = score_detections(truth_as_detections(tiny_dataset, lambda record, index: index == 0), tiny_dataset)
    assert plain.bbox["AP"] == pytest.approx(0.5)


def test_ground_truth_is_complete(real_data):
    dataset = load_dataset(real_data / "coco-mini", "val")
    truth = coco_ground_truth(dataset)
    assert len(truth.anns) == sum(len(record.boxes) for record in dataset.records) == 1105
    assert sum(entry["iscrowd"] for entry in truth.anns.values()) == 16
    assert 0 not in truth.anns


def test_evaluate_a_detector(artefact, tiny_dataset, capsys):
    metrics = evaluate(load(artefact, device="cpu"), tiny_dataset, progress=False)
    assert capsys.readouterr().out == ""
    assert metrics.bbox["AP"] == pytest.approx(1) and metrics.n_images == 3 and metrics.seconds > 0
    assert metrics.per_class == pytest.approx([1, -1, 1])
    assert metrics.segm is None  # the dataset has no masks
    text = io.StringIO()
    Console(file=text, width=120).print(metrics.table(per_class=True))
    assert "100.0" in text.getvalue() and "dog, box" in text.getvalue()
    numbers = metrics.to_dict()
    assert numbers["bbox"]["AP"] == metrics.bbox["AP"] and json.loads(json.dumps(numbers)) == numbers
    assert numbers["voc"] == {"mAP_11point": 1, "mAP_area": 1} and numbers["per_class_voc"]["area"] == [1, -1, 1]
    assert evaluate(load(artefact, device="cpu"), tiny_dataset, progress=False, max_images=2).n_images == 2


def test_tables_are_whole_in_80_columns(artefact, tiny_dataset):
    metrics = evaluate(load(artefact, device="cpu"), tiny_dataset, progress=False)
    metrics.voc, metrics.segm = {"mAP_11point": 0.7346, "mAP_area": 0.801}, metrics.bbox
    shown = {}
    for width in (80, 200):
        text = io.StringIO()
        Console(file=text, width=width).print(metrics.table())
        shown[width] = [line.split() for line in text.getvalue().splitlines()]
        assert all(len(line.rstrip()) <= width for line in text.getvalue().splitlines())
    assert shown[80] == shown[200]  # nothing cut off or broken over two lines
    assert " ".join(shown[80][-1]) == "VOC mAP@.5: 11-point 73.5, area 80.1"
    text = io.StringIO()
    Console(file=text, width=80).print(metrics.voc_table())
    rows = [line.split() for line in text.getvalue().splitlines() if line.strip()]
    assert rows[1] == ["11-point", "area"]
    assert rows[3:] == [["person", "100.0", "100.0"], ["traffic", "light", "-", "-"], ["dog", "100.0", "100.0"]]


def test_classes_in_another_order_are_matched_by_name(artefact, edit_meta, tiny_dataset):
    order = [2, 0, 1]
    records = tuple(
        replace(record, labels=np.array([order.index(label) for label in record.labels]))
        for record in tiny_dataset.records
    )
    classes = tuple(tiny_dataset.classes[index] for index in order)
    dataset = replace(tiny_dataset, classes=classes, category_ids=(5, 6, 7), records=records)
    assert evaluate(load(artefact, device="cpu"), dataset, progress=False).bbox["AP"] == pytest.approx(1)


def test_other_classes_are_refused(artefact, edit_meta, tiny_dataset):
    edit_meta(artefact, classes=["person", "traffic light", "cat"])
    with pytest.raises(UserError, match=r"\['dog'\].*\['cat'\]"):
        evaluate(load(artefact, device="cpu"), tiny_dataset, progress=False)


@pytest.mark.parametrize(
    ("recipe", "place", "result", "metric"),
    [
        ("ssd300_root_resnet34", "ScratchDet, section 4", "mAP 80.4", "VOC 2007 test mAP"),
        ("ssd300_root_resnet34_coco", "ScratchDet, Figure 6", "AP 32.7", "COCO test-dev AP"),
        ("ssd300_resnet18_a", "ScratchDet, section 4", "mAP 75.3", "VOC 2007 test mAP"),
        ("dsod300", "ScratchDet, section 4", "mAP 77.7", "VOC 2007 test mAP"),
        ("dsod300_no_bn", "ScratchDet, section 4", "mAP 71.5", "VOC 2007 test mAP"),
        ("mask_rcnn_r50_fpn_p3x_1x", "Direct pre-training, Table 4", "box 41.5, mask 37.0", "COCO val2017 AP"),
        ("demo", None, None, None),
    ],
)
def test_eval_says_what_the_paper_reached(
    artefact, edit_meta, tiny_dataset, tmp_path, capsys, monkeypatch, recipe, place, result, metric
):
    edit_meta(artefact, recipe=recipe)
    monkeypatch.setattr(dataset_module, "load_dataset", lambda *_: tiny_dataset)
    file = tmp_path / "numbers.json"
    assert main(["eval", str(artefact), "--data", str(tmp_path), "--device", "cpu", "--json", str(file)]) == 0
    said, written = capsys.readouterr().out, json.loads(file.read_text())["in_the_papers"]
    if place is None:
        assert "In the papers" not in said and written == []
        return
    assert f"In the papers, on their data, not measured here (recipe {recipe}):" in said
    (line,) = [line for line in said.splitlines() if line.startswith(f"  {place}, ")]
    assert line.endswith(f": {result} ({metric})")
    assert [one["result"] for one in written if one["place"] == place] == [result]


@pytest.mark.parametrize("found", ["many", "one", "none"])
def test_boxes_are_scored_as_by_pycocotools(tiny_dataset, monkeypatch, found):
    """To the last bit: with crowds, equal scores, more than a hundred detections, and pictures without objects."""
    if coco_ap.hotcoco is None:
        pytest.skip("hotcoco has no wheel for this machine")
    rng, records, results = np.random.default_rng(0), [], []
    first = tiny_dataset.records[0]
    for image in range(40):
        count = int(rng.integers(0, 9))
        corners = rng.uniform(0, 300, (count, 2)).astype(np.float32)
        boxes = np.concatenate([corners, corners + rng.uniform(2, 200, (count, 2)).astype(np.float32)], 1)
        record = make_record(image + 1, first.path, 640, 480, [])
        given = {"labels": rng.integers(0, 3, count), "crowd": rng.random(count) < 0.1}
        plain = {"difficult": np.zeros(count, bool), "segmentations": (None,) * count}
        sizes = boxes[:, 2:] - boxes[:, :2]
        given |= {"annotation_ids": tuple(range(count)), "areas": sizes.prod(1), "weights": np.ones(count, np.float32)}
        records.append(replace(record, boxes=boxes, **given, **plain))
        times = 30 if image == 3 else 3
        moved = np.repeat(boxes, times, 0) + rng.normal(0, 9, (count * times, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2])
        scores = rng.random(len(moved)).round(1)
        one = Detections(moved, scores, rng.integers(0, 3, len(moved)), None, (480, 640))
        results += one.to_coco(image + 1, tiny_dataset.category_ids)
    results = {"many": results, "one": results[:1], "none": []}[found]
    dataset = replace(tiny_dataset, records=tuple(records))
    assert coco_ap._fast(results, dataset, dataset.records, "bbox") is not None
    fast = coco_ap.score(results, dataset, dataset.records, "bbox")
    monkeypatch.setattr(coco_ap, "hotcoco", None)
    assert fast == coco_ap.score(results, dataset, dataset.records, "bbox")
    assert found != "many" or fast.twelve[0] > 0.05
