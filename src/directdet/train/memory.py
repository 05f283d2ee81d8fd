"""What a training step costs, from shapes alone: its peak memory and its arithmetic. No data, no GPU, seconds.

The real step (losses, backward pass, optimiser) runs on fake tensors, which have a shape and no content. Every storage
that an operator makes is entered in a ledger, and struck out when the last tensor on it dies, which is when PyTorch's
caching allocator has it back. The tensors are fake ones of the CPU: PyTorch cannot go backward over fake CUDA tensors
where there is no GPU. What a GPU does otherwise, and is large, is done as on a GPU (_start_optimizer, INSIDE).

Not in it: the CUDA context; workspaces of cuDNN and cuBLAS, and what other operators hold while they run; blocks that
the allocator cannot use (fragmentation); group normalisation's float32 under autocast; and the bag of each index, which
EmbeddingBag keeps on a GPU (0.6 % of the paper's network).
"""

import gc
import inspect
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from directdet.common.errors import UsageProblem, UserError
from directdet.infer.preprocess import Preprocess
from directdet.models.build import build_model
from directdet.recipes.recipe import Phase
from directdet.train.prepare import apply_norm
from directdet.train.step import Batch, Stepper

BLOCK = 512  # bytes: the caching allocator rounds every request up to a multiple
OBJECTS = 96  # rows of the padded targets: COCO's fullest picture has 93 objects
MASK_SIDE = 56  # of the loader's masks
WARM_STEPS = 3  # before a measurement: cuDNN chooses its algorithms, the optimiser makes its state
# The backward passes of gather and indexing add into fresh zeros in place, but out of place where tensors are fake.
IN_PLACE = {
    torch.ops.aten.scatter_add.default: torch.ops.aten.scatter_add_.default,
    torch.ops.aten.index_put.default: torch.ops.aten.index_put_.default,
}
PARTIAL_ROWS = 10  # see _inside_embedding_bag_backward
MODELS = str(Path(inspect.getfile(build_model)).parent)


@dataclass(frozen=True)
class StepCost:
    """One step: peak memory in bytes, FLOPs of forward and backward pass, and what is alive at the peak.

    FLOPs are two for a multiplication and addition, of convolutions and matrix products; pooling of RoIs (EmbeddingBag)
    and elementwise work is not counted. `parts`: bytes by what they are for, largest first.
    """

    peak: int
    flops: int
    parts: dict[str, int]


@dataclass(frozen=True)
class Measured:
    """What a step took on a GPU: the peak of allocated memory in bytes, and seconds."""

    peak: int
    seconds: float


class Ledger(TorchDispatchMode):
    """While active, enters every storage that an operator makes, and strikes it out when it is freed.

    Attributes: current and peak, bytes; flops.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = self.flops = 0
        self._live: dict[int, tuple[weakref.ref, int, str]] = {}
        self._at_peak: Counter[str] = Counter()
        self._rising = False  # the peak is now, and what it is made of has not been noted yet

    def enter(self, tensors: Iterable[Any], label: str) -> None:
        """Enter what exists already; a storage that several tensors share counts once."""
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._live or not storage.nbytes():
                continue
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self._live[key] = weakref.ref(storage, lambda _, key=key: self._strike(key)), size, label
            self.current += size
            if self.current > self.peak:
                self.peak, self._rising = self.current, True

    def parts(self) -> dict[str, int]:
        """Bytes by label at the peak, largest first."""
        self._note()
        return dict(self._at_peak.most_common())

    def _strike(self, key: int) -> None:
        self._note()
        self.current -= self._live.pop(key)[1]

    def _note(self) -> None:
        if self._rising:
            self._rising = False
            self._at_peak.clear()
            for _, size, label in self._live.values():
                self._at_peak[label] += size

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.prim.device.default:  # every second call is this question
            return func(*args, **(kwargs or {}))
        place = None
        if func in IN_PLACE and (place := _place(sys._getframe(1))) == "backward":
            func = IN_PLACE[func]
        held = INSIDE[func](*args) if func in INSIDE else []
        self.enter(held, f"inside {func._overloadpacket.__name__}")
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        fresh = [
            t for t in tree_leaves(result) if isinstance(t, Tensor) and t.untyped_storage()._cdata not in self._live
        ]
        if fresh:
            self.enter(fresh, f"{place or _place(sys._getframe(1))}: {func._overloadpacket.__name__}")
        del held  # only now: the operator has it until its results are there
        return result


def _inside_convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *_: Any) -> list[Tensor]:
    """The copy of an output's gradient that a convolution in channels last makes of one that is not."""
    last = torch.channels_last
    if x.dim() != 4 or gradient.is_contiguous(memory_format=last):
        return []
    if not (x.is_contiguous(memory_format=last) or weight.is_contiguous(memory_format=last)):
        return []
    return [torch.empty_like(gradient, memory_format=last)]


def _inside_embedding_bag_backward(gradient: Tensor, indices: Tensor, *rest: Any) -> list[Tensor]:
    """What PyTorch's GPU kernel holds: indices, sorted, with their places, and the sums of up to 10 rows each."""
    rows = min(indices.numel(), rest[4])
    partial = indices.numel() // PARTIAL_ROWS + rows
    sums = gradient.new_empty((partial, gradient.shape[1]))
    return [sums, indices.new_empty(3 * indices.numel() + 2 * rows + partial)]


# What an operator holds while it runs, where that is large and known.
INSIDE = {
    torch.ops.aten.convolution_backward.default: _inside_convolution_backward,
    torch.ops.aten._embedding_bag_backward.default: _inside_embedding_bag_backward,
}


def _place(frame: FrameType | None) -> str:
    """What called an operator: the innermost function of the models room, else the backward pass or the optimiser."""
    place = "step"
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(MODELS):
            file = Path(code.co_filename).relative_to(MODELS).with_suffix("")
            return ".".join((*file.parts, code.co_qualname))
        if place == "step" and "/torch/autograd/" in code.co_filename.replace("\\", "/"):
            place = "backward"
        elif place == "step" and "/torch/optim/" in code.co_filename.replace("\\", "/"):
            place = "optimiser step"
        frame = frame.f_back
    return place


def step_cost(
    model_config: dict, phase: Phase, size: tuple[int, int], batch: int, processes: int = 1, objects: int = OBJECTS
) -> StepCost:
    """The cost of one ordinary step of `phase` on `batch` pictures of `size` (height, width), on one of `processes`.

    model_config: as build_model() takes it. objects: rows of the padded targets. Several processes keep, beside the
    gradients, the buckets that are sent between them (DistributedDataParallel).
    """
    if phase.precision == "fp16":  # bf16 takes the same room, and its step waits for no value
        phase = replace(phase, precision="bf16")
    phase = replace(phase, batch_size=batch, accumulate=min(phase.accumulate, 2))  # the third is like the second
    model = _shapes_only(model_config, phase)
    with torch.random.fork_rng(devices=[]), FakeTensorMode():
        _make_fake(model)
        stepper = Stepper(model, phase, Preprocess(size=size), 0.0, 0)
        _start_optimizer(stepper.optimizer)
        batches = [_empty_batch(size, batch, objects, model.config.masks)] * phase.accumulate
        weights = [*model.parameters(), *model.buffers()]
        gradients = [p.grad for p in weights if p.grad is not None]
        buckets = [torch.empty_like(g) for g in gradients] if processes > 1 else []
        ledger = Ledger()
        ledger.enter(weights, "parameters")
        ledger.enter(gradients, "gradients")
        ledger.enter(buckets, "buckets of gradients")
        ledger.enter(tree_leaves([list(s.values()) for s in stepper.optimizer.state.values()]), "optimiser state")
        ledger.enter(tree_leaves(batches), "images and targets")
        del gradients
        with ledger:
            stepper.step(batches, number=1, steps_per_epoch=1)
        return StepCost(ledger.peak, ledger.flops // phase.accumulate, ledger.parts())


def _shapes_only(model_config: dict, phase: Phase) -> nn.Module:
    """The network of a phase, in training, on the meta device; UsageProblem if there is no such network."""
    try:
        with torch.device("meta"):
            model = build_model(model_config).train()
    except ValueError as error:  # settings that are each allowed, but not together
        raise UsageProblem(f"model: {error}") from None
    apply_norm(model, phase, trained=True, known=False)
    return model.to(memory_format=torch.channels_last) if phase.channels_last else model


def _make_fake(model: nn.Module) -> None:
    """Put fake tensors of the CPU in the place of meta ones, and gradients beside them; inside a FakeTensorMode."""
    for module in model.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
            if isinstance(value, nn.Parameter):
                fake = nn.Parameter(fake, value.requires_grad)
                fake.grad = torch.empty_like(fake) if value.requires_grad else None
            setattr(module, name, fake)


def _start_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Let it make its state, as its first step does; and set it to what it would choose for parameters on a GPU."""
    for group in optimizer.param_groups:
        group["foreach"] = group["fused"] is not True
    optimizer.step()


def _empty_batch(size: tuple[int, int], batch: int, objects: int, masks: bool) -> Batch:
    """Pictures and targets as the loader makes them, without content."""
    targets = {
        "boxes": torch.empty(batch, objects, 4),
        "labels": torch.empty(batch, objects, dtype=torch.int64),
        "valid": torch.empty(batch, objects, dtype=torch.bool),
        "sizes": torch.empty(batch, 2),
    }
    if masks:
        targets["masks"] = torch.empty(batch, objects, MASK_SIDE, MASK_SIDE, dtype=torch.uint8)
    return torch.empty(batch, 3, *size, dtype=torch.uint8), targets


def device_name() -> str:
    """The GPU's name; UserError if there is none."""
    if not torch.cuda.is_available():
        raise UserError("measuring needs a GPU, and PyTorch finds none here; the estimate needs none")
    return torch.cuda.get_device_name()


def measure(
    model_config: dict, phase: Phase, size: tuple[int, int], batch: int, objects: int = OBJECTS, steps: int = 5
) -> Measured | None:
    """Peak and time of real steps of one process on the current GPU, on noise; None if its memory does not do."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        model = build_model(model_config).cuda().train()
        apply_norm(model, phase, trained=True, known=False)
        if phase.channels_last:
            model.to(memory_format=torch.channels_last)
        stepper = Stepper(model, replace(phase, batch_size=batch), Preprocess(size=size), 0.0, 0)
        batches = [_noise(size, batch, objects, model.config.masks)] * phase.accumulate
        for number in range(WARM_STEPS + steps):
            if number == WARM_STEPS:
                torch.cuda.synchronize()
                start = time.perf_counter()
            stepper.step(batches, number, steps_per_epoch=WARM_STEPS + steps)
        torch.cuda.synchronize()
        return Measured(torch.cuda.max_memory_allocated(), (time.perf_counter() - start) / steps)
    except torch.OutOfMemoryError:
        return None


def _noise(size: tuple[int, int], batch: int, objects: int, masks: bool) -> Batch:
    """A batch as the loader makes it, of noise with objects anywhere."""
    images, targets = _empty_batch(size, batch, objects, masks)
    images.random_(256)
    side = torch.tensor([size[1], size[0]])
    corners = torch.rand(batch, objects, 2, 2).sort(2).values * side
    targets["boxes"] = corners.flatten(2)
    targets["sizes"] = torch.tensor(size, dtype=torch.float32).repeat(batch, 1)
    targets["labels"].zero_()
    targets["valid"].fill_(True)
    if masks:
        targets["masks"].fill_(1)
    return images, targets
