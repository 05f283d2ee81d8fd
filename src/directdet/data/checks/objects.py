"""All objects of several splits in flat arrays, for what is said about them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from directdet.data.flat.arrays import image_sizes
from directdet.data.records import Dataset


@dataclass(frozen=True, eq=False)
class Objects:
    """N objects without crowd regions, in the order of the splits, their pictures and the objects in these.

    Attributes:
        split, record, place: int64 [N], where an object is: the split's index, the picture's in it, its own in that.
        label: int64 [N].
        box: float32 [N, 4], xyxy, pixels of the picture.
        size: float32 [N, 2], (width, height) of its picture.
        per_picture: int64 [pictures of all splits], how many objects each has.
    """

    split: np.ndarray
    record: np.ndarray
    place: np.ndarray
    label: np.ndarray
    box: np.ndarray
    size: np.ndarray
    per_picture: np.ndarray

    @property
    def sides(self) -> np.ndarray:
        """Width and height of the boxes, float32 [N, 2]."""
        return self.box[:, 2:] - self.box[:, :2]


def objects_of(datasets: Sequence[Dataset]) -> Objects:
    """The objects of these splits."""
    empty = np.zeros(0, np.int64)
    split, record, place, label = [empty], [empty], [empty], [empty]
    box, size, counts = [np.zeros((0, 4), np.float32)], [np.zeros((0, 2), np.float32)], [empty]
    for number, dataset in enumerate(datasets):
        kept = [np.flatnonzero(~one.crowd) for one in dataset.records]
        per_picture = np.array([len(places) for places in kept], np.int64)
        record.append(np.repeat(np.arange(len(kept)), per_picture))
        split.append(np.full(int(per_picture.sum()), number))
        place += kept
        label += [one.labels[places] for one, places in zip(dataset.records, kept, strict=True)]
        box += [one.boxes[places] for one, places in zip(dataset.records, kept, strict=True)]
        size.append(np.repeat(image_sizes(dataset.records).astype(np.float32), per_picture, axis=0))
        counts.append(per_picture)
    return Objects(*map(np.concatenate, (split, record, place, label, box, size, counts)))
