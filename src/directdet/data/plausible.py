"""Whether annotations can be meant as they stand: the mistakes of converters that leave valid numbers behind."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np

from directdet.data.records import Dataset, image_sizes

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


def doubts_about(dataset: Dataset) -> list[str]:
    """What speaks against the annotations of a split, each in one line; crowd regions are left aside."""
    return [*_leaving(dataset), *_scaled(dataset), *_centres(dataset), *_listed_twice(dataset), *_repeated(dataset)]


def _objects(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] of all objects, and the (width, height) of their images [N, 2]."""
    kept = [record.boxes[~record.crowd] for record in dataset.records]
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *kept])
    return boxes, np.repeat(image_sizes(dataset.records).astype(np.float32), [len(part) for part in kept], axis=0)


def _within(boxes: np.ndarray, sizes: np.ndarray, limit: float) -> np.ndarray:
    """Which boxes lie in the first ``limit`` pixels of an image that is at least twice as wide and high: bool [N]."""
    return np.all(np.hstack([boxes <= limit * 1.001, sizes >= 2 * limit]), axis=1)


def _leaving(dataset: Dataset) -> list[str]:
    far = sum(problem.outside > _MUCH for problem in dataset.problems)
    objects = len(_objects(dataset)[0]) + sum(problem.kind == "outside-box" for problem in dataset.problems)
    if 2 * far <= objects:
        return []
    what = "do they hold x1, y1, x2, y2 instead of x, y, width, height, or " if dataset.layout != "voc" else ""
    return [f"{dataset.split}: {far} of {objects} boxes leave their image; {what}are they of images of another size?"]


def _scaled(dataset: Dataset) -> list[str]:
    boxes, sizes = _objects(dataset)
    if too_small(dataset):  # tells it already
        return []
    for limit, what in _RANGES:
        inside = int(_within(boxes, sizes, limit).sum())
        if inside == len(boxes) >= _ENOUGH or (limit == 1 and 2 * inside > len(boxes)):
            return [
                f"{dataset.split}: {inside} of {len(boxes)} boxes lie within the first {limit} pixel"
                f"{'s' if limit > 1 else ''} of their image; are they {what}? boxes are in pixels"
            ]
    return []


def _centres(dataset: Dataset) -> list[str]:
    """Centres taken for corners: no box is nearer to the left or upper border than half its size, but many leave."""
    boxes, _ = _objects(dataset)
    leaving = sum(problem.kind == "clipped-box" for problem in dataset.problems)
    corners, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    if len(boxes) < _ENOUGH or 20 * leaving < len(boxes) or not (corners + 0.5 >= sides / 2).all():
        return []
    return [
        f"{dataset.split}: {leaving} of {len(boxes)} boxes leave their image on the right or below, and none comes "
        "near the left and upper border; are x and y of bbox the centre? they are the upper left corner"
    ]


def _listed_twice(dataset: Dataset) -> list[str]:
    counts = Counter(os.path.normpath(record.path) for record in dataset.records)
    twice = [path for path, count in counts.items() if count > 1]
    if not twice:
        return []
    return [
        f"{dataset.split}: {len(twice)} images are listed more than once (the first: {twice[0]}); the objects of one "
        "entry are background for the other: unite the entries"
    ]


def _repeated(dataset: Dataset) -> list[str]:
    """The same box and class twice in one image."""
    repeated, first = 0, ""
    for record in dataset.records:
        if len(record.boxes) < 2:
            continue
        rows = np.column_stack([record.boxes, record.labels])[~record.crowd]
        found = len(rows) - len(np.unique(rows, axis=0))
        repeated, first = repeated + found, first or (str(record.path) if found else "")
    objects = sum(len(record.boxes) for record in dataset.records)
    if 20 * repeated <= objects:
        return []
    return [
        f"{dataset.split}: {repeated} of {objects} objects have the box and class of another one of their image (the "
        f"first in {first}); remove the copies"
    ]
