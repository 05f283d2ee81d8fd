"""The AP of both sides, and what the choice of the pictures does to their difference."""

from dataclasses import replace

import numpy as np
import pytest

from directdet.data.dataset import load_dataset
from directdet.data.records import make_record
from directdet.data.synthetic import make_synthetic
from directdet.infer.accuracy import ap_difference
from directdet.infer.accuracy.ap_difference import average_precisions, compare, spread_of_difference
from directdet.infer.accuracy.evaluate import score_detections
from directdet.infer.accuracy.score_curves import RECALLS
from directdet.infer.detections import Detections


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_dataset(make_synthetic(tmp_path_factory.mktemp("ap") / "data", 1, 24, (64, 80)), "val")


def detections(data, seed=0):
    """The objects, moved by a few pixels, with scores at random, and boxes where there is nothing."""
    rng, found = np.random.default_rng(seed), []
    for record in data.records:
        size = (record.height, record.width)
        boxes = np.clip(record.boxes + rng.normal(0, 1.5, record.boxes.shape), 0, [size[1], size[0]] * 2)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        extra = rng.uniform(0, 40, (3, 2))
        boxes = np.concatenate([boxes, np.concatenate([extra, extra + 12], 1)])
        labels = np.concatenate([record.labels, rng.integers(0, len(data.classes), 3)])
        masks = np.ones((len(boxes), 8, 8), np.float32)
        found.append((record.image_id, Detections(boxes, rng.random(len(boxes)), labels, masks, size)))
    return found


def changed(found, count):
    """`count` pictures with all boxes three pixels further to the right."""
    shift = np.array([3, 0, 3, 0])
    moved = [(i, Detections(d.boxes + shift, d.scores, d.labels, d.masks, d.image_size)) for i, d in found[:count]]
    return [*moved, *found[count:]]


def test_it_is_pycocotools_ap(data):
    found = detections(data)
    metrics = score_detections(found, data)
    ours = average_precisions(found, data, data.records)
    assert ours == pytest.approx({"box": metrics.bbox["AP"], "mask": metrics.segm["AP"]}, abs=1e-12)
    assert 0.1 < ours["box"] < 0.95
    half = data.records[::2]
    kept = [entry for entry in found if entry[0] in {record.image_id for record in half}]
    assert average_precisions(kept, data, half)["box"] == pytest.approx(score_detections(kept, data, half).bbox["AP"])


def test_the_same_detections_have_no_spread(data):
    found = detections(data)
    assert spread_of_difference(found, found, data, data.records, "box") == 0.0


def test_what_a_picture_does_is_within_the_spread_and_what_most_do_is_not(data):
    found = detections(data)
    own = average_precisions(found, data, data.records)["box"]
    ratios = {}
    for count in (1, len(data.records)):
        other = changed(found, count)
        difference = average_precisions(other, data, data.records)["box"] - own
        ratios[count] = abs(difference) / spread_of_difference(found, other, data, data.records, "box")
    assert ratios[1] < 3 < ratios[len(data.records)]


def test_nothing_found_and_no_objects(data):
    empty = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0), np.zeros((0, 8, 8)), (64, 64))
    assert average_precisions([(r.image_id, empty) for r in data.records], data, data.records)["box"] == 0.0
    bare = [record for record in data.records if not len(record.boxes)]
    assert average_precisions([(r.image_id, empty) for r in bare], data, bare)["box"] == -1.0


def test_a_model_that_is_worse_on_most_pictures_is_told(data):
    found = detections(data)
    worse, masks = compare(changed(found, 24), found, data, data.records)
    assert (worse.name, masks.name) == ("box", "mask")
    assert masks.other == pytest.approx(score_detections(found, data).segm["AP"], abs=1e-12)
    assert masks.spread == spread_of_difference(changed(found, 24), found, data, data.records, "mask")
    assert "mask AP" in masks.words("a", "b")
    assert worse.verdict == "worse" and worse.one < worse.other
    better = compare(found, changed(found, 24), data, data.records)[0]
    assert better.verdict == "better" and better.spread == pytest.approx(worse.spread)
    assert better.one == pytest.approx(score_detections(found, data).bbox["AP"], abs=1e-12)
    assert better.spread == spread_of_difference(changed(found, 24), found, data, data.records, "box")
    told = better.words("a", "b")
    assert told.startswith(f"a is better than b, as 24 pictures tell: box AP {100 * better.one:.1f} against")


def test_models_alike_are_mostly_not_told_apart(data):
    """Eight pairs with the same errors drawn anew: at 95%, two would be told apart by chance once in twenty runs."""
    found = [[(image, one.without_masks()) for image, one in detections(data, seed)] for seed in range(16)]
    told = [compare(one, other, data, data.records) for one, other in zip(found[::2], found[1::2], strict=True)]
    assert sum(box.verdict == "not told apart" for (box,) in told) >= 6
    same = compare(found[0], found[0], data, data.records)[0]
    assert same.verdict == "not told apart" and same.spread == 0


def test_too_few_pictures_or_objects_tell_nothing(data):
    records, found = data.records[:1], detections(data)[:1]
    one = replace(data, records=records)
    told = compare(found, [], one, records)[0]
    assert told.one > told.other == 0 and told.verdict == "not told apart" and "fewer than 10" in told.words("a", "b")
    nothing = tuple(make_record(r.image_id, r.path, r.width, r.height, []) for r in data.records)
    (empty,) = compare([], [], replace(data, records=nothing), nothing)  # without objects, none has a mask
    assert empty.verdict == "not told apart" and "no objects" in empty.words("a", "b")


def test_objects_that_must_be_found_are_counted_as_recalls_are_reached():
    """For every number of objects: the least that numpy's search of the recalls accepts."""
    objects = np.arange(0.0, 400)
    least = ap_difference._least_found(objects)
    for count, found in zip(objects[1:], least[1:], strict=True):
        assert np.array_equal(found, np.searchsorted(np.arange(count + 1) / count, RECALLS))
    assert least[0].max() <= 1  # no objects: a search that finds nothing, and is not used
