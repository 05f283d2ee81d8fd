"""What all images or all objects of a split are, as arrays: of a large one, records are made only when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from directdet.data.records import Record, Records

_VALUES = ("boxes", "labels", "crowd", "difficult", "weights")


@dataclass(frozen=True, eq=False)
class AllObjects:
    """N objects of I images, image by image.

    Attributes:
        boxes: float32 [N, 4]; labels: integers [N]; crowd, difficult: bool [N]; weights: float32 [N]; as in a record.
        counts: int64 [I], how many each image has.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    weights: np.ndarray
    counts: np.ndarray

    @property
    def learnt(self) -> np.ndarray:
        """Which objects are learnt, see `Record.learnt`: bool [N]."""
        return ~self.crowd & (self.weights > 0)


def all_objects(records: Sequence[Record]) -> AllObjects:
    """The objects of these images, crowd regions and difficult ones among them."""
    if isinstance(records, Records):
        places, counts = records.objects()
        return AllObjects(**{name: getattr(records.columns, name)[places] for name in _VALUES}, counts=counts)
    empty = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), *[np.zeros(0, bool)] * 2, np.zeros(0, np.float32))
    values = {
        name: np.concatenate([none, *(getattr(record, name) for record in records)])
        for name, none in zip(_VALUES, empty, strict=True)
    }
    return AllObjects(**values, counts=np.array([len(record.boxes) for record in records], np.int64))


class ImageFile(NamedTuple):
    """An image by its id and its file."""

    image_id: int
    path: Path


def image_files(records: Sequence[Record]) -> list[ImageFile]:
    """Each image without its objects."""
    if isinstance(records, Records):
        return [ImageFile(*one) for one in records.files()]
    return [ImageFile(record.image_id, record.path) for record in records]


def image_sizes(records: Sequence[Record]) -> np.ndarray:
    """(width, height) of each image, int64 [I, 2]."""
    if isinstance(records, Records):
        return records.sizes()
    return np.array([(record.width, record.height) for record in records], np.int64).reshape(-1, 2)


def learnt_counts(records: Sequence[Record]) -> np.ndarray:
    """The objects of each image that are learnt, see `Record.learnt`: int64 [I]."""
    if isinstance(records, Records):
        return records.objects_with(records.columns.learnt)
    return np.array([int(record.learnt.sum()) for record in records], np.int64)
