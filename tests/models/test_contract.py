"""The contract of every detector on every backbone: build, learn, freeze, fold, deploy, export.

A new backbone or detector is tested here as soon as it is registered. The widths are small; the contract holds at any.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from directdet.export.onnx_graph import FORBIDDEN, fold, write_onnx
from directdet.models.backbones.names import NAMES
from directdet.models.build import DETECTORS, build_model, deploy_model, describe_model, losses_of
from directdet.models.parts.network import Network
from directdet.models.parts.norm import FixedBatchNorm2d, fix_batch_norm
from directdet.models.parts.targets import Targets
from directdet.recipes.recipe import PARTS

WIDTHS = {"swin_t": 32, "dsod": 16, "vgg16": 8}
SLIM = {
    "rcnn": {"fpn_channels": 16, "box_convs": 1, "box_features": 16, "mask_convs": 1, "mask_channels": 8},
    "cascade": {"fpn_channels": 16, "box_features": 16, "mask_convs": 1, "mask_channels": 8},
    "retinanet": {"fpn_channels": 16, "head_convs": 1, "test_pre_nms": 60, "candidates": 60, "detections": 20},
    "rtmdet": {"fpn_channels": 16, "head_convs": 1, "candidates": 60, "detections": 20},
    "rtmdet_ins": {"fpn_channels": 16, "head_convs": 1, "mask_convs": 1, "candidates": 60, "detections": 20},
    "ssd": {"detections": 20},
}
FEW = {
    "train_pre_nms": 60,
    "train_proposals": 30,
    "test_pre_nms": 60,
    "test_proposals": 20,
    "roi_samples": 16,
    "rpn_samples": 16,
    "mask_slots": 4,
    "candidates": 60,
    "detections": 20,
}
CASES = [
    pytest.param(detector, backbone, id=f"{detector}-{backbone}")
    for detector, architecture in DETECTORS.items()
    for kind in architecture.backbones
    for backbone in NAMES[kind]
]


def description(detector: str, backbone: str) -> dict:
    settings = dict(SLIM.get(detector, {}))
    if detector in ("rcnn", "cascade"):
        settings |= FEW
    return {"detector": detector, "num_classes": 3, "backbone": backbone, "width": WIDTHS.get(backbone, 16), **settings}


def build(detector: str, backbone: str) -> Network:
    torch.manual_seed(0)
    return build_model(description(detector, backbone))


def size_of(model: Network) -> tuple[int, int]:
    return model.input_size() or (64, 96)


def pictures(model: Network, count: int = 2) -> Tensor:
    height, width = size_of(model)
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def targets(model: Network) -> Targets:
    """Two objects in the first image, none in the second."""
    height, width = size_of(model)
    boxes = torch.zeros(2, 3, 4)
    boxes[0, :2] = torch.tensor([[4.0, 6.0, 40.0, 50.0], [20.0, 10.0, 60.0, 60.0]])
    valid = torch.zeros(2, 3, dtype=torch.bool)
    valid[0, :2] = True
    labels = torch.tensor([[0, 2, 0], [0, 0, 0]])
    masks = torch.ones(2, 3, 56, 56, dtype=torch.uint8) if model.config.masks else None
    return Targets(boxes, labels, valid, torch.tensor([[height, width]] * 2, dtype=torch.float32), masks)


def lived_in(model: Network) -> Network:
    """Set random statistics and affine parameters in all normalisations, as after training; evaluation mode."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.7, 1.3, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.5, 0.5, generator=generator)
    return model.eval()


def norms_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(("detector", "backbone"), CASES)
def test_it_says_what_it_is_made_of(detector: str, backbone: str) -> None:
    with torch.device("meta"):
        model = build(detector, backbone)
    assert isinstance(model, Network) and set(model.parts()) <= set(PARTS)
    children = [child for children in model.parts().values() for child in children]
    assert len(children) == len(set(children))
    for name in model.state_dict():
        part = model.part_of(name)
        assert part in PARTS and (part == "backbone") == name.startswith("backbone."), name
        if part != "backbone":  # class layers are in the heads, and their shapes depend on the classes
            continue
        assert not model.is_of_classes(name)
    other = build_model({**describe_model(model.config), "num_classes": 7}).state_dict()
    differing = {name for name, value in model.state_dict().items() if value.shape != other[name].shape}
    assert differing and all(model.is_of_classes(name) for name in differing)
    assert set(model.backbone.channels) == set(model.backbone.strides)
    assert all(left < right for left, right in zip(*[iter(model.backbone.strides.values())] * 2, strict=False))


@pytest.mark.parametrize(("detector", "backbone"), CASES)
def test_its_maps_are_as_it_says(detector: str, backbone: str) -> None:
    model = build(detector, backbone).eval()
    images = pictures(model)
    with torch.no_grad():
        maps = model.backbone(images)
    assert list(maps) == list(model.backbone.channels)
    for name, value in maps.items():
        sides = tuple(-(-side // model.backbone.strides[name]) for side in images.shape[2:])
        assert tuple(value.shape) == (2, model.backbone.channels[name], *sides), name


@pytest.mark.parametrize(("detector", "backbone"), CASES)
def test_every_parameter_learns(detector: str, backbone: str) -> None:
    model = build(detector, backbone).train()
    losses, counts = losses_of(model, pictures(model), targets(model))
    total = sum(losses.values())
    assert torch.isfinite(total) and counts["positives"] > 0
    total.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert idle == []


@pytest.mark.parametrize(("detector", "backbone"), CASES)
def test_frozen_stages_and_fixed_normalisation_stay_as_they_are(detector: str, backbone: str) -> None:
    model = lived_in(build(detector, backbone))
    stages = model.backbone.stages()
    assert len(stages) >= 2 and all(stages)
    fix_batch_norm(model)
    for module in (module for stage in stages[:2] for module in stage):
        module.requires_grad_(False)
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    model.train()
    assert all(isinstance(norm, FixedBatchNorm2d) and not norm.training for norm in norms_of(model))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses, _ = losses_of(model, pictures(model), targets(model))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    sum(losses.values()).backward()
    optimizer.step()
    buffers = {name for name, _ in model.named_buffers()}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not changed & (buffers | set(frozen))


@pytest.mark.parametrize(("detector", "backbone"), CASES)
def test_nothing_is_left_to_normalise_after_folding(detector: str, backbone: str) -> None:
    model = lived_in(build(detector, backbone))
    folded, folding, error = fold(model, size_of(model))
    assert norms_of(folded) == [] and error < 1e-4
    assert folding.folded + len(folding.unfolded) == len(norms_of(model))
    assert backbone == "dsod" or folding.unfolded == ()  # only DSOD normalises before convolutions


@pytest.mark.parametrize(("detector", "backbone"), CASES)
def test_it_deploys_static_and_alike(detector: str, backbone: str) -> None:
    """A batch has the same detections as its images one by one, and the portable form the same as the fast one."""
    model = lived_in(build(detector, backbone))
    size, images = size_of(model), pictures(model)
    with torch.no_grad():
        together = deploy_model(model, size)(images)
        portable = deploy_model(copy.deepcopy(model), size, portable=True)(images)
        alone = deploy_model(model, size)(images[1:])
    number = model.config.detections
    shapes = [(2, 1), (2, number, 4), (2, number), (2, number)] + ([(2, number, 28, 28)] if model.config.masks else [])
    assert [tuple(value.shape) for value in together] == shapes
    for one, other in zip(together, portable, strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=2e-3, rtol=1e-3)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one[1:].float(), other.float(), atol=2e-3, rtol=1e-3)


# The exporter takes seconds each: one backbone of every family on each detector that takes it.
FAMILIES = ("resnet18", "swin_t", "vgg16", "dsod", "root_resnet18")
EXPORTED = [case for case in CASES if case.values[1] in FAMILIES]
# CSPNeXt's untrained maps fade with depth, until proposals tie and rounding chooses; without proposals, none is lost.
EXPORTED += [pytest.param(name, "cspnext_tiny", id=f"{name}-cspnext_tiny") for name in ("rtmdet", "rtmdet_ins")]


@pytest.mark.slow
@pytest.mark.parametrize(("detector", "backbone"), EXPORTED)
def test_its_graph_is_plain_and_finds_the_same(detector: str, backbone: str, tmp_path: Path) -> None:
    import onnxruntime

    model = lived_in(build(detector, backbone))
    facts = write_onnx(model, size_of(model), 2, tmp_path / "model.onnx")
    assert not set(FORBIDDEN) & set(facts.operators)
    assert facts.folded + len(facts.unfolded) == len(norms_of(model))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    images = pictures(model)
    with torch.no_grad():
        expected = [value.numpy() for value in deploy_model(model, size_of(model))(images)]
    found = session.run(None, {"images": images.numpy()})
    np.testing.assert_array_equal(found[0], expected[0])
    # Random weights give near ties, whose order is up to rounding: the scores are compared, each in its place.
    np.testing.assert_allclose(found[2], expected[2], atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_diverged_network_has_losses_that_say_so(detector: str, value: float) -> None:
    """Training looks at the losses, so nothing before them may fail, on a GPU by an index out of range."""
    backbone = next(name for kind in DETECTORS[detector].backbones for name in NAMES[kind])
    for part in {name.split(".")[0] for name, _ in build(detector, backbone).named_parameters()}:
        model = build(detector, backbone).train()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.split(".")[0] == part:
                    weight.fill_(value)
        losses, counts = losses_of(model, pictures(model), targets(model))
        assert all(torch.isfinite(count) for count in counts.values())
        if value != 1e30:  # which normalisation may undo
            assert not torch.isfinite(sum(losses.values())), part
        outputs = deploy_model(model.eval(), size_of(model))(pictures(model, 1))
        assert 0 <= int(outputs[0]) <= model.config.detections
