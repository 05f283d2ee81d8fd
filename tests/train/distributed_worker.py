"""The processes of tests of several: those that wait for calls (Team), and as a script what torchrun starts."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from directdet.common.errors import Stopped
from directdet.front.cli import main
from directdet.models.parts.norm import sync_batch_norm
from directdet.recipes.recipe import Recipe
from directdet.train import distributed, loop
from directdet.train.interrupt import Interrupt
from directdet.train.loop import Trainer
from directdet.train.run import train

# Of the demo recipe: a step takes a fraction of a second. Group normalisation, as each picture has its own statistics.
SETTINGS = (
    "model.norm=gn",
    "model.width=8",
    "model.fpn_channels=16",
    "model.box_convs=1",
    "model.box_features=16",
    "model.mask_convs=1",
    "model.mask_channels=8",
    "model.train_pre_nms=64",
    "model.train_proposals=32",
    "model.test_pre_nms=64",
    "model.test_proposals=32",
    "model.rpn_samples=32",
    "model.roi_samples=16",
    "model.mask_slots=8",
    "model.candidates=64",
    "size=64",
    "eval_size=64",
    "eval_every=0",
    "batch_size=2",
    "epochs=3",
    "base_lr=0.1",
    "warmup_iterations=2",
    "workers=0",
    "precision=fp32",
)
PATIENCE = 300.0  # seconds: far more than anything here takes, so that a hang ends as a failure


class Team:
    """Processes with the environment that torchrun would give them. They import torch once, for many calls."""

    def __init__(self, count: int = 2) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(count)]
        self._ends = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(theirs, rank, count), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()

    def __call__(self, function: Callable, *arguments: Any) -> list:
        """function(*arguments) in all processes at once; its results, in order of the ranks."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for end in self._ends:
            end.send((port, function, arguments))
        answers = []
        for rank, end in enumerate(self._ends):
            if not end.poll(PATIENCE):
                self.close()  # what they might answer later would be taken for answers to other calls
                raise TimeoutError(f"rank {rank} did not answer within {PATIENCE:.0f} s")
            answers.append(end.recv())
        failures = [f"rank {rank}:\n{text}" for rank, (failed, text) in enumerate(answers) if failed]
        if failures:
            raise RuntimeError("\n".join(failures))
        return [value for _, value in answers]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(end: Connection, rank: int, count: int) -> None:
    torch.set_num_threads(1)
    while True:
        port, function, arguments = end.recv()
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        try:
            end.send((False, function(*arguments)))
        except BaseException:
            distributed.stop()  # so that the others do not wait for this one
            end.send((True, traceback.format_exc()))


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """All of training in float64.

    In float32 the order of a sum decides, within some steps, which of two proposals comes first, and from there on two
    runs that mean the same go different ways. Here equal runs stay equal to many digits.
    """
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(Tensor, "float", Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def train_watched(recipe: Recipe, data: Path, out: Path, options: dict) -> dict:
    """train() of the pretrain phase: this process's own losses of every step, and what the run returned."""
    losses, step = [], Trainer.step

    def watched(self: Trainer, batches: list) -> tuple:
        result = step(self, batches)
        losses.append({name: float(value) for name, value in result[0].items()})
        return result

    with patch.object(Trainer, "step", watched):
        result = train(recipe, data, out, phase="pretrain", device="cpu", **options)
    return {"losses": losses, "phases": result.phases}


def train_double(recipe: Recipe, data: Path, out: Path, phase: str = "pretrain") -> None:
    """train() of a phase in double precision."""
    with double_precision():
        train(recipe, data, out, phase=phase, device="cpu")


def train_interrupted(recipe: Recipe, data: Path, out: Path, rank: int, at: int, log_every: int) -> int:
    """Train with Ctrl-C in process `rank` alone, in the step after `at`; how many steps this process made."""
    made, step = [], Trainer.step

    def interrupted(self: Trainer, batches: list) -> tuple:
        if self.position.step == at and distributed.rank() == rank:
            os.kill(os.getpid(), signal.SIGINT)
        made.append(self.position.step)
        return step(self, batches)

    try:
        with patch.object(Trainer, "step", interrupted), patch.object(loop, "LOG_EVERY", log_every):
            train(recipe, data, out, phase="pretrain", device="cpu")
    except KeyboardInterrupt:
        distributed.stop()
        return len(made)
    raise AssertionError("was not interrupted")


def train_interrupted_saving(recipe: Recipe, data: Path, out: Path, rank: int, at: int) -> int:
    """Train with SIGTERM in process `rank` alone, as step `at` is saved; how many steps this process made."""
    made, step, save = [], Trainer.step, Trainer.save

    def counted(self: Trainer, batches: list) -> tuple:
        made.append(self.position.step)
        return step(self, batches)

    def interrupted(self: Trainer, name: str) -> None:
        if self.position.step == at and distributed.rank() == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        save(self, name)

    with patch.object(Trainer, "step", counted), patch.object(Trainer, "save", interrupted):
        try:
            train(recipe, data, out, phase="pretrain", device="cpu")
        except Stopped:
            distributed.stop()
            return len(made)
    raise AssertionError("was not interrupted")


def train_evaluated(recipe: Recipe, data: Path, out: Path) -> dict:
    """Train, and watch the evaluation: this process's pictures, and its buffers before and after they were shared."""
    seen: dict[str, list] = {"pictures": [], "before": [], "after": []}
    detect, share = loop.detect, distributed.share_buffers

    def watched_detect(detector: Any, dataset: Any, records: Any) -> list:
        seen["pictures"] += [record.image_id for record in records]
        return detect(detector, dataset, records)

    def watched_share(model: nn.Module) -> None:
        seen["before"].append([buffer.clone().numpy() for buffer in model.buffers()])
        share(model)
        seen["after"].append([buffer.clone().numpy() for buffer in model.buffers()])

    with patch.object(loop, "detect", watched_detect), patch.object(distributed, "share_buffers", watched_share):
        train(recipe, data, out, phase="pretrain", device="cpu")
    return seen


def gradient_messages(recipe: Recipe, data: Path, out: Path) -> int:
    """Train; how many buckets of gradients went to the other process."""
    sent, wrap = [], distributed.wrap

    def counting(module: nn.Module, unused: bool) -> nn.Module:
        wrapped = wrap(module, unused)
        wrapped.register_comm_hook(None, lambda _, bucket: (sent.append(1), allreduce_hook(None, bucket))[1])
        return wrapped

    with patch.object(distributed, "wrap", counting):
        train(recipe, data, out, phase="pretrain", device="cpu")
    return len(sent)


def synchronised_norm(state: dict, shares: list[Tensor], gradients: list[Tensor]) -> dict[str, Any]:
    """A synchronised batch normalisation of this process's share, forward and backward, as arrays."""
    distributed.start(torch.device("cpu"))
    try:
        norm = nn.Sequential(nn.BatchNorm2d(shares[0].shape[1]))
        norm.load_state_dict(state)
        assert sync_batch_norm(norm) == 1
        x = shares[distributed.rank()].requires_grad_()
        y = norm.train()(x)
        y.backward(gradients[distributed.rank()])
        values = {"y": y, "x": x.grad, "weight": norm[0].weight.grad, "bias": norm[0].bias.grad}
        return {name: value.detach().numpy() for name, value in (values | dict(norm[0].named_buffers())).items()}
    finally:
        distributed.stop()


def script(fault: str, at: str, folder: str, *arguments: str) -> int:
    """`directdet` with a fault in the step after `at`: "die" ends rank 1, "wait" waits for Ctrl-C.

    In `folder` a process that waits has made a file "waits", and each keeps one "steps" with how many it made; to both
    names the rank is added.
    """
    step, handle, came = Trainer.step, Interrupt._handle, threading.Event()

    def noted(self: Any, *arguments: Any) -> None:
        came.set()
        handle(self, *arguments)

    def faulty(self: Trainer, batches: list) -> tuple:
        rank = distributed.rank()
        if self.position.step == int(at):
            if fault == "die" and rank == 1:
                os._exit(9)
            if fault == "wait":
                (Path(folder) / f"waits{rank}").touch()
                limit = time.monotonic() + PATIENCE
                while not came.is_set() and time.monotonic() < limit:
                    time.sleep(0.05)
        result = step(self, batches)
        (Path(folder) / f"steps{rank}").write_text(str(self.position.step + 1))
        return result

    handler = patch.object(Interrupt, "_handle", noted)
    with patch.object(Trainer, "step", faulty), patch.object(loop, "LOG_EVERY", 5), handler:
        return main(arguments)


if __name__ == "__main__":
    sys.exit(script(*sys.argv[1:]))
