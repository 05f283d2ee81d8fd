"""Whether a checkpoint is one that a phase can go on from, as the same run, and whether it can be made longer.

A phase can be made longer where the run is then what it would have been if it had been started so long: where every
step so far has had the rate that it would have had. With drops at milestones that is so in any case, as long as those
that have passed stay; with a cosine, which is stretched over the whole length, only before it has begun to fall.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from directdet.common.errors import UserError
from directdet.recipes.recipe import Phase
from directdet.train.optim import factor_at

LENGTH = ("epochs", "iterations", "max_steps", "milestones")  # settings that may differ when a phase goes on


@dataclass(frozen=True)
class Course:
    """What has to be the same, so that a phase goes on as the run that it was.

    Attributes:
        phase: its name.
        steps: at its end.
        seed: of the run.
        images_per_step: on all devices together.
        model: the network's description.
    """

    phase: str
    steps: int
    seed: int
    images_per_step: int
    model: dict[str, Any]


def check_continues(path: Path, checkpoint: dict[str, Any], course: Course) -> None:
    """Nothing, if the checkpoint in `path` is one of this course.

    Raises:
        UserError: it is of another phase, network or schedule.
    """
    if checkpoint.get("phase") != course.phase or "optimizer" not in checkpoint:
        raise UserError(f"{path}: is of the phase {checkpoint.get('phase')!r}, not {course.phase!r}")
    before = tuple(checkpoint.get(key) for key in ("steps", "seed", "images_per_step"))
    if before != (course.steps, course.seed, course.images_per_step):
        raise UserError(
            f"{path}: was trained for {before[0]} steps of {before[2]} images with seed {before[1]}, but these "
            f"settings make {course.steps} steps of {course.images_per_step} images with seed {course.seed}; resume "
            "with the same settings, data and number of processes"
        )
    if course.model != checkpoint["model_config"]:
        raise UserError(f"{path}: holds another network; resume with the same settings")


def is_longer(before: Phase, now: Phase) -> bool:
    """Whether a phase is to be of another length, or to have its drops elsewhere."""
    return any(getattr(before, name) != getattr(now, name) for name in LENGTH)


def check_longer(before: Phase, now: Phase, step: int, steps_per_epoch: int) -> None:
    """Nothing, if a phase of which `step` steps are done can go on as `now`.

    Raises:
        UserError: it is shorter, or its steps so far would have had another learning rate.
    """
    for name in LENGTH[:3]:
        had, has = getattr(before, name), getattr(now, name)
        if has is not None and (had is None or has < had):
            raise UserError(f"{now.name}.{name}: was {had}, now {has}; a phase that has begun can only be made longer")
    if all(factor_at(before, one, steps_per_epoch) == factor_at(now, one, steps_per_epoch) for one in range(step)):
        return
    if now.schedule == "steps":
        had, has = (", ".join(map(str, phase.milestones)) for phase in (before, now))
        raise UserError(
            f"{now.name}.milestones: were {had}, now {has}, but steps that are done would have had another rate; leave "
            "them as they were, with --resume RUN alone"
        )
    raise UserError(
        f"{now.name}.schedule: {now.schedule} has been falling towards the end of {_length(before)} since before step "
        f"{step}; over {_length(now)} the steps so far would have had another rate; start a new run from this one: "
        "--init RUN --out OTHER"
    )


def _length(phase: Phase) -> str:
    return f"{phase.epochs} epochs" if phase.iterations is None else f"{phase.iterations} steps"


def describe_longer(before: Phase, now: Phase) -> str:
    """What is longer, in words."""
    names = [name for name in LENGTH if getattr(before, name) != getattr(now, name)]
    return ", ".join(
        f"{name} {_shown(getattr(now, name))} instead of {_shown(getattr(before, name))}" for name in names
    )


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
