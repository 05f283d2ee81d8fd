"""Optimiser and learning rate of a phase."""

import torch
from torch import nn

from directdet.recipes.recipe import Phase


def learning_rate(phase: Phase, images_per_step: int) -> float:
    """The full learning rate by the linear scaling rule (direct pre-training paper, section 3.4)."""
    return phase.base_lr * images_per_step / phase.base_batch


def factor_at(phase: Phase, step: int, steps_per_epoch: int) -> float:
    """What the full learning rate is multiplied by at `step` (0-based): warm-up, then a drop at every milestone."""
    unit = steps_per_epoch if phase.iterations is None else 1
    factor = phase.gamma ** sum(step >= milestone * unit for milestone in phase.milestones)
    if step < phase.warmup_iterations:
        rise = step / phase.warmup_iterations
        factor *= phase.warmup_factor + (1 - phase.warmup_factor) * rise
    return factor


def build_optimizer(model: nn.Module, phase: Phase, rate: float) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters.

    With norm_weight_decay=False, there is no weight decay on normalisation layers and the position biases of attention;
    with bias_weight_decay=False, there is none on the biases of other layers.
    """
    norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm))
        for p in module.parameters(recurse=False)
    }
    norms |= {id(p) for name, p in model.named_parameters() if name.endswith("relative_position_bias_table")}
    biases = {id(p) for name, p in model.named_parameters() if name.endswith("bias")} - norms
    trainable = [p for p in model.parameters() if p.requires_grad]
    exempt = set() if phase.bias_weight_decay else biases & {id(p) for p in trainable}
    plain = [p for p in trainable if id(p) not in norms | exempt]
    affine = [p for p in trainable if id(p) in norms]
    groups = [{"params": plain, "weight_decay": phase.weight_decay}]
    if affine:
        groups.append({"params": affine, "weight_decay": phase.weight_decay if phase.norm_weight_decay else 0.0})
    if exempt:
        groups.append({"params": [p for p in trainable if id(p) in exempt], "weight_decay": 0.0})
    if phase.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(phase.momentum, 0.999))
    return torch.optim.SGD(groups, lr=rate, momentum=phase.momentum)
