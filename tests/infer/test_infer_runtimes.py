"""Loading models: what runs, what is refused, and that no torch is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_artefact import BOXES, CLASSES, write_artefact

from directdet.common.errors import UserError
from directdet.infer import artefact as artefact_module
from directdet.infer.artefact import read_meta
from directdet.infer.runtimes import onnx_runtime
from directdet.infer.runtimes.load import load, model_kind


def picture(height: int = 192, width: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def check_detections(found) -> None:
    """The tiny artefact's two boxes, twice as large in an image of 192 x 256."""
    np.testing.assert_allclose(found.boxes, 2 * BOXES[:2], rtol=1e-6)
    assert found.labels.tolist() == [0, 2] and found.scores.tolist() == pytest.approx([0.9, 0.6])
    assert found.masks.shape == (2, 28, 28)
    full = found.full_masks()
    assert full.shape == (2, 192, 256)
    # the ramp is above a half on the right
    assert not full[0, 100, 20:68].any() and full[0, 100, 75:118].all()


@pytest.mark.parametrize("runtime", ["auto", "onnxruntime", "openvino"])
def test_runs_an_onnx_artefact(artefact, runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    detector = load(artefact, runtime=runtime, device="cpu", threads=1)
    check_detections(detector(picture()))
    about = detector.describe()
    assert about["runtime"] == ("openvino" if runtime == "openvino" else "onnxruntime")
    assert about["precision"] == "fp32" and about["threads"] == 1 and about["size"] == [96, 128]
    assert about["provider"] == ("CPU" if runtime == "openvino" else "CPUExecutionProvider")
    assert detector.classes == CLASSES
    raw = detector.run(np.zeros((1, 3, 96, 128), np.float32))
    assert [value.dtype for value in raw] == [np.int32, np.float32, np.float32, np.int32, np.float32]
    assert raw[0].shape == (1, 1) and raw[4].shape == (1, 3, 28, 28)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_batches(tmp_path, runtime, batch):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    detector = load(write_artefact(tmp_path / "a", batch=batch), runtime=runtime, device="cpu", threads=1)
    found = detector.detect_batch([picture(), picture(96, 128), picture()])
    check_detections(found[0])
    check_detections(found[2])
    np.testing.assert_allclose(found[1].boxes, BOXES[:2])
    assert detector.detect_batch([]) == []
    if batch == "batch":
        assert len(detector.run(np.zeros((5, 3, 96, 128), np.float32))[0]) == 5
        assert detector.backend.input.batch is None and detector.backend.input.max_batch == 8
        with pytest.raises(UserError, match="batches of up to 8, got 9"):
            detector.run(np.zeros((9, 3, 96, 128), np.float32))
    else:
        with pytest.raises(UserError, match=f"batches of {batch}"):
            detector.run(np.zeros((5, 3, 96, 128), np.float32))
    with pytest.raises(UserError, match="96x128"):
        detector.run(np.zeros((1, 3, 64, 128), np.float32))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_uint8_canvas_of_fewest_and_most_images(tmp_path, runtime):
    """Three images for a network of two to four: the batch is canvases, blank rows fill up what is missing."""
    pytest.importorskip(runtime)
    folder = write_artefact(tmp_path / "a", batch="batch", dtype="uint8", batches=(2, 2, 4))
    detector = load(folder, runtime=runtime, device="cpu", threads=1)
    batch, _ = detector.prepare([picture()])
    assert batch.shape == (1, 96, 128, 3) and batch.dtype == np.uint8
    assert np.array_equal(batch[0], detector.preprocess.letterbox(picture())[0])
    for count in (1, 3, 4, 7):
        found = detector.detect_batch([picture()] * count)
        assert len(found) == count
        check_detections(found[-1])
    assert [len(group) for group in detector._groups([picture()] * 7)] == [4, 3]
    with pytest.raises(UserError, match="takes uint8, got float32"):
        detector.run(batch.astype(np.float32))
    assert detector.describe()["input"] == "uint8"


def test_an_artefact_of_format_1_is_read(artefact, edit_meta):
    """What the first version wrote: one file with its hash, normalised inputs, and a batch in the input's shape."""
    digest = read_meta(artefact / "meta.json")["files"]["model.onnx"]
    old = {"format": 1, "sha256": digest, "input": {"name": "images", "shape": [1, 3, 96, 128]}}
    edit_meta(artefact, **old, files=None, shapes=None, kept_fp32=None)
    check_detections(load(artefact, device="cpu")(picture()))
    edit_meta(artefact, sha256="0" * 64)
    with pytest.raises(UserError, match="sha256 differs"):
        load(artefact, device="cpu")


def test_what_is_read_is_limited(artefact, tmp_path, monkeypatch):
    content = (artefact / "meta.json").read_bytes()
    (artefact / "meta.json").write_bytes(content + b" " * artefact_module.MAX_META_BYTES)
    with pytest.raises(UserError, match="larger than 4 MiB"):
        load(artefact, device="cpu")
    (artefact / "meta.json").write_bytes(b"[" * 1_000_000)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load(artefact, device="cpu")
    (artefact / "meta.json").write_bytes(content)
    monkeypatch.setattr(artefact_module, "MAX_FILE_BYTES", 10)
    with pytest.raises(UserError, match="so not from export"):
        load(artefact, device="cpu")
    monkeypatch.undo()
    (artefact / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (artefact / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(UserError, match="is a link to a file outside its folder"):
        load(artefact, device="cpu")


def test_model_without_masks(tmp_path):
    found = load(write_artefact(tmp_path / "a", masks=False), device="cpu")(picture())
    assert found.masks is None and len(found) == 2


def test_model_file_inside_the_folder(artefact):
    check_detections(load(artefact / "model.onnx", device="cpu")(picture()))
    assert model_kind(artefact / "model.onnx") == "onnx"


def test_nothing_to_load(tmp_path):
    with pytest.raises(UserError, match="not found"):
        load(tmp_path / "missing")
    with pytest.raises(UserError, match=r"neither meta\.json .* nor checkpoints/best\.pt"):
        load(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no meta\.json next to it"):
        load(tmp_path / "model.onnx")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_bytes(b"x")
    assert model_kind(tmp_path) == "checkpoint"


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"format": 3}, "format: 3"),
        ({"files": {"model.onnx": "0" * 64}}, "sha256"),
        ({"files": {}}, "files: expected 'model.onnx'"),
        ({"files": {"model.onnx": "0" * 64, **{f"{n}": "0" for n in range(8)}}}, "at most 8"),
        ({"shapes": {"batch": {"min": 2, "opt": 1, "max": 4}}}, "min <= opt <= max"),
        ({"shapes": {"batch": [1, 2, 4]}}, "min <= opt <= max"),
        ({"preprocess_checksum": "0" * 64}, "preprocess_checksum"),
        ({"classes": None}, "classes: missing"),
        ({"classes": "dog"}, "classes: a str"),
        ({"classes": ["dog"]}, "1 classes but 3"),
        ({"category_ids": ["a", "b", "c"]}, "category_ids: expected integers"),
        ({"kind": "coreml"}, "coreml"),
        ({"file": "../model.onnx", "files": {"../model.onnx": "0" * 64}}, "plain file name"),
        ({"file": "other.onnx", "files": {"other.onnx": "0" * 64}}, "cannot be read"),
        ({"preprocess": {"size": [1, 2]}}, "preprocess: expected the fields"),
        ({"input": {"name": "images", "shape": [1, 3]}}, "input: expected"),
        (
            {"input": {"name": "images", "shape": [1, 3, 96, 128], "dtype": "int8", "layout": "NCHW"}},
            "input: int8 NCHW",
        ),
        ({"input": {"name": "images", "shape": [1, 3, 96, 128], "dtype": "uint8", "layout": "NCHW"}}, "uint8 NHWC"),
        ({"input": {"name": "pixels", "shape": [1, 3, 96, 128], "dtype": "float32", "layout": "NCHW"}}, "pixels"),
    ],
)
def test_broken_artefacts(artefact, edit_meta, changes, message):
    edit_meta(artefact, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load(artefact, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_corrupted_meta(artefact, content):
    (artefact / "meta.json").write_bytes(content)
    with pytest.raises(UserError, match=r"meta\.json: .*export again"):
        load(artefact)


def test_changed_preprocessing_is_noticed(artefact, edit_meta):
    preprocess = load(artefact, device="cpu").preprocess.to_dict()
    edit_meta(artefact, preprocess=preprocess | {"mean": [0.0, 0.0, 0.0]})
    with pytest.raises(UserError, match="preprocessed differently"):
        load(artefact)


def test_another_canvas_is_noticed(artefact, edit_meta):
    from directdet.infer.preprocess import Preprocess

    other = Preprocess((64, 64))
    edit_meta(artefact, preprocess=other.to_dict(), preprocess_checksum=other.checksum())
    with pytest.raises(UserError, match="96x128"):
        load(artefact, device="cpu")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_broken_model_file(artefact, edit_meta, runtime):
    import hashlib

    (artefact / "model.onnx").write_bytes(b"not a model")
    edit_meta(artefact, files={"model.onnx": hashlib.sha256(b"not a model").hexdigest()})
    with pytest.raises(UserError, match="cannot") as caught:
        load(artefact, runtime=runtime, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"runtime": "torch"}, "cannot run a model of kind onnx; use onnxruntime or openvino"),
        ({"runtime": "tensorrt"}, "cannot run"),
        ({"device": "tpu"}, "runs on auto, cpu, cuda"),
        ({"device": "cpu", "precision": "tf32"}, "needs a GPU"),
        ({"device": "cpu", "precision": "int4"}, "fp32 or tf32"),
        ({"runtime": "openvino", "device": "cuda"}, "OpenVINO runs on"),
        ({"runtime": "openvino", "precision": "tf32"}, "OpenVINO takes"),
        ({"threads": 0}, "at least 1"),
        ({"threads": 10**12}, "at most 1024"),
    ],
)
def test_impossible_choices(artefact, options, message):
    with pytest.raises(UserError, match=message):
        load(artefact, **options)


def test_cuda_never_falls_back(artefact, monkeypatch):
    """Even if a GPU seems to be there, a session that ends on the CPU is an error; "auto" warns instead."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is built without CUDA")
    if onnx_runtime.find_gpu() is not None:
        pytest.skip("there is a GPU here, so nothing falls back")
    with pytest.raises(UserError, match="no such NVIDIA GPU"):
        load(artefact, device="cuda")
    monkeypatch.setattr(onnx_runtime, "find_gpu", lambda *_: object())
    with pytest.raises(UserError, match=r"fell back|cannot load"):
        load(artefact, device="cuda")
    with pytest.warns(UserWarning, match="running on the CPU instead"):
        detector = load(artefact, device="auto")
    assert detector.info["provider"] == "CPUExecutionProvider"


def test_results_that_are_no_detections(artefact):
    detector = load(artefact, device="cpu")
    outputs = detector.run(np.zeros((1, 3, 96, 128), np.float32))
    detector.backend.run = lambda images: outputs[:3]
    with pytest.raises(UserError, match="3 outputs"):
        detector(picture())
    detector.backend.run = lambda images: (outputs[0], outputs[1][:, :2], *outputs[2:])
    with pytest.raises(UserError, match="'boxes' has shape"):
        detector(picture())
    detector.backend.run = lambda images: (*outputs[:3], outputs[3] + 5, outputs[4])
    with pytest.raises(UserError, match="label 7, but 3 classes"):
        detector(picture())


def test_no_torch_is_needed(artefact, tmp_path):
    """Load, detect, draw, write JSON and benchmark imports on a machine without torch."""
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), picture())
    code = """
import sys
for name in ("torch", "torchvision"):
    sys.modules[name] = None
import directdet.benchmark.run, directdet.infer.accuracy.evaluate, directdet.infer.runtimes.torch_runtime
import directdet.infer.runtimes.tensorrt_runtime
from directdet.common.errors import UserError
from directdet.infer.predict.images import predict
from directdet.infer.runtimes.load import load
for runtime in sys.argv[4:]:
    summary = predict(load(sys.argv[1], runtime=runtime, device="cpu"), sys.argv[2], sys.argv[3], progress=False)
    assert summary.n_detections == 2, summary
try:
    load(sys.argv[2].replace("a.png", "best.pt"))
except UserError as error:
    assert "needs torch" in str(error), error
print("fine")
"""
    (tmp_path / "best.pt").write_bytes(b"x")
    command = [sys.executable, "-c", code, str(artefact), str(tmp_path / "a.png"), str(tmp_path / "out"), "onnxruntime"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and done.stdout.strip() == "fine", done.stderr
    assert Path(tmp_path / "out" / "detections.json").is_file()
