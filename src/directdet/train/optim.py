"""Optimiser and learning rate of a phase."""

import math

import torch
from torch import nn

from directdet.recipes.recipe import Phase


def learning_rate(phase: Phase, images_per_step: int) -> float:
    """The full learning rate by the linear scaling rule (direct pre-training paper, section 3.4)."""
    return phase.base_lr * images_per_step / phase.base_batch


def factor_at(phase: Phase, step: int, steps_per_epoch: int) -> float:
    """What the full learning rate is multiplied by at `step` (0-based): linear warm-up times the phase's schedule."""
    factor = (
        _steps(phase, step, steps_per_epoch) if phase.schedule == "steps" else _cosine(phase, step, steps_per_epoch)
    )
    if step < phase.warmup_iterations:
        rise = step / phase.warmup_iterations
        factor *= phase.warmup_factor + (1 - phase.warmup_factor) * rise
    return factor


def _steps(phase: Phase, step: int, steps_per_epoch: int) -> float:
    """A drop at every milestone."""
    unit = steps_per_epoch if phase.iterations is None else 1
    return phase.gamma ** sum(step >= milestone * unit for milestone in phase.milestones)


def _cosine(phase: Phase, step: int, steps_per_epoch: int) -> float:
    """Half a cosine from 1 to the final rate at the end of the phase; it begins after the warm-up, or half way."""
    whole = phase.iterations or steps_per_epoch * phase.epochs
    begin = whole // 2 if phase.schedule == "flat-cosine" else 0
    begin = min(max(begin, phase.warmup_iterations), whole)
    if step <= begin:
        return 1.0
    share = min(1.0, (step - begin) / (whole - begin)) if whole > begin else 1.0
    return phase.final_lr + (1 - phase.final_lr) * (1 + math.cos(math.pi * share)) / 2


def build_optimizer(model: nn.Module, phase: Phase, rate: float) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters.

    With norm_weight_decay=False, there is no weight decay on normalisation layers and the position biases of attention;
    with bias_weight_decay=False, none on the biases of the other layers.
    """
    norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm))
        for p in module.parameters(recurse=False)
    }
    norms |= {id(p) for name, p in model.named_parameters() if name.endswith("relative_position_bias_table")}
    biases = {id(p) for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"} - norms
    if phase.bias_weight_decay:
        biases = set()
    trainable = [p for p in model.parameters() if p.requires_grad]
    decay = phase.weight_decay
    groups = [{"params": [p for p in trainable if id(p) not in norms | biases], "weight_decay": decay}]
    if affine := [p for p in trainable if id(p) in norms]:
        groups.append({"params": affine, "weight_decay": decay if phase.norm_weight_decay else 0.0})
    if shifts := [p for p in trainable if id(p) in biases]:
        groups.append({"params": shifts, "weight_decay": 0.0})
    if phase.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(phase.momentum, 0.999))
    return torch.optim.SGD(groups, lr=rate, momentum=phase.momentum)
