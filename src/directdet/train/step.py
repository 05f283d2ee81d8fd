"""One optimisation step: from batches of the loader to updated weights."""

import contextlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from directdet.infer.preprocess import Preprocess
from directdet.models.build import losses_of
from directdet.models.parts.network import Network
from directdet.models.parts.targets import Targets
from directdet.recipes.recipe import Phase
from directdet.train import distributed
from directdet.train.optim import build_optimizer, factor_at

Batch = tuple[Tensor, dict[str, Tensor]]
Losses = tuple[dict[str, Tensor], dict[str, Tensor]]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def reduced_precision(phase: Phase, device: torch.device) -> torch.dtype | None:
    """The type that autocast computes in, None for float32. On a CPU, fp16 is float32: CPUs gain nothing from it."""
    return None if device.type == "cpu" and phase.precision == "fp16" else AUTOCAST.get(phase.precision)


class Criterion(nn.Module):
    """Network and losses in one forward pass, so that DistributedDataParallel can wrap them.

    forward(images uint8 [N, 3, H, W], Targets) -> (losses by name, counts to watch).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Network, phase: Phase, preprocess: Preprocess):
        super().__init__()
        self.model, self.phase = model, phase
        device = next(model.parameters()).device
        self.register_buffer("mean", torch.tensor(preprocess.mean, device=device), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std, device=device), persistent=False)

    def forward(self, images: Tensor, targets: Targets) -> Losses:
        pixels = normalise(images, targets.sizes, self.mean, self.std)
        if self.phase.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        reduced = reduced_precision(self.phase, images.device)
        with torch.autocast(images.device.type, reduced, enabled=reduced is not None):
            return losses_of(self.model, pixels, targets, distributed.own_keys)


class Stepper:
    """The model of a phase with its optimiser and, for fp16, the scale of the loss.

    Args:
        rate: the full learning rate; the phase's schedule multiplies it.
        seed: with the step's number, what random sampling starts from.
    """

    def __init__(self, model: Network, phase: Phase, preprocess: Preprocess, rate: float, seed: int):
        self.model, self.phase, self.rate, self.seed = model, phase, rate, seed
        self.device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, phase, rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=phase.precision == "fp16")
        self.criterion = distributed.wrap(Criterion(model, phase, preprocess))

    def step(self, batches: Sequence[Batch], number: int, steps_per_epoch: int) -> Losses:
        """Step `number` (0-based) of the phase over the batches that it accumulates.

        Each batch is seeded by its own number, so a run that continues at any step is the same run.

        Returns:
            Losses and counts by name, each the mean over the batches, detached and still on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group.get("rate_factor", 1.0) * factor_at(self.phase, number, steps_per_epoch)
        self.optimizer.zero_grad(set_to_none=True)
        seen: list[Losses] = []
        for index, (images, targets) in enumerate(batches):
            torch.manual_seed(self.seed * 1_000_003 + number * len(batches) + index)
            moved = Targets(**{name: value.to(self.device, non_blocking=True) for name, value in targets.items()})
            with self._unsynchronised(index < len(batches) - 1):
                losses, counts = self.criterion(images.to(self.device, non_blocking=True), moved)
                self.scaler.scale(total(losses.values()) / len(batches)).backward()
            seen.append(
                ({k: v.detach() for k, v in losses.items()}, {k: v.detach().float() for k, v in counts.items()})
            )
        if self.phase.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.phase.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return _means([losses for losses, _ in seen]), _means([counts for _, counts in seen])

    def _unsynchronised(self, wanted: bool) -> contextlib.AbstractContextManager:
        """Gradients are averaged over the processes once per step, not with each of its batches."""
        if wanted and isinstance(self.criterion, nn.parallel.DistributedDataParallel):
            return self.criterion.no_sync()
        return contextlib.nullcontext()

    def state(self) -> dict:
        """What resuming needs in addition to the weights."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict) -> None:
        """Continue from what state() returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state.get("scaler") or {})


def total(values: Iterable[Tensor]) -> Tensor:
    """The sum of the values, of which there is at least one."""
    first, *rest = values
    return sum(rest, start=first)


def _means(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: total(one[name] for one in batches) / len(batches) for name in batches[0]}


def normalise(images: Tensor, sizes: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] -> float32, normalised; 0 outside each image (sizes [N, 2]), as Preprocess pads."""
    rows = torch.arange(images.shape[2], device=images.device) < sizes[:, 0:1]  # [N, H]
    columns = torch.arange(images.shape[3], device=images.device) < sizes[:, 1:2]
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, (images - mean.view(3, 1, 1)) / std.view(3, 1, 1), 0.0)
