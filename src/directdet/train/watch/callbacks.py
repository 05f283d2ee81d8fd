"""What watches a run: five calls with plain numbers, which anybody can implement.

A class derives from `Callback` and overrides the calls it wants. It is given to `train(callbacks=[...])`.

The calls get numbers and paths, never the network, so that what watches a run does not change it. They are made in the
main process only, once a step is done or a checkpoint is on the disk. An exception in the first `start` ends the run
before its first step. One in a later call is told in one line, and that callback is not called again; training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from directdet.common.errors import UserError
from directdet.common.terminal import plain, terminal

Outcome = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class PhaseFacts:
    """A phase that is about to train.

    Attributes:
        recipe, phase: their names.
        folder: of the phase.
        steps: at the end of the phase.
        step: where it begins: 0, or where it is resumed.
        steps_per_epoch: of them.
        evaluate_every: steps between evaluations; None if there is none.
        settings: of the phase and of the model ("model.NAME"), and "seed" and "detector"; plain values.
    """

    recipe: str
    phase: str
    folder: Path
    steps: int
    step: int
    steps_per_epoch: int
    evaluate_every: int | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class StepNumbers:
    """Means over the steps since the last call, which is made every tenth step and at the end of a pass.

    Attributes:
        step: the last of them, from 1.
        epoch: the epochs done, with their fraction.
        lr: the learning rate of the step.
        loss: the sum of `losses`, which are by name.
        positives: samples of objects in a batch.
        seconds_per_step, data_seconds: of a step, and how much of it was spent waiting for pictures.
        mask_dropped: positives of a batch that got no mask RoI.
        nms_undecided: boxes of a batch that NMS kept undecided, on a GPU.
        memory_gib: the most that was taken of the GPU's memory; None on a CPU.
    """

    step: int
    epoch: float
    lr: float
    loss: float
    losses: dict[str, float]
    positives: float
    seconds_per_step: float
    data_seconds: float
    mask_dropped: float = 0.0
    nms_undecided: float = 0.0
    memory_gib: float | None = None


@dataclass(frozen=True)
class EvaluationNumbers:
    """An evaluation: shares from 0 to 1, by the names that COCO and VOC give them.

    Attributes:
        step, epoch: how far the phase is.
        bbox: COCO's twelve numbers of the boxes: "AP", "AP50" and so on; -1 where there is nothing to measure.
        segm: those of the masks; None without masks.
        voc: VOC's "mAP_11point" and "mAP_area".
        seconds, images: how long it took, for so many pictures.
        best: whether it is the best of the phase so far, by the phase's `best_by`.
    """

    step: int
    epoch: int
    bbox: dict[str, float]
    segm: dict[str, float] | None
    voc: dict[str, Any]
    seconds: float
    images: int
    best: bool


@dataclass(frozen=True)
class PhaseEnd:
    """How a phase ended: "finished", "stopped" by a signal, or "failed" with an error; after `step` steps."""

    outcome: Outcome
    step: int


class Callback:
    """Does nothing; override what is wanted. A run of two phases makes these calls for each."""

    def start(self, phase: PhaseFacts) -> None:
        """Before the first step of a phase."""

    def step(self, numbers: StepNumbers) -> None:
        """Every tenth step, and at the end of a pass."""

    def evaluation(self, numbers: EvaluationNumbers) -> None:
        """After an evaluation and the checkpoints that follow from it."""

    def checkpoint(self, path: Path, step: int) -> None:
        """A checkpoint (best.pt or last.pt) was written."""

    def end(self, phase: PhaseEnd) -> None:
        """After the last step, a signal or an error."""


class Watchers:
    """The callbacks of a run, called one after the other. None of them ends the run once it has begun."""

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self._callbacks = list(callbacks)
        self._begun = False

    def start(self, phase: PhaseFacts) -> None:
        """See Callback.start.

        Raises:
            UserError: one of them failed, before anything was trained.
        """
        if self._begun:  # the second phase of a long run
            return self._each(lambda callback: callback.start(phase))
        for callback in self._callbacks:
            try:
                callback.start(phase)
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"{_name(callback)}: cannot start: {_words(error)}") from error
        self._begun = True
        return None

    def step(self, numbers: StepNumbers) -> None:
        """See Callback.step."""
        self._each(lambda callback: callback.step(numbers))

    def evaluation(self, numbers: EvaluationNumbers) -> None:
        """See Callback.evaluation."""
        self._each(lambda callback: callback.evaluation(numbers))

    def checkpoint(self, path: Path, step: int) -> None:
        """See Callback.checkpoint."""
        self._each(lambda callback: callback.checkpoint(path, step))

    def end(self, phase: PhaseEnd) -> None:
        """See Callback.end."""
        self._each(lambda callback: callback.end(phase))

    def _each(self, call: Callable[[Callback], None]) -> None:
        for callback in list(self._callbacks):
            try:
                call(callback)
            except Exception as error:
                self._callbacks.remove(callback)
                words = f"warning: {_name(callback)} failed and is left out from here on: {_words(error)}"
                terminal(stderr=True).print(plain(words), soft_wrap=True)


def _name(callback: Callback) -> str:
    return type(callback).__name__


def _words(error: Exception) -> str:
    """The first line of what an error says, and its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:400]}" if lines else type(error).__name__
