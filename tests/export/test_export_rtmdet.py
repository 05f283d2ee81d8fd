"""RTMDet and RTMDet-Ins exported: verified, alike in every runtime, at any batch, on pictures of odd sizes."""

import json
from pathlib import Path

import mmdet_ins_twin
import mmdet_twin
import numpy as np
import onnx
import pytest
import torch
from export_helpers import canvases
from torch import nn
from twin import smooth_images

from directdet.export.onnx_graph import FORBIDDEN, count_operators
from directdet.export.options import ExportOptions
from directdet.export.run import ExportResult, export
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.load import load
from directdet.models.build import build_model, deploy_model, describe_model
from directdet.models.checkpoint import save_checkpoint
from directdet.models.parts.network import Network

pytestmark = pytest.mark.slow  # every test needs an exported graph
torch.set_num_threads(1)
SIZE = (96, 160)
THRESHOLDS = {"score_threshold": 0.4, "candidates": 100, "detections": 30}


@pytest.fixture(scope="module", params=["m", "ins-tiny"])
def model(request: pytest.FixtureRequest) -> Network:
    """RTMDet-m, whose distances go through exp(), or RTMDet-Ins-tiny, with weights that find something everywhere."""
    given = mmdet_twin.ours("m") if request.param == "m" else mmdet_ins_twin.ours("tiny")
    model = build_model({**describe_model(given.config), **THRESHOLDS})
    model.load_state_dict(given.state_dict())
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(model: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rtmdet") / "model.pt"
    facts = {"classes": ["cat", "dog", "bird"], "category_ids": [1, 2, 5], "recipe": "test", "phase": "finetune"}
    content = {"model_config": describe_model(model.config), "model": model.state_dict()}
    save_checkpoint(path, {**content, **facts, "preprocess": Preprocess(size=SIZE, fixed=True).to_dict()})
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> ExportResult:
    return export(checkpoint, checkpoint.parent / "artefact", ExportOptions(batch=(1, 2, 4)))


def test_masks_are_computed_in_a_loop_of_their_own(model: Network, exported: ExportResult) -> None:
    """Beside the loop of NMS."""
    loops = count_operators(onnx.load(exported.artefact / "model.onnx"))["Loop"]
    assert loops == (2 if model.config.masks else 1)


def test_it_passes_with_every_normalisation_folded(model: Network, exported: ExportResult) -> None:
    assert exported.verification.passed
    assert sum(c.counted for c in exported.verification.runtimes[0].comparisons) > 20
    meta = json.loads((exported.artefact / "meta.json").read_text())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert meta["unfolded_batchnorms"] == [] and meta["folded_batchnorms"] == norms and meta["fold_error"] < 1e-4
    graph = onnx.load(exported.artefact / "model.onnx")
    assert not set(FORBIDDEN) & set(count_operators(graph))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("count", [1, 3])
def test_runtimes_find_what_pytorch_finds(model: Network, exported: ExportResult, runtime: str, count: int) -> None:
    pytest.importorskip(runtime)
    detector = load(exported.artefact, runtime=runtime, device="cpu")
    pixels, images = canvases(count, SIZE, 3, detector.preprocess)
    with torch.no_grad():
        expected = [value.numpy() for value in deploy_model(model, SIZE)(torch.as_tensor(images))]
    found = detector.run(pixels)
    assert expected[0].min() > 5
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[2], expected[2], atol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], atol=0.02)
    np.testing.assert_array_equal(found[3], expected[3])
    if model.config.masks:
        assert len(expected) == len(found) == 5 and expected[4].std() > 0.1
        np.testing.assert_allclose(found[4], expected[4], atol=2e-3)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("shape", [(61, 97), (201, 77), (333, 500)])
def test_letterboxed_pictures_of_odd_sizes(
    checkpoint: Path, exported: ExportResult, runtime: str, shape: tuple[int, int]
) -> None:
    pytest.importorskip(runtime)
    planes = smooth_images(1, shape, 5)[0].permute(1, 2, 0).numpy()
    picture = np.clip(255 * (planes * 0.225 + 0.45), 0, 255).astype(np.uint8)
    expected = load(checkpoint, device="cpu")(picture)
    found = load(exported.artefact, runtime=runtime, device="cpu")(picture)
    assert len(found) == len(expected) > 5
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05)
    if expected.masks is not None:
        full, other = expected.full_masks(), found.full_masks()
        assert full.shape[1:] == shape and full.any((1, 2)).sum() > 5
        assert (full != other).mean() < 1e-3  # pixels where a probability is next to the threshold
    assert (found.boxes >= 0).all() and (found.boxes <= np.array([*shape[::-1]] * 2) + 1e-3).all()
