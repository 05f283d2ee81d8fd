"""SSD's training step and deployment as graphs: static, no host waits, gradients everywhere, foldable, exportable."""

import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from ssd_twin import SIZE, conditioned_model, pictures, same_detections
from test_models_step import NoHostWait
from torch import Tensor, nn

from directdet.export.onnx_graph import FOLD_TOLERANCE, fold, write_onnx
from directdet.export.tensorrt import build_engine
from directdet.models.build import losses_of
from directdet.models.parts.fold import conv_norm_pairs
from directdet.models.parts.norm import fix_batch_norm
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import Targets
from directdet.models.ssd.config import SSDConfig
from directdet.models.ssd.deploy import SSDDeploy
from directdet.models.ssd.loss import ssd_losses
from directdet.models.ssd.network import SSD

SLIM = SSDConfig(5, width=8)
TargetsOf = Callable[..., Targets]


@pytest.fixture(scope="module")
def slim() -> SSD:
    """ScratchDet's network with few channels, in evaluation mode; read-only."""
    return conditioned_model(SLIM)


@pytest.fixture(scope="module")
def raw(slim: SSD) -> RawMaps:
    with torch.no_grad():
        return slim(pictures(2, 1))


def step(model: SSD, images: Tensor, targets: Targets) -> Tensor:
    losses, _ = ssd_losses(model, model(images), targets)
    return sum(losses.values())


def test_only_the_end_of_nms_waits_for_the_host(slim: SSD, targets_of: TargetsOf) -> None:
    model, images = copy.deepcopy(slim), pictures(2, 1)
    deploy, targets = SSDDeploy(model, SIZE), targets_of([3, 0], [SIZE] * 2, masks=False)
    with torch.no_grad(), NoHostWait(looks=3):  # once in each round of NMS
        deploy(images)
    with NoHostWait():
        step(model.train(), images, targets).backward()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_the_criterion_is_one_graph(slim: SSD, raw: RawMaps, targets_of: TargetsOf, fresh_compiler: None) -> None:
    targets = targets_of([3, 0], [SIZE] * 2, masks=False)
    compiled = torch.compile(ssd_losses, fullgraph=True, backend="eager")
    expected, counts = ssd_losses(slim, raw, targets)
    losses, watched = compiled(slim, raw, targets)
    assert watched == counts
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=0)
    with torch.compiler.set_stance("fail_on_recompile"):  # other objects, the same graph
        losses, watched = compiled(slim, raw, targets_of([0, 5], [SIZE] * 2, masks=False))
    assert watched["positives"] >= 5 and losses["box"] > 0


@pytest.mark.slow
def test_step_and_deployment_are_one_graph_each(targets_of: TargetsOf, fresh_compiler: None) -> None:
    slim = conditioned_model(replace(SLIM, extras="residual"))
    images, targets = pictures(2, 1), targets_of([3, 0], [SIZE] * 2, masks=False)
    model, eager = copy.deepcopy(slim).train(), copy.deepcopy(slim).train()
    loss = torch.compile(step, fullgraph=True, backend="eager")(model, images, targets)
    torch.testing.assert_close(loss, step(eager, images, targets), rtol=1e-5, atol=0)
    deploy = SSDDeploy(slim, SIZE)
    with torch.no_grad():
        outputs = torch.compile(deploy, fullgraph=True, backend="eager")(images)
        for ours, theirs in zip(outputs, deploy(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"extras": "ssd"},
        {"extras": "residual", "head_norm": False},
        {"extras": "residual", "last_map_3x3": True},
        {"norm": "none", "head_norm": False, "l2_norm": True},
        {"norm": "none"},
        {"norm": "gn", "width": 32},
    ],
    ids=str,
)
def test_every_parameter_learns(targets_of: TargetsOf, settings: dict) -> None:
    torch.manual_seed(0)
    model = SSD(replace(SLIM, **settings)).train()
    # Three images: batch normalisation turns any two values into 1 and -1, and the last map has one value per image.
    images, targets = pictures(3, 1), targets_of([6, 6, 6], [SIZE] * 3, masks=False)
    large = torch.tensor([5.0, 5, 295, 295])  # for the last map's priors
    targets.boxes[targets.valid.cumsum(1) == 1] = large
    step(model, images, targets).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_without_any_object_nothing_is_learnt(slim: SSD, targets_of: TargetsOf) -> None:
    """There are no positives, so no negatives either, and the losses are 0, not NaN."""
    model = copy.deepcopy(slim).train()
    losses, counts = losses_of(model, pictures(2, 1), targets_of([0, 0], [SIZE] * 2, masks=False))
    assert losses["box"] == losses["class"] == counts["positives"] == 0
    sum(losses.values()).backward()
    assert not any(p.grad.any() for p in model.parameters())


def test_bfloat16_maps_give_float32_losses(slim: SSD, targets_of: TargetsOf) -> None:
    images = pictures(2, 1).to(memory_format=torch.channels_last)
    model = copy.deepcopy(slim).to(memory_format=torch.channels_last)
    targets = targets_of([3, 0], [SIZE] * 2, masks=False)
    with torch.no_grad():
        expected, _ = losses_of(model, images, targets)
        with torch.autocast("cpu", torch.bfloat16):
            raw = model(images)
            losses, _ = ssd_losses(model, raw, targets)
    assert raw.features[0].dtype == torch.bfloat16
    assert raw.logits.dtype == raw.deltas.dtype == raw.anchors.dtype == torch.float32
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected[name].item(), rel=0.02), name


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 15 + 8 + 12),  # every convolution of the network
        ({"extras": "residual"}, 15 + 12 + 12),
        ({"head_norm": False}, 15 + 8),
        ({"norm": "none"}, 12),
        ({"norm": "gn"}, 0),
    ],
    ids=str,
)
def test_folding_leaves_no_normalisation_and_the_same_maps(settings: dict, count: int) -> None:
    model = conditioned_model(replace(SLIM, **settings))
    folded, folding, error = fold(model, SIZE)
    assert folding.folded == count and not folding.unfolded and error < 1e-5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == count


def test_the_pairs_are_what_the_network_applies() -> None:
    """Each convolution's normalisation is the next layer to run, with nothing in between."""
    model = conditioned_model(replace(SLIM, extras="residual"))
    order: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(lambda module, inputs, output: order.append(module))
    with torch.no_grad():
        model(pictures(1, 3))
    applied = {(order[i], order[i + 1]) for i in range(0, len(order), 2)}
    for module in model.modules():
        module._forward_hooks.clear()
    assert set(conv_norm_pairs(model, pictures(1, 3))) == applied


def test_fixed_normalisation_gives_the_same_maps(slim: SSD, raw: RawMaps) -> None:
    model = copy.deepcopy(slim).train()
    assert fix_batch_norm(model) == 35
    with torch.no_grad():
        fixed = model(pictures(2, 1))
    for ours, theirs in [(fixed.logits, raw.logits), (fixed.deltas, raw.deltas)]:
        assert (ours - theirs).abs().max() <= FOLD_TOLERANCE * theirs.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"extras": "residual"}, {"norm": "none", "head_norm": False, "l2_norm": True}, {"norm": "gn", "width": 32}],
    ids=str,
)
def test_exported_graph_is_the_model(tmp_path: Path, settings: dict) -> None:
    """ONNX Runtime on images other than the exporter's; and TensorRT-RTX accepts the graph."""
    model, path = conditioned_model(replace(SLIM, **settings)), tmp_path / "model.onnx"
    facts = write_onnx(model, SIZE, 2, path)
    assert facts.folded == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["num", "boxes", "scores", "labels"]
    images = pictures(2, 9)
    with torch.no_grad():
        num, *rows = SSDDeploy(model, SIZE)(images)
    found = tuple(torch.from_numpy(v) for v in session.run(None, {"images": images.numpy()}))
    names = ("boxes", "scores", "labels")
    expected = [dict(zip(names, (v[i, :n] for v in rows), strict=True)) for i, n in enumerate(num.flatten())]
    for one in expected:
        one["labels"] = one["labels"] + 1  # torchvision counts from 1
    same_detections(found, expected, 200, score=1e-4)
    if importlib.util.find_spec("tensorrt_rtx"):
        build_engine("tensorrt-rtx", path, tmp_path / "model.engine", ("8.9",))
        assert (tmp_path / "model.engine").stat().st_size > 100_000
