"""How long a phase will take, from a few of its steps and pictures, before it is begun."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import torch

from directdet.data.records import Dataset
from directdet.infer.accuracy.evaluate import detect
from directdet.infer.runtimes.torch_runtime import TorchPredictor
from directdet.train import distributed
from directdet.train.loop import Trainer
from directdet.train.step import Batch, is_out_of_memory
from directdet.train.watch.pace import Pace

STEPS = 3  # of which the first is not counted: it starts workers, and on a GPU chooses kernels
PICTURES = 3  # the same


def measured_pace(trainer: Trainer) -> Pace:
    """Make three steps and detect on three pictures; the trainer's network is another one afterwards.

    Untrained networks find more or less than trained ones, and files are read once more later: it is an estimate.

    Raises:
        UserError: memory ran out.
    """
    facts = trainer.facts()
    pace = Pace(facts.steps, facts.evaluate_every)
    try:
        pace.step = _step(trainer)
        if facts.evaluate_every is not None and trainer.val is not None:
            pace.evaluation = _evaluation(trainer, trainer.val) * len(trainer.val) / distributed.world_size()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise trainer.out_of_memory() from error
    return pace


def _step(trainer: Trainer) -> float:
    """Seconds of a step."""
    trainer.model.train()
    groups, seconds = groups_of_batches(trainer), list[float]()
    for _ in range(STEPS):
        begun = time.perf_counter()
        trainer.step(next(groups))
        wait(trainer.device)
        seconds.append(time.perf_counter() - begun)
    return sum(seconds[1:]) / (STEPS - 1)


def groups_of_batches(trainer: Trainer) -> Iterator[list[Batch]]:
    """The batches of one step after the other; a small dataset needs several passes."""
    for number in itertools.count():
        trainer.loader.set_epoch(number, 0)
        batches = iter(trainer.loader)
        while len(group := list(itertools.islice(batches, trainer.accumulate))) == trainer.accumulate:
            yield group


def _evaluation(trainer: Trainer, val: Dataset) -> float:
    """Seconds of a picture."""
    classes, ids = trainer.train.classes, trainer.train.category_ids
    detector = TorchPredictor.from_model(trainer.stepper.deployed, trainer.preprocess, classes, ids, trainer.device)
    seconds = list[float]()
    for record in itertools.islice(itertools.cycle(val.records), PICTURES):
        begun = time.perf_counter()
        list(detect(detector, val, [record]))
        wait(trainer.device)
        seconds.append(time.perf_counter() - begun)
    return sum(seconds[1:]) / (PICTURES - 1)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
