"""Whether annotations can be meant as they stand: the mistakes of converters that leave valid numbers behind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import numpy as np

from directdet.data.checks.finding import MOST_EXAMPLES, Doubt, Example
from directdet.data.flat.arrays import image_sizes
from directdet.data.records import Dataset, Problem

# Ranges to which tools scale coordinates: shares, per cent, and thousandths.
_RANGES = ((1, "shares (0 to 1)"), (100, "per cent (0 to 100)"), (1000, "thousandths (0 to 1000)"))
_ENOUGH = 20  # objects from which a coincidence is no explanation
_MUCH = 0.1  # of a box's area outside its image: more than a slip of the hand


def misfit_areas(areas: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Which objects, bool [N], have an area [N] that their box of ``sides`` [N, 2] cannot have.

    A mask lies inside its box but for its border's pixels, and even a rod that crosses its box fills more than a
    hundredth of it.
    """
    width, height = sides[:, 0], sides[:, 1]
    most = (width + 2) * (height + 2)
    return (areas > 1.5 * most) | (areas < width * height / 100)


def too_small(dataset: Dataset) -> list[str]:
    """An error if no object is a pixel wide and high."""
    boxes, sizes = _objects(dataset)
    if not len(boxes) or (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1).any():
        return []
    hint = "; are they shares (0 to 1) of the image? boxes are in pixels" if _within(boxes, sizes, 1).all() else ""
    return [f"{dataset.split}: all {len(boxes)} boxes are smaller than a pixel{hint}"]


def too_small_examples(dataset: Dataset) -> tuple[Example, ...]:
    """The first pictures of a split in which no object is a pixel wide and high."""
    return _object_examples(dataset, np.ones(len(_objects(dataset)[0]), bool)) if too_small(dataset) else ()


def doubts_about(dataset: Dataset) -> list[Doubt]:
    """What speaks against the annotations of a split; crowd regions are left aside."""
    return [*_leaving(dataset), *_scaled(dataset), *_centres(dataset), *_listed_twice(dataset), *_repeated(dataset)]


def _objects(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] of all objects, and the (width, height) of their images [N, 2]."""
    kept = [record.boxes[~record.crowd] for record in dataset.records]
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *kept])
    return boxes, np.repeat(image_sizes(dataset.records).astype(np.float32), [len(part) for part in kept], axis=0)


def _within(boxes: np.ndarray, sizes: np.ndarray, limit: float) -> np.ndarray:
    """Which boxes lie in the first ``limit`` pixels of an image that is at least twice as wide and high: bool [N]."""
    return np.all(np.hstack([boxes <= limit * 1.001, sizes >= 2 * limit]), axis=1)


def problem_examples(dataset: Dataset, wanted: Callable[[Problem], bool]) -> tuple[Example, ...]:
    """Pictures of the first problems that are wanted, with the boxes as the file gives them.

    Of problems with other things than the box, the objects themselves are in question.
    """
    chosen: list[Problem] = []
    for problem in dataset.problems:
        if problem.picture and wanted(problem):
            chosen.append(problem)
        if len(chosen) == MOST_EXAMPLES:
            break
    files = {problem.picture for problem in chosen}
    records = {str(record.path): record for record in dataset.records if str(record.path) in files}
    examples: list[Example] = []
    for problem in chosen:
        record = records.get(problem.picture)
        if record is None:
            continue
        objects = tuple(
            place
            for place, number in enumerate(record.annotation_ids)
            if number == problem.annotation_id and problem.box is None
        )
        boxes = () if problem.box is None else (problem.box,)
        caption = f"annotation {problem.annotation_id}: {problem.message}: {problem.action}"
        examples.append(Example(record, objects, boxes, caption))
    return tuple(examples)


def _object_examples(dataset: Dataset, chosen: np.ndarray) -> tuple[Example, ...]:
    """The first pictures with objects that are chosen, bool [N] in the order of _objects."""
    examples: list[Example] = []
    start = 0
    for record in dataset.records:
        places = np.flatnonzero(~record.crowd)
        here = places[chosen[start : start + len(places)]]
        start += len(places)
        if len(here):
            examples.append(Example(record, tuple(here.tolist())))
        if len(examples) == MOST_EXAMPLES:
            break
    return tuple(examples)


def _leaving(dataset: Dataset) -> list[Doubt]:
    far = sum(problem.outside > _MUCH for problem in dataset.problems)
    objects = len(_objects(dataset)[0]) + sum(problem.kind == "outside-box" for problem in dataset.problems)
    if 2 * far <= objects:
        return []
    what = "do they hold x1, y1, x2, y2 instead of x, y, width, height, or " if dataset.layout != "voc" else ""
    text = f"{dataset.split}: {far} of {objects} boxes leave their image; {what}are they of images of another size?"
    return [Doubt("leaving", text, far, problem_examples(dataset, lambda problem: problem.outside > _MUCH))]


def _scaled(dataset: Dataset) -> list[Doubt]:
    boxes, sizes = _objects(dataset)
    if too_small(dataset):  # tells it already
        return []
    for limit, what in _RANGES:
        chosen = _within(boxes, sizes, limit)
        inside = int(chosen.sum())
        if inside == len(boxes) >= _ENOUGH or (limit == 1 and 2 * inside > len(boxes)):
            text = (
                f"{dataset.split}: {inside} of {len(boxes)} boxes lie within the first {limit} pixel"
                f"{'s' if limit > 1 else ''} of their image; are they {what}? boxes are in pixels"
            )
            return [Doubt("scaled", text, inside, _object_examples(dataset, chosen))]
    return []


def _centres(dataset: Dataset) -> list[Doubt]:
    """Centres taken for corners: no box is nearer to the left or upper border than half its size, but many leave."""
    boxes, _ = _objects(dataset)
    leaving = sum(problem.kind == "clipped-box" for problem in dataset.problems)
    corners, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    if len(boxes) < _ENOUGH or 20 * leaving < len(boxes) or not (corners + 0.5 >= sides / 2).all():
        return []
    text = (
        f"{dataset.split}: {leaving} of {len(boxes)} boxes leave their image on the right or below, and none comes "
        "near the left and upper border; are x and y of bbox the centre? they are the upper left corner"
    )
    return [Doubt("centres", text, leaving, problem_examples(dataset, lambda one: one.kind == "clipped-box"))]


def _listed_twice(dataset: Dataset) -> list[Doubt]:
    counts = Counter(os.path.normpath(record.path) for record in dataset.records)
    twice = [path for path, count in counts.items() if count > 1]
    if not twice:
        return []
    text = (
        f"{dataset.split}: {len(twice)} images are listed more than once (the first: {twice[0]}); the objects of one "
        "entry are background for the other: unite the entries"
    )
    entries = [record for record in dataset.records if counts[os.path.normpath(record.path)] > 1]
    return [Doubt("listed-twice", text, len(twice), tuple(map(Example, entries[:MOST_EXAMPLES])))]


def _repeated(dataset: Dataset) -> list[Doubt]:
    """The same box and class twice in one image."""
    repeated, first = 0, ""
    examples: list[Example] = []
    for record in dataset.records:
        if len(record.boxes) < 2:
            continue
        places = np.flatnonzero(~record.crowd)
        rows = np.column_stack([record.boxes, record.labels])[places]
        _, firsts = np.unique(rows, axis=0, return_index=True)
        found = len(rows) - len(firsts)
        if found and len(examples) < MOST_EXAMPLES:
            examples.append(Example(record, tuple(np.delete(places, firsts).tolist())))
        repeated, first = repeated + found, first or (str(record.path) if found else "")
    objects = sum(len(record.boxes) for record in dataset.records)
    if 20 * repeated <= objects:
        return []
    text = (
        f"{dataset.split}: {repeated} of {objects} objects have the box and class of another one of their image (the "
        f"first in {first}); remove the copies"
    )
    return [Doubt("repeated", text, repeated, tuple(examples))]
