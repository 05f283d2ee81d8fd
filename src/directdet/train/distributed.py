"""Training in several processes, one per GPU, as `torchrun` starts them; with one process, nothing here acts."""

import contextlib
import datetime
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.nn.parallel import DistributedDataParallel

from directdet.common.errors import UserError

TIMEOUT = datetime.timedelta(minutes=30)  # one process evaluates or reads while the others wait


def start(device: torch.device, store: Store | None = None) -> torch.device:
    """Join the other processes that torchrun started, if any, and return the device of this one.

    Args:
        store: through which the processes have met (`agreement`); None meets them here.

    Raises:
        UserError: there are more processes than GPUs.
    """
    if launched() == 1:
        if device.index is not None:
            torch.cuda.set_device(device)
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"torchrun: process {device.index + 1} of this machine has no GPU, since torch sees only "
                f"{torch.cuda.device_count()}; give that number to --nproc-per-node"
            )
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if store is None:
            dist.init_process_group(backend, timeout=TIMEOUT)
        else:
            number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            dist.init_process_group(backend, store=store, timeout=TIMEOUT, rank=number, world_size=count)
    return device


@contextlib.contextmanager
def told_of_loss(out: Path) -> Iterator[None]:
    """UserError where another process ended without a word, instead of what the connection to it says."""
    try:
        yield
    except RuntimeError as error:
        words = ("gloo", "Connection closed by peer")
        lost = isinstance(error, dist.DistError) or any(word in str(error) for word in words)
        if not lost or int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        raise UserError(
            f"{out}: another process of this run ended; see its own error, and go on with --resume"
        ) from error


def stop() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launched() -> int:
    """The number of processes that torchrun started, known before they have joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def wrap(module: nn.Module, unused: bool = False) -> nn.Module:
    """The module with gradients averaged over all processes; each process keeps its own buffers, as in mmdet.

    Args:
        unused: there may be parameters that no loss depends on.
    """
    if world_size() == 1:
        return module
    device = next(module.parameters()).device
    devices = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():  # newer releases of torch have another name for it, older ones do not yet
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            module, device_ids=devices, broadcast_buffers=False, find_unused_parameters=unused
        )


def mean(values: Tensor) -> Tensor:
    """`values`, averaged over all processes."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process; waits for all processes."""
    return flag if world_size() == 1 else bool(mean(torch.tensor(float(flag), device=device)) > 0)


def gather(value: Any) -> list[Any]:
    """In the main process, the values of all processes in order; an empty list in the others."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size() if is_main() else []
    dist.gather_object(value, values if is_main() else None)
    return values


def from_main(value: Any) -> Any:
    """The value of the main process, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def share_buffers(model: nn.Module) -> None:
    """Copy the main process's buffers, i.e. the statistics of batch normalisation, to all processes."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def own_keys(shape: torch.Size, device: torch.device) -> Tensor:
    """Uniform keys for random sampling (see models.parts.targets): this process's rows of what one process would draw.

    All processes use the same seed, so that sampling does not depend on how a batch is spread over them.
    """
    count = shape[0]
    keys = torch.rand((count * world_size(), *shape[1:]), device=device)
    return keys[rank() * count : (rank() + 1) * count]
