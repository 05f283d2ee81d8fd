"""Folding batch normalisation for export: into the preceding convolution or, if there is none, into a scale and shift.

A convolution that several normalisations share, as in heads whose levels have statistics of their own, becomes as many
convolutions. The network is run once to see which normalisation follows which convolution. This works for any network
and needs no list of layer names.
"""

from __future__ import annotations

import copy
from collections import Counter
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
    """Result of folding: how many normalisations went into a convolution, and the names of those that could not."""

    folded: int
    unfolded: tuple[str, ...]


class _Recorder(TorchFunctionMode):
    """Records which convolution computed which tensor, how often each tensor is used, and what is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_weights: dict[int, Tensor] = {}  # id of a convolution's output -> its weight
        self.normalised: list[tuple[Tensor, Tensor]] = []  # (input, running mean) of each normalisation
        self.uses: dict[int, int] = {}  # id of a tensor -> number of operations that use it
        self.weight_uses: dict[int, int] = {}  # id of a weight -> number of convolutions that use it
        self.alive: list[Any] = []  # keeps every tensor alive: ids are unique only among living objects

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        result = function(*args, **named)
        if _is_query(function):
            return result
        for tensor in _tensors((args, named)):
            self.uses[id(tensor)] = self.uses.get(id(tensor), 0) + 1
        if function is torch.conv2d:
            weight = named["weight"] if "weight" in named else args[1]
            self.weight_uses[id(weight)] = self.weight_uses.get(id(weight), 0) + 1
            self.conv_weights[id(result)] = weight
        elif function is F.batch_norm:
            x = named["input"] if "input" in named else args[0]
            self.normalised.append((x, named["running_mean"] if "running_mean" in named else args[1]))
        self.alive += [args, named, result]
        return result


_VIEWS = {"T", "mT", "H", "mH", "real", "imag", "data"}  # attributes that return tensors


def _is_query(function: Callable[..., Any]) -> bool:
    """Whether a function only reads the shape or type of a tensor and computes nothing from its values."""
    if function in (Tensor.dim, Tensor.size, Tensor.numel, Tensor.stride, Tensor.is_floating_point, Tensor.__len__):
        return True
    attribute = getattr(function, "__self__", None) if getattr(function, "__name__", "") == "__get__" else None
    return attribute is not None and getattr(attribute, "__name__", "") not in _VIEWS


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return _tensors(list(value.values()))
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []


@torch.no_grad()
def conv_norm_pairs(network: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Pairs of a convolution and the batch normalisation that is the only user of its output, in order of execution.

    A convolution that is used several times is in several pairs if every use has a normalisation of its own, and else
    in none. Nor is one whose output is also used elsewhere.

    Args:
        network: in evaluation mode.
        images: an input of the network, which is run on it once.
    """
    kinds = [(m, type(m)) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    convs: dict[int, list[nn.Conv2d]] = {}
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            convs.setdefault(id(module.weight), []).append(module)
    norms = {id(m.running_mean): m for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
    for norm, _ in kinds:
        norm.__class__ = nn.BatchNorm2d  # FixedBatchNorm2d folds itself while running and would be missed
    try:
        with _Recorder() as recorder:
            recorder.alive.append(outputs := network(images))
    finally:
        for norm, kind in kinds:
            norm.__class__ = kind
    for tensor in _tensors(outputs if isinstance(outputs, Mapping | list | tuple) else (outputs,)):
        recorder.uses[id(tensor)] = recorder.uses.get(id(tensor), 0) + 1
    norm_uses = [id(mean) for _, mean in recorder.normalised]
    pairs = []
    for x, mean in recorder.normalised:
        weight = recorder.conv_weights.get(id(x))
        if weight is None or recorder.uses[id(x)] > 1 or norm_uses.count(id(mean)) > 1:
            continue
        if len(convs.get(id(weight), ())) == 1 and id(mean) in norms:
            pairs.append((convs[id(weight)][0], norms[id(mean)]))
    count = Counter(id(conv.weight) for conv, _ in pairs)
    return [(conv, norm) for conv, norm in pairs if count[id(conv.weight)] == recorder.weight_uses[id(conv.weight)]]


def fold_batch_norm(network: nn.Module, pairs: Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]]) -> Folding:
    """Fold the normalisations of `pairs`, found by conv_norm_pairs, into their convolutions, in place.

    A convolution of several pairs becomes an Identity, and each of its normalisations a convolution. All other batch
    normalisations are replaced by a ScaleShift. The arithmetic is done in float64, so folding rounds each weight only
    once.
    """
    count = Counter(id(conv) for conv, _ in pairs)
    instead: dict[int, nn.Module] = {}
    for conv, norm in pairs:
        if count[id(conv)] == 1:
            instead[id(norm)] = nn.Identity()
            _fold(conv, norm)
        else:
            instead[id(conv)] = nn.Identity()
            instead[id(norm)] = _fold(copy.deepcopy(conv), norm)
    unfolded = []
    for owner_name, owner in list(network.named_modules()):
        for name, child in list(owner.named_children()):
            if id(child) in instead:
                setattr(owner, name, instead[id(child)])
            elif isinstance(child, nn.BatchNorm2d):
                setattr(owner, name, ScaleShift(child))
                unfolded.append(f"{owner_name}.{name}".lstrip("."))
    return Folding(len(pairs), tuple(unfolded))


class ScaleShift(nn.Module):
    """Batch normalisation with fixed statistics, y = scale * x + shift in float32: [N, C, H, W] -> [N, C, H, W]."""

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
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    scale, shift = _scale_and_shift(norm)
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = shift if conv.bias is None else conv.bias.double() * scale + shift
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype))
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype))
    return conv
