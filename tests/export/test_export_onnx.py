"""The exported graph: what it holds, that it is the model, and that it says so honestly."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from export_helpers import conditioned_checkpoint
from torch import nn
from twin import smooth_images

from directdet.errors import UsageProblem, UserError
from directdet.export import export as export_module
from directdet.export.export import deployed_preprocess, export
from directdet.export.onnx_graph import FORBIDDEN, count_operators, fold
from directdet.export.verify import verification_pictures, verify
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes import load
from directdet.models.build import build_model
from directdet.models.checkpoint import load_checkpoint
from directdet.models.rcnn_deploy import RCNNDeploy

pytestmark = pytest.mark.slow  # every test needs an exported graph


def torch_outputs(checkpoint, images):
    loaded = load_checkpoint(checkpoint)
    model = build_model(loaded["model_config"])
    model.load_state_dict(loaded["model"])
    with torch.no_grad():
        return [v.numpy() for v in RCNNDeploy(model.eval(), tuple(images.shape[2:]))(images)]


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
    pictures = {c.picture for c in exported.verification.comparisons}
    assert "blank" in pictures and any("odd aspect" in p for p in pictures)
    assert sum(c.expected for c in exported.verification.comparisons) > 20
    meta = json.loads((exported.artefact / "meta.json").read_text())
    assert meta["verification"]["passed"] is True and meta["verification"]["matched"] == 1.0
    assert meta["folded_batchnorms"] == 20 and meta["category_ids"] == [1, 2, 4, 7]
    assert meta["fold_error"] < 1e-4


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("seed", [5, 6])
def test_runtimes_agree_on_pictures_not_exported_with(checkpoint, exported, runtime, seed):
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    images = smooth_images(1, (128, 160), seed)
    detector = load(exported.artefact, runtime=runtime, device="cpu")
    assert_same_detections(torch_outputs(checkpoint, images), detector.run(images.numpy()))


def test_batch_and_other_size(checkpoint, tmp_path):
    result = export(checkpoint, tmp_path / "artefact", batch=2, size=(96, 128))
    assert result.verification.passed
    images = smooth_images(2, (96, 128), 7)
    found = load(result.artefact, device="cpu").run(images.numpy())
    expected = torch_outputs(checkpoint, images)
    for row in range(2):
        assert_same_detections([v[row : row + 1] for v in expected], [v[row : row + 1] for v in found])


def test_without_masks(tmp_path):
    conditioned_checkpoint(tmp_path / "model.pt", masks=False)
    result = export(tmp_path / "model.pt", tmp_path / "artefact")
    assert result.verification.passed
    assert json.loads((result.artefact / "meta.json").read_text())["outputs"] == ["num", "boxes", "scores", "labels"]


def test_folding_is_counted_and_equal(checkpoint):
    loaded = load_checkpoint(checkpoint)
    model = build_model(loaded["model_config"])
    model.load_state_dict(loaded["model"])
    folded, count, error = fold(model, (64, 64))
    assert count == 20 and error < 1e-5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 20  # the original is left alone


def test_a_wrong_graph_fails_verification(checkpoint, tmp_path, monkeypatch):
    """If verification could not fail, it would say nothing: export a graph with one weight of the box head changed."""
    write = export_module.write_onnx

    def wrong(model, size, batch, path):
        kept = model.box_predictor.bbox_pred.bias.detach().clone()
        with torch.no_grad():
            model.box_predictor.bbox_pred.bias += 0.05
        try:
            return write(model, size, batch, path)
        finally:
            model.box_predictor.bbox_pred.bias.data.copy_(kept)

    monkeypatch.setattr(export_module, "write_onnx", wrong)
    result = export(checkpoint, tmp_path / "artefact")
    assert not result.verification.passed
    assert json.loads((tmp_path / "artefact" / "meta.json").read_text())["verification"]["passed"] is False


def test_lost_detections_fail_verification(checkpoint, exported, monkeypatch):
    """A candidate that finds only the better half, or one of each picture, is not the model."""
    reference, candidate = load(checkpoint, device="cpu"), load(exported.artefact, device="cpu")
    pictures = verification_pictures(None, (128, 160))
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
        export(checkpoint, tmp_path / "out", size=(100, 100))
    with pytest.raises(UsageProblem, match="there are onnx"):
        export(checkpoint, tmp_path / "out", format="onx")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    with pytest.raises(UserError, match="no artefact"):
        export(checkpoint, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep me"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]  # nothing half-written


def test_a_failed_export_leaves_the_old_artefact(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "artefact").mkdir()
    (tmp_path / "artefact" / "meta.json").write_text("{}")

    def broken(*_):
        raise UserError("broken")

    monkeypatch.setattr(export_module, "write_onnx", broken)
    with pytest.raises(UserError, match="broken"):
        export(checkpoint, tmp_path / "artefact")
    assert [p.name for p in tmp_path.iterdir()] == ["artefact"]
    assert (tmp_path / "artefact" / "meta.json").read_text() == "{}"


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
