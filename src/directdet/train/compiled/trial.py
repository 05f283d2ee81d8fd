"""Whether a phase trains compiled: only where a trial of its first steps finds the same losses in less time."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from directdet.train import distributed
from directdet.train.loop import Trainer
from directdet.train.measuring import groups_of_batches, wait
from directdet.train.step import Batch

STEPS = 20  # of each form, from the same weights
GROUPS = 4  # of batches, which the steps take in turn; kept in memory
TIMED = 8  # of the steps, the last ones: the first compile
DIFFERENCE = {"fp32": 0.01, "bf16": 0.05, "fp16": 0.05}  # of the loss of a step at most, as a share of eager's


@dataclass(frozen=True)
class Verdict:
    """What the trial found.

    Attributes:
        compiled: whether to train compiled.
        words: what it measured, or why the phase cannot be compiled.
    """

    compiled: bool
    words: str


def choose_form(trainer: Trainer) -> Verdict:
    """Try both forms; the trainer then has the better one, and the weights and the optimiser that it had before.

    Compiling rounds otherwise (it fuses operations), so the losses of two runs part slowly; hence a tolerance, and only
    the first steps are compared.
    """
    reason = _not_compiled(trainer)
    if reason is not None:
        return Verdict(False, reason)
    stepper = trainer.stepper
    before = copy.deepcopy(stepper.state())
    groups = list(itertools.islice(groups_of_batches(trainer), GROUPS))
    try:
        eager, eager_seconds = _steps(trainer, groups)
        stepper.load_state(before)
        stepper.compile()
        found, seconds = _steps(trainer, groups)
        verdict = _verdict(trainer.phase.precision, (eager, found), eager_seconds / seconds)
    except Exception as error:  # a compiler may raise anything, and eager training does without it
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        verdict = Verdict(False, f"it failed: {first[:200]}")
    verdict = distributed.from_main(verdict)
    if not verdict.compiled:
        stepper.compile(False)
    stepper.load_state(before)
    return verdict


def _not_compiled(trainer: Trainer) -> str | None:
    """Why a phase stays eager without a trial."""
    if trainer.phase.resize == "edges":
        return "resize=edges has batches of many shapes, and each would be compiled anew"
    if trainer.accumulate > 1:
        return f"a step accumulates {trainer.accumulate} batches, whose losses share their counts outside the graph"
    return None


def _steps(trainer: Trainer, groups: Sequence[list[Batch]]) -> tuple[list[float], float]:
    """The loss of each step, and the median seconds of the last ones."""
    trainer.model.train()
    losses, seconds = list[float](), list[float]()
    for number in range(STEPS):
        started = time.perf_counter()
        found, _ = trainer.stepper.step(groups[number % len(groups)], number, trainer.steps_per_epoch)
        wait(trainer.device)
        seconds.append(time.perf_counter() - started)
        losses.append(float(torch.stack([*found.values()]).sum()))
    return losses, statistics.median(seconds[-TIMED:])


def _verdict(precision: str, losses: tuple[list[float], list[float]], faster: float) -> Verdict:
    """From the losses of eager and compiled steps, and how many times as fast the compiled ones are."""
    apart = max(abs(ours - eager) / abs(eager) for eager, ours in zip(*losses, strict=True))
    same = apart <= DIFFERENCE[precision]  # not if it is NaN
    words = f"{faster:.2f} times as fast in {STEPS} steps each, the losses within {100 * apart:.2g} % of eager's"
    return Verdict(same and faster > 1, words if same else f"{words}: more than {100 * DIFFERENCE[precision]:g} %")
