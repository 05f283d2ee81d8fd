"""Settings of a phase that follow from its others unless they are given, and pairs of settings that contradict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from directdet.common.settings import SettingError

if TYPE_CHECKING:
    from directdet.recipes.recipe import Phase


FAR = 4  # times: a network trained at one scale finds next to nothing at another that is further away


def evaluation_size(phase: Phase) -> tuple[int, int]:
    """The size that evaluation resizes to, and that a deployed network gets by default.

    Where it is not given, it follows the size of training. Pictures of both orientations have to fit on a fixed canvas,
    so that is a square of the long edge, rounded up to a multiple of 32.
    """
    if phase.eval_size is not None:
        return phase.eval_size
    if phase.resize == "warp" or not phase.eval_fixed:
        return phase.size
    side = math.ceil(max(phase.size) / 32) * 32
    return side, side


def passes_per_epoch(phase: Phase) -> float:
    """Passes over the dataset in an epoch, not always whole: with epoch_batch, as many as keep its number of steps."""
    if phase.repeat is not None or phase.epoch_batch is None:
        return phase.repeat or 1
    return phase.batch_size * (phase.accumulate or 1) / phase.epoch_batch


def in_proportion(phase: Phase, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes, and milestones that keep their place in the phase if only its length is among the changes."""
    before = phase.iterations or phase.epochs
    after = changes.get("iterations", phase.iterations) or changes.get("epochs", phase.epochs)
    if "milestones" in changes or after == before or not isinstance(after, int) or after < 1:
        return changes
    places = dict.fromkeys(max(1, round(milestone * after / before)) for milestone in phase.milestones)
    return {**changes, "milestones": tuple(place for place in places if place < after)}


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
    _check_evaluation(phase)
    if phase.name == "montage":
        _check_montage(phase)
    long = max(phase.size)
    if phase.resize == "edges" and max(phase.short_edges, default=0) > long:
        raise SettingError(
            f"{phase.name}.short_edges: {max(phase.short_edges)} is above the long edge of {phase.name}.size, {long}; "
            f"give short edges up to {long}, or --set {phase.name}.size={phase.size[0]},{max(phase.short_edges)}"
        )
    length, unit = (phase.epochs, "epochs") if phase.iterations is None else (phase.iterations, "iterations")
    last = max(phase.milestones, default=0)
    if last >= length:
        drops = sorted({place for place in (round(length * 2 / 3), round(length * 11 / 12)) if 0 < place < length})
        raise SettingError(
            f"{phase.name}.milestones: {_listed(phase.milestones)} do not lie within {length} {unit}; give --set "
            f"{phase.name}.milestones={','.join(map(str, drops))} or --set {phase.name}.{unit}={last + 1}"
        )


def _check_evaluation(phase: Phase) -> None:
    """SettingError for an eval_size that cannot be, or cannot be meant."""
    size, given = f"{phase.name}.size, {phase.size}", phase.eval_size
    if given is None:
        return
    if phase.resize == "warp" and given != phase.size:
        raise SettingError(
            f"{phase.name}.eval_size: {given} must equal {size}, with resize=warp; leave it out, and it follows"
        )
    if phase.resize != "warp" and phase.eval_fixed and any(side % 32 for side in given):
        near = tuple(max(32, round(side / 32) * 32) for side in given)
        raise SettingError(
            f"{phase.name}.eval_size: {given} must be multiples of 32 with eval_fixed; the nearest are {near}"
        )
    if not 1 / FAR <= min(given) / min(phase.size) <= FAR:
        raise SettingError(
            f"{phase.name}.eval_size: {given} is more than {FAR} times away from {size}; give both, or --set "
            f"{phase.name}.eval_size=none, and it follows"
        )


# What a phase of classification has no use for, and the values that leave it out.
NOT_IN_MONTAGES = {
    "resize": "direct",
    "quarter_turns": 0.0,
    "colour": "none",
    "ssd_crop": False,
    "mosaic": 0.0,
    "mixup": 0.0,
    "copy_paste": 0.0,
    "sampling": "uniform",
    "eval_every": 0,
}


def _check_montage(phase: Phase) -> None:
    """SettingError for what Montage pre-training cannot do."""
    for setting, off in NOT_IN_MONTAGES.items():
        if getattr(phase, setting) != off:
            raise SettingError(
                f"{phase.name}.{setting}: {getattr(phase, setting)} is for phases that train a detector, and this one "
                f"trains a classifier; give --set {phase.name}.{setting}={off}"
            )
    if phase.size[0] % 32 or phase.size[0] < 64:
        near = max(64, round(phase.size[0] / 32) * 32)
        raise SettingError(f"{phase.name}.size: {phase.size[0]} is not a multiple of 32 of at least 64; give {near}")


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _words(numbers: list[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
