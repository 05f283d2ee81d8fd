"""Lengths, batches, sizes and rates that follow the data: one recipe for a hundred pictures and for a hundred thousand.

Only recipes with `fit` set are changed, and only settings that were not given. The rules are ours. Their constants were
chosen on 120 pictures (docs/results.md) and, for large data, near RTMDet's own schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from directdet.recipes.recipe import Phase, Recipe

SEEN_PIXELS = 16.0  # side that nine of ten objects should still have on the canvas of fine-tuning
SIDES = (320, 640)  # of that canvas, at least and at most
PRETRAIN_SIDE = 0.7  # of it
STEPS = 3000  # of pre-training on 100 pictures; they grow with the square root of the number of pictures
EPOCHS = (12, 300)
TUNED = 6  # fine-tuning is so many times shorter
WARM_UP = 100  # steps at most; a short phase would otherwise end before its rate has fallen
HEAVY = 100_000  # pictures to be seen in pre-training, from which on mixing them pays


@dataclass(frozen=True)
class DataFacts:
    """What the rules look at.

    Attributes:
        images: number of training images.
        small: side of an object (root of its area) below which a tenth of them lie, as a share of their picture's
            longer side; None if there are no objects.
    """

    images: int
    small: float | None


def fit_to_data(recipe: Recipe, facts: DataFacts) -> tuple[Recipe, str]:
    """The recipe with every setting that was not given chosen for the data, and in words what was chosen and why.

    A recipe that does not ask for it comes back as it is, with no words.
    """
    if not recipe.fit:
        return recipe, ""
    chosen = _choose(facts)
    phases = []
    for phase in recipe.phases:
        given = {key for key in chosen[phase.name] if f"{phase.name}.{key}" in recipe.given} | _changed(recipe, phase)
        changes = {key: value for key, value in chosen[phase.name].items() if key not in given}
        if "base_batch" in changes:  # the rate is for a step, whatever its batch
            changes["base_batch"] = changes.get("batch_size", phase.batch_size)
        phases.append(replace(phase, **changes))
    fitted = replace(recipe, phases=tuple(phases), fit=False)
    why = f"for {facts.images} pictures"
    if facts.small is not None:
        why += f", a tenth of the objects below {100 * facts.small:.1f} % of the long side"
    return fitted, f"{why}: {_words(fitted)}"


def _changed(recipe: Recipe, phase: Phase) -> set[str]:
    """Settings that are not those of the recipe of this name: given, by whoever made another of it."""
    from directdet.recipes.by_name import RECIPES

    own = RECIPES[recipe.name]().phases if recipe.name in RECIPES else ()
    usual = next((one for one in own if one.name == phase.name), phase)
    return {one.name for one in fields(phase) if getattr(phase, one.name) != getattr(usual, one.name)}


def _choose(facts: DataFacts) -> dict[str, dict[str, Any]]:
    """The settings of each phase."""
    images = max(1, facts.images)
    batch = min(images, 8 if images < 1000 else 16 if images < 10_000 else 32)
    epochs = round(STEPS * math.sqrt(images / 100) * batch / images)
    epochs = min(max(epochs, EPOCHS[0]), EPOCHS[1])
    heavy = images * epochs >= HEAVY
    side = _side(facts.small)
    common = {"batch_size": batch, "base_batch": batch}
    pretrain = {
        "size": (round(PRETRAIN_SIDE * side / 32) * 32,) * 2,
        "epochs": epochs,
        "eval_every": max(1, epochs // 5),
    }
    mixed = {} if heavy else {"mosaic": 0.0, "mixup": 0.0}
    tuned = max(2, epochs // TUNED)
    finetune: dict[str, Any] = {"size": (side, side), "epochs": tuned, "eval_every": max(1, tuned // 4)}
    for changes in (pretrain, finetune):
        changes["warmup_iterations"] = min(WARM_UP, changes["epochs"] * images // batch // 20)
    return {"pretrain": {**common, **pretrain, **mixed}, "finetune": {**common, **finetune}}


def _side(small: float | None) -> int:
    """The canvas on which objects of the share `small` have SEEN_PIXELS."""
    wanted = SEEN_PIXELS / small if small else SIDES[0]
    return math.ceil(min(max(wanted, SIDES[0]), SIDES[1]) / 32) * 32


def _words(recipe: Recipe) -> str:
    parts = []
    for phase in recipe.phases:
        mixed = ", mosaic and mixup" if phase.mosaic and phase.mixup else ""
        parts.append(
            f"{phase.name} {phase.epochs} epochs at {phase.size[0]}x{phase.size[1]} in batches of {phase.batch_size}"
            f"{mixed}"
        )
    return "; ".join(parts)
