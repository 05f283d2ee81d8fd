"""Polygons with corners far outside the picture: what pycocotools sees of them, and what is drawn."""

import json

import numpy as np
import pytest

from directdet.common.errors import UserError
from directdet.data.check import check_data
from directdet.data.check_report import print_report
from directdet.data.dataset import load_dataset
from directdet.data.formats.polygons import near_picture
from directdet.data.masks import decode_mask, rasterise, to_shape

WIDTH, HEIGHT = 40, 30


def inside(points, x, y):
    """Whether the point lies in the polygon, by the rule of odd crossings of a ray to the right."""
    ends = np.roll(points, -1, axis=0)
    crosses = (points[:, 1] > y) != (ends[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = points[:, 0] + (y - points[:, 1]) * (ends[:, 0] - points[:, 0]) / (ends[:, 1] - points[:, 1])
    return bool((crosses & (x < at)).sum() % 2)


def test_a_polygon_within_the_margin_stays_itself():
    polygon = np.array([-WIDTH, -HEIGHT, 2 * WIDTH, 5, 12.25, 2 * HEIGHT], np.float64)
    assert near_picture(polygon, WIDTH, HEIGHT) is polygon


@pytest.mark.parametrize("reach", [200.0, 1e4, 1e9, 3e9])
def test_what_is_in_the_picture_is_not_changed_by_cutting(reach):
    rng = np.random.default_rng(int(reach) % 1000)
    cut = 0
    for _ in range(100):
        polygon = rng.uniform(-reach, reach, (int(rng.integers(3, 8)), 2))
        polygon[0] = rng.uniform(0, 30, 2)
        near = near_picture(polygon.reshape(-1), WIDTH, HEIGHT)
        cut += near is not None and len(near) != polygon.size
        points = np.zeros((3, 2)) if near is None else near.reshape(-1, 2)
        assert (points >= [-WIDTH, -HEIGHT]).all() and (points <= [2 * WIDTH, 2 * HEIGHT]).all()
        for x, y in rng.uniform((0, 0), (WIDTH, HEIGHT), (25, 2)):
            edges = np.roll(polygon, -1, axis=0) - polygon
            normal = np.stack([-edges[:, 1], edges[:, 0]], 1) / np.linalg.norm(edges, axis=1)[:, None]
            if (
                np.abs(((np.array([x, y]) - polygon) * normal).sum(1)).min() > 1e-3
            ):  # not on an edge, where it may round
                assert inside(points, x, y) == inside(polygon, x, y)
    assert cut > 30


def test_nothing_left():
    assert near_picture(np.array([1e9, 1e9, 2e9, 1e9, 2e9, 2e9]), WIDTH, HEIGHT) is None


@pytest.mark.parametrize("far", [1e9, 3e9, -1e9, 9e14, 1e5])
def test_a_corner_far_outside_is_cut_off_and_told(write_coco, capsys, far):
    polygon = [0, 0, far, 0, far, far] if far > 0 else [40, 0, far, 0, 40, -far]
    dataset = load_dataset(write_coco([{"bbox": [1, 1, 30, 20], "segmentation": [polygon]}]), "train")
    (record,) = dataset.records
    (problem,) = dataset.problems
    assert (problem.kind, problem.annotation_id, problem.action) == ("far-polygon", 1, "mask cut off there")
    (kept,) = record.segmentations[0]
    assert np.abs(kept).max() <= 2 * WIDTH
    mask = decode_mask(record.segmentations[0], HEIGHT, WIDTH)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    above = (columns > rows) if far == 9e14 or far > 0 else np.ones_like(mask, bool)
    assert (mask == above).mean() > 0.96  # pycocotools rounds the diagonal's pixels its own way
    assert rasterise(to_shape(record.segmentations[0], HEIGHT, WIDTH), record.boxes[0], 28).any()
    print_report(check_data(dataset.root, progress=False))
    assert "annotation 1: a polygon of the mask has a corner at" in capsys.readouterr().out


def test_a_mask_that_lies_far_outside_leaves_the_box(write_coco):
    far = [1e9, 1e9, 2e9, 1e9, 2e9, 2e9]
    near = [5, 5, 20, 5, 5, 20]
    root = write_coco([{"bbox": [1, 1, 30, 20], "segmentation": masks} for masks in ([far], [far, near])])
    dataset = load_dataset(root, "train")
    (record,) = dataset.records
    assert len(record.boxes) == 2 and record.segmentations[0] is None
    assert [polygon.tolist() for polygon in record.segmentations[1]] == [near]
    assert [item.action for item in dataset.problems] == ["mask left out, box kept", "mask cut off there"]


def test_sizes_that_no_picture_has_are_refused(write_coco):
    with pytest.raises(UserError, match="image 7: image of 40000x40000 pixels, more than 134217728 in all"):
        load_dataset(
            write_coco([], 40, 30, images=[{"id": 7, "file_name": "a", "width": 40000, "height": 40000}]), "train"
        )


def test_case_polygon_far_outside(data_cases):
    root = data_cases / "polygon_far_outside" / "data"
    report = check_data(root, progress=False)
    assert not report.fatal
    for split in report.splits:
        content = json.loads((root / "annotations" / f"instances_{split.split}2017.json").read_text())
        corners = {entry["id"]: max(map(max, entry["segmentation"])) for entry in content["annotations"]}
        far = [number for number, corner in corners.items() if corner > 1e6]
        assert far and [item.annotation_id for item in split.problems if item.kind == "far-polygon"] == far
    for record in load_dataset(root, "val").records:
        for segmentation in record.segmentations:
            assert decode_mask(segmentation, record.height, record.width).any()
