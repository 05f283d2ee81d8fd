"""The objects of a COCO file, put into columns: regular ones thousands at a time, all others one by one.

An object is regular if nothing about it needs a word: its values have the types that COCO's own have, and its box and
polygons stay in their picture. What is read does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.data.flat.gather import Gathered
from directdet.data.flat.json_lists import Piece
from directdet.data.formats.reading import OBJECT, Faults
from directdet.data.formats.rle import check_rle
from directdet.data.formats.values import area_or_none, flag, is_number, score_or_one, whole
from directdet.data.records import Problem, Segmentation

_TOGETHER = 4096  # objects that are looked at at once
_LARGEST = 1e15  # as in is_number
_NUMBERS = {int, float}
# Integers of more than 64 bits have become floating point numbers in a fast parser; messages show them as they are.
_SUSPICIOUS = 2.0**63


@dataclass
class Images:
    """The images of a file, in its order, and where each id is."""

    folder: Path
    places: dict[int, int] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # paths below the folder
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)

    def add(self, image_id: int, name: str, width: int, height: int) -> None:
        """An image behind the others, of an id that none of them has."""
        self.places[image_id] = len(self.ids)
        self.ids.append(image_id)
        self.names.append(name)
        self.widths.append(width)
        self.heights.append(height)


class ObjectReader:
    """Reads the entries of "annotations", and collects the problems that it deals with.

    Args:
        file: the annotations, for messages.
        labels: by category id.
        images: of the file.
        lost: ids of images and of categories that could not be read, which is told already.
        faults: what is found is added there.
    """

    def __init__(
        self,
        file: Path,
        labels: dict[int, int],
        images: Images,
        lost: tuple[set[int | None], set[int | None]],
        faults: Faults,
    ) -> None:
        self.file = str(file)
        self.labels = labels
        self.images = images
        self.lost_images, self.lost_categories = lost
        self.faults = faults
        self.widths = np.array(images.widths, np.float64)
        self.heights = np.array(images.heights, np.float64)
        self.gathered = Gathered()
        self._all_ids: list[np.ndarray] = []
        self._seen: set[int] | None = None  # where ids are known to be used twice: all of them so far

    def read_all(self, pieces: Callable[[], Iterable[Piece]]) -> Gathered:
        """The objects of all pieces. Where an id is used twice, they are read a second time, one by one."""
        problems = len(self.faults.problems)
        self._read(pieces())
        ids = np.concatenate([np.zeros(0, np.int64), *self._all_ids])
        self._all_ids = []
        ids.sort()
        if (ids[1:] == ids[:-1]).any():
            self.gathered, self._seen = Gathered(), set()
            del self.faults.problems[problems:]
            self.faults.forget(OBJECT)
            self._read(pieces())
        return self.gathered

    def _read(self, pieces: Iterable[Piece]) -> None:
        place = 0
        for piece in pieces:
            for start in range(0, len(piece.entries), _TOGETHER):
                entries = piece.entries[start : start + _TOGETHER]
                for index in self._read_regular(place + start, entries):
                    entry = entries[index]
                    if _is_suspicious(entry):
                        entry = piece.exactly()[start + index]
                    self._read_one(place + start + index, entry)
            place += len(piece.entries)

    def _read_regular(self, first: int, entries: list[Any]) -> Sequence[int]:
        """Take what is regular of entries ``first``, ``first`` + 1, ...; returns the indices of the others."""
        everything = range(len(entries))
        if self._seen is not None or set(map(type, entries)) != {dict} or not self.images.ids:
            return everything
        try:
            return self._take_regular(first, entries)
        except OverflowError:  # an integer beyond floating point
            return everything

    def _take_regular(self, first: int, entries: list[dict[str, Any]]) -> Sequence[int]:
        everything = range(len(entries))
        ids: list[Any] = [entry.get("id", first + index + 1) for index, entry in enumerate(entries)]
        boxes: list[Any] = [entry.get("bbox") for entry in entries]
        image_ids: list[Any] = [entry.get("image_id") for entry in entries]
        categories: list[Any] = [entry.get("category_id") for entry in entries]
        given_areas: list[Any] = [entry.get("area") for entry in entries]
        scores: list[Any] = [entry.get("score") for entry in entries]
        flags = {key: [entry.get(key) for entry in entries] for key in ("iscrowd", "difficult")}
        if not (
            set(map(type, ids)) | set(map(type, image_ids)) | set(map(type, categories)) == {int}
            and set(map(type, boxes)) == {list}
            and set(map(len, boxes)) == {4}
            and set(map(type, chain.from_iterable(boxes))) <= _NUMBERS
            and set(map(type, given_areas)) | set(map(type, scores)) <= {int, float, type(None)}
            and all(set(map(type, values)) <= {int, type(None)} for values in flags.values())
            and -(2**63) <= min(ids) <= max(ids) < 2**63
        ):
            return everything
        images = np.array([self.images.places.get(one, -1) for one in image_ids], np.int64)
        labels = np.array([self.labels.get(one, -1) for one in categories], np.int64)
        regular = (images >= 0) & (labels >= 0)
        for values in flags.values():
            regular &= [value in (0, 1, None) for value in values]
        widths, heights = self.widths[images], self.heights[images]
        clipped, inside = _clip(np.array(list(chain.from_iterable(boxes)), np.float64).reshape(-1, 4), widths, heights)
        weights = np.array([1.0 if score is None else score for score in scores], np.float64)
        regular &= (weights >= 0) & (weights <= 1)
        areas = np.array([np.nan if area is None else area for area in given_areas], np.float64)
        has_area = (areas > 0) & (areas < _LARGEST)
        regular &= inside & (has_area | [area is None for area in given_areas])
        sides = clipped[:, 2:] - clipped[:, :2]
        areas = np.where(has_area, areas, sides[:, 0] * sides[:, 1])
        masks = _polygons([entry.get("segmentation") for entry in entries], np.minimum(widths, heights))
        if masks is None:
            return everything
        polygon_counts, lengths, points, fine = masks
        regular &= fine
        taken = np.flatnonzero(regular)
        if len(taken) < len(entries):
            own = np.repeat(regular, polygon_counts)
            points = points[np.repeat(own, lengths)]
            lengths, polygon_counts = lengths[own], polygon_counts[taken]
        columns = {
            "boxes": clipped[taken],
            "labels": labels[taken],
            "crowd": np.array([bool(value) for value in flags["iscrowd"]])[taken],
            "difficult": np.array([bool(value) for value in flags["difficult"]])[taken],
            "areas": areas[taken],
            "weights": weights[taken],
            "annotation_ids": np.array(ids, np.int64)[taken],
        }
        self._all_ids.append(columns["annotation_ids"])
        self.gathered.add_block(images[taken], first + taken, columns, polygon_counts, lengths, points)
        return np.flatnonzero(~regular).tolist()

    def _read_one(self, index: int, entry: Any) -> None:
        try:
            found = self._object(index, entry)
        except UserError as error:
            # That the image or category of an object cannot be read is told already, once.
            if whole(entry.get("image_id") if isinstance(entry, dict) else None) not in self.lost_images and (
                whole(entry.get("category_id") if isinstance(entry, dict) else None) not in self.lost_categories
            ):
                self.faults.add(OBJECT, error)
            return
        if found is not None:
            self.gathered.add(found[0], index, *found[1:])

    def _object(self, index: int, entry: Any) -> tuple[int, dict[str, Any], Segmentation] | None:
        """(index of its image, values by column, mask), or None if it is dropped; UserError if it cannot be read."""
        annotation_id = self._identify(index, entry)
        where = f"{self.file}: annotation {annotation_id}"
        for key in ("image_id", "category_id", "bbox"):
            if key not in entry:
                raise UserError(f"{where}: key {key!r} is missing; add it or remove the annotation")
        image_id = whole(entry["image_id"])
        image = None if image_id is None else self.images.places.get(image_id)
        if image is None:
            raise UserError(f"{where}: image_id {entry['image_id']!r} is not among the images; correct or remove it")
        category = whole(entry["category_id"])
        label = None if category is None else self.labels.get(category)
        if label is None:
            known = ", ".join(map(str, sorted(self.labels)[:20])) + (", ..." if len(self.labels) > 20 else "")
            raise UserError(
                f"{where}: category_id {entry['category_id']!r} is not among the categories ({known}); "
                "add the category or correct the annotation"
            )
        box = entry["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            raise UserError(f"{where}: bbox {box!r} is not four finite numbers [x, y, width, height]; correct it")
        corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
        size = self.images.widths[image], self.images.heights[image]
        self.faults.picture = self.images.folder / self.images.names[image]
        clipped = self.faults.clip(corners, size, self.file, annotation_id)
        if clipped is None:
            return None
        values = {
            "boxes": clipped,
            "labels": label,
            "areas": self._area(where, annotation_id, entry.get("area"), clipped),
            "weights": score_or_one(where, entry.get("score")),
            "annotation_ids": annotation_id,
        }
        mask = self._segmentation(where, annotation_id, entry.get("segmentation"), size)
        values["crowd"] = flag(where, "iscrowd", entry.get("iscrowd"))
        values["difficult"] = flag(where, "difficult", entry.get("difficult"))  # kept when VOC is converted to COCO
        return image, values, mask

    def _identify(self, index: int, entry: Any) -> int:
        if not isinstance(entry, dict):
            raise UserError(f"{self.file}: annotations: entry {index} is not an object; correct or remove it")
        annotation_id = whole(entry.get("id", index + 1))
        if annotation_id is None:
            raise UserError(f"{self.file}: annotations: entry {index}: id {entry['id']!r} is not an integer")
        if self._seen is None:
            self._all_ids.append(np.array([annotation_id], np.int64))
            return annotation_id
        if annotation_id in self._seen:
            raise UserError(f"{self.file}: annotation {annotation_id}: id is used twice; give each its own id")
        self._seen.add(annotation_id)
        return annotation_id

    def _area(self, where: str, annotation_id: int, value: Any, box: list[float]) -> float:
        """The object's area, or that of its box where the file has none that can be meant."""
        area = area_or_none(where, value)
        if area is not None:
            return area
        if value is not None:
            message = f"area {value!r} is not positive"
            self.faults.note(Problem("bad-area", self.file, annotation_id, message, "taken from the box"))
        return (box[2] - box[0]) * (box[3] - box[1])

    def _segmentation(self, where: str, annotation_id: int, value: Any, size: tuple[int, int]) -> Segmentation:
        """The mask, or None if the file has none that can be drawn: the object keeps its box."""
        if value is None:
            return None
        if isinstance(value, dict):
            return check_rle(where, value, size[1], size[0])
        if not isinstance(value, list) or not all(isinstance(polygon, list) for polygon in value):
            raise UserError(f"{where}: segmentation is neither a list of polygons nor a run-length object; correct it")
        polygons = []
        for polygon in value:
            if not all(map(is_number, polygon)):
                raise UserError(f"{where}: segmentation: a polygon has values that are not finite numbers; correct it")
            if len(polygon) >= 6 and len(polygon) % 2 == 0:
                polygons.append(np.array(polygon, np.float64))
        if not polygons and any(value):  # [] and [[]] are how converters write that there is no mask
            message = "no polygon of the mask has three points"
            self.faults.note(Problem("bad-polygon", self.file, annotation_id, message, "mask left out, box kept"))
        return self.faults.near(polygons, size, self.file, annotation_id) if polygons else None


def _clip(boxes: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x, y, width, height [n, 4] -> xyxy clipped as by `clip_box`, and which of them it says nothing about."""
    with np.errstate(over="ignore", invalid="ignore"):
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        limits = np.stack([widths, heights, widths, heights], axis=1)
        clipped = np.minimum(np.maximum(corners, 0.0), limits)
        stored = clipped.astype(np.float32)
        fine = (np.abs(boxes) < _LARGEST).all(axis=1) & (np.abs(corners - clipped) <= 1e-3).all(axis=1)
        fine &= (corners[:, 2:] > corners[:, :2]).all(axis=1) & (stored[:, 2:] > stored[:, :2]).all(axis=1)
    return clipped, np.asarray(fine)


def _polygons(values: list[Any], shorter: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Polygons of each object, numbers of each polygon, all numbers, and which objects are regular; None: none is.

    Objects without a mask and those whose mask is not a list have no polygons; the latter are not regular.
    """
    is_list = [type(value) is list for value in values]
    own = [value if one else () for value, one in zip(values, is_list, strict=True)]
    counts = np.array(list(map(len, own)), np.int64)
    polygons = list(chain.from_iterable(own))
    if not set(map(type, polygons)) <= {list}:
        return None
    lengths = np.array(list(map(len, polygons)), np.int64)
    numbers = list(chain.from_iterable(polygons))
    if not set(map(type, numbers)) <= _NUMBERS or (len(polygons) and lengths.min() < 6):
        return None
    points = np.array(numbers, np.float64)
    fine = np.array([one or value is None for value, one in zip(values, is_list, strict=True)])
    if len(polygons):
        starts = np.cumsum(lengths) - lengths
        objects = np.repeat(np.arange(len(values)), counts)
        with np.errstate(invalid="ignore"):
            near = np.minimum.reduceat(points, starts) >= -shorter[objects]
            near &= np.maximum.reduceat(points, starts) <= 2 * shorter[objects]
        fine[objects[~near | (lengths % 2 == 1)]] = False
    return counts, lengths, points, fine


def _is_suspicious(value: Any) -> bool:
    """Whether a value holds a floating point number that may have been an integer of more than 64 bits."""
    if isinstance(value, dict):
        return any(map(_is_suspicious, value.values()))
    if isinstance(value, list):
        return any(map(_is_suspicious, value))
    return isinstance(value, float) and abs(value) >= _SUSPICIOUS
