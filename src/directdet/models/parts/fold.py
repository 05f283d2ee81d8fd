"""Batch normalisation folded away for export: into the convolution before it, or where there is none, to one product
and one sum.

Which normalisation follows which convolution is seen by running the network once, whatever it is made of: no list of
names has to be kept with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from directdet.models.parts.norm import statistics


@dataclass(frozen=True)
class Folding:
    """What folding did: normalisations folded into a convolution, and the names of those that had none before them."""

    folded: int
    left: tuple[str, ...]


class _Watch(TorchFunctionMode):
    """Notes which convolution made which tensor, how often each tensor is used, and what is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.made_by: dict[int, Tensor] = {}  # id of an output -> the convolution's weight
        self.normalised: list[tuple[Tensor, Tensor]] = []  # input, the normalisation's running mean
        self.uses: dict[int, int] = {}
        self.weights: dict[int, int] = {}  # id of a weight -> convolutions that it is used in
        self.alive: list[Any] = []  # ids are unique only among what lives

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        result = function(*args, **named)
        if _only_asks(function):
            return result
        for tensor in _tensors((args, named)):
            self.uses[id(tensor)] = self.uses.get(id(tensor), 0) + 1
        if function is torch.conv2d:
            weight = named["weight"] if "weight" in named else args[1]
            self.weights[id(weight)] = self.weights.get(id(weight), 0) + 1
            self.made_by[id(result)] = weight
        elif function is F.batch_norm:
            given = named["input"] if "input" in named else args[0]
            self.normalised.append((given, named["running_mean"] if "running_mean" in named else args[1]))
        self.alive += [args, named, result]
        return result


_VIEWS = {"T", "mT", "H", "mH", "real", "imag", "data"}  # attributes that are tensors again


def _only_asks(function: Callable[..., Any]) -> bool:
    """Whether a function asks a tensor for its shape or kind, and computes nothing with it."""
    if function in (Tensor.dim, Tensor.size, Tensor.numel, Tensor.stride, Tensor.is_floating_point, Tensor.__len__):
        return True
    attribute = getattr(function, "__self__", None) if getattr(function, "__name__", "") == "__get__" else None
    return attribute is not None and getattr(attribute, "__name__", "") not in _VIEWS


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return _tensors(list(value.values()))
    return [tensor for one in value for tensor in _tensors(one)] if isinstance(value, list | tuple) else []


@torch.no_grad()
def conv_norm_pairs(network: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Every convolution of `network` with the batch normalisation that alone sees what it gives, in running order.

    network: in evaluation mode; run once on `images`, as it takes them. A convolution that is used at several places,
    or whose output something else needs too, is in no pair.
    """
    kinds = [(m, type(m)) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    convs = {id(m.weight): m for m in network.modules() if isinstance(m, nn.Conv2d)}
    norms = {id(m.running_mean): m for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
    for norm, _ in kinds:
        norm.__class__ = nn.BatchNorm2d  # fixed ones are folded as they run, and would not be seen
    try:
        with _Watch() as watch:
            watch.alive.append(outputs := network(images))
    finally:
        for norm, kind in kinds:
            norm.__class__ = kind
    for tensor in _tensors(outputs if isinstance(outputs, Mapping | list | tuple) else (outputs,)):
        watch.uses[id(tensor)] = watch.uses.get(id(tensor), 0) + 1
    times = [id(mean) for _, mean in watch.normalised]
    pairs = []
    for given, mean in watch.normalised:
        weight = watch.made_by.get(id(given))
        if weight is None or watch.uses[id(given)] > 1 or watch.weights[id(weight)] > 1 or times.count(id(mean)) > 1:
            continue
        if id(weight) in convs and id(mean) in norms:
            pairs.append((convs[id(weight)], norms[id(mean)]))
    return pairs


def fold_batch_norm(network: nn.Module, pairs: Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]]) -> Folding:
    """Fold the normalisations of `pairs`, as conv_norm_pairs gives them, into their convolutions, in place.

    What other batch normalisations there are becomes a ScaleShift. The arithmetic is done in float64, so that folding
    costs one rounding of each weight.
    """
    for conv, norm in pairs:
        _fold(conv, norm)
    folded = {id(norm) for _, norm in pairs}
    left = []
    for owner_name, owner in list(network.named_modules()):
        for name, child in list(owner.named_children()):
            if id(child) in folded:
                setattr(owner, name, nn.Identity())
            elif isinstance(child, nn.BatchNorm2d):
                setattr(owner, name, ScaleShift(child))
                left.append(f"{owner_name}.{name}".lstrip("."))
    return Folding(len(pairs), tuple(left))


class ScaleShift(nn.Module):
    """A batch normalisation with fixed statistics as y = scale * x + shift, in float32: [N, C, H, W] -> the same."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        scale, shift = _scale_and_shift(norm)
        self.register_buffer("scale", scale.float()[:, None, None])
        self.register_buffer("shift", shift.float()[:, None, None])

    scale: Tensor
    shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x.float(), self.scale).to(x.dtype)


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    mean, variance = statistics(norm)
    scale = torch.rsqrt(variance.detach().double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean.detach().double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    scale, shift = _scale_and_shift(norm)
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = shift if conv.bias is None else conv.bias.double() * scale + shift
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype))
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype))
