"""Settings of a phase that follow from its others unless they are given, and pairs of settings that contradict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from directdet.common.settings import SettingError

if TYPE_CHECKING:
    from directdet.recipes.recipe import Phase


def accumulated(phase: Phase, devices: int) -> int:
    """Forward passes per step of each of `devices`.

    With fixed_batch as many as make up the step's images; batch normalisation sees batch_size images in any case.

    Raises:
        SettingError: so many devices cannot share the images of a fixed step; says how many can.
    """
    if not phase.fixed_batch:
        return phase.accumulate or 1
    times, rest = divmod(phase.base_batch, phase.batch_size * devices)
    if rest or not times:
        raise SettingError(
            f"{phase.name}: a step takes {phase.base_batch} images, which {devices} processes with {phase.batch_size} "
            f"images each cannot share; start {_words(possible_devices(phase))} (torchrun --nproc-per-node)"
            f"{_smaller_batch(phase, devices)}"
        )
    if phase.accumulate not in (None, times):
        many = f"{devices} processes of " if devices > 1 else ""
        raise SettingError(
            f"{phase.name}.accumulate: a step takes {phase.base_batch} images, and {phase.accumulate} times {many}"
            f"{phase.batch_size} are {phase.accumulate * devices * phase.batch_size}; leave accumulate out, or give "
            f"--set {phase.name}.base_batch={phase.accumulate * devices * phase.batch_size}"
        )
    return times


def images_per_step(phase: Phase, devices: int) -> int:
    """Images of a step on all devices together; see accumulated()."""
    return phase.batch_size * devices * accumulated(phase, devices)


def possible_devices(phase: Phase) -> list[int]:
    """The numbers of devices on which a phase with fixed_batch can run, most first."""
    most = phase.base_batch // phase.batch_size
    return [devices for devices in range(most, 0, -1) if most % devices == 0]


def describe_batches(phase: Phase) -> str:
    """How devices share the images of a phase's fixed step, in words."""
    shares = [f"{accumulated(phase, n)} on {n}" for n in reversed(possible_devices(phase))]
    return (
        f"{phase.name}: {phase.base_batch} images per step at a rate of {phase.base_lr:g}, in batches of "
        f"{phase.batch_size} for batch normalisation; batches of each device: {', '.join(shares)} "
        f"device{'s' if phase.base_batch > phase.batch_size else ''}; for more devices lower {phase.name}.batch_size"
    )


def _smaller_batch(phase: Phase, devices: int) -> str:
    """Advice on a batch size with which `devices` can run the phase; empty if there is none."""
    share, rest = divmod(phase.base_batch, devices)
    if rest:
        return ""
    batch = max(size for size in range(1, min(share, phase.batch_size) + 1) if share % size == 0)
    seen = batch * devices if phase.norm == "sync" else batch
    sees = f" (batch normalisation then sees {seen} at a time)" if phase.norm in ("live", "sync") else ""
    return f", or give --set {phase.name}.batch_size={batch}{sees}"


def check_together(phase: Phase) -> None:
    """Raise SettingError, naming a pair that can be meant, if settings that are valid alone contradict each other."""
    if phase.fixed_batch and phase.base_batch % phase.batch_size:
        near = max(math.gcd(phase.base_batch, size) for size in range(1, phase.batch_size + 1))
        raise SettingError(
            f"{phase.name}.batch_size: batches of {phase.batch_size} never make up the {phase.base_batch} images of a "
            f"step; give {near}, or steps of another size with --set {phase.name}.base_batch={phase.batch_size}"
        )


def _words(numbers: list[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
