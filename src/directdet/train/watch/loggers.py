"""Loggers by name: TensorBoard, Weights & Biases, MLflow, and what a user's file adds.

Each is a callback that passes the numbers on, by the same names: "loss/step", "losses/box", "bbox/AP", "voc/mAP_area".
The file of a user says `add_logger("mine", Mine)`, for `directdet train --code FILE --log mine`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from directdet.common.plugins import load_plugins
from directdet.common.settings import SettingError, nearest
from directdet.infer.runtimes.library import import_library
from directdet.train.log import evaluation_row, step_row
from directdet.train.watch.callbacks import Callback, EvaluationNumbers, Outcome, PhaseEnd, PhaseFacts, StepNumbers

DEFAULT = ("tensorboard",)
NONE = "none"
STATUS: dict[Outcome, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}  # as MLflow calls them


class _Logger(Callback):
    """Passes all numbers of a step or an evaluation to `write`."""

    def write(self, numbers: dict[str, float], step: int) -> None:
        """Pass them on, by name."""
        raise NotImplementedError

    def step(self, numbers: StepNumbers) -> None:
        """Means over the last steps."""
        self.write(dict(_flat("step", step_row(numbers))), numbers.step)

    def evaluation(self, numbers: EvaluationNumbers) -> None:
        """The numbers of COCO and VOC."""
        self.write(dict(_flat("eval", evaluation_row(numbers))), numbers.step)


class TensorBoard(_Logger):
    """Events in RUN/PHASE/tensorboard."""

    def __init__(self) -> None:
        self._writer = _library("torch.utils.tensorboard", "tensorboard").SummaryWriter

    def start(self, phase: PhaseFacts) -> None:
        """Open the file; what was logged after the step that the phase is resumed at is hidden."""
        self._board = self._writer(str(phase.folder / "tensorboard"), purge_step=phase.step + 1)

    def write(self, numbers: dict[str, float], step: int) -> None:
        """One scalar each."""
        for name, number in numbers.items():
            self._board.add_scalar(name, number, step)

    def end(self, phase: PhaseEnd) -> None:
        """Close the file."""
        self._board.close()


class WeightsAndBiases(_Logger):
    """A run for each phase, grouped by the run's folder; WANDB_PROJECT, WANDB_MODE and the like are wandb's own."""

    def __init__(self) -> None:
        self._wandb = _library("wandb", "wandb")

    def start(self, phase: PhaseFacts) -> None:
        """Begin the run, or go on with the one of a phase that is resumed."""
        folder = phase.folder.absolute()
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "directdet"),
            group=folder.parent.name,
            name=f"{folder.parent.name}/{phase.phase}",
            id=_remembered(folder / "wandb.id", phase.step, lambda: uuid.uuid4().hex),
            resume="allow",
            config={"recipe": phase.recipe, **phase.settings},
            dir=str(folder),
        )
        # Over a step of their own: wandb's counter never goes back, and a run that was killed does.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, numbers: dict[str, float], step: int) -> None:
        """One row."""
        self._run.log({"step": step, **numbers})

    def end(self, phase: PhaseEnd) -> None:
        """Upload what is left."""
        self._run.finish(exit_code=0 if phase.outcome == "finished" else 1)


class MLflow(_Logger):
    """A run for each phase; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the like are MLflow's own."""

    def __init__(self) -> None:
        self._mlflow = _library("mlflow", "mlflow")

    def start(self, phase: PhaseFacts) -> None:
        """Begin the run, or go on with the one of a phase that is resumed."""
        path, known = phase.folder / "mlflow.id", ""
        if phase.step and path.is_file():
            known = path.read_text("utf-8").strip()
        name = f"{phase.folder.absolute().parent.name}/{phase.phase}"
        run = self._mlflow.start_run(run_id=known or None, run_name=None if known else name)
        if not known:  # parameters are never changed
            path.write_text(run.info.run_id, "utf-8")
            self._mlflow.log_params({"recipe": phase.recipe, **phase.settings})

    def write(self, numbers: dict[str, float], step: int) -> None:
        """All at one step."""
        self._mlflow.log_metrics(numbers, step=step)

    def end(self, phase: PhaseEnd) -> None:
        """Say how it ended."""
        self._mlflow.end_run(status=STATUS[phase.outcome])


LOGGERS: dict[str, Callable[[], Callback]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def add_logger(name: str, build: Callable[[], Callback]) -> None:
    """Make a callback known as `--log NAME`; `build` is called once for each run.

    Raises:
        SettingError: the name is another one's.
    """
    if name == NONE or LOGGERS.get(name, build) is not build:
        raise SettingError(f"logger {name!r}: is taken; give another name")
    LOGGERS[name] = build


def build_loggers(names: Iterable[str]) -> list[Callback]:
    """The loggers of these names, each once; "none" is none.

    Raises:
        SettingError: an unknown name; the message suggests the nearest.
        MissingLibraryError: the library of one is not installed.
    """
    wanted = [name for name in dict.fromkeys(names) if name != NONE]
    if any(name not in LOGGERS for name in wanted):
        load_plugins()
    for name in wanted:
        if name not in LOGGERS:
            known = (*LOGGERS, NONE)
            names = ", ".join(known)
            raise SettingError(
                f"--log {name}: unknown{nearest(name, known)}; there are {names}, and what --code FILE adds"
            )
    return [LOGGERS[name]() for name in wanted]


def _library(module: str, extra: str) -> Any:
    return import_library(module, f"--log {extra}: {extra}", f"pip install 'directdet[{extra}]', or give --log {NONE}")


def _remembered(path: Path, step: int, new: Callable[[], str]) -> str:
    """The text of the file if the phase goes on at a step, otherwise a new one that is written there."""
    if step and path.is_file():
        return path.read_text("utf-8").strip()
    text = new()
    path.write_text(text, "utf-8")
    return text


def _flat(kind: str, row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number of a row: "losses/box" of a dictionary in it, "loss/step" of a number by itself."""
    for name, value in row.items():
        for key, number in value.items() if isinstance(value, dict) else [(kind, value)]:
            if isinstance(number, (int, float)):
                yield f"{name}/{key}", float(number)
