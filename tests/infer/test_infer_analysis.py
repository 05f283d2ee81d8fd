"""What an evaluation tells beyond AP: pycocotools is the oracle of matches and precision, counting by hand that of the
rest."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from directdet.data.dataset import Dataset, load_dataset
from directdet.data.records import AnnotatedObject, make_record
from directdet.infer.accuracy import coco_ap
from directdet.infer.accuracy.analysis import FALLBACK, analyse
from directdet.infer.accuracy.confusion import confusion_matrix
from directdet.infer.accuracy.error_types import (
    BACKGROUND,
    BOTH,
    CLASS,
    DUPLICATE,
    LOCALISATION,
    RIGHT,
    error_types,
    kinds,
)
from directdet.infer.accuracy.evaluate import score_detections
from directdet.infer.accuracy.matches import match
from directdet.infer.accuracy.score_curves import SCORES, calibration, precision_by_recall, score_curve
from directdet.infer.detections import Detections

CLASSES, IDS = ("cat", "dog", "bird"), (7, 2, 5)  # ids in another order than labels


def picture(number, objects=(), size=(100, 100)):
    """A record; objects are (box, label, flags), flags of "c" crowd and "d" difficult."""
    made = [
        AnnotatedObject(index, label, box, float((box[2] - box[0]) * (box[3] - box[1])), None, "c" in how, "d" in how)
        for index, (box, label, how) in enumerate(objects)
    ]
    return make_record(number, Path(f"{number}.jpg"), size[1], size[0], made)


def data(*records):
    return Dataset(Path("made"), "val", "coco", CLASSES, IDS, tuple(records))


def seen(number, *detections):
    """(image id, Detections) of (box, label, score)."""
    boxes, labels, scores = zip(*detections, strict=True) if detections else ((), (), ())
    return number, Detections(np.array(boxes, np.float32).reshape(-1, 4), scores, labels, None, (100, 100))


def made(seed, pictures=12, most=8, crowded=True):
    """Pictures with crowd regions, difficult objects and objects that overlap, and detections near them, with scores
    that are often equal."""
    rng, records, found = np.random.default_rng(seed), [], []
    for number in rng.permutation(pictures).tolist():
        corners = rng.integers(0, 60, (rng.integers(0, most), 2))
        boxes = np.concatenate([corners, corners + rng.integers(8, 40, corners.shape)], 1).astype(float)
        flags = rng.choice(["", "", "", "c", "d"], len(boxes)) if crowded else [""] * len(boxes)
        labels = rng.integers(0, 3, len(boxes))
        records.append(
            picture(number, [(b.tolist(), int(n), how) for b, n, how in zip(boxes, labels, flags, strict=True)])
        )
        near = np.repeat(boxes, 3, 0) + rng.choice([0, 0, 1, 4, 7], (3 * len(boxes), 4))
        kinds = np.where(rng.random(len(near)) < 0.8, np.repeat(labels, 3), rng.integers(0, 3, len(near)))
        near = np.concatenate([near, [[1, 1, 9, 9.0]]])
        kinds, scores = np.append(kinds, 0), rng.integers(1, 20, len(near)) / 20
        if number % 5:  # some pictures have no entry
            found.append(seen(number, *zip(near.tolist(), kinds.tolist(), scores.tolist(), strict=True)))
    return data(*records), found


def coco_matches(found, dataset):
    """{(label, image id): (score, whether matched, whether ignored) of each detection in order} at IoU 0.5."""
    rows, evaluation = {}, coco_evaluation(found, dataset)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    for cell in filter(None, evaluation.evalImgs):
        values = zip(cell["dtScores"], cell["dtMatches"][0] > 0, cell["dtIgnore"][0] > 0, strict=True)
        if len(cell["dtScores"]):
            key = dataset.category_ids.index(cell["category_id"]), cell["image_id"]
            rows[key] = [(score, bool(hit), bool(out)) for score, hit, out in values]
    return rows


def coco_evaluation(found, dataset):
    """pycocotools' COCOeval of the boxes."""
    results = [entry for number, one in found for entry in one.to_coco(number, dataset.category_ids)]
    return coco_ap._evaluation(results, dataset, dataset.records, "bbox")


def our_matches(found, dataset):
    matches, rows = match(found, dataset.records), {}
    for place in range(len(matches.score)):
        key = int(matches.label[place]), dataset.records[matches.picture[place]].image_id
        values = float(matches.score[place]), bool(matches.target[place] >= 0), bool(matches.ignored[place])
        rows.setdefault(key, []).append(values)
    return rows


def coco_precision(found, dataset):
    """COCOeval.eval["precision"] at IoU 0.5, [C, 101] by label."""
    evaluation = coco_evaluation(found, dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    order = [list(evaluation.params.catIds).index(number) for number in IDS]
    return precision[0, :, order, 0, -1]


CORNERS = {
    "nothing at all": (data(picture(1)), []),
    "no detections": (data(picture(1, [([0, 0, 9, 9], 0, "")])), []),
    "no objects": (data(picture(1)), [seen(1, ([0, 0, 9, 9], 0, 0.5))]),
    "only crowd": (
        data(picture(1, [([0, 0, 50, 50], 0, "c")])),
        [seen(1, ([0, 0, 9, 9], 0, 0.5), ([0, 0, 8, 8], 0, 0.4))],
    ),
    "only difficult": (
        data(picture(1, [([0, 0, 9, 9], 1, "d")])),
        [seen(1, ([0, 0, 9, 9], 1, 0.5), ([0, 0, 9, 9], 1, 0.4))],
    ),
    "exactly half": (data(picture(1, [([0, 0, 10, 10], 0, "")])), [seen(1, ([0, 0, 10, 5], 0, 0.5))]),
    "equal overlaps": (
        data(picture(1, [([0, 0, 10, 10], 0, ""), ([0, 0, 10, 10], 0, "")])),
        [seen(1, *[([0, 0, 10, 10], 0, 0.5)] * 3)],
    ),
    "more than a hundred": (
        data(picture(1, [([0, 0, 10, 10], 0, "")])),
        [seen(1, *[([50, 50, 60, 60], 0, 0.9)] * 100, ([0, 0, 10, 10], 0, 0.5), ([0, 0, 10, 10], 1, 0.4))],
    ),
}


@pytest.mark.parametrize(("dataset", "found"), CORNERS.values(), ids=CORNERS.keys())
def test_corners_are_matched_as_by_pycocotools(dataset, found):
    assert our_matches(found, dataset) == coco_matches(found, dataset)
    assert np.array_equal(precision_by_recall(match(found, dataset.records), 3), coco_precision(found, dataset))
    analysis = analyse(found, dataset)  # nothing of it fails
    json.dumps(analysis.to_dict(dataset, dataset.records))


@pytest.mark.parametrize("seed", range(8))
def test_matches_and_precision_are_pycocotools(seed):
    dataset, found = made(seed)
    theirs = coco_matches(found, dataset)
    assert our_matches(found, dataset) == theirs
    values = [value for rows in theirs.values() for value in rows]
    assert len({(hit, ignored) for _, hit, ignored in values}) == 3  # right, wrong and ignored ones occur
    assert np.array_equal(precision_by_recall(match(found, dataset.records), 3), coco_precision(found, dataset))


def test_on_real_annotations(real_data):
    dataset = load_dataset(real_data / "coco-mini", "val")
    rng, found = np.random.default_rng(0), []
    for record in dataset.records:
        boxes = record.boxes + rng.normal(0, 6, record.boxes.shape)
        boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1)
        size = (record.height, record.width)
        found.append((record.image_id, Detections(boxes, rng.random(len(boxes)), record.labels, None, size)))
    assert our_matches(found, dataset) == coco_matches(found, dataset)
    table = precision_by_recall(match(found, dataset.records), 80)
    metrics = score_detections(found, dataset)
    assert table[table[:, 0] >= 0].mean() == pytest.approx(metrics.bbox["AP50"], abs=1e-12)
    assert [row.mean() for row in table] == pytest.approx(metrics.per_class_50, abs=1e-12)
    assert np.mean(metrics.by_iou) == pytest.approx(metrics.bbox["AP"], abs=1e-12) and len(metrics.by_iou) == 10
    for place, name in enumerate(("APs", "APm", "APl")):
        known = [sizes[place] for sizes in metrics.per_class_sizes if sizes[place] >= 0]
        assert np.mean(known) == pytest.approx(metrics.bbox[name], abs=1e-12)


@pytest.mark.parametrize("label", [None, 0, 1, 2])
def test_scores_are_counted_as_by_hand(label):
    dataset, found = made(3)
    rows = [(n, *row) for (n, _), values in coco_matches(found, dataset).items() for row in values]
    rows = [(score, hit) for n, score, hit, ignored in rows if not ignored and label in (None, n)]
    records = dataset.records
    labels = [(n, c or d) for r in records for n, c, d in zip(r.labels, r.crowd, r.difficult, strict=True)]
    count = sum(not out and label in (None, n) for n, out in labels)
    curve = score_curve(match(found, dataset.records), 3, label)
    best = 0.0
    for place, threshold in enumerate(SCORES):
        chosen = [hit for score, hit in rows if score >= threshold]
        assert curve.recall[place] == sum(chosen) / count
        assert curve.precision[place] == (sum(chosen) / len(chosen) if chosen else 1)
        assert curve.f1[place] == pytest.approx(2 * sum(chosen) / (len(chosen) + count))
        best = max(best, curve.f1[place])
    assert curve.f1[curve.best] == best and curve.threshold == SCORES[curve.best]


def test_the_threshold_is_in_the_middle_of_where_it_makes_no_difference():
    dataset = data(picture(1, [([0, 0, 10, 10], 0, "")]))
    found = [seen(1, ([0, 0, 10, 10], 0, 0.8), ([50, 50, 60, 60], 0, 0.4))]
    assert score_curve(match(found, dataset.records), 3).threshold == pytest.approx(0.6)
    nothing = analyse([], dataset)
    assert nothing.threshold == FALLBACK and not nothing.suggested
    assert nothing.to_dict(dataset, dataset.records)["suggested"] is None


def test_kinds_of_errors():
    """One detection of each kind, by TIDE's definitions."""
    cat, dog = [0, 0, 20, 20], [60, 60, 80, 80]
    dataset = data(picture(1, [(cat, 0, ""), (dog, 1, ""), ([0, 60, 20, 80], 2, ""), ([40, 0, 60, 20], 0, "")]))
    found = [
        seen(
            1,
            (cat, 0, 0.9),
            (cat, 0, 0.8),  # again
            (dog, 0, 0.7),  # another class
            ([0, 60, 20, 66], 2, 0.6),  # 0.3 of the bird
            ([60, 60, 80, 66], 2, 0.5),  # 0.3 of the dog
            ([90, 90, 99, 99], 1, 0.4),
        )
    ]
    matches = match(found, dataset.records)
    assert kinds(matches).tolist() == [RIGHT, DUPLICATE, CLASS, LOCALISATION, BOTH, BACKGROUND]
    counts = {one.name: one.count for one in error_types(matches, 3, 0.0)}
    assert counts == {"localisation": 1, "class": 1, "both": 1, "duplicate": 1, "background": 1, "missed": 1}
    counts = {one.name: one.count for one in error_types(matches, 3, 0.65)}  # the bird is missed as well
    assert counts == {"localisation": 0, "class": 1, "both": 0, "duplicate": 1, "background": 0, "missed": 2}


def test_mending_costs_what_scoring_the_mended_detections_says():
    cat, dog = [0, 0, 20, 20], [60, 60, 80, 80]
    records = [picture(1, [(cat, 0, ""), (dog, 1, "")]), picture(2, [(cat, 0, ""), ([40, 40, 60, 60], 0, "")])]
    dataset = data(*records)
    wrong = {  # detections before and after mending one kind
        "class": ((dog, 0, 0.9), (dog, 1, 0.9)),
        "localisation": (([60, 60, 80, 66], 1, 0.8), (dog, 1, 0.8)),
        "duplicate": ((cat, 0, 0.3), None),
        "background": (([85, 0, 95, 9], 0, 0.7), None),
    }
    good = (cat, 0, 0.6)

    def ap50(first, dataset=dataset):
        found = [seen(1, good, *filter(None, first)), seen(2, good)]
        return score_detections(found, dataset).bbox["AP50"]

    for name, (before, after) in wrong.items():
        matches = match([seen(1, good, before), seen(2, good)], records)
        costs = {one.name: one.costs for one in error_types(matches, 3, 0.0)}
        assert costs[name] == pytest.approx(ap50([after]) - ap50([before]), abs=1e-12), name
        assert all(costs[other] == 0 for other in wrong if other != name)
        if name in ("duplicate", "background"):
            # Without the objects that are missed: the dog, which leaves no dog to find, and the second cat.
            cats = data(picture(1, [(cat, 0, "")]), picture(2, [(cat, 0, "")]))
            left = (ap50([before], cats) + 1) / 2
            assert costs["missed"] == pytest.approx(left - ap50([before]), abs=1e-12)


def test_two_on_one_object_are_mended_once():
    dataset = data(picture(1, [([0, 0, 20, 20], 0, "")]))
    found = [seen(1, ([0, 0, 20, 6], 0, 0.9), ([0, 0, 20, 7], 0, 0.8))]
    costs = {one.name: one.costs for one in error_types(match(found, dataset.records), 3, 0.0)}
    assert costs["localisation"] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(4))
def test_the_confusion_matrix_adds_up(seed):
    dataset, found = made(seed)
    matches = match(found, dataset.records)
    for threshold in (0.0, 0.5):
        table, above = confusion_matrix(matches, 3, threshold), matches.score >= threshold
        assert table[:3].sum(axis=1).tolist() == matches.counts(3).tolist()
        kept = above & ~matches.ignored
        assert table[:, :3].sum(axis=0).tolist() == np.bincount(matches.label[kept], minlength=3).tolist()
        assert np.diag(table)[:3].tolist() == np.bincount(matches.label[kept & matches.correct], minlength=3).tolist()


def test_confusions_go_to_the_nearest_object_once():
    dataset = data(
        picture(4, [([0, 0, 20, 20], 0, "")]), picture(2, [([0, 0, 20, 20], 1, ""), ([50, 50, 70, 70], 2, "")])
    )
    box = [0, 0, 20, 20]
    found = [seen(4, (box, 1, 0.9), (box, 2, 0.8)), seen(2, (box, 1, 0.3), (box, 0, 0.9))]
    table = confusion_matrix(match(found, dataset.records), 3, 0.5)
    # The cat is taken for a dog; the bird has only background left. The dog, found at 0.3 only, is taken for a cat.
    assert table.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    table = confusion_matrix(match(found, dataset.records), 3, 0.2)
    assert table.tolist() == [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0]]


def test_calibration():
    dataset = data(picture(1, [([0, 0, 20, 20], 0, ""), ([50, 50, 70, 70], 0, "d")]))
    found = [
        seen(
            1, ([0, 0, 20, 20], 0, 0.85), ([80, 0, 90, 9], 0, 0.81), ([80, 0, 90, 9], 1, 0.25), ([50, 50, 70, 70], 0, 1)
        )
    ]
    bins, error = calibration(match(found, dataset.records))
    assert [(one.low, one.detections, one.right) for one in bins] == [(0.2, 1, 0.0), (0.8, 2, 0.5)]
    assert bins[1].mean_score == pytest.approx(0.83)
    assert error == pytest.approx((0.25 + 2 * 0.33) / 3)


def test_worst_pictures_and_doubtful_labels():
    cat = [0, 0, 20, 20]
    dataset = data(
        picture(3, [(cat, 0, "")]),
        picture(1, [(cat, 0, ""), ([40, 40, 90, 90], 1, ""), ([0, 80, 10, 90], 1, "")]),
        picture(2, [(cat, 0, ""), ([50, 50, 90, 90], 0, "c")]),
    )
    found = [
        seen(3, (cat, 0, 0.9)),
        seen(1, (cat, 2, 0.95)),
        seen(2, (cat, 0, 0.95), ([60, 0, 80, 20], 1, 0.91), ([60, 60, 70, 70], 1, 0.92), ([60, 60, 70, 70], 0, 0.93)),
    ]
    analysis = analyse(found, dataset)
    assert [(one.picture, one.wrong, one.missed) for one in analysis.worst] == [(1, 1, 2), (2, 2, 0)]
    # The detection inside the crowd region is wrong, yet no sign of a label that is lacking.
    assert [(one.picture, one.label, one.score) for one in analysis.unlabelled] == [(2, 1, pytest.approx(0.91))]
    assert [(one.label, one.instead) for one in analysis.other_class] == [(2, 0)]
    assert [one.box for one in analysis.unfound] == [(40, 40, 90, 90), (0, 80, 10, 90)]
    told = analysis.to_dict(dataset, dataset.records)
    assert told["worst"][0] == {"image_id": 1, "file": "1.jpg", "wrong": 1, "missed": 2}
    assert told["doubtful_labels"]["other_class"][0]["labelled"] == "cat"
    assert json.loads(json.dumps(told)) == told


def test_pictures_that_were_not_processed_do_not_count():
    dataset, found = made(1)
    some = dataset.records[:5]
    part = analyse(found, dataset, some)
    assert part.errors == analyse(found, replace(dataset, records=some)).errors
    assert part.matches.object_picture.max(initial=0) < 5
