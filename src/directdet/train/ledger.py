"""A ledger of the memory that PyTorch operators take, from the shapes of their tensors alone.

It runs over fake tensors, which have a shape and no content. Every storage that an operator makes is entered, and
removed when the last tensor that uses it dies, which is when PyTorch's caching allocator gets it back. The fake tensors
are on the CPU, since PyTorch cannot run the backward pass over fake CUDA tensors without a GPU. Where a GPU behaves
differently and the difference is large, the ledger counts what the GPU does (IN_PLACE, INSIDE).
"""

import inspect
import sys
import weakref
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from directdet.models.build import build_model

BLOCK = 512  # bytes: the caching allocator rounds every request up to a multiple of it
# The backward passes of gather and indexing add into fresh zeros in place, but out of place where tensors are fake.
IN_PLACE = {
    torch.ops.aten.scatter_add.default: torch.ops.aten.scatter_add_.default,
    torch.ops.aten.index_put.default: torch.ops.aten.index_put_.default,
}
PARTIAL_ROWS = 10  # see _inside_embedding_bag_backward
MODELS = str(Path(inspect.getfile(build_model)).parent)


class Ledger(TorchDispatchMode):
    """While active, enters every storage that an operator makes, and removes it when it is freed.

    Attributes:
        current, peak: bytes.
        flops: two for a multiplication and addition, of convolutions and matrix products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = self.flops = 0
        self._live: dict[int, tuple[weakref.ref, int, str]] = {}
        self._at_peak: Counter[str] = Counter()
        self._rising = False  # the peak is now, and its parts have not been noted yet

    def enter(self, tensors: Iterable[Any], label: str) -> None:
        """Enter tensors that exist already; a storage that several tensors share counts once."""
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._live or not storage.nbytes():
                continue
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self._live[key] = weakref.ref(storage, lambda _, key=key: self._remove(key)), size, label
            self.current += size
            if self.current > self.peak:
                self.peak, self._rising = self.current, True

    def parts(self) -> dict[str, int]:
        """Bytes by label at the peak, largest first."""
        self._note()
        return dict(self._at_peak.most_common())

    def _remove(self, key: int) -> None:
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
        count = FLOPS.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        fresh = [
            t for t in tree_leaves(result) if isinstance(t, Tensor) and t.untyped_storage()._cdata not in self._live
        ]
        if fresh:
            self.enter(fresh, f"{place or _place(sys._getframe(1))}: {func._overloadpacket.__name__}")
        del held  # only now: the operator holds it until its results exist
        return result


def _inside_convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *_: Any) -> list[Tensor]:
    """The channels-last copy that a channels-last convolution makes of an output gradient in another format."""
    last = torch.channels_last
    if x.dim() != 4 or gradient.is_contiguous(memory_format=last):
        return []
    if not (x.is_contiguous(memory_format=last) or weight.is_contiguous(memory_format=last)):
        return []
    return [torch.empty_like(gradient, memory_format=last)]


def _inside_embedding_bag_backward(gradient: Tensor, indices: Tensor, *rest: Any) -> list[Tensor]:
    """What PyTorch's GPU kernel holds: the sorted indices with their positions, and the sums of up to 10 rows each."""
    rows = min(indices.numel(), rest[4])
    partial = indices.numel() // PARTIAL_ROWS + rows
    sums = gradient.new_empty((partial, gradient.shape[1]))
    return [sums, indices.new_empty(3 * indices.numel() + 2 * rows + partial)]


def _convolution_backward_flops(gradient: Tensor, x: Tensor, weight: Tensor, *rest: Any, out_val: Any) -> int:
    """As many as the forward pass for each of the two gradients that are wanted.

    torch's own count multiplies the weight's gradient of a depthwise convolution by the number of channels.
    """
    *_, transposed, _, _, wanted = rest
    places = x if transposed else gradient
    return 2 * places.shape[0] * places.shape[2:].numel() * weight.numel() * sum(wanted[:2])


FLOPS = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
# What an operator holds while it runs, where that is large and known.
INSIDE = {
    torch.ops.aten.convolution_backward.default: _inside_convolution_backward,
    torch.ops.aten._embedding_bag_backward.default: _inside_embedding_bag_backward,
}


def _place(frame: FrameType | None) -> str:
    """What called an operator: the innermost function of directdet.models, else the backward pass or the optimiser."""
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
