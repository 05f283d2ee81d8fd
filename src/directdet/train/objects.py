"""How many objects training will really see: resizing leaves out what is narrower or lower than a pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from directdet.common.errors import UserError
from directdet.data.augment import ssd_transforms
from directdet.data.image import fit_size
from directdet.data.records import Dataset, Record
from directdet.recipes.recipe import Phase


@dataclass(frozen=True)
class ObjectCount:
    """Objects that a phase uses of a training set: all, and those that can be a pixel wide and high."""

    objects: int
    seen: int


def count_objects(phase: Phase, dataset: Dataset) -> ObjectCount:
    """Count the objects of ``dataset`` that the phase uses: no crowd regions, no difficult ones if it skips them.

    One is seen if it reaches a pixel at the largest size that the phase draws.

    Raises:
        UserError: training would see none.
    """
    difficult = dataset.difficult_objects() if phase.skip_difficult else 0
    if difficult:
        dataset = dataset.without_difficult()
    boxes, used, factors = [np.zeros((0, 4), np.float32)], [np.zeros(0, bool)], [np.zeros((0, 2))]
    for record in dataset.records:
        boxes.append(record.boxes)
        used.append(~record.crowd)
        factors.append(np.tile(_largest_factors(phase, record), (len(record.boxes), 1)))
    corners, counted = np.concatenate(boxes), np.concatenate(used)
    sides = (corners[:, 2:] - corners[:, :2]) * np.concatenate(factors)
    objects, seen = int(counted.sum()), int((counted & (sides >= 1).all(axis=1)).sum())
    where = f"{dataset.root}: {dataset.split}"
    if not objects:
        crowd = sum(len(record.boxes) for record in dataset.records)
        dropped = sum(problem.action == "dropped" for problem in dataset.problems)
        counts = ((crowd, "crowd regions"), (difficult, "marked difficult"), (dropped, "left out for their boxes"))
        words = ", ".join(f"{count} {what}" for count, what in counts if count or what != "marked difficult")
        left_out = f" ({words})" if crowd or difficult or dropped else ""
        raise UserError(f"{where}: no object to train on{left_out}; check-data tells more")
    if not seen:
        raise UserError(
            f"{where}: none of the {objects} objects is a pixel wide and high at the size of {phase.name}; raise "
            f"{phase.name}.size, or correct the boxes if they are not in pixels"
        )
    return ObjectCount(objects, seen)


def _largest_factors(phase: Phase, record: Record) -> tuple[float, float]:
    """The largest (x, y) factors by which the phase's transform resizes a record's image."""
    width, height = record.width, record.height
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
