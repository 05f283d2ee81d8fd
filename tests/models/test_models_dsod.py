"""DSOD: its layer table, its published size, torchvision's dense blocks with the same weights, export, gradients."""

import copy
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.densenet import _DenseBlock

from directdet.models.backbones.builders import SSD_BACKBONES
from directdet.models.backbones.dsod import LAYERS, DenseBlock, DenseExtras, Transition, dense_extras, dsod
from directdet.models.parts.fold import ScaleShift, conv_norm_pairs, fold_batch_norm
from directdet.models.parts.norm import fix_batch_norm
from directdet.models.ssd.head import SSDHead

WIDTH = 16  # of slim networks: a quarter of the published width


def lived_in(module: nn.Module) -> nn.Module:
    """`module` with random statistics and affine parameters in its normalisations, in evaluation mode."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.3, 1.2)
            nn.init.normal_(norm.bias, std=0.2)
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return module.eval()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def close(ours: Tensor, expected: Tensor) -> None:
    """Equal up to the rounding of float32 sums in a different order."""
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def batch_norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


@torch.no_grad()
def test_the_layer_table() -> None:
    backbone, extras = lived_in(dsod(WIDTH)), lived_in(dense_extras(128, WIDTH))
    seen: list[tuple[int, int]] = []
    for module in backbone.modules():
        if isinstance(module, DenseBlock | Transition) or module is backbone.stem:
            module.register_forward_hook(lambda module, inputs, out: seen.append(tuple(out.shape[1:3])))
    maps = backbone(torch.randn(1, 3, 300, 300))
    blocks = [(416, 75), (416, 75), (800, 38), (800, 38), (1184, 19), (1184, 19), (1568, 19), (256, 19)]
    assert seen == [(channels // 4, side) for channels, side in [(128, 150), *blocks, (256, 19)]]
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        "s8": (1, 200, 38, 38),
        "s16": (1, 128, 19, 19),
    }
    assert backbone.channels == {"s8": 200, "s16": 128} and backbone.strides == {"s8": 8, "s16": 16}
    coarse = extras(maps["s16"])
    assert [tuple(value.shape[1:]) for value in coarse] == [(128, 10, 10), (64, 5, 5), (64, 3, 3), (64, 1, 1)]
    assert extras.channels == [128, 64, 64, 64]
    # No ReLU after them, as in the authors' code.
    assert all(value.min() < 0 for value in [*maps.values(), *coarse])


def test_its_size_is_the_published_one() -> None:
    """The authors state 14.8 M parameters for 20 classes, in a file of 59.2 MB, including statistics of the norms.

    This includes the scales of the L2 norms before each prediction, which ScratchDet does not use.
    """
    with torch.device("meta"):
        backbone, extras = dsod().eval(), dense_extras(512).eval()
        with FlopCounterMode(display=False) as counter:
            extras(backbone(torch.zeros(1, 3, 300, 300))["s16"])
        channels = [*backbone.channels.values(), *extras.channels]
        parts = [backbone, extras, SSDHead(channels, (4, 6, 6, 6, 4, 4), 20, "bn")]
    assert channels == [800, 512, 512, 256, 256, 256]
    floats = sum(value.numel() for part in parts for value in part.state_dict().values() if value.is_floating_point())
    assert (floats + sum(channels)) * 4 / 1e6 == pytest.approx(59.2, abs=0.05)
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [10_239_008, 1_563_904, 2_910_300]
    assert counter.get_total_flops() / 2e9 == pytest.approx(13.71, abs=0.005)


def twin_block(block: DenseBlock) -> nn.Module:
    """torchvision's dense block with the weights of `block`."""
    growth = block[0].conv2.out_channels
    twin = _DenseBlock(len(block), block[0].conv1.in_channels, 4, growth, 0.0)
    weights = block.state_dict()
    twin.load_state_dict({f"denselayer{int(k[0]) + 1}{k[1:]}": v for k, v in weights.items()})
    return twin.train(block.training)


@pytest.mark.parametrize("mode", ["train", "eval", "fixed"])
def test_a_dense_block_is_torchvisions(mode: str) -> None:
    block, x = lived_in(DenseBlock(4, 12, 6, nn.BatchNorm2d)), torch.randn(3, 12, 9, 7)
    twin = twin_block(block.train(mode == "train"))
    if mode == "fixed":
        fix_batch_norm(block, affine=True)
        block.train()
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    ours, expected = block(inputs[0]), twin(inputs[1])
    close(ours, expected)
    for values in (ours, expected):
        values.square().sum().backward()
    close(inputs[0].grad, inputs[1].grad)
    for parameter, theirs in zip(block.parameters(), twin.parameters(), strict=True):
        close(parameter.grad, theirs.grad)
    for name, value in block.named_buffers():
        torch.testing.assert_close(value, twin.get_buffer(f"denselayer{int(name[0]) + 1}{name[1:]}"))


def before_activation(transition: Transition) -> nn.Module:
    return nn.Sequential(transition.norm, nn.ReLU(), transition.conv)


@torch.no_grad()
def test_trunk_and_extras_are_chained_as_in_the_authors_code() -> None:
    backbone, extras = lived_in(dsod(WIDTH)), lived_in(dense_extras(128, WIDTH))
    images, pool = torch.randn(2, 3, 84, 84), nn.MaxPool2d(2, ceil_mode=True)
    x = images
    for layer in backbone.stem:
        x = layer.norm(layer.conv(x)).relu()
    maps = []
    for number in range(1, 1 + len(LAYERS)):
        x = pool(x) if number < 4 else x
        x = before_activation(getattr(backbone, f"transition{number}"))(
            twin_block(getattr(backbone, f"block{number}"))(x)
        )
        maps.append(x)
    second = torch.cat([maps[3], before_activation(backbone.down)(pool(maps[1]))], 1)
    ours = backbone(images)
    close(ours["s8"], maps[1])
    close(ours["s16"], second)

    x = torch.randn(2, 128, 19, 19)
    for ours, layer, down in zip(extras(x), extras.learned, extras.down, strict=True):
        learned = nn.Sequential(layer.norm1, nn.ReLU(), layer.conv1, layer.norm2, nn.ReLU(), layer.conv2)
        below = nn.MaxPool2d(3, 2)(x) if down is extras.down[-1] else pool(x)
        x = torch.cat([learned(x), before_activation(down)(below)], 1)
        close(ours, x)


@pytest.mark.parametrize("size", [9, 13, 16, 17, 19, 20, 32, 64])
@torch.no_grad()
def test_map_sizes_are_those_of_the_maps(size: int) -> None:
    extras = DenseExtras(8, [4, 4, 4, 4], nn.BatchNorm2d, size).eval()
    assert extras.map_sizes(size) == [value.shape[3] for value in extras(torch.zeros(1, 8, size, size))]
    assert extras.map_sizes(size)[-1] == max(1, (math.ceil(size / 8) - 1) // 2)
    assert DenseExtras(8, [4, 4, 4, 4], None, 8).map_sizes(8)[-1] == 0  # 4, 2, 1: nothing to halve


def test_extras_refuse_what_they_have_not() -> None:
    with pytest.raises(ValueError, match="residual"):
        dense_extras(128, WIDTH, last_map_3x3=True)


def test_a_scale_and_a_shift_are_as_precise_under_autocast_as_torchs_own() -> None:
    norm = lived_in(nn.BatchNorm2d(16))
    x = (torch.randn(2, 16, 5, 5) * 3).bfloat16()
    ours, expected = ScaleShift(norm)(x).relu(), norm(x).relu()
    assert ours.dtype == torch.bfloat16
    # Both are computed in float32; the final rounding to bfloat16 (8 bits) may go either way.
    torch.testing.assert_close(ours, expected, rtol=2**-7, atol=0)
    assert (ours == expected).float().mean() > 0.99


class Maps(nn.Module):
    """Trunk and extras: images -> six maps."""

    def __init__(self, norm: str = "bn"):
        super().__init__()
        self.backbone, self.extras = dsod(WIDTH, norm), dense_extras(128, WIDTH, norm)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.backbone(images)
        return [maps["s8"], maps["s16"], *self.extras(maps["s16"])]


def folded_copy(model: Maps) -> Maps:
    folded = copy.deepcopy(model)
    folding = fold_batch_norm(folded, conv_norm_pairs(folded, torch.randn(1, 3, 264, 264)))
    # The first norm of each dense layer and each transition (four in the trunk, five after it) follows no convolution.
    assert (folding.folded, len(folding.unfolded)) == (3 + sum(LAYERS) + 4, sum(LAYERS) + 4 + 4 + 5)
    return folded


@torch.no_grad()
def test_folding_keeps_the_maps_and_no_batch_norm_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = lived_in(Maps()), torch.randn(1, 3, 264, 264)
    expected = model(images)
    folded = folded_copy(model)
    assert batch_norms(folded) == 0
    monkeypatch.setattr(torch.nn.functional, "batch_norm", None)  # used by nn.BatchNorm2d; a call would fail
    for ours, value in zip(folded(images), expected, strict=True):
        close(ours, value)


@pytest.mark.slow
def test_the_exported_graph_holds_no_batch_norm_and_gives_the_same_maps(tmp_path: Path) -> None:
    model, images, path = folded_copy(lived_in(Maps())), torch.randn(1, 3, 300, 300), tmp_path / "dsod.onnx"
    torch.onnx.export(model, (images,), str(path), dynamo=True, opset_version=18, external_data=False, verbose=False)
    operators = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert operators <= {"Conv", "Relu", "MaxPool", "Concat", "Mul", "Add"}
    outputs = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {"images": images.numpy()}
    )
    with torch.no_grad():
        for ours, expected in zip(outputs, model(images), strict=True):
            assert np.abs(ours - expected.numpy()).max() <= 1e-4 * expected.abs().max()  # different summation order


@pytest.mark.parametrize("norm", ["bn", "gn", "none"])
def test_gradients_reach_every_parameter_under_every_normalisation(norm: str) -> None:
    model = Maps(norm).train()
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = sum(isinstance(m, nn.BatchNorm2d | nn.GroupNorm) for m in model.modules())
    assert norms == (0 if norm == "none" else len(convs))
    assert sum(conv.bias is not None for conv in convs) == (len(convs) if norm == "none" else 0)
    sum(value.square().mean() for value in model(torch.randn(2, 3, 264, 264))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        assert parameter.grad.isfinite().all(), name


def test_the_stages_hold_every_parameter_once() -> None:
    backbone = dsod(WIDTH)
    parts = [p for modules in backbone.stages() for module in modules for p in module.parameters()]
    assert len(backbone.stages()) == 5
    assert sorted(map(id, parts)) == sorted(map(id, backbone.parameters()))


def test_it_is_an_ssd_backbone() -> None:
    assert SSD_BACKBONES["dsod"] is dsod
