"""One optimisation step: from batches of the loader to updated weights."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from directdet.infer.preprocess import Preprocess
from directdet.models.build import losses_of
from directdet.models.parts.network import Network
from directdet.models.parts.targets import Targets, note_counts, whole_step_counts
from directdet.recipes.recipe import Phase
from directdet.train import distributed
from directdet.train.averages.weights import WeightAverage
from directdet.train.optim import build_optimizer, factor_at

Batch = tuple[Tensor, dict[str, Tensor]]
Losses = tuple[dict[str, Tensor], dict[str, Tensor]]
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def reduced_precision(model: Network, phase: Phase, device: torch.device, width: int) -> torch.dtype | None:
    """The type that autocast computes in on canvases of that width in pixels, None for float32.

    On a CPU, fp16 is float32: CPUs gain nothing from it. So is bf16 where a strided convolution takes a map one pixel
    wide: of the weights that meet no pixel there, oneDNN leaves the gradients as it finds the memory, instead of 0
    (PyTorch 2.14).
    """
    if device.type == "cpu" and (phase.precision == "fp16" or width <= model.narrowest):
        return None
    return AUTOCAST[phase.precision]


class Criterion(nn.Module):
    """Network and losses in one forward pass, so that DistributedDataParallel can wrap them.

    forward(images [N, C, H, W] as the loader has them, Targets) -> (losses by name, counts to watch).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Network, phase: Phase, preprocess: Preprocess):
        super().__init__()
        self.model, self.phase = model, phase
        device = next(model.parameters()).device
        self.register_buffer("mean", torch.tensor(preprocess.mean, device=device), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std, device=device), persistent=False)
        self.compute: Callable[[Tensor, Targets], Losses] = self.eager

    def forward(self, images: Tensor, targets: Targets) -> Losses:
        return self.compute(images, targets)

    def eager(self, images: Tensor, targets: Targets) -> Losses:
        """What `compute` may be a compiled form of."""
        pixels = normalise(images, targets.sizes, self.mean, self.std)
        if self.phase.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        reduced = reduced_precision(self.model, self.phase, images.device, images.shape[-1])
        with torch.autocast(images.device.type, reduced, enabled=reduced is not None):
            return losses_of(self.model, pixels, targets, distributed.own_keys)


class Stepper:
    """The model of a phase with its optimiser, the average of its weights and, for fp16, the scale of the loss.

    Args:
        rate: the full learning rate; the phase's schedule multiplies it.
        seed: with the step's number, what random sampling starts from.
    """

    unused = False  # whether there may be parameters that no loss depends on
    shares_counts = True  # whether the losses of a step's batches are divided by the counts of all

    def __init__(self, model: Network, phase: Phase, preprocess: Preprocess, rate: float, seed: int):
        self.model, self.phase, self.rate, self.seed = model, phase, rate, seed
        self.device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, phase, rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=phase.precision == "fp16")
        self.average = None if phase.ema is None else WeightAverage(model, phase.ema, phase.ema_warmup)
        self._own = Criterion(model, phase, preprocess)
        self.criterion = distributed.wrap(self._own, self.unused)
        self.compiled = False

    def compile(self, wanted: bool = True) -> None:
        """Compute network and losses as one graph from now on, made once for each shape of a batch; or eagerly again.

        Random numbers are those of eager PyTorch, so that sampling is the same.
        """
        self.compiled, eager = wanted, self._own.eager
        options: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True}
        self._own.compute = torch.compile(eager, fullgraph=True, dynamic=False, options=options) if wanted else eager

    @property
    def deployed(self) -> Network:
        """What is evaluated and exported: the average of the weights if the phase keeps one."""
        return self.model if self.average is None else self.average.model

    def step(self, batches: Sequence[Batch], number: int, steps_per_epoch: int) -> Losses:
        """Step `number` (0-based) of the phase over the batches that it accumulates.

        Each batch is seeded by its own number, so a run that continues at any step is the same run. The losses of all
        batches are divided by the counts of the whole step, as they are over several processes.

        Returns:
            Losses and counts by name, each the mean over the batches, detached and still on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group.get("rate_factor", 1.0) * factor_at(self.phase, number, steps_per_epoch)
        self.optimizer.zero_grad(set_to_none=True)
        seen: list[Losses] = []
        divisors = self._whole_step(batches, number) if self.shares_counts and len(batches) > 1 else None
        for index, batch in enumerate(batches):
            whole = contextlib.nullcontext() if divisors is None else whole_step_counts(divisors)
            with self._unsynchronised(index < len(batches) - 1), whole:
                losses, counts = self._losses(batch, number * len(batches) + index)
                self.scaler.scale(total(losses.values()) / len(batches)).backward()
            seen.append(
                ({k: v.detach() for k, v in losses.items()}, {k: v.detach().float() for k, v in counts.items()})
            )
        if self.phase.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.phase.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(number + 1)
        return _means([losses for losses, _ in seen]), _means([counts for _, counts in seen])

    def _losses(self, batch: Batch, number: int) -> Losses:
        """The losses and counts of a batch, seeded by its number."""
        torch.manual_seed(self.seed * 1_000_003 + number)
        images, targets = batch
        if self.compiled:
            targets = with_fixed_rows(targets)
        moved = Targets(**{name: value.to(self.device, non_blocking=True) for name, value in targets.items()})
        return self.criterion(images.to(self.device, non_blocking=True), moved)

    @torch.no_grad()
    def _whole_step(self, batches: Sequence[Batch], number: int) -> list[Tensor]:
        """The counts that the losses of a step are divided by: the mean of its batches, of each at least one in all.

        The samples that are counted depend on the network, so this takes a forward pass of every batch.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        rows = []
        for index, batch in enumerate(batches):
            with note_counts() as counts:
                self._losses(batch, number * len(batches) + index)
            rows.append(torch.stack(counts))
        for buffer, before in buffers:  # the statistics of batch normalisation see each batch once
            buffer.copy_(before)
        least = 1 / (len(batches) * distributed.world_size())
        return list(torch.stack(rows).mean(0).clamp(min=least))

    def _unsynchronised(self, wanted: bool) -> contextlib.AbstractContextManager:
        """Gradients are averaged over the processes once per step, not with each of its batches."""
        if wanted and isinstance(self.criterion, nn.parallel.DistributedDataParallel):
            return self.criterion.no_sync()
        return contextlib.nullcontext()

    def state(self) -> dict:
        """What a checkpoint keeps: "model" is deployed; where that is an average, "raw_model" is in training."""
        state = {"model": _weights(self.deployed)}
        if self.average is not None:
            state["raw_model"] = _weights(self.model)
        return {**state, "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict) -> None:
        """Continue from what state() returned."""
        self.deployed.load_state_dict(state["model"])
        if self.average is not None:
            self.model.load_state_dict(state["raw_model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state.get("scaler") or {})


def _weights(model: Network) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in model.state_dict().items()}


def total(values: Iterable[Tensor]) -> Tensor:
    """The sum of the values, of which there is at least one."""
    first, *rest = values
    return sum(rest, start=first)


def _means(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: total(one[name] for one in batches) / len(batches) for name in batches[0]}


def with_fixed_rows(targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Targets with 8, 16, 32, ... rows of objects, the further ones padding, so that few graphs serve all batches."""
    rows = targets["valid"].shape[1]
    wanted = max(8, 1 << (rows - 1).bit_length())
    of_images = ("sizes", "padded")
    return {name: value if name in of_images else _padded_rows(value, wanted - rows) for name, value in targets.items()}


def _padded_rows(value: Tensor, rows: int) -> Tensor:
    """[N, G, ...] -> [N, G + rows, ...], zeros behind."""
    return torch.cat([value, value.new_zeros(value.shape[0], rows, *value.shape[2:])], dim=1)


def normalise(images: Tensor, sizes: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 or float32 [N, C, H, W] -> float32, normalised; 0 outside each image (sizes [N, 2]), as Preprocess pads."""
    rows = torch.arange(images.shape[2], device=images.device) < sizes[:, 0:1]  # [N, H]
    columns = torch.arange(images.shape[3], device=images.device) < sizes[:, 1:2]
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), 0.0)


def is_out_of_memory(error: Exception) -> bool:
    """On a CPU torch raises a RuntimeError that only its text tells apart."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error) or "CUDA out of memory" in str(error)
