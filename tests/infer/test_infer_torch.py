"""The torch runtime: checkpoints, models in training, canvases of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from directdet.common.errors import UserError
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.load import load
from directdet.infer.runtimes.torch_runtime import TorchBackend, TorchPredictor, load_torch
from directdet.models.build import build_model, describe_model
from directdet.models.checkpoint import save_checkpoint
from directdet.models.two_stage.deploy import RCNNDeploy
from directdet.models.two_stage.network import RCNNConfig

CONFIG = describe_model(
    RCNNConfig(
        num_classes=3,
        backbone="resnet18",
        width=8,
        fpn_channels=16,
        box_convs=1,
        box_features=16,
        mask_convs=1,
        mask_channels=16,
        test_pre_nms=50,
        test_proposals=20,
        score_threshold=0.0,
        candidates=60,
        detections=10,
    )
)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(CONFIG).eval()


def checkpoint(model, preprocess=None) -> dict:
    preprocess = preprocess or Preprocess((64, 96))
    return {
        "model_config": CONFIG,
        "model": model.state_dict(),
        "classes": ["a", "b", "c"],
        "category_ids": [1, 2, 3],
        "preprocess": preprocess.to_dict(),
        "recipe": "test",
        "phase": "fine-tune",
    }


def picture(height: int = 100, width: int = 150) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_checkpoint_runs_as_the_model_does(model, tmp_path):
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", checkpoint(model))
    detector = load(tmp_path, device="cpu")
    assert detector.runtime == "torch" and detector.describe()["recipe"] == "test"
    batch, _ = detector.prepare([picture()])
    with torch.no_grad():
        expected = RCNNDeploy(model, (64, 96))(torch.from_numpy(batch))
    for ours, theirs in zip(detector.run(batch), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())
    found = detector(picture())
    assert len(found) and found.masks is not None and found.image_size == (100, 150)


def test_best_comes_before_last(model, tmp_path):
    for name in ("last", "best"):
        save_checkpoint(tmp_path / "checkpoints" / f"{name}.pt", checkpoint(model))
    assert load(tmp_path, device="cpu").source.endswith("best.pt")


def test_a_model_in_training_comes_back_as_it_was(model):
    model.train()
    model.fpn.eval()  # a part that its owner keeps fixed
    before = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    detector = TorchPredictor.from_model(model, Preprocess((64, 96)), "abc", (1, 2, 3), "cpu")
    found = detector(picture())
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())  # BN statistics too
    model.eval()
    assert np.array_equal(detector(picture()).scores, found.scores)


def test_weights_are_shared_with_the_model(model):
    detector = TorchPredictor.from_model(model, Preprocess((64, 96)), "abc", (1, 2, 3))
    first = detector(picture())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    assert not np.array_equal(detector(picture()).scores, first.scores)


def test_canvases_of_any_size(model, monkeypatch):
    monkeypatch.setattr("directdet.infer.runtimes.torch_runtime._KEPT_SIZES", 2)
    detector = TorchPredictor.from_model(model, Preprocess((64, 128), fixed=False), "abc", (1, 2, 3))
    images = [picture(100, 150), picture(150, 100), picture(100, 300), picture(100, 150)]
    found = detector.detect_batch(images)
    assert [one.image_size for one in found] == [image.shape[:2] for image in images]
    assert np.array_equal(found[0].boxes, found[3].boxes)
    assert len(detector.backend._deployed) == 2
    with pytest.raises(ValueError, match="different sizes"):
        detector.prepare(images)
    with pytest.raises(UserError, match="multiples of 32"):
        detector.run(np.zeros((1, 3, 50, 64), np.float32))


def test_broken_checkpoints(model, tmp_path):
    (tmp_path / "a.pt").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"a\.pt"):
        load(tmp_path / "a.pt", device="cpu")
    for change, message in (
        ({"model_config": {**CONFIG, "num_classes": 4}}, "does not match its own model_config"),
        ({"model_config": {**CONFIG, "detector": "yolo"}}, "yolo"),
        ({"preprocess": {}}, "preprocess"),
    ):
        save_checkpoint(tmp_path / "b.pt", checkpoint(model) | change)
        with pytest.raises(UserError, match=message) as caught:
            load(tmp_path / "b.pt", device="cpu")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"runtime": "openvino"}, "kind checkpoint; use torch"),
        ({"device": "cpu:x"}, "torch runs on"),
        ({"device": "cuda:99"}, "no such GPU"),
        ({"device": "cpu", "precision": "tf32"}, "on a GPU tf32"),
    ],
)
def test_impossible_choices(model, tmp_path, options, message):
    save_checkpoint(tmp_path / "c.pt", checkpoint(model))
    with pytest.raises(UserError, match=message):
        load(tmp_path / "c.pt", **options)


def test_tf32_is_set_for_the_call_only(model):
    backend = TorchBackend(model, "cpu", "fp32")
    backend._device = torch.device("cuda")  # only the switch is looked at
    before = torch.backends.cudnn.allow_tf32
    with backend._tf32():
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_bf16_runs_the_convolutions_in_it_and_returns_float32(model, tmp_path):
    save_checkpoint(tmp_path / "m.pt", checkpoint(model))
    half, full = (load(tmp_path / "m.pt", device="cpu", precision=precision) for precision in ("bf16", "fp32"))
    assert (half.info["precision"], full.info["precision"]) == ("bf16", "fp32")
    kinds = []
    hook = half.backend.model.backbone.conv1.register_forward_hook(lambda module, given, out: kinds.append(out.dtype))
    batch, _ = half.prepare([picture()])
    ours, theirs = half.run(batch), full.run(batch)
    hook.remove()
    assert kinds == [torch.bfloat16]
    assert [value.dtype for value in ours] == [value.dtype for value in theirs]
    assert not np.array_equal(ours[2], theirs[2])  # another rounding, but the same detector
    np.testing.assert_allclose(ours[2][0, 0], theirs[2][0, 0], rtol=0.05)
    with pytest.raises(UserError, match="on a GPU tf32 or fp16"):
        load(tmp_path / "m.pt", device="cpu", precision="fp16")


@pytest.mark.slow
def test_compiled_it_finds_the_same(model, tmp_path, monkeypatch):
    """With dynamo's own backend: what the compiler makes of the graph is PyTorch's business, and takes minutes."""
    whole, asked = torch.compile, []

    def trace_only(module, **options):
        asked.append(options)
        return whole(module, backend="eager", fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", trace_only)
    save_checkpoint(tmp_path / "m.pt", checkpoint(model))
    compiled = load_torch(tmp_path / "m.pt", device="cpu", compiled=True)
    eager = load(tmp_path / "m.pt", device="cpu")
    assert compiled.info["compiled"] and not eager.info["compiled"]
    batch, _ = compiled.prepare([picture()])
    for ours, theirs in zip(compiled.run(batch), eager.run(batch), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert asked == [{"dynamic": False}]
