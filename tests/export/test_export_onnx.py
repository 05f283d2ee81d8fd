"""The exported graph: what it holds, that it is the model, and that it says so honestly."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from export_helpers import canvases, conditioned_checkpoint
from torch import nn
from twin import smooth_images

from directdet.common.errors import UsageProblem, UserError
from directdet.data.synthetic import make_synthetic
from directdet.export import deployed
from directdet.export.deployed import deployed_preprocess
from directdet.export.onnx_graph import FORBIDDEN, CanvasInput, count_operators, fold
from directdet.export.options import ExportOptions
from directdet.export.run import export
from directdet.export.verification.verify import TOLERANCES, expect, verification_pictures, verify
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.load import load
from directdet.models.build import build_model
from directdet.models.checkpoint import load_checkpoint
from directdet.models.parts.fold import Folding
from directdet.models.two_stage.deploy import RCNNDeploy

pytestmark = pytest.mark.slow  # every test needs an exported graph
torch.set_num_threads(1)


def torch_outputs(checkpoint, images):
    """What the checkpoint makes of normalised float32 [N, 3, H, W]."""
    loaded = load_checkpoint(checkpoint)
    model = build_model(loaded["model_config"])
    model.load_state_dict(loaded["model"])
    with torch.no_grad():
        return [v.numpy() for v in RCNNDeploy(model.eval(), tuple(images.shape[2:]))(torch.as_tensor(images))]


def assert_same_detections(expected, found):
    """Raw outputs of one picture: the same rows in the same order (the conditioned scores are not tied)."""
    assert expected[0].tolist() == found[0].tolist()
    count = int(expected[0][0, 0])
    assert count > 5
    np.testing.assert_allclose(found[1], expected[1], atol=0.01)
    np.testing.assert_allclose(found[2], expected[2], atol=1e-4)
    np.testing.assert_array_equal(found[3], expected[3])
    for one, other in zip(expected[4:], found[4:], strict=True):
        np.testing.assert_allclose(other, one, atol=1e-3)


def test_graph_holds_nothing_that_a_runtime_refuses(exported):
    graph = onnx.load(exported.artefact / "model.onnx")
    operators = count_operators(graph)
    assert not set(FORBIDDEN) & set(operators), operators
    assert all(domain.domain in ("", "ai.onnx") for domain in graph.opset_import)
    assert graph.opset_import[0].version >= 18
    for value in graph.graph.output:
        assert all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim), value.name
    names = [value.name for value in graph.graph.output]
    assert names == ["num", "boxes", "scores", "labels", "masks"]


def test_verification_passes_and_is_recorded(exported):
    assert exported.verification.passed
    one = exported.verification.runtimes[0]
    pictures = {c.picture for c in one.comparisons}
    assert "blank" in pictures and any("odd aspect" in p for p in pictures)
    assert sum(c.expected for c in one.comparisons) > 20
    meta = json.loads((exported.artefact / "meta.json").read_text())
    runtimes = {entry["runtime"]: entry for entry in meta["verification"]["runtimes"]}
    assert meta["verification"]["passed"] is True and "onnxruntime" in runtimes
    for entry in runtimes.values():
        assert entry["matched"] == 1.0 and entry["tolerance"]["box"] == 0.1 and entry["rough_latency_ms"] > 0
    assert meta["format"] == 2 and meta["precision"] == "fp32" and meta["kept_fp32"] == []
    assert meta["input"] == {"name": "images", "shape": [1, 128, 160, 3], "dtype": "uint8", "layout": "NHWC"}
    assert meta["shapes"] == {"batch": {"min": 1, "opt": 1, "max": 1}, "height": 128, "width": 160}
    assert list(meta["files"]) == ["model.onnx"] == [meta["file"]]
    files = {"README.md", "meta.json", "model.onnx", "run_onnx.cpp", "CMakeLists.txt", "config.pbtxt"}
    assert {path.name for path in exported.artefact.iterdir()} == files
    assert meta["folded_batchnorms"] == 20 and meta["category_ids"] == [1, 2, 4, 7]
    assert meta["fold_error"] < 1e-4


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("seed", [5, 6])
def test_runtimes_agree_on_pictures_not_exported_with(checkpoint, exported, runtime, seed):
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    detector = load(exported.artefact, runtime=runtime, device="cpu")
    pixels, images = canvases(1, (128, 160), seed, detector.preprocess)
    assert_same_detections(torch_outputs(checkpoint, images), detector.run(pixels))


def rows_of(outputs, row):
    return [values[row : row + 1] for values in outputs]


def test_float_input_of_a_fixed_batch_and_another_size_without_masks(tmp_path):
    conditioned_checkpoint(tmp_path / "model.pt", masks=False)
    options = ExportOptions(batch=2, size=(96, 128), input="float32")
    result = export(tmp_path / "model.pt", tmp_path / "artefact", options)
    assert result.verification.passed
    meta = json.loads((result.artefact / "meta.json").read_text())
    assert meta["outputs"] == ["num", "boxes", "scores", "labels"]
    assert meta["input"] == {"name": "images", "shape": [2, 3, 96, 128], "dtype": "float32", "layout": "NCHW"}
    images = smooth_images(2, (96, 128), 7).numpy()
    detector = load(result.artefact, device="cpu")
    found, expected = detector.run(images), torch_outputs(tmp_path / "model.pt", images)
    for row in range(2):
        assert_same_detections(rows_of(expected, row), rows_of(found, row))
    alone = detector.run(images[1:])  # the other row is blank, and its results are gone
    assert len(alone[0]) == 1
    assert_same_detections(rows_of(expected, 1), alone)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_batches_of_any_size(checkpoint, dynamic, runtime, count):
    """The graph was written with two images; blank canvases stand among the pictures."""
    pytest.importorskip(runtime)
    assert dynamic.verification.passed
    detector = load(dynamic.artefact, runtime=runtime, device="cpu")
    assert detector.backend.input.batch is None and detector.backend.input.max_batch == 4
    pixels, images = canvases(count, (128, 160), 11, detector.preprocess)
    if count > 1:
        pixels[1] = 255
        images = detector.preprocess.normalise(pixels)
    found, expected = detector.run(pixels), torch_outputs(checkpoint, images)
    assert all(len(values) == count for values in found)
    for row in (0, *range(2, count)):  # on a blank canvas every place is alike, and rounding chooses
        assert_same_detections(rows_of(expected, row), rows_of(found, row))


def test_an_open_batch_is_in_the_graph_and_in_the_meta(dynamic):
    meta = json.loads((dynamic.artefact / "meta.json").read_text())
    assert meta["shapes"]["batch"] == {"min": 1, "opt": 2, "max": 4} and meta["input"]["shape"][0] is None
    graph = onnx.load(dynamic.artefact / "model.onnx").graph
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in [*graph.input, *graph.output]} == {"batch"}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    detector = load(dynamic.artefact, device="cpu")
    images = [image for _, image in verification_pictures(None, Preprocess((128, 160)))]
    for one, other in zip(detector.detect_batch(images), map(detector, images), strict=True):  # 4 and 1, and one by one
        np.testing.assert_allclose(one.scores[:5], other.scores[:5], atol=1e-4)


def test_openvino_model(checkpoint, dynamic, tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed")
    result = export(checkpoint, tmp_path / "artefact", ExportOptions(format="openvino"))
    assert result.verification.passed
    assert [one.runtime for one in result.verification.runtimes] == ["openvino"]
    meta = json.loads((result.artefact / "meta.json").read_text())
    assert meta["kind"] == "openvino" and list(meta["files"]) == ["model.xml", "model.bin"]
    assert {path.name for path in result.artefact.iterdir()} == {"README.md", "meta.json", "model.xml", "model.bin"}
    detector = load(result.artefact, device="cpu")
    pixels, images = canvases(1, (128, 160), 5, detector.preprocess)
    assert_same_detections(torch_outputs(checkpoint, images), detector.run(pixels))
    content = bytearray((result.artefact / "model.bin").read_bytes())
    content[1000] ^= 1
    (result.artefact / "model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.bin: sha256 differs"):
        load(result.artefact)


def test_folding_is_counted_and_equal(checkpoint):
    loaded = load_checkpoint(checkpoint)
    model = build_model(loaded["model_config"])
    model.load_state_dict(loaded["model"])
    folded, folding, error = fold(model, (64, 64))
    assert folding == Folding(20, ()) and error < 1e-5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 20  # the original is left alone


def test_a_wrong_graph_fails_verification(checkpoint, tmp_path, monkeypatch):
    """If verification could not fail, it would say nothing: export a graph with one weight of the box head changed."""
    write = deployed.write_onnx

    def wrong(model, *arguments):
        kept = model.box_predictor.bbox_pred.bias.detach().clone()
        with torch.no_grad():
            model.box_predictor.bbox_pred.bias += 0.05
        try:
            return write(model, *arguments)
        finally:
            model.box_predictor.bbox_pred.bias.data.copy_(kept)

    monkeypatch.setattr(deployed, "write_onnx", wrong)
    result = export(checkpoint, tmp_path / "artefact")
    assert not result.verification.passed
    assert json.loads((tmp_path / "artefact" / "meta.json").read_text())["verification"]["passed"] is False


def test_equal_scores_of_dead_features_are_undecided(checkpoint, exported):
    """Noise on the input does not reach beyond dead features, where scores are equal and runtimes choose as they like.

    Here the first layer is dead, so that no noise on the input reaches anything, and the box head, so that all boxes
    have the scores of the bias.
    """
    reference, candidate = load(checkpoint, device="cpu"), load(exported.artefact, device="cpu")
    model = reference.backend.model
    with torch.no_grad():
        model.backbone.conv1.weight.zero_()
        model.box_head[-2].weight.zero_()
        model.box_head[-2].bias.fill_(-1.0)
    pictures = verification_pictures(None, Preprocess((128, 160)))
    own, *_ = expect(reference, candidate, pictures, TOLERANCES["fp32"])
    assert len(own.found) > 1
    assert len({run.boxes.round().tobytes() for run in own.disturbed()}) > 1
    assert not verify(reference, candidate, pictures).passed  # for it is another network


def test_lost_detections_fail_verification(checkpoint, exported, monkeypatch):
    """A candidate that finds only the better half, or one of each picture, is not the model."""
    reference, candidate = load(checkpoint, device="cpu"), load(exported.artefact, device="cpu")
    pictures = verification_pictures(None, Preprocess((128, 160)))
    assert verify(reference, candidate, pictures).passed
    detect = candidate.detect_batch
    for keep in (
        lambda found: found.above(float(np.median(found.scores))),
        lambda found: found.above(found.scores.max()),
    ):
        monkeypatch.setattr(candidate, "detect_batch", lambda images, keep=keep: [keep(f) for f in detect(images)])
        verdict = verify(reference, candidate, pictures)
        assert not verdict.passed and verdict.matched < 0.6
    monkeypatch.setattr(
        candidate, "detect_batch", lambda images: [replace(found, masks=None) for found in detect(images)]
    )
    assert verify(reference, candidate, pictures).matched == 0.0


def test_user_mistakes(checkpoint, exported, tmp_path):
    with pytest.raises(UserError, match="artefact already"):
        export(exported.artefact, tmp_path / "out")
    with pytest.raises(UserError, match="not found"):
        export(tmp_path / "nothing.pt", tmp_path / "out")
    with pytest.raises(UsageProblem, match="multiples of 32"):
        export(checkpoint, tmp_path / "out", ExportOptions(size=(100, 100)))
    data = make_synthetic(tmp_path / "data", images_train=1, images_val=1)
    for file in (data / "annotations").iterdir():
        file.write_text(file.read_text().replace('"star"', '"comet"'))
    with pytest.raises(UserError, match=r"classes are not the 4 of .*model\.pt"):
        export(checkpoint, tmp_path / "out", data=data)
    shutil.rmtree(data)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    with pytest.raises(UserError, match="exists and is not an artefact"):
        export(checkpoint, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep me"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]  # nothing half-written


def test_a_failed_export_leaves_the_old_artefact(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "artefact").mkdir()
    (tmp_path / "artefact" / "meta.json").write_text("{}")

    def broken(*_):
        raise UserError("broken")

    monkeypatch.setattr(deployed, "write_onnx", broken)
    with pytest.raises(UserError, match="broken"):
        export(checkpoint, tmp_path / "artefact")
    assert [p.name for p in tmp_path.iterdir()] == ["artefact"]
    assert (tmp_path / "artefact" / "meta.json").read_text() == "{}"


def test_canvas_input_is_what_preprocessing_does():
    """The module that the graph begins with, on pixels of every level, against the tables of Preprocess."""
    preprocess = Preprocess(size=(64, 96))
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    found = CanvasInput(nn.Identity(), preprocess)(torch.from_numpy(image[None]))
    np.testing.assert_allclose(found[0].numpy(), preprocess(image)[0], atol=1e-6)
    np.testing.assert_array_equal(found.numpy(), preprocess.normalise(image[None]))
    image[40:] = preprocess.pad_colour
    found = CanvasInput(nn.Identity(), preprocess)(torch.from_numpy(image[None])).numpy()
    assert found[:, :, :40].all() and not found[:, :, 40:].any()
    np.testing.assert_array_equal(found, preprocess.normalise(image[None]))
    warped = CanvasInput(nn.Identity(), replace(preprocess, warp=True))(torch.from_numpy(image[None])).numpy()
    assert warped[:, :, 40:].all()  # without padding every colour is the picture's


def test_default_size_is_the_evaluated_one():
    fixed, edges = Preprocess(size=(192, 256)), Preprocess(size=(800, 1333), fixed=False)
    assert deployed_preprocess(fixed, None).size == (192, 256)
    deployed = deployed_preprocess(edges, None)
    assert deployed.size == (800, 1344) and deployed.fixed


def test_a_warping_model_is_exported_at_its_own_size_alone():
    warped = Preprocess(size=(300, 300), std=(1.0, 1.0, 1.0), warp=True)
    assert deployed_preprocess(warped, None) == deployed_preprocess(warped, (300, 300)) == warped
    for size in ((320, 320), (300, 320)):
        with pytest.raises(UsageProblem, match=f"--size {size[0]},{size[1]}: .*300,300 alone"):
            deployed_preprocess(warped, size)
