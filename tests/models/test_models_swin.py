"""Swin-T compared with torchvision's blocks with the same weights, and inside Mask R-CNN."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import StochasticDepth
from twin import conditioned_model, smooth_images

from directdet.models.backbones.builders import BACKBONES
from directdet.models.backbones.swin import Swin, swin_t
from directdet.models.parts.fold import conv_norm_pairs
from directdet.models.parts.targets import Targets
from directdet.models.two_stage.config import RCNNConfig
from directdet.models.two_stage.deploy import RCNNDeploy
from directdet.models.two_stage.loss import rcnn_losses
from directdet.models.two_stage.network import RCNN

SIZE = (96, 160)  # maps 24x40, 12x20, 6x10 and 3x5: all are padded, and one window covers the last one's height
SLIM = RCNNConfig(
    5,
    backbone="swin_t",
    width=32,
    fpn_channels=32,
    box_convs=1,
    box_features=32,
    mask_convs=1,
    mask_channels=16,
    train_pre_nms=100,
    train_proposals=60,
    rpn_samples=32,
    roi_samples=16,
    mask_slots=4,
    test_pre_nms=100,
    test_proposals=60,
    candidates=100,
    detections=30,
)


def enliven(backbone: nn.Module) -> None:
    """Weights as after training: new ones attend to all keys equally, which would hide a wrong mask or bias."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.normal_(generator=generator)
            elif name.endswith(("qkv.weight", "proj.weight")):
                parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
            elif parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def theirs() -> SwinTransformer:
    model = torchvision.models.swin_t(weights=None)
    enliven(model)
    return model


@pytest.fixture(scope="module")
def ours(theirs: SwinTransformer) -> Swin:
    model = swin_t()
    state = theirs.state_dict()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == [f"norm{level}.{name}" for level in range(2, 6) for name in ("weight", "bias")]
    assert unexpected == ["norm.weight", "norm.bias", "head.weight", "head.bias"]  # the classifier's
    for level in range(2, 6):
        nn.init.normal_(getattr(model, f"norm{level}").weight)
        nn.init.normal_(getattr(model, f"norm{level}").bias)
    return model


def oracle(theirs: SwinTransformer, ours: Swin, images: Tensor) -> dict[str, Tensor]:
    """torchvision's modules in sequence, and our LayerNorm on the output of each stage."""
    levels, x = {}, images
    for index, module in enumerate(theirs.features):
        x = module(x)
        if index % 2:  # 0 is the patch embedding; then stages and patch mergings alternate
            level = index // 2 + 2
            norm = getattr(ours, f"norm{level}")
            levels[f"c{level}"] = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias).permute(0, 3, 1, 2)
    return levels


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("size", [(64, 64), SIZE, (224, 32)], ids=str)
def test_levels_are_torchvisions(theirs: SwinTransformer, ours: Swin, size: tuple[int, int], training: bool) -> None:
    """In training too: the same seed drops the same branches of the same images."""
    images = smooth_images(2, size, 1)
    theirs.train(training)
    ours.train(training)
    with torch.no_grad():
        torch.manual_seed(5)
        expected = oracle(theirs, ours, images)
        torch.manual_seed(5)
        found = ours(images)
    assert list(found) == list(expected) == list(ours.channels) == list(ours.strides)
    for name, level in found.items():
        stride = ours.strides[name]
        assert level.shape == (2, ours.channels[name], size[0] // stride, size[1] // stride)
        # The same operations in the same order; only the mask is computed differently, with exact values 0 and -100.
        torch.testing.assert_close(level, expected[name], rtol=0, atol=1e-6)
    if not training:
        assert (found["c5"][0] - found["c5"][1]).abs().max() > 0.1


def test_stochastic_depth_rises_to_a_fifth(ours: Swin) -> None:
    rates = [m.p for m in ours.modules() if isinstance(m, StochasticDepth)]
    assert rates == pytest.approx([0.2 * block / 11 for block in range(12)])


def test_interface() -> None:
    with torch.device("meta"):
        published, slim = swin_t(), swin_t(32)
    assert published.channels == {"c2": 96, "c3": 192, "c4": 384, "c5": 768}
    assert slim.channels == {"c2": 32, "c3": 64, "c4": 128, "c5": 256}
    assert published.strides == {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
    tables = [p for name, p in published.named_parameters() if name.endswith("relative_position_bias_table")]
    assert [tuple(table.shape) for table in tables] == [(169, h) for h in [3, 3, 6, 6, *[12] * 6, 24, 24]]
    with torch.device("meta"):
        assert conv_norm_pairs(published.eval(), torch.zeros(1, 3, 64, 64)) == []
    assert BACKBONES["swin_t"] is swin_t


@pytest.mark.parametrize("width", [16, 48, 100, -32])
def test_unfit_width(width: int) -> None:
    with pytest.raises(ValueError, match=f"model.width: {width} is not a multiple of 32.*nearest is (32|64|96)"):
        swin_t(width)


def test_no_group_normalisation() -> None:
    with pytest.raises(ValueError, match="layer normalisation only"):
        swin_t(32, "gn")


def test_stages_hold_all_but_the_levels_normalisations() -> None:
    model = swin_t(32)
    stages = model.stages()
    assert [len(modules) for modules in stages] == [1, 1, 2, 2, 2]
    held = [p for modules in stages for module in modules for p in module.parameters()]
    assert len(held) == len({id(p) for p in held})
    rest = {name for name, p in model.named_parameters() if not any(p is other for other in held)}
    assert rest == {f"norm{level}.{name}" for level in range(2, 6) for name in ("weight", "bias")}
    for modules in stages[:3]:  # the first two stages are frozen; the patch merging before the third is trained
        for module in modules:
            module.requires_grad_(False)
    sum(level.square().mean() for level in model(smooth_images(1, (64, 64), 1)).values()).backward()
    reached = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and "feat" in name}
    assert reached == {"4", "5", "6", "7"}


def test_start_is_the_swin_papers() -> None:
    torch.manual_seed(0)
    model = swin_t(64)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module.bias is None or not module.bias.any(), name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any(), name
    tables = [p.flatten() for name, p in model.named_parameters() if name.endswith("relative_position_bias_table")]
    assert torch.cat(tables).std().item() == pytest.approx(0.02, rel=0.05)


def test_layer_normalisation_stays_float32_under_autocast() -> None:
    model = swin_t(32).eval()
    norms, linears = [], []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda _, __, output: norms.append(output.dtype))
        if type(module) is nn.Linear:
            module.register_forward_hook(lambda _, __, output: linears.append(output.dtype))
    images = smooth_images(1, SIZE, 1)
    with torch.no_grad():
        exact = model(images)
        norms.clear(), linears.clear()
        with torch.autocast("cpu", torch.bfloat16):
            levels = model(images)
    assert norms == [torch.float32] * 32 and linears == [torch.bfloat16] * 51
    for name, level in levels.items():
        assert level.dtype == torch.float32
        # 12 blocks with 8-bit factors; levels are normalised to standard deviation 1
        assert (level - exact[name]).square().mean().sqrt() < 0.05


@pytest.mark.slow
def test_it_is_one_graph() -> None:
    model, images = swin_t(32).eval(), smooth_images(2, SIZE, 1)
    enliven(model)
    torch.compiler.reset()
    with torch.no_grad():
        found = torch.compile(model, backend="eager", fullgraph=True)(images)
        expected = model(images)
    torch.compiler.reset()
    for name, level in expected.items():
        torch.testing.assert_close(found[name], level, rtol=0, atol=1e-6)


def test_every_parameter_of_mask_rcnn_gets_a_gradient(targets_of: Callable[..., Targets]) -> None:
    torch.manual_seed(0)
    model = RCNN(SLIM).train()
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.eval()  # so that no branch is dropped at random
    losses, counts = rcnn_losses(model, model(smooth_images(2, SIZE, 1)), targets_of([3, 2], [SIZE] * 2))
    assert set(losses) == {"rpn_class", "rpn_box", "class", "box", "mask"} and counts["positives"] >= 5
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name.startswith("backbone."):
            assert parameter.grad.any(), name  # elsewhere, a pyramid level may have no boxes


def test_number_of_parameters() -> None:
    """mmdetection publishes 47.79 M for Mask R-CNN Swin-T with the classic two-layer box head and 80 classes.

    Ours also predicts deltas and a mask for the background class, as in torchvision: 4 * (1024 + 1) and 256 + 1 more.
    """
    with torch.device("meta"):
        classic = RCNN(RCNNConfig(80, backbone="swin_t", box_convs=0))
        paper = RCNN(RCNNConfig(80, backbone="swin_t"))

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(classic.backbone) == 27_517_818 + 2 * (96 + 192 + 384 + 768)  # features and norms
    assert count(classic) == 47_794_602 + 4_100 + 257
    # 4conv1fc: four convolutions instead of one fully connected layer of 1024
    assert count(paper) == count(classic) + 4 * (256 * 256 * 9 + 256) - (1024 * 1024 + 1024)


@pytest.fixture(scope="module")
def detector() -> RCNN:
    """A detector with real detections, on a backbone with non-trivial weights."""

    def lively(width: int | None, norm: str) -> Swin:
        backbone = swin_t(width, norm)
        enliven(backbone)
        return backbone

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "swin_t", lively)
        return conditioned_model(SLIM, SIZE).eval()


@pytest.fixture(scope="module")
def graph(detector: RCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from directdet.export.onnx_graph import write_onnx

    path = tmp_path_factory.mktemp("swin") / "model.onnx"
    facts = write_onnx(copy.deepcopy(detector), SIZE, 1, path)
    assert facts.folded == 0 and facts.operators["LayerNormalization"] == 32
    assert "ScatterND" not in facts.operators  # which torchvision's mask would be exported as
    return path


@pytest.mark.slow
def test_exported_graph_is_the_model(detector: RCNN, graph: Path) -> None:
    import onnxruntime

    types = {value.data_type for value in onnx.load(graph).graph.initializer}
    assert onnx.TensorProto.FLOAT in types
    assert not types & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    deploy = RCNNDeploy(detector, SIZE)
    for seed in (5, 6, 8):
        images = smooth_images(1, SIZE, seed)
        with torch.no_grad():
            expected = [value.numpy() for value in deploy(images)]
        num, boxes, scores, labels, masks = session.run(None, {"images": images.numpy()})
        assert num == expected[0] and num > 10 and len(np.unique(labels)) >= 3
        np.testing.assert_array_equal(labels, expected[3])
        np.testing.assert_allclose(boxes, expected[1], rtol=0, atol=0.01)
        np.testing.assert_allclose(scores, expected[2], rtol=0, atol=1e-4)
        np.testing.assert_allclose(masks, expected[4], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_tensorrt_rtx_takes_the_graph(graph: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from directdet.export.tensorrt import build_engine

    build_engine("tensorrt-rtx", graph, tmp_path / "model.engine", ("8.9",))
    assert (tmp_path / "model.engine").stat().st_size > 1_000_000
