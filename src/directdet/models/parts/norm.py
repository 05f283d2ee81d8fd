"""Batch normalisation in the two phases: live while pre-training, fixed while fine-tuning, gone when exported.

And what the paper compares it with: affine parameters that learn over fixed statistics, statistics of all processes
(SyncBN), and group normalisation.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32  # of group normalisation, in the Scratch (GN) baseline


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, or as many as divide a slimmer network's channels."""
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)


def statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Running mean and variance; ValueError for a normalisation that keeps none."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a BatchNorm2d without running statistics can be neither fixed nor folded")
    return norm.running_mean, norm.running_var


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics never change: "Fixed" in Table 2, or "affine" where gamma and beta learn.

    It stays in evaluation mode whatever train() is called with, and conv_norm() folds it into the convolution before
    it as the network runs: no pass over the activations, none of them kept for the backward pass.
    """

    def train(self, mode: bool = True) -> "FixedBatchNorm2d":
        return super().train(False)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """y = scale * x + shift, per channel [C]."""
        mean, variance = statistics(self)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return scale, self.bias - mean * scale


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Convolution, then normalisation; one convolution where the normalisation is fixed."""
    if not isinstance(norm, FixedBatchNorm2d):
        return norm(conv(x))
    scale, shift = norm.scale_and_shift()
    bias = shift if conv.bias is None else conv.bias * scale + shift
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes, and backward that of its gradients."""

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
    """Batch normalisation over the batches of all processes. torch's own runs on GPUs only; this runs on both."""

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        values = x.float()
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        count = torch.full((1,), values.numel() / values.shape[1], device=x.device)
        # One message: a table to which each process adds its row. Sums of squares would do with less, but the square of
        # a large mean can only be subtracted from them at the cost of the variance's digits.
        mine = torch.arange(dist.get_world_size(), device=x.device) == dist.get_rank()
        table = _SumOverProcesses.apply(mine[:, None] * torch.cat([mean, variance, count]))
        means, variances = table[:, :-1].unflatten(1, (2, -1)).unbind(1)  # [processes, C] each
        count = table[:, -1].sum()
        share = table[:, -1:] / count
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean).square())).sum(0)
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
    """Turn every live BatchNorm2d of `model` into a SyncBatchNorm2d, in place; returns how many there are."""
    found = [m for m in model.modules() if type(m) is nn.BatchNorm2d]
    for module in found:
        module.__class__ = SyncBatchNorm2d
    return len(found)


def fix_batch_norm(model: nn.Module, affine: bool = False) -> int:
    """Turn every BatchNorm2d of `model` into a FixedBatchNorm2d, in place; returns how many there are.

    With `affine`, statistics are fixed and the affine parameters go on learning.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # The class is all that differs; the parameters and buffers stay the same objects.
            module.__class__ = FixedBatchNorm2d
            module.requires_grad_(affine)
            # A gradient left from the phase before would still let the optimiser's decay and momentum move them.
            for parameter in module.parameters():
                parameter.grad = None
            module.eval()
            count += 1
    return count


def has_statistics(model: nn.Module) -> bool:
    """Whether some BatchNorm2d has seen data: fresh ones hold mean 0 and variance 1 exactly."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    found = [statistics(norm) for norm in norms]
    return any(bool((mean != 0).any()) or bool((variance != 1).any()) for mean, variance in found)
