"""timm's feature backbones: ten families train, fold completely and export; the rest is refused with a message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from directdet.common.settings import SettingError
from directdet.models.build import build_model, deploy_model, describe_model, losses_of
from directdet.models.parts.fold import conv_norm_pairs
from directdet.models.parts.network import Network

timm = pytest.importorskip("timm", reason="timm is not installed; pip install 'directdet[timm]'")

FAMILIES = (
    "resnet18d",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "regnetx_002",
    "ghostnet_100",
    "hgnetv2_b0",
    "mobilenetv4_conv_small",
    "cspresnet50",
    "res2net50_14w_8s",
    "dla34",
    "hardcorenas_a",
    "semnasnet_075",
)
SMALL = {"num_classes": 3, "fpn_channels": 16, "head_convs": 1, "test_pre_nms": 60, "candidates": 60, "detections": 20}


def build(name: str) -> Network:
    torch.manual_seed(0)
    return build_model({"detector": "retinanet", "backbone": f"timm:{name}", **SMALL})


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_learns_folds_and_exports(name: str, tmp_path: Path) -> None:
    import onnxruntime
    from test_contract import pictures, targets

    from directdet.export.onnx_graph import FORBIDDEN, write_onnx

    model = build(name).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images = pictures(model)
    for _ in range(2):
        losses, _ = losses_of(model, images, targets(model))
        total = sum(losses.values())
        assert torch.isfinite(total)
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    facts = write_onnx(model, (64, 96), 2, tmp_path / "model.onnx")
    assert facts.folded == len(norms) and facts.unfolded == () and not set(FORBIDDEN) & set(facts.operators)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = deploy_model(model, (64, 96))(images)
    found = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(found[2], expected[2].numpy(), atol=1e-4)
    again = build_model(describe_model(model.config))
    again.load_state_dict(model.state_dict())


def test_channels_and_strides_are_timms() -> None:
    model = build("mobilenetv3_small_100").eval()
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, 64, 96))
    assert model.backbone.strides == {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
    for name, value in maps.items():
        stride = model.backbone.strides[name]
        assert tuple(value.shape[1:]) == (model.backbone.channels[name], 64 // stride, 96 // stride)


@pytest.mark.parametrize(("name", "least"), [("densenet121", 50), ("repvgg_a0", 17)])
def test_normalisation_without_a_convolution_is_told_apart(name: str, least: int) -> None:
    """DenseNet normalises maps that several layers use, RepVGG a shortcut: those become a scale and a shift."""
    from directdet.export.onnx_graph import fold

    model = build(name).eval()
    folded, folding, error = fold(model, (64, 64))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(folding.unfolded) >= least and folding.folded + len(folding.unfolded) == len(norms) and error < 1e-4
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_activations_inside_normalisations_come_after_them() -> None:
    model = build("mobilenetv3_small_100").eval()
    reference = timm.create_model("mobilenetv3_small_100", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    ours = {name.replace(".0.", ".", 1): value for name, value in model.backbone.body.state_dict().items()}
    assert sum(value.numel() for value in ours.values()) == sum(v.numel() for v in reference.state_dict().values())
    assert all(type(m) is nn.BatchNorm2d for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    # Copied in timm's order of tensors, which the split preserves, its weights must produce the same maps.
    values = list(reference.state_dict().values())
    model.backbone.body.load_state_dict(dict(zip(model.backbone.body.state_dict(), values, strict=True)))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours_map, theirs in zip(model.backbone(images).values(), reference(images), strict=True):
            torch.testing.assert_close(ours_map, theirs)
    pairs = conv_norm_pairs(model.backbone, images)
    assert len(pairs) == sum(isinstance(m, nn.BatchNorm2d) for m in model.backbone.modules())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"backbone": "timm:resnt18"}, r"timm has no network 'resnt18'; did you mean 'resnet18'"),
        ({"backbone": "timm:vit_tiny_patch16_224"}, "strides 16, 16"),
        ({"backbone": "timm:resnet18", "width": 32}, r"model\.width: timm:resnet18 has a fixed width"),
        ({"backbone": "timm:resnet18", "norm": "gn"}, r"model\.norm: timm:resnet18 has its own normalisation"),
    ],
)
def test_what_cannot_be(change: dict, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        build_model({"detector": "retinanet", "num_classes": 3, **change})
