"""Sources, drawing and predict."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from directdet.common.errors import UserError
from directdet.infer.detections import Detections
from directdet.infer.draw import colour, draw
from directdet.infer.predict.images import predict
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.sources import find_images, read_for_detector
from directdet.infer.runtimes.load import load


def save(path, seed: int = 0, height: int = 192, width: int = 256) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), image)
    return image


def test_find_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/c.bmp"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    assert [path.name for path in find_images(tmp_path)] == ["a.jpg", "b.PNG"]
    assert [path.name for path in find_images(f"{tmp_path}/**/*.*")] == ["a.jpg", "b.PNG", "c.bmp"]
    assert list(find_images(tmp_path / "a.jpg")) == [tmp_path / "a.jpg"]
    (tmp_path / "empty").mkdir()
    for source, message in (
        ("missing.jpg", "not found"),
        ("notes.txt", "not an image"),
        ("empty", "no images in this folder"),
        ("*.gif", "no images in this pattern"),
    ):
        with pytest.raises(UserError, match=message):
            find_images(tmp_path / source)


def test_read_for_detector(tmp_path):
    image = save(tmp_path / "a.png")
    assert np.array_equal(read_for_detector(tmp_path / "a.png"), image)


def test_draw_changes_only_a_copy():
    image = np.full((100, 140, 3), 127, np.uint8)
    mask = np.ones((2, 28, 28), np.float32)
    found = Detections([[20, 30, 60, 80], [70, 30, 130, 90]], [0.9, 0.8], [0, 1], mask, (100, 140))
    drawn = draw(image, found, ("a", "b"))
    assert (image == 127).all() and drawn.shape == image.shape and drawn.dtype == np.uint8
    inside = drawn[60, 30].astype(int)  # tinted towards the class's colour, not covered by it
    assert np.abs(inside - 127).max() > 0 and np.abs(inside - colour(0)).max() > 10
    assert (drawn[5, 130] == 127).all()


@pytest.mark.parametrize("size", [(8, 8), (20, 300), (300, 20), (32, 32)])
def test_draw_on_small_images_and_odd_boxes(size):
    image = np.zeros((*size, 3), np.uint8)
    boxes = [[0, 0, size[1], size[0]], [size[1] - 1, size[0] - 1, size[1], size[0]], [2.2, 2.2, 2.4, 2.4]]
    found = Detections(boxes, [0.5, 0.6, 0.7], [0, 1, 7], np.ones((3, 28, 28), np.float32), size)
    assert draw(image, found, ("a rather long name", "b")).any()
    nothing = Detections(np.zeros((0, 4)), [], [], None, size)
    assert not draw(image, nothing, ()).any()


def test_colours_are_distinct():
    colours = np.array([colour(label) for label in range(20)], int)
    distance = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(20, dtype=int)
    assert distance.min() > 25


def test_predict_writes_pictures_and_coco_results(artefact, tmp_path):
    for name in ("in/a.png", "in/a.jpg", "in/b.png"):
        save(tmp_path / name)
    summary = predict(load(artefact, device="cpu"), tmp_path / "in", tmp_path / "out", progress=False)
    assert (summary.n_images, summary.n_detections) == (3, 6) and not summary.failures
    written = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert written == ["a.jpg", "a.png", "b.png", "detections.json"]
    content = json.loads(summary.results_file.read_text())
    assert [entry["id"] for entry in content["images"]] == [1, 2, 3]
    assert content["images"][0]["file_name"].endswith("in/a.jpg")
    assert content["images"][0]["width"] == 256
    first = content["annotations"][0]
    assert set(first) == {"id", "image_id", "category_id", "bbox", "score", "segmentation", "area", "iscrowd"}
    assert first["category_id"] == 1 and first["area"] == pytest.approx(100 * 140)
    assert len(COCO(str(summary.results_file)).anns) == 6
    assert first["bbox"] == pytest.approx([20, 40, 100, 140])
    (tmp_path / "truth.json").write_text(json.dumps({**content, "annotations": []}))
    assert len(COCO(str(tmp_path / "truth.json")).loadRes(content["annotations"]).anns) == 6


def test_predict_score_and_no_pictures(artefact, tmp_path):
    save(tmp_path / "in" / "a.png")
    detector = load(artefact, device="cpu")
    summary = predict(
        detector, tmp_path / "in", tmp_path / "out", PredictOptions(score=0.7, pictures=False), progress=False
    )
    assert summary.n_detections == 1
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["detections.json"]


def test_predict_skips_broken_images(artefact, tmp_path, capsys):
    save(tmp_path / "in" / "a.jpg")
    whole = (tmp_path / "in" / "a.jpg").read_bytes()
    (tmp_path / "in" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    detector = load(artefact, device="cpu")
    summary = predict(detector, tmp_path / "in", tmp_path / "out", progress=False)
    assert summary.n_images == 1 and "cut.jpg" in summary.failures[0]
    assert "skipped" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"cut\.jpg: .* truncated"):
        predict(detector, tmp_path / "in" / "cut.jpg", tmp_path / "out2", progress=False)
    (tmp_path / "in" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="none of its 2 images"):
        predict(detector, tmp_path / "in", tmp_path / "out2", progress=False)
    assert not (tmp_path / "out2").exists(), "something half-written was left"


def test_predict_keeps_folders_apart_and_never_overwrites_the_source(artefact, tmp_path):
    before = save(tmp_path / "in" / "x" / "a.png", 1)
    save(tmp_path / "in" / "y" / "a.png", 2)
    detector = load(artefact, device="cpu")
    predict(detector, f"{tmp_path}/in/*/a.png", tmp_path / "out", progress=False)
    assert (tmp_path / "out/x/a.png").is_file() and (tmp_path / "out/y/a.png").is_file()
    with pytest.raises(UserError, match="overwrite"):
        predict(detector, tmp_path / "in" / "x", tmp_path / "in" / "x", progress=False)
    assert np.array_equal(read_for_detector(tmp_path / "in" / "x" / "a.png"), before)
