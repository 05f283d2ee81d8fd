"""`Detections` in a user's hands: taking parts, names, drawing, other libraries' forms, and how they are shown."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from PIL import Image
from test_infer_detections import smooth_masks
from tiny_artefact import write_artefact, write_dataset

from directdet import Detections, Detector
from directdet.common.errors import MissingLibraryError, UserError
from directdet.infer.accuracy.evaluate import detect
from directdet.infer.detections import Detection
from directdet.infer.draw import draw

CLASSES, IDS = ("person", "traffic light", "dog"), (1, 10, 18)


def make(count: int = 4, masks: bool = True, classes=CLASSES) -> Detections:
    rng = np.random.default_rng(count)
    corner = rng.uniform(0, 40, (count, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.uniform(5, 20, (count, 2)).astype(np.float32)], axis=1)
    scores = np.sort(rng.random(count).astype(np.float32))[::-1]
    labels = rng.integers(0, 3, count)
    return Detections(
        boxes, scores, labels, smooth_masks(rng, count) if masks and count else None, (60, 80), None, classes, IDS
    )


def same(one: Detections, other: Detections) -> bool:
    names = ("boxes", "scores", "labels", "masks", "mask_boxes")
    alike = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
    return alike and (one.classes, one.category_ids, one.image_size) == (other.classes, IDS, (60, 80))


@pytest.mark.parametrize("masks", [True, False])
def test_one_row(masks):
    found = make(4, masks)
    for row in (0, 3, -1, np.int64(2), np.array(1)):
        one = found[row]
        assert isinstance(one, Detection) and one.label == found.labels[row] and one.score == float(found.scores[row])
        assert np.array_equal(one.box, found.boxes[row]) and one.name == CLASSES[one.label] == found.names[row]
        if masks:
            assert np.array_equal(one.full_mask(), found.full_masks()[row]) and one.full_mask().any()
        else:
            with pytest.raises(ValueError, match="no mask"):
                one.full_mask()
    for row in (4, -5):
        with pytest.raises(IndexError, match=f"detection {row} of 4"):
            found[row]
    assert [one.score for one in found] == found.scores.tolist() and not list(make(0))


@pytest.mark.parametrize("masks", [True, False])
def test_parts(masks):
    found = make(6, masks)
    above = found.scores > float(np.median(found.scores))
    rows = np.flatnonzero(above)
    for key in (above, above.tolist(), rows, rows.tolist(), slice(0, 3)):
        part = found[key]
        assert isinstance(part, Detections) and len(part) == 3
        assert same(part, Detections(
            found.boxes[:3], found.scores[:3], found.labels[:3], None if found.masks is None else found.masks[:3],
            (60, 80), None, CLASSES, IDS,
        ))  # fmt: skip
    assert same(found[:], found) and same(found[::-1][::-1], found) and same(found.above(0.0), found)
    assert found[[5, 0]].scores.tolist() == [found.scores[5], found.scores[0]]
    for empty in (found[[]], found[np.zeros(6, bool)], found[9:], found[found.labels == 7]):
        assert len(empty) == 0 and empty.names == [] and empty.boxes.shape == (0, 4)
    for wrong in (np.ones(5, bool), [6], np.ones((6, 4), bool), [0.5]):
        with pytest.raises(IndexError):
            found[wrong]
    with pytest.raises((IndexError, TypeError)):
        found["person"]


def test_names_follow_the_labels(tmp_path):
    """Also where a dataset has the model's classes in another order."""
    assert make(classes=()).names == [str(label) for label in make().labels]
    artefact = Detector(write_artefact(tmp_path / "artefact"), device="cpu")
    data = write_dataset(tmp_path)
    picture = cv2.imread(str(data.records[0].path))
    found = artefact(picture)
    assert found.names == ["person", "dog"] and found.category_ids == IDS
    turned = type(data)(data.root, "val", "coco", CLASSES[::-1], (7, 8, 9), data.records)
    other = detect(artefact, turned, data.records)[0][1]
    assert other.names == ["person", "dog"] and other.labels.tolist() == [2, 0]
    assert [entry["category_id"] for entry in other.to_coco(5)] == [9, 7]


def test_to_coco_with_its_own_ids_and_with_others():
    found = make()
    own = found.to_coco(3)
    assert own == found.to_coco(3, IDS) and [entry["category_id"] for entry in own] == [
        IDS[one] for one in found.labels
    ]
    assert all("counts" in entry["segmentation"] and entry["image_id"] == 3 for entry in own)
    assert [entry["category_id"] for entry in found.to_coco(3, (4, 5, 6))] == [4 + one for one in found.labels]
    bare = Detections(found.boxes, found.scores, found.labels, None, (60, 80))
    with pytest.raises(ValueError, match="give category_ids"):
        bare.to_coco(1)
    assert bare[:0].to_coco(1) == []


def test_drawing_on_what_was_detected_in(tmp_path):
    found, image = make(), np.full((60, 80, 3), (10, 120, 240), np.uint8)
    expected = draw(image, found, CLASSES)
    assert (expected != image).any()
    rgb = np.ascontiguousarray(image[:, :, ::-1])
    cv2.imwrite(str(tmp_path / "a.png"), image)
    np.testing.assert_array_equal(found.draw(image), expected)
    np.testing.assert_array_equal(found.draw(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(found.draw(rgb, order="rgb"), expected[:, :, ::-1])
    np.testing.assert_array_equal(found.draw(Image.fromarray(rgb), order="rgb"), expected[:, :, ::-1])
    np.testing.assert_array_equal(found.draw(image, scores=False), draw(image, found, CLASSES, scores=False))
    assert (image == (10, 120, 240)).all()
    with pytest.raises(UserError, match="a picture of 60 x 80 pixels: these detections are of one of 80 x 60"):
        found.draw(image.transpose(1, 0, 2))


def test_the_text_of_a_few_lines():
    lines = repr(make(8)).splitlines()
    assert lines[0] == "8 detections in a picture of 80 x 60 pixels, with masks"
    assert lines[-1] == "  and 3 more" and len(lines) == 7
    one = make(8)[0]
    assert lines[1] == f"  {one.name} {one.score:.2f} at [{', '.join(f'{value:.1f}' for value in one.box)}]"
    assert repr(make(0)) == "0 detections in a picture of 80 x 60 pixels" and repr(make(1, False)).count("\n") == 1
    assert "\x1b" not in repr(make(classes=("\x1b[31m",) * 3))


class Tags(HTMLParser):
    """What of a page is open, and its text."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "|"


@pytest.mark.parametrize("count", [0, 1, 25])
def test_the_html_of_a_notebook(count):
    evil = "<script>alert(1)</script>&"
    html = make(count, classes=(evil, "car", "dog"))._repr_html_()
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert not tags.open and "script" not in tags.seen and not re.search(r"(src|href)=", html)
    assert tags.seen.count("rect") == count and tags.seen.count("tr") == (min(count, 20) + 1 if count else 0)
    assert f"{count} detection" in tags.text and ("and 5 more" in tags.text) == (count == 25)
    if count == 25:
        assert evil in tags.text


def test_pandas():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (the extra `test` has it)")
    found = make()
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and list(frame) == ["name", "label", "score", "x0", "y0", "x1", "y1"]
    assert frame.name.tolist() == found.names and np.array_equal(frame[["x0", "y0", "x1", "y1"]], found.boxes)
    assert np.array_equal(frame.score, found.scores) and len(make(0).to_pandas()) == 0


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("count", [0, 4])
def test_supervision(count, masks):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed (the extra `test` has it)")
    found = make(count, masks)
    theirs = found.to_supervision()
    assert isinstance(theirs, supervision.Detections) and len(theirs) == count
    assert np.array_equal(theirs.xyxy, found.boxes) and np.array_equal(theirs.confidence, found.scores)
    assert np.array_equal(theirs.class_id, found.labels) and theirs.data["class_name"].tolist() == found.names
    assert (theirs.mask is None) == (found.masks is None)
    if found.masks is not None:
        assert np.array_equal(theirs.mask, found.full_masks())
    assert len(theirs[theirs.confidence > 2]) == 0  # their own indexing works on what they were given


@pytest.mark.parametrize("library", ["pandas", "supervision"])
def test_a_missing_library_is_one_line(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingLibraryError, match=rf"^{library} cannot be imported \(.*\); pip install {library}$"):
        getattr(make(), f"to_{library}")()
