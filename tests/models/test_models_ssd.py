"""SSD's network compared with torchvision's with the same weights, and with the papers."""

import json
import math
from dataclasses import replace

import pytest
import torch
from ssd_twin import (
    RATIOS,
    SCALES,
    SIZE,
    STEPS,
    bare_twin,
    build_twin,
    conditioned_model,
    pictures,
    twin_maps,
    twin_priors,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import SSD300_VGG16_Weights
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from directdet.models.build import build_model, deploy_model, describe_model
from directdet.models.parts.fold import conv_norm_pairs
from directdet.models.ssd.config import SSDConfig
from directdet.models.ssd.deploy import SSDDeploy
from directdet.models.ssd.extras import EXTRAS, size_after, steps_to_one
from directdet.models.ssd.network import SSD

# The original SSD, as in torchvision, with few channels.
ORIGINAL = SSDConfig(5, width=8, norm="none", head_norm=False, l2_norm=True)
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def conditioned() -> SSD:
    """In evaluation mode; read-only."""
    return conditioned_model(ORIGINAL)


def same_maps(model: SSD, images: Tensor) -> None:
    twin = build_twin(model)
    with torch.no_grad():
        raw = model(images)
        features, outputs, priors = twin_maps(twin, images)
    pairs = [*zip(raw.features, features, strict=True)]
    pairs += [(raw.logits, outputs["cls_logits"]), (raw.deltas, outputs["bbox_regression"])]
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= RELATIVE * theirs.abs().max()
    # Theirs are float32 fractions of the input, rounded before they are multiplied by 300.
    torch.testing.assert_close(raw.anchors, priors, rtol=0, atol=1e-4)
    assert sum(raw.level_sizes) == len(raw.anchors) == raw.logits.shape[1] == 8732


@pytest.mark.parametrize("kind", ["pictures", "blank"])
def test_raw_maps_equal_torchvision(conditioned: SSD, kind: str) -> None:
    same_maps(conditioned, pictures(2, 7) if kind == "pictures" else torch.zeros(1, 3, *SIZE))


@pytest.mark.slow
def test_raw_maps_of_the_published_width() -> None:
    torch.manual_seed(0)
    same_maps(SSD(SSDConfig(20, norm="none", head_norm=False, l2_norm=True)).eval(), pictures(1, 7))


@pytest.mark.parametrize("size", [272, 368])
def test_at_another_size_it_is_torchvisions_on_larger_pictures(conditioned: SSD, size: int) -> None:
    """Multi-scale testing: the same layers and weights, and priors of the same pixels at the other grid."""
    other, twin = conditioned.at_size((size, size)), build_twin(conditioned)
    images = torch.nn.functional.interpolate(pictures(2, 7), size=(size, size))
    with torch.no_grad():
        raw = other(images)
        features = list(twin.backbone(images).values())
        outputs = twin.head(features)
    sides = [feature.shape[-1] for feature in features]
    assert [feature.shape for feature in raw.features] == [feature.shape for feature in features]
    for ours, theirs in ((raw.logits, outputs["cls_logits"]), (raw.deltas, outputs["bbox_regression"])):
        assert (ours - theirs).abs().max() <= RELATIVE * theirs.abs().max()
    scales = [scale * 300 / size for scale in SCALES["voc"]]
    steps = [*STEPS[:4], *(size / side for side in sides[4:])]
    maker = DefaultBoxGenerator(RATIOS, scales=scales, steps=steps, clip=False)
    expected = maker(ImageList(images, [(size, size)]), features)[0]
    torch.testing.assert_close(raw.anchors, expected, rtol=0, atol=1e-3)
    assert sum(raw.level_sizes) == len(raw.anchors)
    assert conditioned.input_size() == SIZE and len(conditioned.priors) == 8732  # it is as it was
    assert conditioned.at_size(SIZE)(pictures(1, 3)).logits.equal(conditioned(pictures(1, 3)).logits)


def test_another_size_leaves_the_modes_of_the_shared_layers() -> None:
    model = SSD(SSDConfig(3, width=8))
    model.train().backbone.eval()  # as of layers whose normalisation is fixed
    other = model.at_size((320, 320))
    assert other.training and other.head is model.head and other.head.training
    assert not any(module.training for module in model.backbone.modules())
    assert other.priors.device == model.priors.device and model.input_size() == SIZE


@pytest.mark.parametrize("size", [(300, 320), (100, 100)])
def test_it_has_no_such_size(conditioned: SSD, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"not {size[0]}x{size[1]}"):
        conditioned.at_size(size)


def counted(config: SSDConfig) -> tuple[int, float]:
    """Number of parameters, and multiply-adds of one image in billions."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = SSD(config).eval()
        model(torch.empty(1, 3, *SIZE))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2e9


def test_size_and_cost_are_the_published_ones() -> None:
    original = SSDConfig(20, norm="none", head_norm=False, l2_norm=True)
    theirs = SSD300_VGG16_Weights.COCO_V1.meta
    parameters, cost = counted(replace(original, num_classes=90))
    assert parameters == theirs["num_params"] == 35_641_826
    assert cost == pytest.approx(theirs["_ops"], abs=1e-3)
    assert counted(original) == (26_285_486, pytest.approx(31.374, abs=1e-3))
    # 23 biases became scales and shifts in the backbone subnetwork, 12 in the head; and conv4_3 has no scale.
    backbone = sum((64, 64, 128, 128, 256, 256, 256, *[512] * 6, 1024, 1024, 256, 512, *[128, 256] * 3))
    parameters, cost = counted(SSDConfig(20))
    assert parameters == 26_285_486 - 512 + backbone + 30 * (21 + 4) == 26_293_916
    assert cost == pytest.approx(31.374, abs=1e-3)
    fewer, cheaper = counted(SSDConfig(20, extras="residual"))
    assert fewer < parameters and cheaper < cost  # "less parameters and computations": Figure 8


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_priors_equal_torchvision(name: str) -> None:
    model = SSD(replace(ORIGINAL, priors=name))
    theirs = twin_priors(bare_twin(model.config), [(side, side) for side in (38, 19, 10, 5, 3, 1)])
    torch.testing.assert_close(model.priors, theirs, rtol=0, atol=1e-4)
    assert model.level_sizes == [38 * 38 * 4, 19 * 19 * 6, 600, 150, 36, 4]
    assert model.strides == [8, 16, 32, 64, 100, 300]
    assert model.priors.min() < -1 and model.priors.max() > 301  # not clipped


def test_priors_grow_with_the_input() -> None:
    """At 320 pixels the maps are 40, 20, 10, 5, 3 and 1; the coarsest cells still divide the input evenly."""
    with torch.no_grad():
        small, large = SSD(ORIGINAL), SSD(replace(ORIGINAL, size=320)).eval()
        raw = large(torch.zeros(1, 3, 320, 320))
    assert [f.shape[-1] for f in raw.features] == [40, 20, 10, 5, 3, 1]
    assert len(large.priors) == raw.logits.shape[1] == 6400 + 2400 + 600 + 150 + 36 + 4
    torch.testing.assert_close(large.priors[-40:], small.priors[-40:] * 320 / 300)


# SSD512 (Liu et al., section 3.5 and the authors' scripts): maps, shapes at a cell, and the scales of VOC and COCO, in
# pixels as Caffe's prototxt has them.
MAPS_512, CELLS_512 = (64, 32, 16, 8, 4, 2, 1), (4, 6, 6, 6, 6, 4, 4)
SCALES_512 = {
    "voc": (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6),
    "coco": (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
}


@pytest.mark.parametrize("name", SCALES_512)
@pytest.mark.parametrize("extras", ["ssd", "residual"])
def test_at_512_maps_and_priors_are_those_of_ssd512(name: str, extras: str) -> None:
    with torch.no_grad():
        model = SSD(replace(ORIGINAL, size=512, priors=name, extras=extras)).eval()
        raw = model(torch.zeros(1, 3, 512, 512))
    assert [f.shape[-1] for f in raw.features] == list(MAPS_512)
    assert model.level_sizes == [s * s * n for s, n in zip(MAPS_512, CELLS_512, strict=True)]
    assert len(model.priors) == raw.logits.shape[1] == 24_564  # as published
    assert model.strides == [8, 16, 32, 64, 128, 256, 512]
    theirs = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[side / 512 for side in SCALES_512[name]],
        steps=[8, 16, 32, 64, 128, 256, 512],
        clip=False,
    )
    images = ImageList(torch.zeros(1, 3, 512, 512), [(512, 512)])
    (expected,) = theirs(images, [torch.zeros(1, 1, side, side) for side in MAPS_512])
    torch.testing.assert_close(model.priors, expected, rtol=0, atol=2e-4)


def test_conv12_of_ssd512_makes_one_cell_of_all_four() -> None:
    """Channels and kernels of the published extra layers; conv12_2 is 4x4 with a padding of 1."""
    extras = SSD(replace(ORIGINAL, size=512, width=64)).extras
    convs = [(b.reduce.conv.out_channels, b.conv.conv.out_channels, b.conv.conv.kernel_size[0]) for b in extras.blocks]
    assert convs == [(256, 512, 3), (128, 256, 3), (128, 256, 3), (128, 256, 3), (128, 256, 4)]
    assert [b.conv.conv.stride[0] for b in extras.blocks] == [2, 2, 2, 2, 1]
    assert extras.blocks[-1].conv.conv.padding == (1, 1)
    residual = SSD(replace(ORIGINAL, size=512, extras="residual", norm="bn")).eval().extras.blocks[-1]
    x = torch.randn(1, residual.conv1.conv.in_channels, 2, 2, requires_grad=True)
    residual(x).abs().sum().backward()
    assert residual(x).shape[-2:] == (1, 1) and x.grad.abs().sum(1).min() > 0  # no cell is left out


def test_every_size_from_193_to_768_ends_in_a_single_cell() -> None:
    for size in range(1, 1000):
        for extras, shrunk in (("ssd", (5, 3)), ("residual", (3,))):
            side = math.ceil(size / 16)
            steps = steps_to_one(side, shrunk)
            assert (2 + len(steps) in (6, 7)) == (193 <= size <= 768), (size, extras)
            for step in steps:
                side = size_after(side, step)
            assert side == 1


@pytest.mark.parametrize("extras", EXTRAS)
def test_every_map_has_its_priors(extras: str) -> None:
    with torch.device("meta"):
        model = SSD(replace(ORIGINAL, extras=extras, norm="bn", width=16)).eval()
        raw = model(torch.empty(2, 3, *SIZE))
        channels = [model.backbone.channels["s8"], model.backbone.channels["s16"], *model.extras.channels]
    sides = (38, 19, 10, 5, 3, 1)
    assert [tuple(f.shape) for f in raw.features] == [(2, c, s, s) for c, s in zip(channels, sides, strict=True)]
    assert raw.logits.shape == (2, 8732, 6) and raw.deltas.shape == (2, 8732, 4) and len(raw.anchors) == 8732
    assert list(model.backbone.strides.values()) == [8, 16]
    inside = {id(p) for stage in model.backbone.stages() for module in stage for p in module.parameters()}
    assert inside == {id(p) for p in model.backbone.parameters()}


def test_residual_extras_are_figure_8() -> None:
    torch.manual_seed(0)
    model = SSD(SSDConfig(5, width=32, extras="residual"))
    assert model.extras.channels == [64] * 4
    x = torch.randn(2, 512, 19, 19)
    with torch.no_grad():
        maps = model.extras.eval()(x)
        assert [m.shape[-1] for m in maps] == [10, 5, 3, 1]
        for index, block in enumerate(model.extras.blocks):
            assert (block.conv1.conv.kernel_size, block.conv2.conv.kernel_size) == ((3, 3), (3, 3))
            assert block.shortcut.conv.kernel_size == (1, 1)
            inside = block.conv2(block.conv1(x))
            # In evaluation mode a new normalisation multiplies by 1 / sqrt(1 + 1e-5).
            beside = x[..., ::2, ::2] if index < 3 else x.mean((2, 3), keepdim=True)
            beside = torch.einsum("oi,nihw->nohw", block.shortcut.conv.weight[..., 0, 0], beside) * (1 + 1e-5) ** -0.5
            torch.testing.assert_close(maps[index], torch.relu(inside + beside), rtol=1e-4, atol=1e-5)
            x = maps[index]


def test_the_last_map_of_the_authors_code_is_3x3() -> None:
    with torch.no_grad():
        model = SSD(replace(ORIGINAL, extras="residual", last_map_3x3=True)).eval()
        raw = model(torch.zeros(1, 3, *SIZE))
    assert [f.shape[-1] for f in raw.features] == [38, 19, 10, 5, 3, 3]
    assert raw.logits.shape[1] == len(raw.anchors) == 8764
    centres = (raw.anchors[-36::4, :2] + raw.anchors[-36::4, 2:]) / 2
    torch.testing.assert_close(centres.unique(), torch.tensor([50.0, 150, 250]))


@pytest.mark.parametrize("extras", ["ssd", "residual"])
@pytest.mark.parametrize(("norm", "head_norm"), [("none", False), ("none", True), ("bn", False), ("bn", True)])
def test_normalisation_covers_what_table_1_says(norm: str, head_norm: bool, extras: str) -> None:
    """BN in the backbone subnetwork includes the extra layers; that of the head is a separate setting."""
    with torch.device("meta"):
        model = SSD(replace(ORIGINAL, norm=norm, head_norm=head_norm, extras=extras))
    for part, normalised in ((model.backbone, norm == "bn"), (model.extras, norm == "bn"), (model.head, head_norm)):
        convs = [m for m in part.modules() if isinstance(m, nn.Conv2d)]
        norms = [m for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == len(convs) * normalised
        assert all((conv.bias is None) == normalised for conv in convs)
    with torch.device("meta"):
        pairs = conv_norm_pairs(model.eval(), torch.zeros(1, 3, 300, 300))
    assert len(pairs) == len([m for m in model.modules() if isinstance(m, nn.BatchNorm2d)])


def test_it_starts_as_xavier_has_it() -> None:
    torch.manual_seed(0)
    model = SSD(SSDConfig(5, width=16, norm="none"))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            area = module.kernel_size[0] * module.kernel_size[1]
            bound = (6 / (area * (module.in_channels + module.out_channels))) ** 0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound, name
            assert module.bias is None or not module.bias.any()


def test_group_normalisation_leaves_the_single_cell_its_predictions() -> None:
    torch.manual_seed(0)
    model = SSD(SSDConfig(5, norm="gn", width=64)).train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    maps = [torch.randn(1, layer.conv.in_channels, 1, 1) for layer in model.head.classes]
    with torch.no_grad():
        logits, deltas = model.head(maps)
    assert (logits.std(-1) > 0.5).all() and (deltas.std(-1) > 0.5).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"backbone": "resnet50"}, r"model\.backbone: 'resnet50' is not one of vgg16, .*did you mean 'resnet1"),
        ({"extras": "none"}, r"model\.extras: 'none' is not one of ssd, residual, dsod"),
        ({"priors": "kitti"}, r"model\.priors: 'kitti' is not one of voc, coco"),
        ({"norm": "ln"}, r"model\.norm: 'ln' is not one of bn, gn, none"),
        ({"last_map_3x3": True}, r"model\.last_map_3x3: true requires extras=residual, not extras=ssd"),
        ({"size": 192}, r"model\.size: 192 would make 5 maps with extras=ssd, .* 6 and 7; give 193 to 768"),
        ({"size": 769}, r"model\.size: 769 would make 8 maps with extras=ssd, .* 6 and 7; give 193 to 768"),
        (
            {"size": 512, "extras": "residual", "last_map_3x3": True},
            r"model\.last_map_3x3: true needs a map of 3x3, which model\.size=300 and 320 have",
        ),
        ({"colour": 3}, r"model\.colour: unknown setting"),
    ],
)
def test_wrong_settings_are_refused(change: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_model({**describe_model(ORIGINAL), **change})


def test_other_sizes_are_refused(conditioned: SSD) -> None:
    for size in ((320, 320), (300, 320), (288, 300)):
        with pytest.raises(ValueError, match=f"300x300 inputs only, not {size[0]}x{size[1]}"):
            SSDDeploy(conditioned, size)
        with pytest.raises(ValueError, match="300x300 inputs only"):
            conditioned(torch.zeros(1, 3, *size))


def test_a_description_builds_the_same_network() -> None:
    config = SSDConfig(3, width=8, extras="residual", priors="coco")
    model = build_model(json.loads(json.dumps(describe_model(config))))
    assert model.config == config and isinstance(model, SSD)
    assert isinstance(deploy_model(model, SIZE, portable=True), SSDDeploy)
    assert "priors" not in model.state_dict()
    with pytest.raises(ValueError, match=r"model\.backbone: 'vgg16' is not one of resnet18"):
        build_model({"detector": "retinanet", "num_classes": 3, "backbone": "vgg16"})
