"""Values of an annotation file that tools spell in other ways, and those that are refused by name."""

import pytest

from directdet.common.errors import UserError
from directdet.data.check import check_data
from directdet.data.dataset import load_dataset

BOX = [1, 1, 5, 5]
RUNS = [100, 50, 1050]


def train(root):
    return load_dataset(root, "train")


@pytest.mark.parametrize("key", ["iscrowd", "difficult"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *(("0", False), ("1", True), (0, False), (1, True), (0.0, False), (1.0, True)),
        *((False, False), (True, True), (None, False), (" 1 ", True)),
    ],
)
def test_flags_are_read_as_they_are_meant(write_coco, key, value, expected):
    (record,) = train(write_coco([{"bbox": BOX, key: value}])).records
    flags = {"iscrowd": record.crowd, "difficult": record.difficult}
    assert flags[key].tolist() == [expected]
    assert not flags[{"iscrowd": "difficult", "difficult": "iscrowd"}[key]].any()


@pytest.mark.parametrize("key", ["iscrowd", "difficult"])
@pytest.mark.parametrize("value", ["no", "", "2", 2, 0.5, -1, [], [0], {}, float("nan")])
def test_other_flags_are_refused_by_name(write_coco, key, value):
    with pytest.raises(UserError, match=rf"instances_train2017\.json: annotation 1: {key} .* is neither 0 nor 1"):
        train(write_coco([{"bbox": BOX, key: value}]))


def test_whole_numbers_as_floats(write_coco):
    root = write_coco(
        [
            {"id": 4.0, "image_id": 7.0, "category_id": 9.0, "bbox": BOX, "iscrowd": 0.0},
            {"bbox": BOX, "segmentation": {"size": [30.0, 40.0], "counts": [float(run) for run in RUNS]}},
        ],
        images=[{"id": 7.0, "file_name": "a.png", "width": 40.0, "height": 30.0}],
        categories=[{"id": 9.0, "name": 1.0}, {"id": 3.0, "name": 0}],
    )
    dataset = train(root)
    assert (dataset.classes, dataset.category_ids) == (("0", "1"), (3, 9))
    (record,) = dataset.records
    assert (record.image_id, record.width, record.height, record.annotation_ids) == (7, 40, 30, (4, 2))
    assert record.labels.tolist() == [1, 0]
    assert record.segmentations[1] == {"size": [30, 40], "counts": RUNS}
    numbers = [record.image_id, record.width, record.height, *record.annotation_ids, *dataset.category_ids]
    assert all(type(number) is int for number in [*numbers, *record.segmentations[1]["counts"]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 7.5, "file_name": "a.png", "width": 40, "height": 30}]}, "entry 0 has no integer id"),
        ({"images": [{"id": 2**63, "file_name": "a.png", "width": 40, "height": 30}]}, "entry 0 has no integer id"),
        ({"images": [{"id": 7, "file_name": "a.png", "width": "40", "height": 30}]}, "image 7: width '40'"),
        ({"images": [{"id": 7, "file_name": "a.png", "width": True, "height": 30}]}, "image 7: width True"),
        ({"images": [{"id": 7, "file_name": "a.png", "width": 40, "height": float("inf")}]}, "height inf"),
        ({"categories": [{"id": 3, "name": None}]}, "entry 0 has no integer id or no name"),
        ({"categories": [{"id": 3, "name": True}]}, "entry 0 has no integer id or no name"),
        ({"categories": [{"id": True, "name": "a"}]}, "entry 0 has no integer id or no name"),
        ({"categories": ["a"]}, "entry 0 has no integer id or no name"),
    ],
)
def test_other_values_are_refused(write_coco, changes, message):
    with pytest.raises(UserError, match=message):
        train(write_coco(**changes))


def test_areas_that_cannot_be_meant_are_those_of_the_box(write_coco):
    values = [-25, 0, float("nan"), float("inf"), -float("inf"), None, 7.5]
    dataset = train(write_coco([{"bbox": [1, 1, 5, 4], "area": value} for value in values]))
    assert dataset.records[0].areas.tolist() == [20] * 6 + [7.5]
    assert [(item.annotation_id, item.kind, item.action) for item in dataset.problems] == [
        (number, "bad-area", "taken from the box") for number in range(1, 6)
    ]


@pytest.mark.parametrize("value", ["25", True, [25]])
def test_areas_that_are_no_numbers_are_refused_by_name(write_coco, value):
    with pytest.raises(UserError, match=r"annotation 1: area .* is not a number"):
        train(write_coco([{"bbox": BOX, "area": value}]))


@pytest.mark.parametrize(("area", "misfits"), [(1, 3), (200, 0), (100, 0), (1000, 3), (4, 0)])
def test_areas_that_do_not_fit_the_boxes_are_told(write_coco, area, misfits):
    report = check_data(write_coco([{"bbox": [x, 2, 20, 10], "area": area} for x in (2, 3, 4)]), progress=False)
    told = [line for line in report.doubts if "does not fit their box" in line]
    assert report.splits[0].misfit_areas == misfits and len(told) == (misfits > 0)


def test_numbers_of_thousands_of_digits(write_coco):
    root = write_coco([{"bbox": BOX}])
    file = root / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text().replace('"id": 1,', f'"id": {"9" * 5000},'))
    with pytest.raises(UserError, match=r"instances_train2017\.json: not valid JSON"):
        train(root)
