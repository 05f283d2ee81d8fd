"""What an artefact says about itself is enough to run it, holds nothing of the machine it was made on, and is so."""

import ast
import contextlib
import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import stranger
from export_helpers import SIZE, canvases
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from directdet.common.errors import UsageProblem
from directdet.data.dataset import load_dataset
from directdet.export.contract import contract
from directdet.export.onnx_graph import finish_graph
from directdet.export.options import ExportOptions
from directdet.export.run import export
from directdet.infer.accuracy.evaluate import evaluate
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.load import load

ODD_SIZES = [(97, 131), (53, 240), (180, 90)]
AS_LARGE = [(128, 131), (97, 160), (128, 160)]  # fit the canvas as they are: nothing is resized, two are padded


def pictures(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    """Soft blobs, on which the conditioned detector finds something."""
    pixels, _ = canvases(len(sizes), SIZE, 3, Preprocess(SIZE))
    paths = [folder / f"{number}.png" for number in range(len(sizes))]
    for path, image, (height, width) in zip(paths, pixels, sizes, strict=True):
        cv2.imwrite(str(path), cv2.resize(image, (width, height)))
    return paths


def test_the_stranger_knows_nothing_of_us():
    used = set()
    for node in ast.walk(ast.parse(Path(stranger.__file__).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            used |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            used.add(str(node.module).split(".")[0])
    assert used == {"json", "math", "pathlib", "numpy", "onnxruntime", "PIL"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"input": "float32", "batch": "2,2,4"}], ids=str)
def test_a_stranger_finds_the_same(options, checkpoint, tmp_path):
    """Pillow's decoder and exact bilinear arithmetic instead of OpenCV's 11 bits."""
    artefact = export(checkpoint, tmp_path / "artefact", ExportOptions(**options)).artefact
    assert_a_stranger_finds_the_same(artefact, tmp_path)


def assert_a_stranger_finds_the_same(artefact: Path, folder: Path) -> None:
    """The same input to a grey level, whatever the size, and where that is no question the very same detections.

    The weights are random, and such a network makes much of a grey level: a trained one is below.
    """
    program, detector = stranger.Stranger(artefact), load(artefact, device="cpu")
    level = 1.0 if detector.backend.input.dtype == "uint8" else 1 / min(program.meta["preprocess"]["std"])
    for path in pictures(folder, ODD_SIZES):
        image = cv2.imread(str(path))
        (row,), (placement,) = detector.prepare([image])
        mine, height, width = program.prepare(image[:, :, ::-1].astype(np.float64))
        assert (height, width) == (placement.height, placement.width) and mine.shape == row.shape
        difference = np.abs(mine.astype(np.float64) - row)
        assert difference.max() <= 1.001 * level and (difference > 0.1 * level).mean() < 0.35
    for path in pictures(folder, AS_LARGE):
        found, expected = program.detect(path), detector(cv2.imread(str(path)))
        assert len(found) == len(expected) > 5 and [one[0] for one in found] == expected.labels.tolist()
        np.testing.assert_allclose([one[1] for one in found], expected.scores, atol=1e-4)
        np.testing.assert_allclose([one[2] for one in found], expected.boxes, atol=0.02)
        for one, mask in zip(found, expected.full_masks(), strict=True):
            assert (one[3] ^ mask).sum() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_stranger_reaches_the_ap_of_eval(dtype, tmp_path):
    """On a trained model: the demo's, whose val pictures are JPEG or PNG."""
    demo = os.environ.get("DIRECTDET_DEMO")
    if demo is None:
        pytest.skip("needs a trained model: set DIRECTDET_DEMO to a folder that `directdet demo` wrote")
    artefact = export(Path(demo) / "run", tmp_path / "artefact", ExportOptions(input=dtype)).artefact
    dataset = load_dataset(Path(demo) / "data", "val")
    program, results = stranger.Stranger(artefact), []
    for record in dataset.records:
        for label, score, (x0, y0, x1, y1), mask in program.detect(record.path):
            entry = {"image_id": record.image_id, "category_id": program.meta["category_ids"][label], "score": score}
            entry |= {"bbox": [x0, y0, x1 - x0, y1 - y0]}
            if mask is not None:
                entry["segmentation"] = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            results.append(entry)
    expected = evaluate(load(artefact, device="cpu"), dataset, progress=False)
    truth = Path(demo) / "data" / "annotations" / "instances_val2017.json"
    assert own_ap(truth, results, "bbox") == pytest.approx(expected.bbox["AP"], abs=2e-3)
    if expected.segm is not None:
        assert own_ap(truth, results, "segm") == pytest.approx(expected.segm["AP"], abs=2e-3)


def own_ap(truth: Path, results: list[dict], kind: str) -> float:
    """AP by pycocotools alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes([dict(entry) for entry in results]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.slow
def test_the_files_say_the_same_and_name_no_place(exported, checkpoint):
    meta = json.loads((exported.artefact / "meta.json").read_text("utf-8"))
    graph = onnx.load(exported.artefact / "model.onnx")
    inside = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert inside == {name: meta[name] for name in inside}
    assert inside["classes"] == ["disk", "square", "triangle", "star"]
    assert set(inside) >= {"classes", "thresholds", "preprocess", "contract"}
    text = (exported.artefact / "README.md").read_text("utf-8")
    for words in meta["contract"].values():
        for sentence in words if isinstance(words, list) else [words]:
            if isinstance(sentence, str):
                assert sentence in text
    assert "| 3 | 7 | star |" in text and "`images`: uint8 `[1, 128, 160, 3]`" in text
    for path in exported.artefact.iterdir():
        content = path.read_bytes()
        for place in (b"site-packages", os.fsencode(Path.home()) + b"/", os.fsencode(checkpoint.parent), b".py"):
            assert place not in content, (path.name, place)
    assert graph.ir_version == 8 and graph.opset_import[0].version == 18


@pytest.mark.slow
def test_what_comes_out_is_as_the_contract_says(exported):
    """Frames, order and empty rows of the outputs, with thresholds that leave rows empty."""
    meta = json.loads((exported.artefact / "meta.json").read_text("utf-8"))
    detector = load(exported.artefact, device="cpu")
    for seed in range(3):
        pixels, _ = canvases(1, SIZE, seed, Preprocess(SIZE))
        num, boxes, scores, labels, masks = detector.run(pixels)
        count = int(num[0, 0])
        assert masks.shape[1:] == (meta["thresholds"]["detections"], 28, 28)
        assert (scores[0, :count] > meta["thresholds"]["score_threshold"]).all() and scores.max() <= 1
        assert (np.diff(scores[0]) <= 0).all() and set(labels[0]) <= set(range(len(meta["classes"])))
        assert boxes.min() >= 0 and (boxes[0].max(0) <= [SIZE[1], SIZE[0]] * 2).all()
        assert all((values[0, count:] == 0).all() for values in (boxes, scores, labels, masks))


@pytest.mark.slow
def test_thresholds_that_are_asked_for(checkpoint, exported, tmp_path):
    options = ExportOptions(score=0.3, nms=0.3, detections=4)
    result = export(checkpoint, tmp_path / "artefact", options)
    assert result.verification.passed
    meta = json.loads((result.artefact / "meta.json").read_text("utf-8"))
    assert {name: meta["thresholds"][name] for name in ("score_threshold", "nms", "detections")} == {
        "score_threshold": 0.3,
        "nms": 0.3,
        "detections": 4,
    }
    assert "only scores above 0.3 are returned" in (result.artefact / "README.md").read_text("utf-8")
    strict, loose = load(result.artefact, device="cpu"), load(exported.artefact, device="cpu")
    pixels, _ = canvases(1, SIZE, 0, Preprocess(SIZE))
    few, many = strict.run(pixels), loose.run(pixels)
    assert few[1].shape == (1, 4, 4) and few[2][few[2] > 0].min() > 0.3 and 0 < few[0][0, 0] < many[0][0, 0]
    np.testing.assert_allclose(few[2][0, 0], many[2][0, 0], atol=1e-5)  # the best is the best


def test_thresholds_that_cannot_be(checkpoint, tmp_path):
    for wrong in ({"score": -0.1}, {"score": float("nan")}, {"nms": 1.5}, {"detections": 0}):
        with pytest.raises(UsageProblem, match=f"--{next(iter(wrong))} "):
            ExportOptions(**wrong)
    with pytest.raises(UsageProblem, match="--detections 101: at most 100, as many as enter this model's NMS"):
        export(checkpoint, tmp_path / "artefact", ExportOptions(detections=101))


def test_the_words_follow_the_settings():
    """What is not so is not said: of padding where nothing is padded, of masks where there are none."""
    words = contract(Preprocess((300, 300), warp=True), "float32", {"nms": 0.45}, masks=False)
    assert "stretched" in words["resize"] and "padding" not in words["place"] and "masks" not in words
    assert words["padding_value"] == [0.0] * 3 and words["channel_order"] == "red, green, blue"
    assert words["thresholds"] == ["of two boxes of one class with an IoU above 0.45 only the better is returned"]
    words = contract(Preprocess((96, 128), mean=(10.6, 20.4, 30.5)), "uint8", {}, masks=True)
    assert words["padding_value"] == [31, 20, 11] and words["channel_order"] == "blue, green, red"


def test_old_runtimes_read_what_is_written(tmp_path):
    """The IR version follows the operator set, and nothing is left of how and where a node was made."""
    node = onnx.helper.make_node("Relu", ["x"], ["y"], doc_string='File "/home/user/x.py"')
    node.metadata_props.add(key="stack", value="/home/user/x.py")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    for opset, version in ((18, 8), (22, 10)):
        graph = onnx.helper.make_graph([node], "one", values[:1], values[1:])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
        onnx.save(model, tmp_path / "model.onnx")
        finish_graph(tmp_path / "model.onnx", {"classes": ["Straße \udce9"]})
        assert b"/home/user" not in (tmp_path / "model.onnx").read_bytes()
        written = onnx.load(tmp_path / "model.onnx")
        assert written.ir_version == version
        assert json.loads(written.metadata_props[0].value) == ["Straße \udce9"]
