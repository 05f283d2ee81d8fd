"""Detection in tiles, with a network that finds every rectangle of one colour that it can see."""

import itertools
import json

import cv2
import numpy as np
import pytest
from tiny_artefact import write_artefact

from directdet.common.errors import UsageProblem
from directdet.data.pixels.tiles import tiles
from directdet.front.cli import main
from directdet.infer.detections import Detections
from directdet.infer.merge import merged
from directdet.infer.network_input import NetworkInput
from directdet.infer.predictor import Predictor
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.load import load
from directdet.infer.tiled import TiledDetector

SIDE, LEAST = 64, 3  # of the canvas; pixels of it below which an object is not seen


class Eyes:
    """Returns the box of each colour on the canvas; what is seen larger has the higher score. Black is background."""

    runtime, info = "eyes", {"device": "cpu"}
    input = NetworkInput("uint8", canvas=(SIDE, SIDE), batch=1)

    def __init__(self) -> None:
        self.calls = 0

    def run(self, images):
        self.calls += 1
        boxes, scores, labels, found = np.zeros((1, 200, 4)), np.zeros((1, 200)), np.zeros((1, 200)), []
        for code in np.unique(images[0].reshape(-1, 3), axis=0):
            if code[0] != 255 or int(code[1]) + int(code[2]) != 255:  # resizing mixes them with the background
                continue
            rows, columns = np.nonzero((images[0] == code).all(-1))
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if min(box[2] - box[0], box[3] - box[1]) >= LEAST:
                found.append((min(0.99, 0.3 + len(rows) / SIDE**2), box, code[1] % 3))
        found.sort(key=lambda one: -one[0])
        for row, (score, box, label) in enumerate(found):
            scores[0, row], boxes[0, row], labels[0, row] = score, box, label
        masks = np.ones((1, 200, 28, 28), np.float32)
        num = np.array([[len(found)]], np.int32)
        return num, boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32), masks


def eyes() -> Predictor:
    return Predictor(Eyes(), Preprocess((SIDE, SIDE)), ("a", "b", "c"), (1, 2, 3))


def colour(number):
    return 255, number, 255 - number


def scene(rng, height, width, sizes):
    """A picture with rectangles that do not overlap, and their boxes and labels."""
    image, boxes, labels = np.zeros((height, width, 3), np.uint8), [], []
    for number, (h, w) in enumerate(sizes, start=1):
        for _ in range(500):
            y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            if not image[max(0, y - 1) : y + h + 1, max(0, x - 1) : x + w + 1].any():
                image[y : y + h, x : x + w] = colour(number)
                boxes.append([x, y, x + w, y + h])
                labels.append(number % 3)
                break
    return image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels)


def ious(one, other):
    size = np.minimum(one[:, None, 2:], other[None, :, 2:]) - np.maximum(one[:, None, :2], other[None, :, :2])
    common = np.prod(np.maximum(size, 0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (one, other)]
    return common / (areas[0][:, None] + areas[1][None] - common)


@pytest.mark.parametrize(
    ("height", "width", "side", "overlap"),
    [(64, 64, 64, 0.25), (65, 300, 64, 0.25), (1000, 37, 64, 0.0), (333, 777, 64, 0.5), (200, 200, 64, 0.9)],
)
def test_tiles_cover_the_picture_and_overlap(height, width, side, overlap):
    parts, seen = tiles(height, width, side, overlap), np.zeros((height, width), int)
    for tile in parts:
        assert (tile.height, tile.width) == (min(side, height), min(side, width))
        seen[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] += 1
        inner = (tile.x > 0, tile.y > 0, tile.x + tile.width < width, tile.y + tile.height < height)
        assert tile.inner == inner
    assert seen.min() == 1 or (seen.min() > 1 and overlap)
    for axis, length in (("x", width), ("y", height)):
        starts = sorted({getattr(tile, axis) for tile in parts})
        assert starts[0] == 0 and starts[-1] == max(0, length - side)
        assert all(b - a <= max(1, side * (1 - overlap)) + 1 for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("seed", range(10))
def test_every_object_is_found_once_and_whole(seed):
    """Small ones, which the whole picture loses; ones that every tile cuts; and ones larger than a tile."""
    rng = np.random.default_rng(seed)
    sizes = [(150, 130), (40, 110), (90, 30), *rng.integers(4, 12, (40, 2)).tolist()]
    image, boxes, labels = scene(rng, 301, 433, sizes)
    plain = eyes()(image)
    assert len(plain) < len(boxes) / 2
    found = TiledDetector(eyes())(image)
    overlaps = ious(boxes, found.boxes)
    assert len(found) == len(boxes)
    best = overlaps.argmax(axis=1)
    assert sorted(best) == list(range(len(boxes))) and (found.labels[best] == labels).all()
    small = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) < 12 * 12
    assert (overlaps.max(axis=1)[small] == 1).all()  # exact: a tile is not scaled
    assert overlaps.max(axis=1).min() > 0.8  # the whole picture is scaled down almost seven times
    assert (np.diff(found.scores) <= 0).all()
    for one in found:
        (x0, y0), (x1, y1) = np.floor(one.box[:2]).astype(int), np.ceil(one.box[2:]).astype(int)
        mask = one.full_mask()
        inside = mask[y0:y1, x0:x1]
        assert inside.mean() > 0.8 and inside.sum() == mask.sum()


def test_objects_at_every_place_across_a_border():
    """One object, at each offset to the edges of the tiles: never lost, never cut, never twice."""
    detector = TiledDetector(eyes())
    for x in range(90):
        image = np.zeros((64, 160, 3), np.uint8)
        image[20:30, x : x + 11] = colour(7)
        found = detector(image)
        assert found.boxes.tolist() == [[x, 20, x + 11, 30]], x


def test_pictures_no_larger_than_a_tile_are_as_they_were():
    image, _, _ = scene(np.random.default_rng(0), 60, 64, [(9, 9), (20, 5)])
    one, tiled = eyes(), TiledDetector(eyes())
    a, b = one(image), tiled(image)
    assert np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores) and tiled.backend.calls == 1
    assert tiled.describe() == {**one.describe(), "tiles": SIDE, "overlap": 0.25}
    empty = TiledDetector(eyes())(np.zeros((200, 200, 3), np.uint8))
    assert len(empty) == 0 and empty.image_size == (200, 200)


def test_what_covers_a_cut_box_has_the_higher_score():
    """The whole picture hardly sees an object whose parts are plain in the tiles: it is not lost below a threshold."""
    boxes = [[0, 0, 200, 100], [0, 0, 90, 100], [110, 0, 200, 100], [300, 0, 340, 100]]
    found = Detections(boxes, [0.1, 0.9, 0.8, 0.5], [1, 1, 1, 1], None, (100, 400))
    across = np.array([[False, False], *[[True, False]] * 3])
    kept = merged(found, across, 0.5)
    assert kept.boxes.tolist() == [boxes[0], boxes[3]] and kept.scores.tolist() == pytest.approx([0.9, 0.5])
    other = merged(Detections(boxes, [0.1, 0.9, 0.8, 0.5], [0, 1, 1, 1], None, (100, 400)), np.ones((4, 2), bool), 0.5)
    assert len(other) == 4  # another class covers nothing


def test_the_slack_counts_across_the_cut_alone():
    """A bar that a tile cuts at its left stays beside a neighbour below it; a strip of a large object does not."""
    across = np.array([[False, False], [True, False]])
    bar = Detections([[171, 162, 202, 178], [179, 157, 205, 162]], [0.3, 0.4], [2, 2], None, (256, 332))
    assert len(merged(bar, across, 0.5, slack=10.5)) == 2
    strip = Detections([[100, 100, 290, 200], [288, 100, 300, 200]], [0.3, 0.4], [2, 2], None, (400, 400))
    assert len(merged(strip, across, 0.5, slack=0)) == 2
    assert merged(strip, across, 0.5, slack=12).boxes.tolist() == [[100, 100, 290, 200]]


def test_a_bar_longer_than_the_overlap_stays_beside_others():
    """No tile shows it whole, and the whole picture does not show it: it is there as far as a tile shows it."""
    image = np.zeros((256, 332, 3), np.uint8)
    image[163:177, 171:204], image[157:162, 177:205] = colour(3), colour(6)
    found = TiledDetector(eyes())(image)
    bar = np.array([[177, 157, 205, 162]], np.float32)
    assert len(found) == 2 and ious(bar, found.boxes).max() > 0.9


def test_a_neighbour_within_the_slack_does_not_take_the_score():
    boxes = [[100, 100, 140, 140], [142, 100, 182, 140], [142, 100, 160, 140]]
    found = Detections(boxes, [0.6, 0.5, 0.95], [0, 0, 0], None, (400, 400))
    kept = merged(found, np.array([[False, False], [False, False], [True, False]]), 0.5, slack=20)
    assert kept.boxes.tolist() == [boxes[1], boxes[0]] and kept.scores.tolist() == pytest.approx([0.95, 0.6])


@pytest.mark.parametrize("size", [(800, 1333), (1333, 800)])
@pytest.mark.parametrize(("height", "width"), [(2000, 4000), (4000, 2000)])
def test_the_slack_is_two_pixels_of_the_canvas(size, height, width):
    """Of limits in any order, too: both pictures are scaled down to 667 x 1333."""

    class Free(Eyes):
        input = NetworkInput("uint8", canvas=None, batch=1)

    detector = TiledDetector(Predictor(Free(), Preprocess(size, fixed=False), ("a",), (1,)))
    assert detector._edge(height, width) == pytest.approx(2 * 3, rel=0.001)


@pytest.mark.parametrize(
    ("meta", "objects"),
    [
        ({"thresholds": {"nms": 0.65}}, 2),
        ({"model_config": {"nms": 0.65}}, 2),  # of a checkpoint
        ({}, 1),
        ({"thresholds": {"nms": None}, "model_config": {"nms": "much"}}, 1),
        ({"thresholds": [0.65]}, 1),
    ],
)
def test_boxes_suppress_each_other_as_the_model_says(meta, objects):
    """Two boxes with an IoU of 0.6: the default, 0.5, makes one of them."""

    class Two(Eyes):
        def run(self, images):
            num, boxes, scores, labels, masks = (np.zeros_like(value) for value in super().run(images))
            if (images[0, -1, -1] != 9).any():  # the whole picture: below it is padding
                num[0], scores[0, :2], boxes[0, :2] = 2, (0.9, 0.8), ((0, 0, 40, 30), (0, 0, 40, 18))
            return num, boxes, scores, labels, masks

    image = np.full((SIDE, 2 * SIDE, 3), 9, np.uint8)
    found = TiledDetector(Predictor(Two(), Preprocess((SIDE, SIDE)), ("a",), (1,), meta=meta), SIDE, 0.0)(image)
    assert len(found) == objects


@pytest.mark.parametrize(("side", "overlap", "what"), [(8, 0.25, "tiles: 8"), (64, 0.95, "overlap: 0.95")])
def test_what_cannot_be_is_refused(side, overlap, what):
    with pytest.raises(UsageProblem, match=what):
        TiledDetector(eyes(), side, overlap)


def test_from_the_command_line(tmp_path, tiny_dataset, capsys):
    artefact = write_artefact(tmp_path / "artefact")
    image = np.random.default_rng(0).integers(0, 255, (300, 500, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "large.png"), image)
    command = ["infer", str(artefact), str(tmp_path / "large.png"), "--out", str(tmp_path / "out"), "--score", "0"]
    assert main([*command, "--tiles", "128"]) == 0
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())["annotations"]
    found = TiledDetector(load(artefact, device="cpu"), 128)(image)
    assert [row["score"] for row in rows] == pytest.approx(found.scores.tolist()) and len(found) > 10
    assert np.array_equal(TiledDetector(load(artefact, device="cpu"), 128)(tmp_path / "large.png").boxes, found.boxes)
    assert (tmp_path / "out" / "large.png").is_file()
    assert main(["infer", str(artefact), "0", "--out", str(tmp_path / "video"), "--tiles", "128"]) == 2
    assert "--tiles is for images" in capsys.readouterr().err
    assert main([*command[:-2], "--overlap", "0.5"]) == 2
    assert "overlap: is that of tiles" in capsys.readouterr().err
