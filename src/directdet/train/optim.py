"""Optimiser and learning rate of a phase."""

import math

import torch
from torch import nn

from directdet.models.parts.network import Network
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


def build_optimizer(model: Network, phase: Phase, rate: float) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters.

    The groups are: weights; normalisation layers and the position biases of attention; those of the box head, if they
    have a weight decay of their own; biases, if they have a rate or a weight decay of their own. A group's
    "rate_factor" is what its learning rate is multiplied by.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    kinds = {id(p): "norm" for name, p in model.named_parameters() if name.endswith("relative_position_bias_table")}
    own_biases = phase.bias_rate != 1 or not phase.bias_weight_decay
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
            for p in module.parameters(recurse=False):
                box = not phase.head_norm_weight_decay and model.part_of(names[id(p)]) == "box"
                kinds[id(p)] = "box norm" if box else "norm"
        elif own_biases and isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and module.bias is not None:
            kinds[id(module.bias)] = "bias"
    settings = {
        "plain": (phase.weight_decay, 1.0),
        "norm": (phase.weight_decay if phase.norm_weight_decay else 0.0, 1.0),
        "box norm": (0.0, 1.0),
        "bias": (phase.weight_decay if phase.bias_weight_decay else 0.0, phase.bias_rate),
    }
    groups = []
    for kind, (decay, factor) in settings.items():
        own = [p for p in model.parameters() if p.requires_grad and kinds.get(id(p), "plain") == kind]
        if own or kind == "plain":
            groups.append({"params": own, "lr": rate * factor, "weight_decay": decay, "rate_factor": factor})
    if phase.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(phase.momentum, 0.999))
    return torch.optim.SGD(groups, lr=rate, momentum=phase.momentum)
