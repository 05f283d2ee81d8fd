"""The programs in examples/standalone run an artefact without directdet, and find what directdet finds."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import run_onnx
from export_helpers import SIZE, canvases, conditioned_checkpoint
from tiny_artefact import write_artefact

from directdet.common.files import write_json_atomic
from directdet.front.cli import main
from directdet.infer.detections import Detections, paste_crop
from directdet.infer.preprocess import Preprocess, fixture_image
from directdet.infer.runtimes.load import load

FOLDER = Path(run_onnx.__file__).parent
ODD_SIZES = [(427, 641), (333, 201), (97, 131), (53, 240), (7, 3)]
PADDING = [(20, 200), (300, 80)]  # so flat, so narrow that one of tiny_artefact's two boxes lies in the padding
LEAST = 0.05  # what a detector's own threshold is


def picture(height: int, width: int) -> np.ndarray:
    """Soft blobs of any size, uint8 BGR: the conditioned detector finds something on them."""
    pixels, _ = canvases(1, SIZE, height, Preprocess(SIZE))
    return cv2.resize(pixels[0], (width, height))


def assert_same(found: list[dict], expected: Detections) -> None:
    """Every detection in the same order, with the same mask."""
    assert len(found) == len(expected) > 0
    assert [one["label"] for one in found] == expected.labels.tolist()
    np.testing.assert_allclose([one["score"] for one in found], expected.scores, atol=1e-6)
    np.testing.assert_allclose([one["box"] for one in found], expected.boxes, atol=1e-3)
    assert expected.masks is not None
    for index, one in enumerate(found):
        x, y, mask = one["mask"]
        left, top, crop = expected.mask_crop(index)
        assert (x, y) == (left, top)
        np.testing.assert_array_equal(mask, crop)


def test_it_imports_nothing_of_ours():
    used = {
        name.split(".")[0]
        for node in ast.walk(ast.parse((FOLDER / "run_onnx.py").read_text("utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert used - set(sys.stdlib_module_names) == {"numpy", "cv2", "onnxruntime"}


@pytest.mark.parametrize("warp", [False, True], ids=["letterbox", "warp"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
def test_pictures_are_prepared_alike(dtype, warp, size):
    rules = Preprocess((96, 128), warp=warp, mean=(100.4, 116.6, 103.53), std=(58.0, 57.12, 60.0))
    meta = {"preprocess": rules.to_dict(), "input": {"dtype": dtype}, "shapes": {"batch": {"min": 3}}}
    image = fixture_image(*size)
    batch, scale_x, scale_y = run_onnx.prepare(image, meta)
    expected, placement = (rules.letterbox if dtype == "uint8" else rules)(image)
    assert (scale_x, scale_y) == (placement.scale_x, placement.scale_y)
    assert batch.dtype == expected.dtype and batch.shape == (3, *expected.shape)
    for row in batch:
        np.testing.assert_array_equal(row, expected)


def test_masks_are_pasted_alike():
    random = np.random.default_rng(0)
    for _ in range(300):
        corner, side = random.uniform(0, 60, 2), random.uniform(0.02, 60, 2) ** random.choice([0.5, 1])
        box = np.clip([*corner, *(corner + side)], 0, (64, 61, 64, 61)).astype(np.float32)
        mask = random.random((28, 28), np.float32)
        x, y, pasted = run_onnx.paste(mask, [float(value) for value in box], (61, 64))
        left, top, expected = paste_crop(mask, box, (61, 64))
        assert (x, y) == (left, top)
        np.testing.assert_array_equal(pasted, expected)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("batch", [1, 3, "batch"])
@pytest.mark.parametrize("size", [*ODD_SIZES, *PADDING], ids=str)
def test_known_detections(tmp_path, dtype, batch, size):
    """Of a made-up graph, in batches too; a box that lies in the padding is left out."""
    folder = write_artefact(tmp_path / "artefact", batch, dtype=dtype)
    image = fixture_image(*size)
    meta, session = run_onnx.load(folder)
    found = run_onnx.detect(meta, session, image, run_onnx.least_scores(meta, 0.0))
    assert_same(found, load(folder, device="cpu")(image))
    assert len(found) == (1 if size in PADDING else 2)


def test_a_changed_model_file_is_refused(tmp_path):
    folder = write_artefact(tmp_path / "artefact")
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"0")
    with pytest.raises(SystemExit, match=r"model\.onnx: not the file"):
        run_onnx.load(folder)
    meta = json.loads((folder / "meta.json").read_text())
    write_json_atomic(folder / "meta.json", meta | {"kind": "openvino"})
    with pytest.raises(SystemExit, match="reads ONNX artefacts"):
        run_onnx.load(folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artefacts of a small Mask R-CNN by their type of input."""
    folder = tmp_path_factory.mktemp("exported")
    conditioned_checkpoint(folder / "model.pt")
    for dtype in ("uint8", "float32"):
        assert main(["export", str(folder / "model.pt"), "--out", str(folder / dtype), "--input", dtype]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_an_exported_model(exported, dtype):
    meta, session = run_onnx.load(exported / dtype)
    detector = load(exported / dtype, device="cpu")
    for height, width in ODD_SIZES[:4]:
        image = picture(height, width)
        found = run_onnx.detect(meta, session, image, run_onnx.least_scores(meta, LEAST))
        assert_same(found, detector(image).above(LEAST))


@pytest.mark.slow
def test_the_command(exported, tmp_path):
    """As a process of its own, from another folder."""
    image = picture(427, 641)
    cv2.imwrite(str(tmp_path / "picture.png"), image)
    shutil.copy(FOLDER / "run_onnx.py", tmp_path)
    command = [sys.executable, "run_onnx.py", exported / "uint8", "picture.png", "--score", "0.3", "--out", "found.png"]
    lines = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.splitlines()
    assert_lines(lines, load(exported / "uint8", device="cpu"), image)
    assert cv2.imread(str(tmp_path / "found.png")).shape == image.shape


@pytest.mark.slow
@pytest.mark.skipif("ONNXRUNTIME_ROOT" not in os.environ, reason="needs ONNX Runtime's C++ headers: ONNXRUNTIME_ROOT")
def test_the_cpp_program(exported, tmp_path):
    """Compiled with CMake; OpenCV and nlohmann-json are where CMake finds them."""
    subprocess.run(["cmake", "-S", FOLDER, "-B", tmp_path / "build", "-DCMAKE_BUILD_TYPE=Release"], check=True)
    subprocess.run(["cmake", "--build", tmp_path / "build"], check=True)
    for dtype in ("uint8", "float32"):
        detector = load(exported / dtype, device="cpu")
        for height, width in ODD_SIZES[:4]:
            image = picture(height, width)
            cv2.imwrite(str(tmp_path / "picture.png"), image)
            command = [tmp_path / "build" / "run_onnx", exported / dtype, tmp_path / "picture.png", "0.3"]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
            assert_lines(found, detector, image, score=2e-3, box=0.5, pixels=0.02)


def assert_lines(lines, detector, image, score=1e-4, box=0.01, pixels=0.0):
    """What a program printed is what the detector finds; another OpenCV may resize by a grey level differently."""
    found, expected = [json.loads(line) for line in lines], detector(image).above(0.3)
    assert len(found) == len(expected) > 0
    assert [one["class"] for one in found] == [detector.classes[label] for label in expected.labels]
    np.testing.assert_allclose([one["score"] for one in found], expected.scores, atol=score)
    np.testing.assert_allclose([one["box"] for one in found], expected.boxes, atol=box)
    areas = expected.full_masks().sum((1, 2))
    np.testing.assert_allclose([one["mask_pixels"] for one in found], areas, rtol=pixels, atol=8 if pixels else 0)
