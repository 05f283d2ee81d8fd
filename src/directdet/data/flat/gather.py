"""Puts the objects of an annotation file into columns, many at once or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from directdet.data.flat.columns import COMPRESSED, MASKS, NO_MASK, POLYGONS, RUNS, TYPES, VALUES, Columns

_TOGETHER = 4096  # single objects that are kept as such before they become a block


class Gathered:
    """Values that become :class:`Columns`.

    Objects may come in any order: they are sorted by image, and within one by their place in the file.
    """

    def __init__(self) -> None:
        names = ("images", "places", *VALUES, *MASKS, "polygon_lengths", "points", "rle")
        self._values = {name: bytearray() for name in names}  # they grow where they are; arrays would be copied
        self._polygons = 0
        self._single: list[tuple[int, int, dict[str, Any], Any]] = []

    def add_block(
        self,
        images: np.ndarray,
        places: np.ndarray,
        columns: dict[str, np.ndarray],
        polygon_counts: np.ndarray,
        polygon_lengths: np.ndarray,
        points: np.ndarray,
    ) -> None:
        """Add n objects whose masks are polygons or none.

        Args:
            images: the index of the image of each, int64 [n].
            places: the place of each in the file, int64 [n].
            columns: boxes, labels, crowd, difficult, areas, weights and annotation_ids of the objects.
            polygon_counts: polygons of each object, 0 if it has no mask, int64 [n].
            polygon_lengths: numbers of each polygon, int64 [sum of polygon_counts].
            points: float64 [sum of polygon_lengths].
        """
        stops = self._polygons + np.cumsum(polygon_counts)
        kinds = np.where(polygon_counts > 0, POLYGONS, NO_MASK)
        masks = {"mask_kinds": kinds, "mask_starts": stops - polygon_counts, "mask_stops": stops}
        self._add_columns({"images": images, "places": places, **columns, **masks})
        self._add_polygons(polygon_lengths, points)

    def add(self, image: int, place: int, values: dict[str, Any], mask: Any) -> None:
        """Add one object: ``values`` by the names of its columns, and its mask as a record has it."""
        self._single.append((image, place, values, mask))
        if len(self._single) == _TOGETHER:
            self._add_single()

    def _add_single(self) -> None:
        spans = [self._add_mask(mask) for *_, mask in self._single]
        columns: dict[str, Any] = {name: [one[2][name] for one in self._single] for name in VALUES}
        columns["images"], columns["places"] = ([one[index] for one in self._single] for index in (0, 1))
        columns |= dict(zip(MASKS, np.array(spans, np.int64).reshape(-1, 3).T, strict=True))
        self._add_columns(columns)
        self._single = []

    def _add_mask(self, mask: Any) -> tuple[int, int, int]:
        """Keep a mask; returns its values of MASKS."""
        if mask is None:
            return NO_MASK, 0, 0
        if isinstance(mask, list):
            start = self._polygons
            self._add_polygons(np.array([len(polygon) for polygon in mask]), np.concatenate(mask))
            return POLYGONS, start, self._polygons
        counts = mask["counts"]
        start = len(self._values["rle"])
        self._values["rle"] += np.array(counts, np.int64).tobytes() if isinstance(counts, list) else counts.encode()
        return RUNS if isinstance(counts, list) else COMPRESSED, start, len(self._values["rle"])

    def _add_polygons(self, lengths: np.ndarray, points: np.ndarray) -> None:
        self._polygons += len(lengths)
        self._add_columns({"polygon_lengths": lengths, "points": points})

    def _add_columns(self, columns: dict[str, Any]) -> None:
        for name, values in columns.items():
            self._values[name] += np.asarray(values, _type(name)).tobytes()

    def finish(
        self, image_ids: Sequence[int], widths: Sequence[int], heights: Sequence[int], names: Sequence[str]
    ) -> Columns:
        """The columns, with what is known of the images; what was gathered is given away."""
        self._add_single()
        images = self._take("images")
        order = np.lexsort((self._take("places"), images))
        firsts = _ends(np.bincount(images, minlength=len(image_ids)))
        del images
        columns = {name: self._take(name)[order] for name in (*VALUES, *MASKS)}
        texts = [name.encode("utf-8", "surrogatepass") for name in names]
        return Columns(
            image_ids=np.array(image_ids, np.int64),
            widths=np.array(widths, np.int64),
            heights=np.array(heights, np.int64),
            name_ends=_ends(np.array([len(text) for text in texts], np.int64)),
            names=np.frombuffer(b"".join(texts), np.uint8),
            firsts=firsts,
            **columns,
            polygon_ends=_ends(self._take("polygon_lengths")),
            points=self._take("points"),
            rle=self._take("rle"),
        )

    def _take(self, name: str) -> np.ndarray:
        """A column as an array; its values are let go with it."""
        values = np.frombuffer(self._values.pop(name), _type(name))
        return values.reshape(-1, 4) if name == "boxes" else values


def _type(name: str) -> np.dtype[Any]:
    return TYPES.get(name, np.dtype(np.int64))


def _ends(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
