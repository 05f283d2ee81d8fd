"""SSD's ResNet trunks: their layer tables and costs, torchvision's values with the same weights, folding, gradients."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import ResNet as TorchvisionResNet

from directdet.models.backbones.builders import SSD_BACKBONES
from directdet.models.backbones.resnet import BasicBlock
from directdet.models.backbones.root_resnet import SSD_RESNETS, SSDResNet
from directdet.models.parts.fold import conv_norm_pairs, fold_batch_norm
from directdet.recipes.scratchdet import TABLE2_BACKBONES

WIDTH = 4  # of slim networks: a sixteenth of the published width
# Sides of the maps at 300 pixels: after the root's convolutions, its max-pool, stages 1 to 4.
QUARTER, HALF, WHOLE = (150, 75, 75, 38, 19, 19), (150, 150, 150, 75, 38, 19), (300, 150, 150, 75, 38, 19)
# Root: kernel, convolutions, stride of the first; sides of the maps; stage that outputs 38x38.
ROOTS = {
    "resnet18": (7, 1, 2, QUARTER, 2),
    "resnet34": (7, 1, 2, QUARTER, 2),
    "resnet101": (7, 1, 2, QUARTER, 2),
    "resnet18_a": (7, 1, 2, HALF, 3),
    "resnet18_b": (7, 1, 1, WHOLE, 3),
    "root_resnet18": (3, 3, 1, WHOLE, 3),
    "root_resnet34": (3, 3, 1, WHOLE, 3),
    "resnet18_s2_1x3x3": (3, 1, 2, QUARTER, 2),
    "resnet18_s2_2x3x3": (3, 2, 2, QUARTER, 2),
    "resnet18_s2_3x3x3": (3, 3, 2, QUARTER, 2),
    "resnet18_s1_1x3x3": (3, 1, 1, WHOLE, 3),
    "resnet18_s1_2x3x3": (3, 2, 1, WHOLE, 3),
    "resnet18_s1_4x3x3": (3, 4, 1, WHOLE, 3),
    "resnet18_s1_5x3x3": (3, 5, 1, WHOLE, 3),
}
KINDS = ("resnet18", "resnet101", "resnet18_a", "resnet18_b", "root_resnet18")  # one of every layout and block


def lived_in(name: str, width: int = WIDTH, norm: str = "bn") -> SSDResNet:
    """A trunk with random statistics and affine parameters in its normalisations."""
    torch.manual_seed(0)
    backbone = SSD_RESNETS[name](width, norm)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.2)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return backbone.eval()


def close(ours: Tensor, expected: Tensor) -> None:
    """Equal up to the rounding of float32 sums in a different order."""
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ROOTS)
def test_the_layer_table(name: str) -> None:
    kernel, convs, stride, sides, fine = ROOTS[name]
    backbone = lived_in(name)
    root = [getattr(backbone, f"conv{i}") for i in range(1, convs + 1)]
    assert not hasattr(backbone, f"conv{convs + 1}")
    assert {conv.kernel_size for conv in root} == {(kernel, kernel)}
    assert [conv.stride[0] for conv in root] == [stride] + [1] * (convs - 1)
    seen: dict[str, tuple[int, int]] = {}
    modules = {
        "root": root[-1],
        "pool": backbone.maxpool,
        **{f"{i}": getattr(backbone, f"layer{i}") for i in range(1, 5)},
    }
    for key, module in modules.items():
        module.register_forward_hook(lambda module, inputs, out, key=key: seen.update({key: tuple(out.shape[1:3])}))
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 300, 300))
    expansion = 4 if name == "resnet101" else 1
    channels = [WIDTH, WIDTH, *(WIDTH * expansion * 2**stage for stage in range(4))]
    assert list(seen.values()) == list(zip(channels, sides, strict=True))
    assert backbone.channels == {"s8": channels[fine + 1], "s16": channels[-1]}
    assert {key: tuple(value.shape) for key, value in maps.items()} == {
        "s8": (1, backbone.channels["s8"], 38, 38),
        "s16": (1, backbone.channels["s16"], 19, 19),
    }
    assert backbone.strides == {"s8": 8, "s16": 16}
    assert all(value.min() >= 0 for value in maps.values())  # after the ReLU


def test_every_trunk_is_in_the_table_and_an_ssd_backbone() -> None:
    assert ROOTS.keys() == SSD_RESNETS.keys()
    assert SSD_RESNETS.items() <= SSD_BACKBONES.items()


def test_table_2_has_the_papers_rows() -> None:
    rows = [ROOTS[name][2::-1] for name in TABLE2_BACKBONES]  # (stride, convolutions, kernel)
    assert rows[:4] == [(2, 1, 7), (2, 1, 3), (2, 2, 3), (2, 3, 3)]
    assert rows[4:] == [(1, 1, 7), (1, 1, 3), (1, 2, 3), (1, 3, 3), (1, 4, 3), (1, 5, 3)]


# Millions of parameters, billions of multiplications. Those of the Root-ResNets were derived from the authors' code
# beforehand; ResNet-18's follow from its layer table.
COSTS = {"root_resnet18": (11.24, 19.11), "root_resnet34": (21.35, 32.61), "resnet18": (11.18, 5.58)}


@pytest.mark.parametrize("name", COSTS)
def test_parameters_and_multiplications(name: str) -> None:
    with torch.device("meta"):
        backbone = SSD_RESNETS[name]().eval()
        with FlopCounterMode(display=False) as counter:
            backbone(torch.zeros(1, 3, 300, 300))
    parameters, macs = COSTS[name]
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(parameters, abs=0.005)
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, abs=0.005)
    if name.startswith("root"):
        per_module = counter.get_flop_counts()
        root = sum(sum(per_module[f"SSDResNet.conv{i}"].values()) for i in (1, 2, 3))
        assert root / 2e9 == pytest.approx(6.79, abs=0.005)  # what makes a Root-ResNet slow


def torchvision_maps(twin: TorchvisionResNet, images: Tensor) -> Iterator[Tensor]:
    """The outputs of torchvision's stages 1 to 4."""
    x = twin.maxpool(twin.relu(twin.bn1(twin.conv1(images))))
    for stage in (twin.layer1, twin.layer2, twin.layer3, twin.layer4):
        x = stage(x)
        yield x


def twin_of(backbone: SSDResNet, name: str, **settings: object) -> TorchvisionResNet:
    twin = getattr(torchvision.models, name)(weights=None, **settings).eval()
    mismatch = twin.load_state_dict(backbone.state_dict(), strict=False)
    assert set(mismatch.missing_keys) == {"fc.weight", "fc.bias"} and not mismatch.unexpected_keys
    return twin


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
@torch.no_grad()
def test_the_original_gives_torchvisions_values_where_torchvision_has_any(name: str) -> None:
    """Its last stage keeps the 7x7 map, which torchvision halves to 4x4; every second position is equal."""
    backbone, images = lived_in(name, 64), torch.randn(1, 3, 104, 104)
    ours, stages = backbone(images), list(torchvision_maps(twin_of(backbone, name), images))
    close(ours["s8"], stages[1])
    assert ours["s16"].shape[2:] == (7, 7) and stages[3].shape[2:] == (4, 4)
    close(ours["s16"][:, :, ::2, ::2], stages[3])


@torch.no_grad()
def test_resnet101_is_torchvisions_with_dilation_instead_of_the_last_stride() -> None:
    backbone, images = lived_in("resnet101", 64), torch.randn(1, 3, 56, 56)
    twin = twin_of(backbone, "resnet101", replace_stride_with_dilation=[False, False, True])
    stages = list(torchvision_maps(twin, images))
    ours = backbone(images)
    close(ours["s8"], stages[1])
    close(ours["s16"], stages[3])


@pytest.mark.parametrize("name", ["resnet18_a", "resnet18_b", "root_resnet18"])
@torch.no_grad()
def test_the_variants_are_torchvisions_resnet18_but_for_the_root(name: str) -> None:
    backbone, images = lived_in(name, 64), torch.randn(1, 3, 72, 72)
    if name == "root_resnet18":
        twin = torchvision.models.resnet18(weights=None).eval()
        twin.load_state_dict({k: v for k, v in backbone.state_dict().items() if k.startswith("layer")}, strict=False)
        first = [backbone.conv1, backbone.bn1, nn.ReLU(), backbone.conv2, backbone.bn2, nn.ReLU(), backbone.conv3]
        twin.conv1, twin.bn1, twin.maxpool = nn.Sequential(*first), backbone.bn3, nn.MaxPool2d(2)
    else:
        twin = twin_of(backbone, "resnet18")
        if name == "resnet18_a":
            twin.maxpool = nn.Identity()
        else:
            twin.conv1.stride = (1, 1)
    ours, stages = backbone(images), list(torchvision_maps(twin, images))
    close(ours["s8"], stages[2])
    close(ours["s16"], stages[3])


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_folding_leaves_no_normalisation_and_the_same_maps(name: str) -> None:
    backbone, images = lived_in(name), torch.randn(2, 3, 72, 72)
    expected = backbone(images)
    folded = copy.deepcopy(backbone)
    folding = fold_batch_norm(folded, conv_norm_pairs(folded, images))
    assert folding.folded == sum(isinstance(m, nn.BatchNorm2d) for m in backbone.modules()) and not folding.unfolded
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    ours = folded(images)
    for key, value in expected.items():
        close(ours[key], value)


@pytest.mark.parametrize("norm", ["bn", "gn", "none"])
@pytest.mark.parametrize("name", KINDS)
def test_gradients_reach_every_parameter_under_every_normalisation(name: str, norm: str) -> None:
    torch.manual_seed(0)
    backbone = SSD_RESNETS[name](16, norm).train()  # in slimmer networks, group normalisation would get single values
    convs = sum(isinstance(m, nn.Conv2d) for m in backbone.modules())
    kinds = {"bn": nn.BatchNorm2d, "gn": nn.GroupNorm, "none": nn.Identity}
    norms = sum(type(m) is kinds[norm] for m in backbone.modules() if m is not backbone.maxpool)
    biases = sum(isinstance(m, nn.Conv2d) and m.bias is not None for m in backbone.modules())
    assert (norms, biases) == (convs, convs if norm == "none" else 0)
    sum(value.square().mean() for value in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["resnet18", "root_resnet18", "resnet101"])
def test_the_stages_hold_every_parameter_once(name: str) -> None:
    backbone = SSD_RESNETS[name](WIDTH)
    parts = [p for modules in backbone.stages() for module in modules for p in module.parameters()]
    assert len(backbone.stages()) == 5
    assert sorted(map(id, parts)) == sorted(map(id, backbone.parameters()))


def test_a_root_that_halves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="must halve"):
        SSDResNet(BasicBlock, (2, 2, 2, 2), WIDTH, stride=1, pool=False)
