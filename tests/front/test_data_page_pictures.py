"""Pictures of the page of check-data: what is in question is seen in them."""

from __future__ import annotations

import base64
import json

import cv2
import numpy as np
import pytest
from page_reader import read

from directdet.data.check import check_data, examine_data
from directdet.data.checks.finding import Example
from directdet.data.checks.findings import all_findings
from directdet.data.dataset import load_dataset
from directdet.data.records import make_record
from directdet.data.synthetic import make_synthetic
from directdet.pages.annotated import annotated, example_picture, single_object
from directdet.pages.data import DataPage, render_data

RED = np.array([60, 40, 215])  # BGR


def test_a_box_outside_its_picture_is_drawn_there(write_one):
    record = write_one([])
    picture = decoded(example_picture(Example(record, boxes=((90.0, 10.0, 110.0, 30.0),)), ("a",)))
    red = np.abs(picture.astype(int) - RED).max(axis=2) < 60
    rows, columns = np.nonzero(red)
    # 80 x 60 pixels and the box make 110 (and a margin) across.
    scale = picture.shape[1] / 113
    assert columns.min() == pytest.approx(90 * scale, abs=4) and columns.max() == pytest.approx(110 * scale, abs=4)
    assert rows.min() == pytest.approx(10 * scale, abs=4) and rows.max() == pytest.approx(30 * scale, abs=4)
    # Of one far away there is an arrow.
    far = decoded(example_picture(Example(record, boxes=((1e9, 10.0, 1.1e9, 30.0),)), ("a",)))
    arrow = np.nonzero(np.abs(far.astype(int) - RED).max(axis=2) < 60)[1]
    assert arrow.size > 50 and arrow.min() > far.shape[1] / 2


@pytest.mark.parametrize(("width", "height"), [(2, 4000), (4000, 2)])
def test_a_strip_beside_a_box_outside_it_is_seen(tmp_path, width, height):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((height, width, 3), 255, np.uint8))
    record = make_record(1, tmp_path / "a.png", width, height, [])
    picture = decoded(example_picture(Example(record, boxes=((-1400.0, -1400.0, -1.0, -1.0),)), ("a",)))
    seen = (picture > 200).all(axis=2)
    assert seen[:, -1].sum() > 250 if height > width else seen[-1].sum() > 250


def test_the_object_in_question_is_red_and_its_mask_is_tinted(write_one):
    record = write_one([[10, 10, 20, 20], [50, 30, 20, 20]])
    picture = decoded(example_picture(Example(record, objects=(1,)), ("a", "b")))
    scale = picture.shape[1] / record.width
    centre = [picture[round(y * scale), round(x * scale)].astype(int) for x, y in ((20, 20), (60, 40))]
    plain = cv2.imread(str(record.path))[[20, 40], [20, 60]]
    assert np.abs(centre[0] - plain[0]).max() < 25
    assert np.abs(centre[1] - (0.6 * plain[1] + 0.4 * RED)).max() < 25
    shown = decoded(single_object(record, 1))
    assert shown.shape == (176, 176, 3)
    assert max(decoded(annotated(record, ("a", "b"))).shape) == 400


@pytest.fixture
def write_one(tmp_path):
    """``write_one(boxes)``: the record of a smooth picture of 80 x 60 pixels with these objects (x, y, width, height);
    each has its box as its mask."""

    def write(boxes):
        small = np.random.default_rng(0).integers(0, 120, (3, 4, 3), dtype=np.uint8)
        (tmp_path / "train2017").mkdir()
        cv2.imwrite(str(tmp_path / "train2017" / "a.png"), cv2.resize(small, (80, 60)))
        objects = [
            {"id": index + 1, "image_id": 1, "category_id": 1, "bbox": [x, y, w, h],
             "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
            for index, (x, y, w, h) in enumerate(boxes)
        ]  # fmt: skip
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}],
            "annotations": objects,
            "categories": [{"id": 1, "name": "a"}],
        }
        (tmp_path / "annotations").mkdir()
        (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
        return load_dataset(tmp_path, "train").records[0]

    return write


def decoded(jpeg: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


@pytest.mark.parametrize("sensor", ["deep-grey", "six-bands"])
def test_pictures_of_other_sensors_are_drawn(sensor, tmp_path):
    pytest.importorskip("tifffile")
    root = make_synthetic(tmp_path / "data", 4, 2, seed=1, size=(64, 96), sensor=sensor)
    (root / "dataset.toml").write_text("\n".join(check_data(root, progress=False).pixels[1:]))
    page = render_data(DataPage(*examine_data(root, progress=False)))
    sources = [attributes["src"] for tag, attributes in read(page).seen if tag == "img"]
    assert len(sources) > 10 and "What the pictures hold" in page
    for source in sources[:8]:
        image = decoded(base64.b64decode(source.partition(",")[2]))
        assert image.std() > 20  # the stretched levels, not the even grey that 8 of the 16 bits would be


def test_boxes_smaller_than_a_pixel_are_circled(write_one, tmp_path):
    write_one([[0.1, 0.2, 0.5, 0.5], [0.3, 0.3, 0.2, 0.4]])
    report, datasets = examine_data(tmp_path, progress=False)
    (finding,) = [one for one in all_findings(report, datasets) if one.kind == "tiny-box"]
    assert finding.count == 2 and len(finding.examples) == 1 and finding.worth == "error"
    picture = decoded(example_picture(finding.examples[0], ("a",))).astype(int)
    assert (np.abs(picture[:12, :12] - RED).max(axis=2) < 60).sum() > 8
