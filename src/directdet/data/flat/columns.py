"""The annotations of a split as arrays: COCO's 118,287 images would be five million objects of Python.

Objects are sorted by image. Polygons stay in the order of the file: an object says which are its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

# The arrays of objects: their values, and where their masks are.
VALUES = ("boxes", "labels", "crowd", "difficult", "areas", "weights", "annotation_ids")
MASKS = ("mask_kinds", "mask_starts", "mask_stops")
NO_MASK, POLYGONS, COMPRESSED, RUNS = range(4)  # how an object's mask is kept


@dataclass(frozen=True, eq=False)
class Columns:
    """I images, N objects, M polygons.

    Raises:
        ValueError: an array has another type than it should, or lengths do not fit together.
    """

    image_ids: np.ndarray  # int64 [I]
    widths: np.ndarray  # int64 [I]
    heights: np.ndarray  # int64 [I]
    name_ends: np.ndarray  # int64 [I + 1]: image i is called names[name_ends[i]:name_ends[i + 1]]
    names: np.ndarray  # uint8: UTF-8, with halves of surrogate pairs
    firsts: np.ndarray  # int64 [I + 1]: the objects of image i are firsts[i]:firsts[i + 1]
    boxes: np.ndarray  # float32 [N, 4]
    labels: np.ndarray  # int32 [N]
    crowd: np.ndarray  # bool [N]
    difficult: np.ndarray  # bool [N]
    areas: np.ndarray  # float32 [N]
    weights: np.ndarray  # float32 [N]
    annotation_ids: np.ndarray  # int64 [N]
    mask_kinds: np.ndarray  # uint8 [N]: NO_MASK, POLYGONS, COMPRESSED or RUNS
    mask_starts: np.ndarray  # int64 [N]: the first polygon, or the first byte in rle
    mask_stops: np.ndarray  # int64 [N]
    polygon_ends: np.ndarray  # int64 [M + 1]: polygon m is points[polygon_ends[m]:polygon_ends[m + 1]]
    points: np.ndarray  # float64: x, y, x, y, ...
    rle: np.ndarray  # uint8: compressed counts, or run lengths as int64

    def __post_init__(self) -> None:
        for name, kind in TYPES.items():
            array = getattr(self, name)
            if array.dtype != kind or array.ndim != (2 if name == "boxes" else 1):
                raise ValueError(f"{name}: {array.dtype} of {array.ndim} dimensions")
        images, objects = len(self.image_ids), len(self.labels)
        expected = {"widths": images, "heights": images, "name_ends": images + 1, "firsts": images + 1}
        expected |= dict.fromkeys(("crowd", "difficult", "areas", "weights", "annotation_ids"), objects)
        expected |= dict.fromkeys(("mask_kinds", "mask_starts", "mask_stops"), objects)
        for name, length in expected.items():
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name}: {len(getattr(self, name))} long, not {length}")
        ends = ((self.name_ends, self.names), (self.firsts, self.labels), (self.polygon_ends, self.points))
        if self.boxes.shape != (objects, 4) or any(not len(end) or end[-1] != len(array) for end, array in ends):
            raise ValueError("boxes or ends do not fit the other arrays")

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every array with its name, in the order of the fields."""
        return ((name, getattr(self, name)) for name in TYPES)

    def only(self, keep: np.ndarray) -> Columns:
        """The objects for which ``keep``, bool [N], is true, of the same images; polygons stay where they are."""
        firsts = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])[self.firsts]
        kept = {name: getattr(self, name)[keep] for name in (*VALUES, *MASKS)}
        return Columns(**{**dict(self.arrays()), "firsts": firsts, **kept})

    def name(self, image: int) -> str:
        """The path of an image below the folder of the images."""
        start, stop = self.name_ends[image : image + 2].tolist()
        return self.names[start:stop].tobytes().decode("utf-8", "surrogatepass")

    def masks(self, image: int) -> tuple[Any, ...]:
        """The masks of an image's objects as a record has them, copied."""
        start, stop = self.firsts[image : image + 2].tolist()
        size = [int(self.heights[image]), int(self.widths[image])]
        spans = zip(
            self.mask_kinds[start:stop].tolist(),
            self.mask_starts[start:stop].tolist(),
            self.mask_stops[start:stop].tolist(),
            strict=True,
        )
        return tuple(self._mask(kind, first, end, size) for kind, first, end in spans)

    def _mask(self, kind: int, start: int, stop: int, size: list[int]) -> Any:
        if kind == NO_MASK:
            return None
        if kind == POLYGONS:
            ends = self.polygon_ends[start : stop + 1].tolist()
            return [self.points[first:end].copy() for first, end in pairwise(ends)]
        kept = self.rle[start:stop].tobytes()
        return {"size": size, "counts": kept.decode() if kind == COMPRESSED else np.frombuffer(kept, np.int64).tolist()}

    @property
    def learnt(self) -> np.ndarray:
        """Which objects are learnt, bool [N]: neither crowd regions nor of weight 0."""
        return ~self.crowd & (self.weights > 0)

    def per_image(self, flags: np.ndarray) -> np.ndarray:
        """How many objects of each image have a flag (bool [N]): int64 [I]."""
        sums = np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
        return sums[self.firsts[1:]] - sums[self.firsts[:-1]]


_KINDS = {
    **dict.fromkeys(("image_ids", "widths", "heights", "name_ends", "firsts", "annotation_ids"), np.int64),
    **dict.fromkeys(("mask_starts", "mask_stops", "polygon_ends"), np.int64),
    "labels": np.int32,
    **dict.fromkeys(("names", "mask_kinds", "rle"), np.uint8),
    **dict.fromkeys(("crowd", "difficult"), np.bool_),
    **dict.fromkeys(("boxes", "areas", "weights"), np.float32),
    "points": np.float64,
}
TYPES: dict[str, np.dtype[Any]] = {one.name: np.dtype(_KINDS[one.name]) for one in fields(Columns)}
