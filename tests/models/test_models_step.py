"""The whole training step: one static graph, no waiting for the host, gradients everywhere, other precisions."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from twin import conditioned_model, smooth_images
from twin_losses import Keys

from directdet.models.parts import boxes, masks
from directdet.models.parts.norm import FixedBatchNorm2d, fix_batch_norm
from directdet.models.parts.targets import RandomKeys, Targets, random_keys
from directdet.models.two_stage.config import RCNNConfig
from directdet.models.two_stage.deploy import RCNNDeploy
from directdet.models.two_stage.loss import rcnn_losses
from directdet.models.two_stage.network import RCNN
from directdet.models.two_stage.rpn import TRAINING_BLOCK

SIZE = (128, 128)
TargetsOf = Callable[..., Targets]


class NoHostWait(TorchDispatchMode):
    """Fails on every operation whose result the host must wait for: .item(), nonzero, boolean indexing, ...

    Within it, values on the CPU are treated like those on a GPU.

    looks: how often NMS may look whether it is finished.
    """

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "item", "bincount")

    def __init__(self, looks: int = 0):
        super().__init__()
        self.looks = looks

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for module in (boxes, masks):
            self.patch.setattr(module, "can_look", lambda values: False)
        return super().__enter__()

    def __exit__(self, *error):
        self.patch.undo()
        return super().__exit__(*error)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        assert not name.startswith(self.WAITS), operation
        self.looks -= name == "equal"
        assert self.looks >= 0, operation
        if name.startswith("index"):
            flat = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg])]
            assert not any(isinstance(a, Tensor) and a.dtype == torch.bool for a in flat[1:]), operation
        return operation(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def step(model: RCNN, images: Tensor, targets: Targets, draw: RandomKeys = random_keys) -> Tensor:
    losses, _ = rcnn_losses(model, model(images), targets, draw)
    return sum(losses.values())


def test_the_guard_notices_host_waits() -> None:
    values = torch.arange(4.0)
    for wait in (
        lambda: values[1].item(),
        lambda: values[values > 1],
        lambda: values.nonzero(),
        lambda: bool(values[0]),
        lambda: torch.equal(values, values),
    ):
        with pytest.raises(AssertionError), NoHostWait():
            wait()


def test_the_step_never_waits_for_the_host(model: RCNN, targets_of: TargetsOf) -> None:
    images, targets = smooth_images(2, SIZE, 1), targets_of([3, 0], [SIZE] * 2)
    with NoHostWait():
        step(model.train(), images, targets).backward()
    fix_batch_norm(model)
    with NoHostWait():
        step(model, images, targets).backward()


@pytest.mark.parametrize("portable", [False, True])
def test_deployment_waits_for_the_host_only_at_the_end_of_nms(conditioned: RCNN, portable: bool) -> None:
    deploy, images = RCNNDeploy(conditioned, SIZE, portable), smooth_images(2, SIZE, 1)
    with torch.no_grad(), NoHostWait(looks=nms_runs(conditioned, images, portable)):
        deploy(images)


def nms_runs(model: RCNN, images: Tensor, portable: bool) -> int:
    """How often a deployed two-stage detector runs NMS: for its boxes, and for its proposals, in blocks of levels."""
    sizes = model(images).level_sizes
    return 2 if portable else 1 + sum(-(-min(model.config.test_pre_nms, size) // TRAINING_BLOCK) for size in sizes)


class Given:
    """Keys created in advance, by shape, so that the traced function draws no random numbers."""

    def __init__(self, model: RCNN, targets: Targets):
        images, padded = targets.valid.shape
        maps = [SIZE[0] // s for s in model.strides]
        shapes = [
            (images, sum(m * m for m in maps) * 3),
            (images, model.config.train_proposals + padded),
            (images * int(model.config.roi_samples * model.config.roi_positive_fraction),),
        ]
        keys = Keys(5)
        self.values = {shape: keys(torch.Size(shape)) for shape in shapes}

    def __call__(self, shape: torch.Size, device: torch.device) -> Tensor:
        return self.values[tuple(shape)]


@pytest.fixture(scope="module")
def slim(small: RCNNConfig) -> RCNN:
    """The same operations with few channels: only what is traced matters here, not the values."""
    narrow = replace(small, width=8, fpn_channels=16, box_features=32, mask_channels=16, train_pre_nms=200)
    return conditioned_model(narrow, SIZE)


@pytest.mark.parametrize(
    ("fixed", "backend"),
    [
        pytest.param(False, "eager", id="live BN", marks=pytest.mark.slow),
        pytest.param(False, "aot_eager", id="live BN with its backward graph", marks=pytest.mark.slow),
        pytest.param(True, "aot_eager", id="fixed BN with its backward graph", marks=pytest.mark.slow),
    ],
)
def test_the_step_is_one_graph_forward_and_backward(
    slim: RCNN, targets_of: TargetsOf, fixed: bool, backend: str
) -> None:
    model = copy.deepcopy(slim)
    if fixed:
        fix_batch_norm(model)
    images, targets = smooth_images(2, SIZE, 1), targets_of([3, 0], [SIZE] * 2)
    eager = copy.deepcopy(model).train()
    expected = step(eager, images, targets, Given(eager, targets))
    expected.backward()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    loss = compiled(model.train(), images, targets, Given(model, targets))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), eager.parameters(), strict=True):
        if ours.requires_grad:
            assert (ours.grad - theirs.grad).abs().max() <= 1e-4 * theirs.grad.abs().max(), name
    # Other objects, the same graph: it is not specialised for the values of the targets.
    with torch.compiler.set_stance("fail_on_recompile"):
        assert compiled(model, images, targets_of([0, 5], [SIZE] * 2), Given(model, targets)).isfinite()


@pytest.mark.slow
def test_deployment_is_one_graph(slim: RCNN) -> None:
    images, deploy = smooth_images(1, SIZE, 1), RCNNDeploy(slim, SIZE, portable=True)
    with torch.no_grad():
        expected = deploy(images)
        outputs = torch.compile(deploy, fullgraph=True, backend="eager")(images)
    assert expected[0].item() > 5
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("fixed", [False, True], ids=["live BN", "fixed BN"])
def test_every_parameter_learns(model: RCNN, targets_of: TargetsOf, variant: Callable[..., RCNN], fixed: bool) -> None:
    model = variant(model, rpn_samples=5000)  # all anchors: the two coarsest levels have few, and only the RPN's loss
    if fixed:
        fix_batch_norm(model)
    step(model.train(), smooth_images(2, SIZE, 1), targets_of([6, 6], [SIZE] * 2)).backward()
    frozen = {id(p) for m in model.modules() if isinstance(m, FixedBatchNorm2d) for p in m.parameters()}
    assert len(frozen) == (40 if fixed else 0)
    for name, parameter in model.named_parameters():
        if id(parameter) in frozen:
            assert parameter.grad is None, name
        else:
            assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_nothing_flows_through_the_choice_of_boxes(model: RCNN, targets_of: TargetsOf) -> None:
    losses, _ = rcnn_losses(model, model(smooth_images(1, SIZE, 1)), targets_of([3], [SIZE]))
    (losses["class"] + losses["box"] + losses["mask"]).backward()
    assert all(p.grad is None for p in model.rpn_head.parameters())


def test_channels_last_gives_the_same_losses_and_detections(model: RCNN, targets_of: TargetsOf) -> None:
    images, targets = smooth_images(2, SIZE, 1), targets_of([3, 0], [SIZE] * 2)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected, detections = step(model, images, targets, Keys(2)), RCNNDeploy(model, SIZE)(images)
        images = images.to(memory_format=torch.channels_last)
        torch.testing.assert_close(step(last, images, targets, Keys(2)), expected, rtol=1e-4, atol=0)
        for ours, theirs in zip(RCNNDeploy(last, SIZE)(images), detections, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    step(last.train(), images, targets).backward()
    assert all(p.grad.isfinite().all() for p in last.parameters())


def test_bfloat16_autocast_runs_and_stays_close(slim: RCNN, targets_of: TargetsOf) -> None:
    model = copy.deepcopy(slim).to(memory_format=torch.channels_last)
    images = smooth_images(2, SIZE, 1).to(memory_format=torch.channels_last)
    targets = targets_of([3, 0], [SIZE] * 2)
    with torch.no_grad():
        exact = model(images)
        expected, _ = rcnn_losses(model, exact, targets, Keys(2))
    with torch.autocast("cpu", torch.bfloat16):
        raw = model(images)
        # Use proposals and samples from the float32 maps, so that the same boxes are compared.
        losses, _ = rcnn_losses(model, exact._replace(features=raw.features), targets, Keys(2))
        own, _ = rcnn_losses(model, raw, targets, Keys(2))
    assert raw.features[0].dtype == torch.bfloat16
    assert raw.logits.dtype == raw.deltas.dtype == raw.anchors.dtype == torch.float32
    for ours, theirs in [(raw.logits, exact.logits), (raw.deltas, exact.deltas)]:
        assert (ours - theirs).square().mean().sqrt() < 0.02 * theirs.std()
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected[name].item(), rel=0.02), name
    sum(own.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = RCNNDeploy(model, SIZE)(images)
    assert all(v.isfinite().all() for v in outputs)
    assert outputs[0].min() > 5
