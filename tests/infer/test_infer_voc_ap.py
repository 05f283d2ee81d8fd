"""VOC AP against plain loops written from the rule of VOC's development kit, and by hand."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from directdet.data.dataset import load_dataset
from directdet.data.records import AnnotatedObject, make_record
from directdet.infer.accuracy.voc_ap import voc_precision
from directdet.infer.detections import Detections


def slow_voc_ap(found, records, classes, overlap=0.5):
    """[(eleven points, area)] of each class: the kit's loops over detections and objects, boxes with both ends counted.

    Recalls are compared as fractions, since 0.1 * 3 is more than 3 / 10 in floating point.
    """
    detections = dict(found)
    result = []
    for label in range(classes):
        listed, wanted, taken = [], 0, set()
        for record in records:
            wanted += sum(
                int(record.labels[i] == label and not record.difficult[i] and not record.crowd[i])
                for i in range(len(record.boxes))
            )
            one = detections.get(record.image_id)
            for k in range(0 if one is None else len(one)):
                if one.labels[k] == label:
                    listed.append((float(one.scores[k]), one.boxes[k].astype(float), record))
        listed.sort(key=lambda entry: -entry[0])  # stable
        right, wrong, points = 0, 0, []
        for _, box, record in listed:
            best, place = -1.0, None
            for index, truth in enumerate(record.boxes.astype(float)):
                if record.labels[index] == label and not record.crowd[index]:
                    # One-based, and both end pixels belong to the box.
                    a, b = (np.array([x1 + 1, y1 + 1, x2, y2]) for x1, y1, x2, y2 in (box, truth))
                    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
                    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
                    if width > 0 and height > 0:
                        sizes = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
                        value = width * height / (sum(sizes) - width * height)
                        if value > best:
                            best, place = value, index
            if best >= overlap and record.difficult[place]:
                continue
            if best >= overlap and (record.image_id, place) not in taken:
                taken.add((record.image_id, place))
                right += 1
            elif not in_crowd(box, label, record, overlap):
                wrong += 1
            else:
                continue
            points.append((Fraction(right, wanted) if wanted else None, Fraction(right, right + wrong)))
        result.append(areas(points) if wanted else (-1.0, -1.0))
    return result


def in_crowd(box, label, record, overlap):
    """COCO's rule for crowd regions: the part of the detection that lies in one."""
    for index, (x1, y1, x2, y2) in enumerate(record.boxes.astype(float)):
        if record.crowd[index] and record.labels[index] == label:
            width, height = min(box[2], x2) - max(box[0], x1), min(box[3], y2) - max(box[1], y1)
            if width > 0 and height > 0 and width * height >= overlap * (box[2] - box[0]) * (box[3] - box[1]):
                return True
    return False


def areas(points):
    """(eleven points, area) from [(recall, precision)]."""
    eleven = sum(max((p for r, p in points if r >= Fraction(t, 10)), default=0) for t in range(11)) / 11
    recalls = [Fraction(0), *(r for r, _ in points), Fraction(1)]
    precisions = [Fraction(0), *(p for _, p in points), Fraction(0)]
    for index in range(len(precisions) - 2, -1, -1):
        precisions[index] = max(precisions[index], precisions[index + 1])
    pairs = zip(recalls, recalls[1:], precisions[1:], strict=False)
    return float(eleven), float(sum((after - before) * precision for before, after, precision in pairs))


def record_of(number, boxes, labels, difficult=(), crowd=()):
    objects = [
        AnnotatedObject(index, label, box, area=1.0, crowd=index in crowd, difficult=index in difficult)
        for index, (box, label) in enumerate(zip(boxes, labels, strict=True))
    ]
    return make_record(number, Path("none"), 100, 100, objects)


def found_of(number, boxes, scores, labels):
    return number, Detections(np.array(boxes, np.float32).reshape(-1, 4), scores, labels, None, (100, 100))


def jittered(records, classes, seed, noise=0.12, false=3):
    """Each object found up to three times, moved, some in another class; and boxes of nothing; some equal scores."""
    rng = np.random.default_rng(seed)
    found = []
    for record in records:
        repeats = rng.integers(0, 4, len(record.boxes))
        boxes, labels = np.repeat(record.boxes, repeats, 0).astype(float), np.repeat(record.labels, repeats)
        boxes += rng.normal(0, noise, boxes.shape) * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        labels = np.where(rng.random(len(labels)) < 0.1, rng.integers(0, classes, len(labels)), labels)
        nothing = rng.random((false, 4)) * [record.width, record.height, record.width, record.height]
        boxes = np.concatenate([boxes, nothing])
        boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1)
        labels = np.concatenate([labels, rng.integers(0, classes, false)])
        scores = np.round(rng.random(len(boxes)), 2)
        found.append(found_of(record.image_id, boxes, scores, labels))
    return found


def scores_of(found, records, classes):
    result = voc_precision(found, records, classes)
    return list(zip(result.eleven_point, result.area, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_plain_loops_on_random_boxes(seed):
    """Boxes of whole numbers on a small grid: overlaps of exactly a half, and objects overlapped equally, occur."""
    rng = np.random.default_rng(seed)
    records, found = [], []

    def boxes_of(count):
        corners = rng.integers(0, 5, (count, 2))
        return np.concatenate([corners, corners + rng.integers(2, 5, corners.shape)], 1)

    for number in range(1, 16):
        boxes = boxes_of(int(rng.integers(0, 7)))
        labels = rng.integers(0, 3, len(boxes))
        marked = {name: set(np.flatnonzero(rng.random(len(boxes)) < 0.15)) for name in ("difficult", "crowd")}
        records.append(record_of(number, boxes.tolist(), labels.tolist(), **marked))
        if number % 5:  # else nothing is found
            near = np.repeat(boxes, 2, 0) + [0, 0, 1, 0] * rng.integers(0, 3, (2 * len(boxes), 1))
            near_labels = np.repeat(labels, 2)
            boxes, labels = np.concatenate([near, boxes_of(8)]), np.concatenate([near_labels, rng.integers(0, 4, 8)])
            found.append(found_of(number, boxes, rng.integers(0, 20, len(boxes)) / 20, labels))
    expected = slow_voc_ap(found, records, 4)
    assert expected[3] == (-1, -1) and 0.1 < max(expected)[0] < 0.9
    np.testing.assert_allclose(scores_of(found, records, 4), expected, atol=1e-12)


def test_equals_the_plain_loops_on_voc(real_data):
    dataset = load_dataset(real_data / "voc2007mini", "val")
    records, classes = dataset.records, len(dataset.classes)
    assert any(record.difficult.any() for record in records)
    found = jittered(records, classes, 0)
    expected = slow_voc_ap(found, records, classes)
    assert 0.1 < np.mean([value for value, _ in expected if value >= 0]) < 0.9
    np.testing.assert_allclose(scores_of(found, records, classes), expected, atol=1e-6)


def test_by_hand():
    records = [record_of(1, [[0, 0, 10, 10], [20, 0, 30, 10]], [0, 0])]
    found = [found_of(1, [[0, 0, 10, 10], [50, 50, 60, 60], [20, 0, 30, 9]], [0.9, 0.8, 0.7], [0, 0, 0])]
    ((eleven, area),) = scores_of(found, records, 1)
    # Precision 1 up to the recall 0.5 (six points), 2/3 up to 1 (five).
    assert eleven == pytest.approx((6 + 5 * 2 / 3) / 11) and area == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_second_hit_is_false_though_it_overlaps_another_object():
    records = [record_of(1, [[0, 0, 10, 10], [3, 0, 13, 10]], [0, 0])]
    found = [found_of(1, [[0, 0, 10, 10], [1, 0, 11, 10]], [0.9, 0.8], [0, 0])]  # IoU of the second: 0.82 and 0.67
    assert voc_precision(found, records, 1).area == [pytest.approx(0.5)]
    found = [found_of(1, [[0, 0, 10, 10], [2, 0, 12, 10]], [0.9, 0.8], [0, 0])]
    assert voc_precision(found, records, 1).area == [pytest.approx(1)]


def test_difficult_objects_and_crowds_count_neither_way():
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 90, 90]]
    records = [record_of(1, boxes, [0, 0, 0], difficult={1}, crowd={2})]
    # On the difficult one twice, one person of the crowd, one half in it, then the object.
    rows = [[20, 0, 30, 10], [20, 0, 30, 9], [60, 60, 70, 70], [40, 60, 60, 70], [0, 0, 10, 10]]
    found = [found_of(1, rows, [0.9, 0.8, 0.7, 0.6, 0.5], [0] * 5)]
    assert voc_precision(found, records, 1).eleven_point == [1]
    found = [found_of(1, [*rows[:4], [35, 60, 55, 70], rows[4]], [0.9, 0.8, 0.7, 0.6, 0.55, 0.5], [0] * 6)]
    assert voc_precision(found, records, 1).area == [0.5]  # a quarter in the crowd is not enough
    records = [record_of(1, boxes, [0, 1, 1], difficult={1}, crowd={2})]
    assert voc_precision([], records, 2).area == [0, -1]  # the second class has nothing to be found


def test_three_of_ten_are_a_recall_of_three_tenths():
    records = [record_of(1, [[9 * i, 0, 9 * i + 5, 5] for i in range(10)], [0] * 10)]
    for count in range(11):
        found = [found_of(1, [[9 * i, 0, 9 * i + 5, 5] for i in range(count)], np.linspace(1, 0.5, count), [0] * count)]
        expected = (count + 1) / 11 if count else 0
        assert voc_precision(found, records, 1).eleven_point == [pytest.approx(expected)]


def test_classes_without_objects_are_left_out_of_the_mean():
    records = [record_of(1, [[0, 0, 10, 10], [20, 0, 30, 10]], [0, 2]), record_of(2, [], [])]
    found = [found_of(1, [[0, 0, 10, 10], [0, 0, 5, 5]], [0.9, 0.8], [0, 1]), found_of(9, [[0, 0, 9, 9]], [0.99], [0])]
    result = voc_precision(found, records, 3)
    assert result.eleven_point == [1, -1, 0] and result.means() == {"mAP_11point": 0.5, "mAP_area": 0.5}
    assert voc_precision(found, [record_of(1, [], [])], 3).means() == {"mAP_11point": -1, "mAP_area": -1}
    assert voc_precision([], [], 2).per_class() == {"11point": [-1, -1], "area": [-1, -1]}


def test_speed():
    rng = np.random.default_rng(0)
    records, found = [], []
    for number in range(500):
        corners = rng.random((5, 2)) * 60
        records.append(record_of(number, np.concatenate([corners, corners + 20], 1).tolist(), rng.integers(0, 20, 5)))
        corners = rng.random((200, 2)) * 60
        found.append(
            found_of(number, np.concatenate([corners, corners + 20], 1), rng.random(200), rng.integers(0, 20, 200))
        )
    start = time.process_time()
    voc_precision(found, records, 20)
    seconds = time.process_time() - start
    print(f"500 images, 100 000 detections: {seconds:.2f} s")
    assert seconds < 2  # about 0.1; the bound only catches a change of kind
