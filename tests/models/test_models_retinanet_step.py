"""RetinaNet's training step and deployment as graphs: static, no host waits, gradients everywhere, exportable."""

import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from retina_twin import conditioned_model, same_detections
from test_models_step import NoHostWait
from torch import Tensor
from twin import smooth_images

from directdet.export.onnx_graph import write_onnx
from directdet.export.tensorrt import build_engine
from directdet.models.build import losses_of
from directdet.models.parts.targets import Targets
from directdet.models.retinanet.config import RetinaNetConfig
from directdet.models.retinanet.deploy import RetinaNetDeploy
from directdet.models.retinanet.loss import retinanet_losses
from directdet.models.retinanet.network import RetinaNet

SIZE = (128, 128)
# All operations, with few channels.
SLIM = RetinaNetConfig(5, backbone="resnet18", width=8, fpn_channels=16, head_convs=1, test_pre_nms=300, detections=30)
TargetsOf = Callable[..., Targets]


@pytest.fixture(scope="module")
def slim() -> RetinaNet:
    """In evaluation mode; read-only."""
    return conditioned_model(SLIM, SIZE)


def step(model: RetinaNet, images: Tensor, targets: Targets) -> Tensor:
    losses, _ = retinanet_losses(model, model(images), targets)
    return sum(losses.values())


def test_only_the_end_of_nms_waits_for_the_host(slim: RetinaNet, targets_of: TargetsOf) -> None:
    model, images = copy.deepcopy(slim), smooth_images(2, SIZE, 1)
    deploy, targets = RetinaNetDeploy(model, SIZE), targets_of([3, 0], [SIZE] * 2, masks=False)
    with torch.no_grad(), NoHostWait(looks=1):
        deploy(images)
    with NoHostWait():
        step(model.train(), images, targets).backward()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_the_criterion_is_one_graph(slim: RetinaNet, targets_of: TargetsOf, fresh_compiler: None) -> None:
    targets = targets_of([3, 0], [SIZE] * 2, masks=False)
    compiled = torch.compile(retinanet_losses, fullgraph=True, backend="eager")
    with torch.no_grad():
        raw = slim(smooth_images(2, SIZE, 1))
        expected, counts = retinanet_losses(slim, raw, targets)
        losses, positives = compiled(slim, raw, targets)
        assert positives == counts
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=0)
        with torch.compiler.set_stance("fail_on_recompile"):  # other objects, the same graph
            losses, positives = compiled(slim, raw, targets_of([0, 5], [SIZE] * 2, masks=False))
    assert positives["positives"] >= 5 and losses["box"] > 0


@pytest.mark.slow
def test_step_and_deployment_are_one_graph_each(slim: RetinaNet, targets_of: TargetsOf, fresh_compiler: None) -> None:
    images, targets = smooth_images(2, SIZE, 1), targets_of([3, 0], [SIZE] * 2, masks=False)
    model, eager = copy.deepcopy(slim).train(), copy.deepcopy(slim).train()
    loss = torch.compile(step, fullgraph=True, backend="aot_eager")(model, images, targets)
    expected = step(eager, images, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward(), expected.backward()
    for (name, ours), theirs in zip(model.named_parameters(), eager.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() <= 1e-4 * theirs.grad.abs().max(), name
    deploy = RetinaNetDeploy(slim, SIZE)
    with torch.no_grad():
        outputs = torch.compile(deploy, fullgraph=True, backend="eager")(images)
        for ours, theirs in zip(outputs, deploy(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_every_parameter_learns(targets_of: TargetsOf, norm: str) -> None:
    torch.manual_seed(0)
    # 128 channels: P7 is a single cell here, which groups of one channel would normalise to 0.
    model = RetinaNet(replace(SLIM, norm=norm, fpn_channels=128, head_convs=4)).train()
    step(model, smooth_images(2, SIZE, 1), targets_of([6, 6], [SIZE] * 2, masks=False)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_without_any_object_the_class_loss_alone_teaches(slim: RetinaNet, targets_of: TargetsOf) -> None:
    model = copy.deepcopy(slim).train()
    losses, counts = losses_of(model, smooth_images(2, SIZE, 1), targets_of([0, 0], [SIZE] * 2, masks=False))
    assert losses["box"] == counts["positives"] == 0 and losses["class"] > 0
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert not any(p.grad.any() for p in model.head.regression_head.parameters())
    assert all(p.grad.any() for p in model.head.classification_head.parameters())


def test_bfloat16_maps_give_float32_losses(slim: RetinaNet, targets_of: TargetsOf) -> None:
    images = smooth_images(2, SIZE, 1).to(memory_format=torch.channels_last)
    model = copy.deepcopy(slim).to(memory_format=torch.channels_last)
    targets = targets_of([3, 0], [SIZE] * 2, masks=False)
    with torch.no_grad():
        expected, _ = losses_of(model, images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        raw = model(images)
        losses, _ = retinanet_losses(model, raw, targets)
    assert raw.features[0].dtype == torch.bfloat16
    assert raw.logits.dtype == raw.deltas.dtype == raw.anchors.dtype == torch.float32
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected[name].item(), rel=0.02), name


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_exported_graph_is_the_model(tmp_path: Path, norm: str) -> None:
    """ONNX Runtime on images other than the exporter's; and TensorRT-RTX accepts the graph."""
    model, size, path = conditioned_model(replace(SLIM, norm=norm), (96, 160)), (96, 160), tmp_path / "model.onnx"
    facts = write_onnx(model, size, 2, path)
    assert facts.folded == (20 if norm == "bn" else 0)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["num", "boxes", "scores", "labels"]
    # With group normalisation all maps of a blank image are 0, and all its scores are tied.
    for images in [smooth_images(2, size, 9)] + [torch.zeros(2, 3, *size)] * (norm == "bn"):
        with torch.no_grad():
            num, *rows = RetinaNetDeploy(model, size)(images)
        found = [torch.from_numpy(v) for v in session.run(None, {"images": images.numpy()})]
        names = ("boxes", "scores", "labels")
        expected = [dict(zip(names, (v[i, :n] for v in rows), strict=True)) for i, n in enumerate(num.flatten())]
        same_detections(tuple(found), expected)
    if importlib.util.find_spec("tensorrt_rtx"):
        build_engine("tensorrt-rtx", path, tmp_path / "model.engine", ("8.9",))
        assert (tmp_path / "model.engine").stat().st_size > 100_000
