"""Precise batch normalisation: statistics measured over many images, at the size at which they are then fixed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from directdet.data.records import Dataset
from directdet.models.parts.network import Network
from directdet.models.parts.norm import FixedBatchNorm2d, statistics
from directdet.models.parts.targets import Targets
from directdet.recipes.recipe import Phase
from directdet.train import distributed
from directdet.train.data import make_phase_loader, phase_preprocess
from directdet.train.step import Criterion


@torch.no_grad()
def estimate_statistics(model: Network, phase: Phase, dataset: Dataset, seed: int) -> int:
    """Replace the running statistics of live batch normalisation by those over `phase.precise_bn` training images.

    The images are the phase's own, augmented, in its batches; while they are measured, every layer normalises with its
    batch. Mean and variance are those of all values together (arXiv 2105.07576, section 3.3), where a moving average
    forgets all but the last batches, and has those of another phase's size.

    Args:
        model: on the device that is trained on; left in training mode.
        seed: of the order of the images and of random sampling.

    Returns:
        How many images were taken: whole batches, so perhaps a few more.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and not isinstance(m, FixedBatchNorm2d)]
    device = next(model.parameters()).device
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64, device=device) for norm in norms}
    criterion = Criterion(model, phase, phase_preprocess(phase, dataset.pixels))
    # A map of a single cell has no variance in a single image.
    loader = make_phase_loader(
        replace(phase, batch_size=max(phase.batch_size, model.fewest_live_images)),
        dataset,
        model.config.masks,
        seed,
        device.type == "cuda",
    )
    model.train()
    hooks = [norm.register_forward_pre_hook(partial(_add, sums[norm])) for norm in norms]
    taken = epoch = 0
    try:
        while taken < phase.precise_bn:
            loader.set_epoch(epoch)
            epoch += 1
            for images, targets in loader:
                torch.manual_seed(seed * 1_000_003 + taken)
                moved = Targets(**{name: value.to(device, non_blocking=True) for name, value in targets.items()})
                criterion(images.to(device, non_blocking=True), moved)
                taken += len(images) * distributed.world_size()
                if taken >= phase.precise_bn:
                    break
    finally:
        loader.close()
        for hook in hooks:
            hook.remove()
    for norm in norms:
        _replace(norm, distributed.mean(sums[norm]) * distributed.world_size())
    return taken


def _add(sums: Tensor, _: nn.Module, inputs: tuple[Tensor]) -> None:
    """Add the number of values in a batch, their sum and the sum of their squares, by channel, to `sums` [3, C]."""
    values = inputs[0].float()
    variance, mean = (one.double() for one in torch.var_mean(values, (0, 2, 3), correction=0))
    count = values.numel() // values.shape[1]
    sums += torch.stack([torch.full_like(mean, count), mean * count, (variance + mean.square()) * count])


def _replace(norm: nn.BatchNorm2d, sums: Tensor) -> None:
    count, total, squares = sums
    if not count[0]:  # a layer that the images did not pass through keeps what it has
        return
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0) * count / (count - 1).clamp(min=1)
    running_mean, running_var = statistics(norm)
    running_mean.copy_(mean)
    running_var.copy_(variance)
