"""Batch normalisation in both phases: live in pre-training, fixed in fine-tuning, folded away for export.

Also the alternatives that the paper compares: trainable affine parameters with fixed statistics, statistics over all
processes (SyncBN), and group normalisation.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32  # groups of the Scratch (GN) baseline


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups, or fewer (a common divisor) if 32 does not divide `channels`."""
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)


def statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a BatchNorm2d; ValueError if it does not track them."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a BatchNorm2d without running statistics can be neither fixed nor folded")
    return norm.running_mean, norm.running_var


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with fixed statistics: "Fixed" in Table 2, or "affine" if gamma and beta are trained.

    It stays in evaluation mode regardless of train(), and conv_norm() folds it into the preceding convolution in every
    forward pass: no extra pass over the activations, and none of them stored for the backward pass.
    """

    def train(self, mode: bool = True) -> "FixedBatchNorm2d":
        return super().train(False)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The scale and shift [C] of y = scale * x + shift."""
        mean, variance = statistics(self)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return scale, self.bias - mean * scale


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Convolution followed by normalisation, computed as a single convolution if the normalisation is fixed."""
    if not isinstance(norm, FixedBatchNorm2d):
        return norm(conv(x))
    scale, shift = norm.scale_and_shift()
    bias = shift if conv.bias is None else conv.bias * scale + shift
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class _SumOverProcesses(torch.autograd.Function):
    """Sums a tensor over all processes, and its gradients in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes. Unlike torch's SyncBatchNorm it also runs on CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        values = x.float()
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        count = torch.full((1,), values.numel() / values.shape[1], device=x.device)
        # A single all-reduce of a table in which each process fills its own row. Sums of squares would need less data,
        # but subtracting the square of a large mean from them would lose digits of the variance.
        own_row = torch.arange(dist.get_world_size(), device=x.device) == dist.get_rank()
        table = _SumOverProcesses.apply(own_row[:, None] * torch.cat([mean, variance, count]))
        means, variances = table[:, :-1].unflatten(1, (2, -1)).unbind(1)  # [processes, C] each
        count = table[:, -1].sum()
        weight = table[:, -1:] / count
        mean = (weight * means).sum(0)
        variance = (weight * (variances + (means - mean).square())).sum(0)
        with torch.no_grad():
            running_mean, running_var = statistics(self)
            momentum = 0.1 if self.momentum is None else self.momentum
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def sync_batch_norm(model: nn.Module) -> int:
    """Convert every live BatchNorm2d of `model` to SyncBatchNorm2d, in place; returns their number."""
    found = [m for m in model.modules() if type(m) is nn.BatchNorm2d]
    for module in found:
        module.__class__ = SyncBatchNorm2d
    return len(found)


def fix_batch_norm(model: nn.Module, affine: bool = False) -> int:
    """Convert every BatchNorm2d of `model` to FixedBatchNorm2d, in place; returns their number.

    With `affine`, only the statistics are fixed and the affine parameters remain trainable.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Only the class changes; the parameters and buffers remain the same objects.
            module.__class__ = FixedBatchNorm2d
            module.requires_grad_(affine)
            # With a gradient left over from the previous phase, weight decay and momentum would still change them.
            for parameter in module.parameters():
                parameter.grad = None
            module.eval()
            count += 1
    return count


def has_statistics(model: nn.Module) -> bool:
    """Whether any BatchNorm2d has been trained: new ones have a mean of exactly 0 and a variance of exactly 1."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    found = [statistics(norm) for norm in norms]
    return any(bool((mean != 0).any()) or bool((variance != 1).any()) for mean, variance in found)
