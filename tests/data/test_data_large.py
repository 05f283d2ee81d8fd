"""Large COCO files: read in pieces as they are read at once."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from compared import everything

from directdet.common.errors import UserError
from directdet.data.dataset import load_dataset
from directdet.data.flat.arrays import image_sizes
from directdet.data.formats import coco
from directdet.data.records import Records, object_counts, take
from directdet.data.sampling import Sampling, usable

pytestmark = pytest.mark.usefixtures("small_pieces")

FILE = "annotations/instances_train2017.json"
SQUARE = [[2, 2, 12, 2, 12, 12.5, 2, 12]]
GOOD = {"bbox": [1, 2, 5, 6]}
BIG = 2**70
# Each is regular, or wrong, in a way of its own.
OBJECTS = [
    GOOD,
    {**GOOD, "segmentation": SQUARE, "area": 70.25, "iscrowd": 0, "category_id": 9},
    {**GOOD, "segmentation": [*SQUARE, [1, 1, 5, 1, 5, 5]], "difficult": 1},
    {**GOOD, "segmentation": {"size": [30, 40], "counts": [100, 50, 1050]}, "iscrowd": 1},
    {**GOOD, "segmentation": {"size": [30, 40], "counts": "d35Q1"}},
    {**GOOD, "segmentation": []},
    {**GOOD, "segmentation": [[]]},
    {**GOOD, "segmentation": [[1, 2, 3]]},
    {**GOOD, "segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
    {**GOOD, "segmentation": [[1, 2, 3, 4, 5, "6"]]},
    {**GOOD, "segmentation": [[1, 2, 3, 4, 5, 1e9]]},
    {**GOOD, "segmentation": [[-900, 2, -800, 4, -700, 9]]},
    {**GOOD, "segmentation": "text"},
    {**GOOD, "note": "a}, b", "more": {"inner": {"deep": 1}}},
    {"bbox": [-5, -5, 10, 10]},
    {"bbox": [-0.0005, 0, 10, 10]},
    {"bbox": [39.99999999, 3, 0.000000001, 5]},
    {"bbox": [3, 3, 0, 5]},
    {"bbox": [100, 3, 5, 5]},
    {"bbox": [float("nan"), 3, 5, 5]},
    {"bbox": [BIG, 3, 5, 5]},
    {"bbox": [10**400, 3, 5, 5]},
    {"bbox": [1, 2, 5]},
    {"bbox": "1 2 5 6"},
    {**GOOD, "area": 0},
    {**GOOD, "area": -1.5},
    {**GOOD, "area": None},
    {**GOOD, "area": float("nan")},
    {**GOOD, "area": "5"},
    {**GOOD, "iscrowd": "1"},
    {**GOOD, "iscrowd": True},
    {**GOOD, "iscrowd": None},
    {**GOOD, "iscrowd": 2},
    {**GOOD, "iscrowd": []},
    {**GOOD, "score": 0.25},
    {**GOOD, "score": 1},
    {**GOOD, "score": None},
    {**GOOD, "score": 1.5},
    {**GOOD, "score": -0.1},
    {**GOOD, "score": "0.5"},
    {**GOOD, "score": True},
    {**GOOD, "score": float("nan")},
    {**GOOD, "score": BIG},
    {**GOOD, "image_id": 7.0},
    {**GOOD, "image_id": 8},
    {**GOOD, "image_id": True},
    {**GOOD, "image_id": 11},
    {**GOOD, "category_id": BIG},
    {**GOOD, "category_id": 4},
    {**GOOD, "category_id": 3.0},
    {**GOOD, "id": 2.0},
    {**GOOD, "id": "x"},
    {**GOOD, "id": BIG},
    {},
    {"image_id": 7},
    5,
    None,
    GOOD,
]
IMAGES = [
    {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
    {"id": 3, "file_name": "sub/b.png", "width": 40.0, "height": 30},
    {"id": 11, "file_name": "../c.png", "width": 40, "height": 30},
    {"id": 12, "file_name": "no objects é.png", "width": 20, "height": 30},
    {"id": 13, "file_name": "big.png", "width": BIG, "height": 30},
]


def read(root, monkeypatch, whole):
    with monkeypatch.context() as patch:
        patch.setenv("DIRECTDET_CACHE", "off")
        patch.setattr(coco, "LARGE", 10**9 if whole else 0)
        if not whole:  # it must not be read at once after all
            patch.setattr(coco, "_read_whole", None)
        return everything(load_dataset(root, "train", leave_out=True))


def one_by_one(root, monkeypatch):
    """As it is read when no object counts as regular."""
    with monkeypatch.context() as patch:
        patch.setattr(coco.ObjectReader, "_read_regular", lambda self, first, entries: range(len(entries)))
        return read(root, monkeypatch, whole=True)


@pytest.mark.parametrize("repeats", [1, 9])
def test_pieces_say_what_the_whole_says(write_coco, monkeypatch, repeats):
    """Objects of every kind, among regular ones; with repeats, ids are used twice."""
    objects = [
        {**one, "image_id": 3} if isinstance(one, dict) and index % 3 == 0 and "image_id" not in one else one
        for index, one in enumerate(OBJECTS * repeats)
    ]
    root = write_coco(
        objects, images=IMAGES, categories=[{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 4}]
    )
    expected = one_by_one(root, monkeypatch)
    assert len(expected[0]) == 3 and len(expected[3]) > 500 and len(expected[5]) > 20
    assert read(root, monkeypatch, whole=True) == expected
    assert read(root, monkeypatch, whole=False) == expected


@pytest.mark.parametrize("index", range(len(OBJECTS)))
def test_each_object_alone(write_coco, monkeypatch, index):
    """Among regular ones, so that a mistake cannot hide behind the others' irregularity."""
    root = write_coco([GOOD] * 5 + [OBJECTS[index]] + [{**GOOD, "segmentation": SQUARE}] * 5)
    expected = one_by_one(root, monkeypatch)
    assert read(root, monkeypatch, whole=True) == expected
    assert read(root, monkeypatch, whole=False) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + "x",
        lambda text: text.replace('"bbox"', '"bbox', 1),
        lambda text: text.replace("}, {", "} {", 1),
        lambda text: text.replace("}, {", "}, , {", 1),
        lambda text: text.replace('"annotations"', '"objects"'),
        lambda text: text.replace('"images"', '"info": {"images": []}, "images"'),
        lambda text: text.replace('"images"', '"images": [], "images"'),
        lambda text: '{"info": ' + text + "}",
        lambda text: "[" + text + "]",
        lambda text: text.replace('"a.png"', '"a\\ud800.png"'),
        lambda text: text.replace('"a.png"', r'"\"annotations\": ["'),
        lambda text: text.replace('"categories"', '"cat\\u0065gories"'),
        lambda text: text[:-1] + ', "annotati\\u006fns": []}',
        lambda text: text.replace('"id": 2', '"id": [{"x": [{}, {}]}, {}]'),
        lambda text: text.replace(": ", " :\n\t ").replace("}, {", "}\n,\r\n{"),
        lambda text: text.replace(", ", ",").replace(": ", ":"),
        lambda text: text.replace('"bbox"', '"note": "a},{b", "bbox"'),
        lambda text: "\ufeff" + text,
        lambda text: "",
        lambda text: "{}",
        lambda text: '{"images": [], "annotations": [ ], "categories": [{"id": 1, "name": "a"}]}',
        lambda text: '{"images": [1, 2], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
        lambda text: '{"categories": [{"id": 1, "name": "a"}], "annotations": {}, "images": []}',
    ],
)
def test_unusual_files_are_read_as_before(write_coco, monkeypatch, change):
    root = write_coco([GOOD, {**GOOD, "segmentation": SQUARE}] * 20)
    file = root / FILE
    file.write_text(change(file.read_text()), encoding="utf-8")

    def outcome(large):
        monkeypatch.setattr(coco, "LARGE", large)
        try:
            return everything(load_dataset(root, "train", leave_out=True))
        except UserError as error:
            return str(error)

    assert outcome(0) == outcome(10**9)


def test_text_that_is_not_utf8(write_coco, monkeypatch):
    root = write_coco([GOOD] * 20)
    content = (root / FILE).read_bytes()
    for changed in (content.replace(b'"bbox"', b'"\xff": 1, "bbox"', 1), content.decode().encode("utf-16")):
        (root / FILE).write_bytes(changed)
        told = []
        for large in (0, 10**9):
            monkeypatch.setattr(coco, "LARGE", large)
            try:
                told.append(everything(load_dataset(root, "train")))
            except UserError as error:
                told.append(str(error))
        assert told[0] == told[1]


def test_records_are_a_sequence(write_coco):
    images = [
        {"id": number, "file_name": f"{number}.png", "width": 20 + number, "height": 30} for number in range(1, 8)
    ]
    objects = [{**GOOD, "image_id": 1 + index % 5, "iscrowd": int(index % 5 == 2)} for index in range(12)]
    dataset = load_dataset(write_coco(objects, images=images), "train")
    records = dataset.records
    plain = replace(dataset, records=tuple(records))
    ids = [record.image_id for record in plain.records]
    assert isinstance(records, Records) and ids == list(range(1, 8))
    for one in (slice(2, 5), slice(None, None, -2), slice(5, 2), slice(-2, None)):
        part = records[one]
        assert isinstance(part, Records) and [record.image_id for record in part] == ids[one]
        assert [record.image_id for record in part[::-1]] == ids[one][::-1]
    assert records[-1].image_id == 7 and len(records + records[:1]) == 8
    with pytest.raises(IndexError):
        records[7]
    # What is counted on the arrays is what is counted on the records.
    for one, other in ((dataset, plain), (dataset.subset(0.6, 1), plain.subset(0.6, 1))):
        assert [r.image_id for r in one.records] == [r.image_id for r in other.records]
        assert image_sizes(one.records).tolist() == image_sizes(other.records).tolist()
        assert object_counts(one.records).tolist() == object_counts(other.records).tolist()
        assert one.mask_counts() == other.mask_counts() and one.most_objects() == other.most_objects()
        assert one.difficult_objects() == other.difficult_objects() == 0
        left = usable(one, Sampling(1, skip_empty=True))
        assert isinstance(left, Records)
        assert [r.image_id for r in left] == [r.image_id for r in usable(other, Sampling(1, skip_empty=True))]
    assert take(records, np.array([3, 1]))[0].image_id == 4


def test_they_stay_in_columns_through_a_dataset_toml(write_coco, monkeypatch):
    images = [{"id": number, "file_name": f"{number}.png", "width": 40, "height": 30} for number in range(1, 8)]
    root = write_coco([{**GOOD, "image_id": 2}], images=images)
    lines = [
        'images = "train2017"',
        f'annotations = "{FILE}"',
        "val_count = 3",
        "[pixels]",
        "channels = 1",
        'dtype = "uint16"',
    ]
    (root / "dataset.toml").write_text("\n".join(lines))
    found = [load_dataset(root / "dataset.toml", split) for split in ("train", "val")]
    assert all(isinstance(one.records, Records) for one in found) and [len(one) for one in found] == [4, 3]
    assert all(record.pixels.channels == 1 for one in found for record in one.records)
    assert sorted(record.image_id for one in found for record in one.records) == list(range(1, 8))
    monkeypatch.setattr(coco, "LARGE", 10**9)
    assert [everything(load_dataset(root / "dataset.toml", one.split)) for one in found] == list(map(everything, found))


def test_what_is_read_is_ones_own(write_coco):
    """A record may be changed; the next reader sees what the file says."""
    dataset = load_dataset(write_coco([{**GOOD, "segmentation": SQUARE}]), "train")
    record = dataset.records[0]
    record.boxes[:] = 0
    record.segmentations[0][0][:] = 0
    assert dataset.records[0].boxes.tolist() == [[1, 2, 6, 8]]
    assert dataset.records[0].segmentations[0][0].tolist() == SQUARE[0]


def test_difficult_objects_are_left_out(write_coco):
    dataset = load_dataset(write_coco([GOOD, {**GOOD, "difficult": 1}]), "train")
    assert dataset.difficult_objects() == 1
    assert len(dataset.without_difficult().records[0].boxes) == 1
    assert json.dumps(dataset.mask_counts()) == "[0, 2]"
