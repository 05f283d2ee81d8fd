"""What a training step costs, from shapes alone: its peak memory and its arithmetic. No data, no GPU, seconds.

The real step (losses, backward pass, optimiser) runs on fake tensors, which have a shape and no content. Every storage
that an operator makes is entered in a ledger and leaves it when the last tensor on it dies, as PyTorch's caching
allocator would see it. The tensors are fake ones of the CPU: without a GPU, PyTorch has no backward pass for fake CUDA
tensors. So it is a CPU's choice of operators; where that matters for the size, it is set as on a GPU (step_cost()).

Not in it: the CUDA context (0.3 to 0.6 GB), the workspaces of cuDNN and cuBLAS and what an operator holds only while it
runs, blocks that the allocator keeps but cannot use (fragmentation), and group normalisation's float32 under autocast.
"""

import sys
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

from ..infer.preprocess import Preprocess
from ..models.build import build_model
from .prepare import apply_norm
from .recipe import Phase
from .step import Batch, Stepper

BLOCK = 512  # bytes: the caching allocator rounds every request up to a multiple
OBJECTS = 96  # rows of the padded targets: COCO's fullest picture has 93 objects
MASK_SIDE = 56  # of the loader's masks
# The backward passes of gather and indexing add into fresh zeros in place, but out of place where tensors are fake.
IN_PLACE = {
    torch.ops.aten.scatter_add.default: torch.ops.aten.scatter_add_.default,
    torch.ops.aten.index_put.default: torch.ops.aten.index_put_.default,
}
MODELS = str(Path(__file__).resolve().parents[1] / "models")


@dataclass(frozen=True)
class StepCost:
    """One step: peak memory in bytes, FLOPs of forward and backward pass, and what is alive at the peak.

    FLOPs are two for a multiplication and addition, of convolutions and matrix products; pooling of RoIs (EmbeddingBag)
    and elementwise work is not counted. `parts`: bytes by what they are for, largest first.
    """

    peak: int
    flops: int
    parts: dict[str, int]


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

    def _own_layout(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
        """The copy of an output's gradient that a convolution in channels last makes of one that is not."""
        last = torch.channels_last
        if x.dim() != 4 or gradient.is_contiguous(memory_format=last):
            return None
        if not (x.is_contiguous(memory_format=last) or weight.is_contiguous(memory_format=last)):
            return None
        copy = torch.empty_like(gradient, memory_format=last)
        self.enter([copy], "backward: copy in channels last")
        return copy

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.prim.device.default:  # every second call is this question
            return func(*args, **(kwargs or {}))
        place = None
        if func in IN_PLACE and (place := _place(sys._getframe(1))) == "backward":
            func = IN_PLACE[func]
        held = self._own_layout(*args[:3]) if func is torch.ops.aten.convolution_backward.default else None
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


def _place(frame: FrameType | None) -> str:
    """What called an operator: the innermost function of the models room, else the backward pass or the optimiser."""
    place = "step"
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(MODELS):
            return f"{Path(code.co_filename).stem}.{code.co_qualname}"
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
        stepper = Stepper(model, phase, Preprocess(size=size), 0.01, 0)
        _start_optimizer(stepper.optimizer)
        batches = [_fake_batch(size, batch, objects, model.config.masks)] * phase.accumulate
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
    """The network of a phase, in training, on the meta device."""
    with torch.device("meta"):
        model = build_model(model_config).train()
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


def _fake_batch(size: tuple[int, int], batch: int, objects: int, masks: bool) -> Batch:
    """Pictures and targets as the loader makes them."""
    targets = {
        "boxes": torch.empty(batch, objects, 4),
        "labels": torch.empty(batch, objects, dtype=torch.int64),
        "valid": torch.empty(batch, objects, dtype=torch.bool),
        "sizes": torch.empty(batch, 2),
    }
    if masks:
        targets["masks"] = torch.empty(batch, objects, MASK_SIDE, MASK_SIDE, dtype=torch.uint8)
    return torch.empty(batch, 3, *size, dtype=torch.uint8), targets
