"""By which content a dataset is known again."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from directdet.data.dataset import load_dataset
from directdet.data.digest import describe_content, difference


@pytest.fixture(scope="module")
def dataset(synthetic):
    return load_dataset(synthetic, "train")


def changed(dataset, **values):
    """The dataset with fields of its third image replaced."""
    records = list(dataset.records)
    records[2] = replace(records[2], **values)
    return replace(dataset, records=tuple(records))


def test_the_same_data_elsewhere_are_the_same(dataset, synthetic, tmp_path):
    shutil.copytree(synthetic, tmp_path / "moved")
    moved = describe_content(load_dataset(tmp_path / "moved", "train"))
    assert moved == describe_content(dataset) and difference(moved, describe_content(dataset)) == ""


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("path", "file names of images"),
        ("image_id", "file names of images"),
        ("width", "sizes of images"),
        ("boxes", "boxes, classes, flags or scores of objects"),
        ("labels", "boxes, classes, flags or scores of objects"),
        ("crowd", "boxes, classes, flags or scores of objects"),
        ("difficult", "boxes, classes, flags or scores of objects"),
        ("weights", "boxes, classes, flags or scores of objects"),
        ("segmentations", "masks of objects"),
    ],
)
def test_every_change_is_noticed_and_named(dataset, field, says):
    record = dataset.records[2]
    value = getattr(record, field)
    if isinstance(value, np.ndarray):
        new = ~value if value.dtype == bool else value + 1
    else:
        others = {"path": record.path.with_name("other.jpg"), "segmentations": (None, *record.segmentations[1:])}
        new = others.get(field) or value + 1
    other = changed(dataset, **{field: new})
    assert difference(describe_content(dataset), describe_content(other)) == says


def test_numbers_are_told(dataset):
    fewer = replace(dataset, records=dataset.records[:-1])
    assert difference(describe_content(dataset), describe_content(fewer)) == "number of images (12, now 11)"
