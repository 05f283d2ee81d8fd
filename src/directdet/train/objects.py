"""The objects of a training set as training will see them: how many, and how large. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from directdet.common.errors import UserError
from directdet.data.augment import ssd_transforms
from directdet.data.flat.arrays import all_objects, image_sizes
from directdet.data.image import fit_size
from directdet.data.records import Dataset
from directdet.recipes.fit import DataFacts, fit_to_data
from directdet.recipes.recipe import Phase, Recipe


@dataclass(frozen=True)
class ObjectCount:
    """Objects that a phase uses of a training set: all, and those that can be a pixel wide and high; and how many it
    leaves out as difficult."""

    objects: int
    seen: int
    difficult: int = 0


def facts_of_data(dataset: Dataset) -> DataFacts:
    """What a recipe that fits itself to the data looks at."""
    objects = all_objects(dataset.records)
    boxes = objects.boxes[objects.learnt]
    areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), 1)
    longest = image_sizes(dataset.records).max(axis=1).astype(np.float32)
    shares = np.sqrt(areas) / np.repeat(longest, objects.counts)[objects.learnt]
    return DataFacts(len(dataset), float(np.quantile(shares, 0.1)) if len(shares) else None)


def fitted(recipe: Recipe, dataset: Dataset) -> tuple[Recipe, str]:
    """The recipe as it trains on this data, and in words what was chosen for it; see `fit_to_data`."""
    if not recipe.fit:  # every object of a large set would be looked at for nothing
        return recipe, ""
    return fit_to_data(recipe, facts_of_data(dataset))


def count_objects(phase: Phase, dataset: Dataset) -> ObjectCount:
    """Count the objects of ``dataset`` that the phase uses: no crowd regions, none of weight 0, no difficult ones if it
    skips them.

    One is seen if it reaches a pixel at the largest size that the phase draws.

    Raises:
        UserError: training would see none.
    """
    count = possible_objects(phase, dataset)
    objects, seen, difficult = count.objects, count.seen, count.difficult
    where = f"{dataset.root}: {dataset.split}"
    if not objects:
        there = all_objects(dataset.records)
        crowd, aside = int(there.crowd.sum()), int((there.weights == 0).sum())
        dropped = sum(problem.action == "dropped" for problem in dataset.problems)
        counts = [(crowd, "crowd regions"), (dropped, "left out for their boxes")]
        counts[1:1] = [one for one in ((difficult, "marked difficult"), (aside, "of score 0")) if one[0]]
        words = ", ".join(f"{count} {what}" for count, what in counts)
        left_out = f" ({words})" if any(count for count, _ in counts) else ""
        raise UserError(f"{where}: no object to train on{left_out}; check-data tells more")
    if not seen:
        raise UserError(
            f"{where}: none of the {objects} objects is a pixel wide and high at the size of {phase.name}; raise "
            f"{phase.name}.size, or correct the boxes if they are not in pixels"
        )
    return count


def possible_objects(phase: Phase, dataset: Dataset) -> ObjectCount:
    """:func:`count_objects`, also where there are none."""
    sides = _resized_sides(phase, dataset, _largest_factors)
    difficult = dataset.difficult_objects() if phase.skip_difficult else 0
    return ObjectCount(len(sides), int((sides >= 1).all(axis=1).sum()), difficult)


def usual_sides(phase: Phase, dataset: Dataset) -> np.ndarray:
    """Width and height, float [N, 2] in pixels, of the objects that the phase uses, at the size that it resizes to.

    That is before any random scale, crop or mosaic; of several short edges it is the one in the middle.
    """
    return _resized_sides(phase, dataset, _usual_factors)


def _resized_sides(
    phase: Phase, dataset: Dataset, factors: Callable[[Phase, int, int], tuple[float, float]]
) -> np.ndarray:
    """Width and height [N, 2] of the objects that the phase uses, by the factors (x, y) of images of each size."""
    objects = all_objects(dataset.records)
    used = objects.learnt & ~objects.difficult if phase.skip_difficult else objects.learnt
    sizes, kinds = np.unique(image_sizes(dataset.records), axis=0, return_inverse=True)
    of_sizes = np.array([factors(phase, width, height) for width, height in sizes.tolist()]).reshape(-1, 2)
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    return (sides * of_sizes[np.repeat(kinds.reshape(-1), objects.counts)])[used]


def _usual_factors(phase: Phase, width: int, height: int) -> tuple[float, float]:
    """The (x, y) factors by which the phase resizes an image of this size, leaving aside what is drawn at random."""
    if phase.name == "montage":  # what is cut out keeps its size
        return 1.0, 1.0
    if phase.resize == "warp":
        return phase.size[0] / width, phase.size[0] / height
    short, long = phase.size[0], phase.size[0]
    if phase.resize == "edges":
        long = phase.size[1]
        if phase.short_edges:
            short = sorted(phase.short_edges)[len(phase.short_edges) // 2]
    new_height, new_width = fit_size(height, width, min(short, long) / phase.shrink, max(short, long) / phase.shrink)
    return new_width / width, new_height / height


def _largest_factors(phase: Phase, width: int, height: int) -> tuple[float, float]:
    """The largest (x, y) factors by which the phase's transform resizes an image of this size."""
    if phase.name == "montage":
        return phase.scale[1], phase.scale[1]
    # The narrowest window that SSD's augmentation cuts out, as a share of the image's side.
    share = ssd_transforms.NARROWEST
    if phase.ssd_crop:
        width, height = max(1, int(width * share)), max(1, int(height * share))
    if phase.resize == "warp":
        return phase.size[0] / (width * share), phase.size[0] / (height * share)
    if phase.resize == "direct":
        limit = int(phase.size[0] * phase.scale[1])
        new_height, new_width = fit_size(height, width, limit, limit)
    else:
        short = max(phase.short_edges) if phase.short_edges else phase.size[0]
        edges = short, phase.size[1]
        new_height, new_width = (
            int(edge / phase.shrink + 0.5) for edge in fit_size(height, width, min(edges), max(edges))
        )
    return max(1, new_width) / width, max(1, new_height) / height
