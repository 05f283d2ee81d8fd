"""Whether a checkpoint is one that a phase can go on from, as the same run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from directdet.common.errors import UserError


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
