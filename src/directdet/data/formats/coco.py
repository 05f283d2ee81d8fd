"""Reading COCO instance annotations (COCO 2017 folders, Roboflow exports, or any JSON file with an image folder)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.data.formats.polygons import near_picture
from directdet.data.formats.rle import check_rle
from directdet.data.formats.values import area_or_none, flag, name_text, whole
from directdet.data.picture_size import check_pixels
from directdet.data.records import (
    AnnotatedObject,
    Dataset,
    Problem,
    Record,
    Segmentation,
    clip_box,
    is_number,
    make_record,
    path_inside,
)

_ROBOFLOW_FOLDERS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
_ROBOFLOW_FILE = "_annotations.coco.json"


def coco_splits(root: Path) -> dict[str, tuple[Path, Path]]:
    """Splits of a COCO 2017 folder: name -> (annotation file, image folder)."""
    found = {}
    for split in ("train", "val", "test"):
        annotations = root / "annotations" / f"instances_{split}2017.json"
        if annotations.is_file():
            images = root / f"{split}2017"
            alternative = root / "images" / f"{split}2017"
            found[split] = (annotations, alternative if not images.is_dir() and alternative.is_dir() else images)
    return found


def roboflow_splits(root: Path) -> dict[str, tuple[Path, Path]]:
    """Splits of a Roboflow COCO export: name -> (annotation file, image folder)."""
    found = {}
    for split, folders in _ROBOFLOW_FOLDERS.items():
        for folder in folders:
            if split not in found and (root / folder / _ROBOFLOW_FILE).is_file():
                found[split] = (root / folder / _ROBOFLOW_FILE, root / folder)
    return found


def read_coco(root: Path, split: str, layout: str, annotations: Path, images: Path) -> Dataset:
    """Read one COCO JSON file.

    Category ids are mapped to labels 0..C-1 in ascending order. Every category of the file is a class, used or not, so
    that the files of two splits agree.

    Raises:
        UserError: invalid JSON, missing keys, unknown or repeated ids, paths that point outside ``images``; the
            message names the file and the annotation.
    """
    content = _read_json(annotations)
    names = _read_categories(annotations, content)
    category_ids = tuple(sorted(names))
    reader = _ObjectReader(annotations, {category: label for label, category in enumerate(category_ids)})
    image_entries = _read_images(annotations, content)
    grouped: dict[int, list[AnnotatedObject]] = {image_id: [] for image_id in image_entries}
    for index, entry in enumerate(_list(annotations, content, "annotations")):
        found = reader.read(index, entry, image_entries)
        if found is not None:
            image_id, item = found
            grouped[image_id].append(item)
    records: list[Record] = []
    for image_id, entry in image_entries.items():
        path = path_inside(images, entry["file_name"], f"{annotations}: image {image_id}: file_name")
        records.append(make_record(image_id, path, entry["width"], entry["height"], grouped[image_id]))
    classes = tuple(names[category] for category in category_ids)
    return Dataset(root, split, layout, classes, category_ids, tuple(records), tuple(reader.problems))


class _ObjectReader:
    """Reads the entries of "annotations", and collects the problems that do not stop it."""

    def __init__(self, file: Path, labels: dict[int, int]) -> None:
        self.file = str(file)
        self.labels = labels
        self.problems: list[Problem] = []
        self._seen: set[int] = set()

    def read(self, index: int, entry: Any, images: dict[int, dict[str, Any]]) -> tuple[int, AnnotatedObject] | None:
        """(id of its image, the object), or None if it is dropped."""
        annotation_id = self._identify(index, entry)
        where = f"{self.file}: annotation {annotation_id}"
        for key in ("image_id", "category_id", "bbox"):
            if key not in entry:
                raise UserError(f"{where}: key {key!r} is missing; add it or remove the annotation")
        image_id = whole(entry["image_id"])
        image = None if image_id is None else images.get(image_id)
        if image_id is None or image is None:
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
        clipped, problem = clip_box(corners, image["width"], image["height"], self.file, annotation_id)
        if problem is not None:
            self.problems.append(problem)
        if clipped is None:
            return None
        item = AnnotatedObject(
            annotation_id,
            label,
            clipped,
            self._area(where, annotation_id, entry.get("area"), clipped),
            self._segmentation(where, annotation_id, entry.get("segmentation"), image),
            crowd=flag(where, "iscrowd", entry.get("iscrowd")),
            difficult=flag(where, "difficult", entry.get("difficult")),  # kept when VOC is converted to COCO
        )
        return image_id, item

    def _identify(self, index: int, entry: Any) -> int:
        if not isinstance(entry, dict):
            raise UserError(f"{self.file}: annotations: entry {index} is not an object; correct or remove it")
        annotation_id = whole(entry.get("id", index + 1))
        if annotation_id is None:
            raise UserError(f"{self.file}: annotations: entry {index}: id {entry['id']!r} is not an integer")
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
            self.problems.append(Problem("bad-area", self.file, annotation_id, message, "taken from the box"))
        return (box[2] - box[0]) * (box[3] - box[1])

    def _segmentation(self, where: str, annotation_id: int, value: Any, image: dict[str, Any]) -> Segmentation:
        """The mask, or None if the file has none that can be drawn: the object keeps its box."""
        if value is None:
            return None
        if isinstance(value, dict):
            return check_rle(where, value, image["height"], image["width"])
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
            self.problems.append(Problem("bad-polygon", self.file, annotation_id, message, "mask left out, box kept"))
        return self._near(annotation_id, polygons, image) if polygons else None

    def _near(self, annotation_id: int, polygons: list[np.ndarray], image: dict[str, Any]) -> Segmentation:
        """The polygons without what is far outside the picture; None if nothing is left."""
        near = [near_picture(polygon, image["width"], image["height"]) for polygon in polygons]
        kept = [polygon for polygon in near if polygon is not None]
        if all(new is old for new, old in zip(near, polygons, strict=True)):
            return kept
        farthest = max(np.concatenate(polygons).tolist(), key=abs)
        message = f"a polygon of the mask has a corner at {farthest:g}, far outside its picture"
        action = "mask cut off there" if kept else "mask left out, box kept"
        self.problems.append(Problem("far-polygon", self.file, annotation_id, message, action))
        return kept or None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{file}: annotation file not found") from None
    except OSError as error:
        raise UserError(f"{file}: annotation file cannot be read: {error.strerror or error}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, endless nesting
        raise UserError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a COCO file: expected an object with images, annotations and categories")
    return content


def _read_categories(file: Path, content: dict[str, Any]) -> dict[int, str]:
    names: dict[int, str] = {}
    for index, entry in enumerate(_list(file, content, "categories")):
        category = whole(entry.get("id")) if isinstance(entry, dict) else None
        name = name_text(entry.get("name")) if isinstance(entry, dict) else None
        if category is None or name is None:
            raise UserError(f"{file}: categories: entry {index} has no integer id or no name; correct it")
        if category in names:
            raise UserError(f"{file}: categories: id {category} is used twice; give every category its own id")
        names[category] = name
    if not names:
        raise UserError(f"{file}: categories: the list is empty; a detector needs at least one class")
    return names


def _read_images(file: Path, content: dict[str, Any]) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(_list(file, content, "images")):
        image_id = whole(entry.get("id")) if isinstance(entry, dict) else None
        if image_id is None:
            raise UserError(f"{file}: images: entry {index} has no integer id; correct it")
        for key in ("file_name", "width", "height"):
            if key not in entry:
                raise UserError(f"{file}: image {image_id}: key {key!r} is missing; add it")
        width, height = whole(entry["width"]), whole(entry["height"])
        if width is None or height is None or width < 1 or height < 1:
            raise UserError(
                f"{file}: image {image_id}: width {entry['width']!r} and height {entry['height']!r} are not both "
                "positive integers; correct them"
            )
        check_pixels(height, width, f"{file}: image {image_id}")
        if image_id in images:
            raise UserError(f"{file}: image {image_id}: id is used twice; give every image its own id")
        images[image_id] = {"file_name": entry["file_name"], "width": width, "height": height}
    return images


def _list(file: Path, content: dict[str, Any], key: str) -> list[Any]:
    value = content.get(key)
    if not isinstance(value, list):
        raise UserError(f"{file}: {key}: expected a list here; is this a COCO instances file?")
    return value
