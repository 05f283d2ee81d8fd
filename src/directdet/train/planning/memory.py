"""The cost of a training step, from shapes alone: its peak memory and its arithmetic. No data, no GPU, seconds.

The real step (losses, backward pass, optimiser) runs on fake tensors while a ledger (ledger.py) counts.

Not counted: the CUDA context; workspaces of cuDNN and cuBLAS, and what most operators hold while they run; blocks that
the allocator cannot use (fragmentation); group normalisation's float32 under autocast; and the bag of each index, which
EmbeddingBag keeps on a GPU (0.6 % of the network of the direct pre-training paper).
"""

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from directdet.common.errors import UsageProblem, UserError
from directdet.infer.preprocess import Preprocess
from directdet.models.build import build_model
from directdet.models.parts.network import Network
from directdet.recipes.derived import accumulated
from directdet.recipes.recipe import Phase
from directdet.train.ledger import Ledger
from directdet.train.prepare import apply_norm, with_precision
from directdet.train.step import Batch, Stepper

OBJECTS = 96  # rows of the padded targets of the fullest batch: the fullest image of COCO has 93 objects
MASK_SIDE = 56  # of the loader's masks
WARM_STEPS = 3  # before a measurement: cuDNN chooses its algorithms, the optimiser makes its state


@dataclass(frozen=True)
class StepCost:
    """The cost of one step.

    Attributes:
        peak: memory in bytes.
        flops: of the forward and backward pass of a batch, two for a multiplication and addition, of convolutions and
            matrix products; pooling of RoIs (EmbeddingBag) and elementwise work is not counted. Where batches are
            accumulated, with a second forward pass (see Stepper.step).
        parts: what is alive at the peak: bytes by purpose, largest first.
    """

    peak: int
    flops: int
    parts: dict[str, int]


@dataclass(frozen=True)
class Measured:
    """What a step took on a GPU: the peak of allocated memory in bytes, and seconds."""

    peak: int
    seconds: float


def step_cost(
    model_config: Mapping[str, Any],
    phase: Phase,
    size: tuple[int, int],
    batch: int,
    processes: int = 1,
    objects: int = OBJECTS,
) -> StepCost:
    """The cost of one ordinary step of a phase, in one process.

    Args:
        model_config: as build_model() takes it.
        size: (height, width) of the images.
        batch: images per forward pass.
        processes: how many train together; several also keep the buckets in which gradients are exchanged
            (DistributedDataParallel).
        objects: rows of the padded targets.

    Raises:
        UsageProblem: there is no such network.
    """
    # fp16 takes the memory of bf16, but its step reads a value, and here there are none; "auto" is bf16 from Ampere on.
    if phase.precision in ("fp16", "auto"):
        phase = replace(phase, precision="bf16")
    times = min(accumulated(replace(phase, batch_size=batch), processes), 2)  # a third batch is like the second
    phase = replace(phase, batch_size=batch, accumulate=times, fixed_batch=False)
    model = _shapes_only(model_config, phase)
    with torch.random.fork_rng(devices=[]), FakeTensorMode():
        _make_fake(model)
        stepper = Stepper(model, phase, _any_preprocess(size, model), 0.0, 0)
        _start_optimizer(stepper.optimizer)
        batches = [_empty_batch(size, batch, objects, model.config.masks, model.in_channels)] * times
        weights = [*model.parameters(), *model.buffers()]
        gradients = [p.grad for p in weights if p.grad is not None]
        buckets = [torch.empty_like(g) for g in gradients] if processes > 1 else []
        ledger = Ledger()
        ledger.enter(weights, "parameters")
        ledger.enter(gradients, "gradients")
        ledger.enter(buckets, "buckets of gradients")
        ledger.enter(tree_leaves([list(s.values()) for s in stepper.optimizer.state.values()]), "optimiser state")
        if stepper.average is not None:
            ledger.enter(stepper.average.values(), "average of weights")
        ledger.enter(tree_leaves(batches), "images and targets")
        del gradients
        with ledger:
            stepper.step(batches, number=1, steps_per_epoch=1)
        return StepCost(ledger.peak, ledger.flops // times, ledger.parts())


def _any_preprocess(size: tuple[int, int], model: Network) -> Preprocess:
    channels = model.in_channels
    return Preprocess(size) if channels == 3 else Preprocess(size, mean=(0.0,) * channels, std=(1.0,) * channels)


def _shapes_only(model_config: Mapping[str, Any], phase: Phase) -> Network:
    """The network of a phase, in training mode, on the meta device; UsageProblem if there is no such network."""
    try:
        with torch.device("meta"):
            model = build_model(model_config)
    except ValueError as error:  # settings that are valid alone, but not together
        raise UsageProblem(f"model: {error}") from None
    model.train()
    apply_norm(model, phase, trained=True, known=False)
    if phase.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def _make_fake(model: nn.Module) -> None:
    """Replace meta tensors by fake tensors on the CPU, with gradients; call it inside a FakeTensorMode."""
    for module in model.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
            if isinstance(value, nn.Parameter):
                fake = nn.Parameter(fake, value.requires_grad)
                fake.grad = torch.empty_like(fake) if value.requires_grad else None
            setattr(module, name, fake)


def _start_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimiser create its state, as its first step does, and choose what it would for parameters on a GPU."""
    for group in optimizer.param_groups:
        group["foreach"] = group["fused"] is not True
    optimizer.step()


def _empty_batch(size: tuple[int, int], batch: int, objects: int, masks: bool, channels: int) -> Batch:
    """Images and targets as the loader makes them, without content."""
    targets = {
        "boxes": torch.empty(batch, objects, 4),
        "labels": torch.empty(batch, objects, dtype=torch.int64),
        "valid": torch.empty(batch, objects, dtype=torch.bool),
        "sizes": torch.empty(batch, 2),
        "padded": torch.empty(batch, 2),
    }
    if masks:
        targets["masks"] = torch.empty(batch, objects, MASK_SIDE, MASK_SIDE, dtype=torch.uint8)
    return torch.empty(batch, channels, *size, dtype=torch.uint8), targets


def device_name() -> str:
    """The name of the GPU; UserError if there is none."""
    if not torch.cuda.is_available():
        raise UserError("measuring needs a GPU, but PyTorch finds none here; the estimate alone needs none")
    return torch.cuda.get_device_name()


def measure(
    model_config: Mapping[str, Any],
    phase: Phase,
    size: tuple[int, int],
    batch: int,
    processes: int = 1,
    objects: int = OBJECTS,
    steps: int = 5,
) -> Measured | None:
    """Peak and time of the real steps of one of several processes on the current GPU, on noise.

    None if they run out of memory.
    """
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    others = torch.cuda.memory_allocated()  # what this process holds anyway
    phase = with_precision(replace(phase, batch_size=batch), torch.device("cuda"))
    times = accumulated(phase, processes)
    try:
        model = build_model(model_config)
        model.cuda().train()
        apply_norm(model, phase, trained=True, known=False)
        if phase.channels_last:
            model.to(memory_format=torch.channels_last)
        stepper = Stepper(model, phase, _any_preprocess(size, model), 0.0, 0)
        batches = [_noise(size, batch, objects, model.config.masks, model.in_channels)] * times
        for number in range(WARM_STEPS):
            stepper.step(batches, number, steps_per_epoch=WARM_STEPS + steps)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for number in range(WARM_STEPS, WARM_STEPS + steps):
            stepper.step(batches, number, steps_per_epoch=WARM_STEPS + steps)
        torch.cuda.synchronize()
        return Measured(torch.cuda.max_memory_allocated() - others, (time.perf_counter() - start) / steps)
    except torch.OutOfMemoryError:
        return None


def _noise(size: tuple[int, int], batch: int, objects: int, masks: bool, channels: int) -> Batch:
    """A batch as the loader makes it, of noise with objects in random places."""
    images, targets = _empty_batch(size, batch, objects, masks, channels)
    images.random_(256)
    side = torch.tensor([size[1], size[0]])
    corners = torch.rand(batch, objects, 2, 2).sort(2).values * side
    targets["boxes"] = corners.flatten(2)
    targets["sizes"] = targets["padded"] = torch.tensor(size, dtype=torch.float32).repeat(batch, 1)
    targets["labels"].zero_()
    targets["valid"].fill_(True)
    if masks:
        targets["masks"].fill_(1)
    return images, targets
