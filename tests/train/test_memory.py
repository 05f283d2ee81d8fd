"""The ledger against hand-made sums, against PyTorch's own counts, and against a real step on the CPU."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from directdet.common.errors import UserError
from directdet.infer.preprocess import Preprocess
from directdet.models.build import build_model
from directdet.models.parts import boxes
from directdet.recipes.recipe import Phase
from directdet.train import ledger as module
from directdet.train.ledger import BLOCK, Ledger
from directdet.train.planning.memory import device_name, measure, step_cost
from directdet.train.step import Stepper

SLIM = {
    "detector": "rcnn",
    "num_classes": 20,
    "backbone": "resnet18",
    "width": 16,
    "fpn_channels": 32,
    "box_convs": 1,
    "box_features": 64,
    "mask_convs": 1,
    "mask_channels": 16,
    "train_pre_nms": 64,
    "train_proposals": 32,
    "rpn_samples": 32,
    "roi_samples": 32,
    "mask_slots": 8,
}
FAST = {
    "detector": "retinanet",
    "num_classes": 5,
    "backbone": "resnet18",
    "width": 16,
    "fpn_channels": 32,
    "head_convs": 1,
}  # has the fewest operators
SIZE, LARGE, BATCH, OBJECTS = (64, 64), (160, 160), 4, 3
PHASE = Phase("pretrain", "direct", SIZE)


@pytest.fixture
def ledger():
    """An active one, with fake tensors."""
    with FakeTensorMode(), Ledger() as ledger:
        yield ledger


def blocks(size: int) -> int:
    """So many bytes, up or down to whole blocks away from 0."""
    return (-size // BLOCK * -BLOCK) if size > 0 else size // BLOCK * BLOCK


def floats(*shape: int) -> int:
    """Bytes of a float32 tensor, in whole blocks."""
    return blocks(4 * torch.Size(shape).numel())


def test_sizes_are_rounded_up_to_blocks(ledger):
    tensors = [torch.empty(size, dtype=torch.uint8) for size in (0, 1, 511, 512, 513)]
    assert ledger.current == (0 + 1 + 1 + 1 + 2) * BLOCK
    del tensors
    assert ledger.current == 0
    assert ledger.peak == 5 * BLOCK


def test_views_and_in_place_operators_take_nothing(ledger):
    values = torch.ones(64, 64)
    part = values.view(32, 128)[1:3]
    values.add_(1).relu_()
    part.mul_(2)
    assert ledger.current == ledger.peak == floats(64, 64)
    del values
    assert ledger.current == floats(64, 64)  # a view keeps all of its storage
    del part
    assert ledger.current == 0


def test_what_exists_already_is_entered_once(ledger):
    weight = torch.empty(128, 128)
    before = ledger.current
    ledger.enter([weight, weight.t(), None], "parameters")
    assert ledger.current == before == floats(128, 128)


def test_linear_layers(ledger):
    """x [64, 128] -> 256, ReLU -> 32, summed: the peak is when the first weight's gradient is made."""
    x = torch.empty(64, 128)
    first, second = nn.Linear(128, 256, bias=False), nn.Linear(256, 32, bias=False)
    fixed = floats(64, 128) + floats(256, 128) + floats(32, 256)
    assert ledger.current == fixed
    hidden = torch.relu(first(x))
    assert ledger.current == fixed + floats(64, 256)  # ReLU keeps its output, not its input
    assert ledger.peak == fixed + 2 * floats(64, 256)
    loss = second(hidden).sum()
    assert ledger.current == fixed + floats(64, 256) + floats(1)
    del hidden
    loss.backward()
    weights = floats(256, 128) + floats(32, 256)
    assert ledger.current == fixed + weights + floats(1)
    # At the end: both weights, both gradients, x, the loss with its gradient, and the gradient of what the ReLU was
    # given. Before that the ReLU's backward pass held three of [64, 256], but not yet the weight's gradient [256, 128].
    assert ledger.peak == fixed + weights + 2 * floats(1) + floats(64, 256)


def test_a_convolution_keeps_its_input(ledger):
    conv = nn.Conv2d(8, 16, 3, padding=1, bias=False)
    x = torch.empty(2, 8, 32, 32)
    fixed = ledger.current
    out = conv(x * 2)
    assert ledger.current == fixed + floats(2, 8, 32, 32) + floats(2, 16, 32, 32)
    with torch.no_grad():
        out = conv(x * 2)
    assert ledger.current == fixed + floats(2, 16, 32, 32)
    del out
    assert ledger.current == fixed


def test_parts_say_what_is_alive_at_the_peak(ledger):
    kept = torch.empty(1000)
    ledger.enter([kept], "named")  # has its label from the operator already
    torch.empty(5000)
    torch.empty(10)
    assert ledger.parts() == {"step: empty": floats(1000) + floats(5000)}


def slim_batch(seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(BATCH, OBJECTS, 2, 2, generator=generator).sort(2).values * (SIZE[0] - 16)
    targets = {
        "boxes": torch.cat([corners[:, :, 0], corners[:, :, 1] + 16], -1),
        "labels": torch.zeros(BATCH, OBJECTS, dtype=torch.long),
        "valid": torch.ones(BATCH, OBJECTS, dtype=torch.bool),
        "sizes": torch.full((BATCH, 2), float(SIZE[0])),
        "masks": torch.ones(BATCH, OBJECTS, 56, 56, dtype=torch.uint8),
    }
    return torch.randint(255, (BATCH, 3, *SIZE), dtype=torch.uint8, generator=generator), targets


def slim_stepper(phase: Phase, model_config: dict = SLIM) -> Stepper:
    torch.manual_seed(0)
    model = build_model(model_config).train().to(memory_format=torch.channels_last)
    return Stepper(model, replace(phase, batch_size=BATCH), Preprocess(size=SIZE), 0.01, 0)


# What these hold while they run: in bf16 it depends on the processor, and is not what a GPU's kernels hold.
SCRATCH = ("scatter_add_", "_embedding_bag_backward", "convolution_backward")


def real_peak(phase: Phase, scratch: tuple[str, ...] = ()) -> int:
    """Bytes that a step on the CPU reached outside the operators `scratch`, by the events of PyTorch's profiler."""
    stepper, batch = slim_stepper(phase), slim_batch()
    stepper.step([batch], 0, 1)
    # Of what was there before, the profiler does not see the end.
    stepper.optimizer.zero_grad(set_to_none=True)
    state = [v for s in stepper.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    present = [*stepper.model.parameters(), *stepper.model.buffers(), *state, batch[0], *batch[1].values()]
    present += stepper.average.values() if stepper.average else []
    current = peak = sum(blocks(t.untyped_storage().nbytes()) for t in present)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        stepper.step([batch], 1, 1)
    events = profile.profiler.kineto_results.events()
    spans = [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name()[6:] in scratch]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        current += blocks(event.nbytes())
        if not any(first <= event.start_ns() <= last for first, last in spans):
            peak = max(peak, current)
    return peak


@pytest.mark.parametrize(
    ("changes", "scratch"),
    [
        ({}, ()),
        pytest.param({"precision": "bf16"}, SCRATCH, marks=pytest.mark.slow),
        pytest.param({"optimizer": "adamw"}, (), marks=pytest.mark.slow),
        pytest.param({"ema": 0.99}, (), marks=pytest.mark.slow),
    ],
    ids=["fp32", "bf16", "adamw", "ema"],
)
def test_the_estimate_is_what_a_real_step_takes(changes, scratch, monkeypatch):
    """Within 0.2 %: the profiler also sees the kilobytes that the CPU's operators hold for themselves."""
    inside = {op: held for op, held in module.INSIDE.items() if op._overloadpacket.__name__ not in scratch}
    monkeypatch.setattr(module, "INSIDE", inside)
    phase = replace(PHASE, **changes)
    expected = pytest.approx(real_peak(phase, scratch), rel=0.002)
    assert step_cost(SLIM, phase, SIZE, BATCH, objects=OBJECTS).peak == expected


@pytest.fixture(scope="module")
def slim_cost():
    return step_cost(SLIM, PHASE, SIZE, BATCH, objects=OBJECTS)


@pytest.fixture(scope="module")
def cost():
    return step_cost(FAST, PHASE, LARGE, BATCH, objects=OBJECTS)


def test_flops_are_those_of_torch(slim_cost, monkeypatch):
    monkeypatch.setattr(boxes, "can_look", lambda values: False)  # as on a GPU; on a CPU, NMS ends as soon as it can
    stepper, batch = slim_stepper(PHASE), slim_batch()
    with FlopCounterMode(display=False) as counter:
        stepper.step([batch], 0, 1)
    assert slim_cost.flops == counter.get_total_flops()


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_each_gradient_of_a_convolution_costs_what_the_convolution_does(kind, groups):
    """Of a grouped one as well, where torch's own count of the weight's gradient is `groups` times too large."""
    with FakeTensorMode(), Ledger() as ledger:
        conv, x = kind(8, 16, 3, padding=1, groups=groups), torch.zeros(2, 8, 10, 12)
        forward = 2 * 2 * (10 * 12) * conv.weight.numel()
        conv(x)
        assert ledger.flops == forward
        conv(x).sum().backward()
        assert ledger.flops == 3 * forward  # two passes and the weight's gradient
        conv(x.requires_grad_()).sum().backward()
        assert ledger.flops == 6 * forward


def test_parts_add_up_to_the_peak(slim_cost):
    assert sum(slim_cost.parts.values()) == slim_cost.peak
    assert list(slim_cost.parts.values()) == sorted(slim_cost.parts.values(), reverse=True)
    weights = [*(model := build_model(SLIM)).parameters(), *model.buffers()]
    assert slim_cost.parts["parameters"] == sum(blocks(t.untyped_storage().nbytes()) for t in weights)
    assert any(label.startswith("two_stage.network.RCNN.predict_masks: ") for label in slim_cost.parts)


@pytest.mark.slow
def test_other_steps_take_more_by_what_they_hold(cost):
    """The buckets of several processes, AdamW's second moment, gradients that wait for a second batch."""
    trainable = sum(floats(*p.shape) for p in build_model(FAST).parameters())
    several = step_cost(FAST, PHASE, LARGE, BATCH, processes=2, objects=OBJECTS)
    assert several.peak - cost.peak == several.parts["buckets of gradients"] == trainable
    adamw = step_cost(FAST, replace(PHASE, optimizer="adamw"), LARGE, BATCH, objects=OBJECTS)
    counters = sum(BLOCK for _ in build_model(FAST).parameters())  # steps, one for each
    assert adamw.parts["optimiser state"] - cost.parts["optimiser state"] == trainable + counters
    accumulated = step_cost(FAST, replace(PHASE, accumulate=3), LARGE, BATCH, objects=OBJECTS)
    losses = accumulated.peak - cost.peak - trainable  # the first batch's, kept for the mean
    assert 0 <= losses <= 20 * BLOCK
    # Of one of its batches, with the forward pass that counts the samples of the whole step: a third of forward and
    # backward, and a little more, since the images themselves have no gradient.
    assert 4 / 3 < accumulated.flops / cost.flops < 1.45


@pytest.mark.slow
def test_fp16_takes_what_bf16_takes(cost):
    fp16, bf16 = (step_cost(FAST, replace(PHASE, precision=p), LARGE, BATCH, objects=OBJECTS) for p in ("fp16", "bf16"))
    assert fp16 == bf16
    assert bf16.peak < cost.peak


def test_fixed_norms_take_less(cost):
    """Folded into the convolutions, of which the first stages keep nothing."""
    fixed = replace(PHASE, norm="fixed", frozen_stages=1)
    assert step_cost(FAST, fixed, LARGE, BATCH, objects=OBJECTS).peak < cost.peak


def test_random_numbers_are_left_alone():
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    step_cost(FAST, PHASE, LARGE, 1)
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_measuring_says_that_there_is_no_gpu():
    with pytest.raises(UserError, match="needs a GPU"):
        device_name()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
def test_measuring_on_a_gpu():
    """Beside the estimate, cuDNN's workspaces are in what the GPU allocates."""
    model = {**SLIM, "width": 64, "fpn_channels": 256, "box_features": 1024}
    found, wanted = measure(model, PHASE, (448, 448), 4), step_cost(model, PHASE, (448, 448), 4)
    assert found.seconds > 0
    assert wanted.peak == pytest.approx(found.peak, rel=0.2)
    assert measure(model, PHASE, (1024, 1024), 512) is None  # 2.6 TB of activations, from 1.6 GB of pictures
