"""Reading COCO instance annotations (COCO 2017 folders, Roboflow exports, or any JSON file with an image folder)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.data.formats.reading import CATEGORY, IMAGE, OBJECT, Faults, read_file
from directdet.data.formats.rle import check_rle
from directdet.data.formats.values import area_or_none, flag, name_text, whole
from directdet.data.image import read_size
from directdet.data.picture_size import check_pixels
from directdet.data.records import (
    AnnotatedObject,
    Dataset,
    Problem,
    Segmentation,
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


def read_coco(
    root: Path, split: str, layout: str, annotations: Path, images: Path, others: Sequence[Path] = ()
) -> Dataset:
    """Read one COCO JSON file; ``others`` are the annotation files of the other splits.

    Category ids are mapped to labels 0..C-1 in ascending order. Every category of the file is a class, used or not, so
    that the files of two splits agree; but for Roboflow's placeholder, see :func:`_placeholder`.

    Entries that cannot be read (missing keys, unknown or repeated ids, paths that point outside ``images``) are left
    out, and named in ``Dataset.errors``.

    Raises:
        UserError: not JSON, or without any category.
    """
    content = read_json(annotations)
    faults = Faults()
    names, lost = _read_categories(annotations, content, faults)
    entries = _list(annotations, content, "annotations")
    notes: list[str] = []
    placeholder = _placeholder(content, entries, others)
    if placeholder is not None and len(names) > 1:
        name = names.pop(placeholder)
        notes.append(
            f"{annotations}: category {placeholder} {name!r} is no class: it is the placeholder of a Roboflow export "
            "(supercategory none, no objects)"
        )
    category_ids = tuple(sorted(names))
    image_entries, lost_images = _read_images(annotations, content, images, faults)
    measured = [image_id for image_id, entry in image_entries.items() if entry["measured"]]
    if measured:
        notes.append(
            f"{annotations}: {len(measured)} images (the first: {measured[0]}) have no width or height; theirs are "
            "those of the image files"
        )
    labels = {category: label for label, category in enumerate(category_ids)}
    reader = _ObjectReader(annotations, labels, image_entries, faults)
    grouped: dict[int, list[AnnotatedObject]] = {image_id: [] for image_id in image_entries}
    for index, entry in enumerate(entries):
        try:
            found = reader.read(index, entry)
        except UserError as error:
            # That the image or category of an object cannot be read is told already, once.
            if whole(entry.get("image_id") if isinstance(entry, dict) else None) not in lost_images and (
                whole(entry.get("category_id") if isinstance(entry, dict) else None) not in lost
            ):
                faults.add(OBJECT, error)
            continue
        if found is not None:
            image_id, item = found
            grouped[image_id].append(item)
    records = [
        make_record(image_id, entry["path"], entry["width"], entry["height"], grouped[image_id])
        for image_id, entry in image_entries.items()
    ]
    classes = tuple(names[category] for category in category_ids)
    return Dataset(
        root,
        split,
        layout,
        classes,
        category_ids,
        tuple(records),
        tuple(faults.problems),
        tuple(notes),
        faults.errors(),
    )


def _placeholder(content: dict[str, Any], entries: list[Any], others: Sequence[Path]) -> int | None:
    """The id of the category that Roboflow writes for a whole project: no class, and no object is of it.

    It has id 0 and supercategory "none", and the classes have another supercategory (the project's name). Some tools
    write "none" for every class, and a class may be rare: so it is one as soon as an object in any split is of it.
    """
    none = [
        entry for entry in content["categories"] if isinstance(entry, dict) and entry.get("supercategory") == "none"
    ]
    if len(none) != 1 or whole(none[0].get("id")) != 0 or _uses(entries, 0):
        return None
    for file in others:
        try:
            if _uses(_list(file, read_json(file), "annotations"), 0):
                return None
        except UserError:  # it is told when that split is read
            continue
    return 0


def _uses(entries: list[Any], category: int) -> bool:
    return any(isinstance(entry, dict) and whole(entry.get("category_id")) == category for entry in entries)


class _ObjectReader:
    """Reads the entries of "annotations", and collects the problems that it deals with."""

    def __init__(self, file: Path, labels: dict[int, int], images: dict[int, dict[str, Any]], faults: Faults) -> None:
        self.file = str(file)
        self.labels = labels
        self.images = images
        self.faults = faults
        self._seen: set[int] = set()

    def read(self, index: int, entry: Any) -> tuple[int, AnnotatedObject] | None:
        """(id of its image, the object), or None if it is dropped; UserError if it cannot be read."""
        annotation_id = self._identify(index, entry)
        where = f"{self.file}: annotation {annotation_id}"
        for key in ("image_id", "category_id", "bbox"):
            if key not in entry:
                raise UserError(f"{where}: key {key!r} is missing; add it or remove the annotation")
        image_id = whole(entry["image_id"])
        image = None if image_id is None else self.images.get(image_id)
        if image_id is None or image is None:
            raise UserError(f"{where}: image_id {entry['image_id']!r} is not among the images; correct or remove it")
        self.faults.picture = image["path"]
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
        clipped = self.faults.clip(corners, (image["width"], image["height"]), self.file, annotation_id)
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
            self.faults.note(Problem("bad-area", self.file, annotation_id, message, "taken from the box"))
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
            self.faults.note(Problem("bad-polygon", self.file, annotation_id, message, "mask left out, box kept"))
        size = image["width"], image["height"]
        return self.faults.near(polygons, size, self.file, annotation_id) if polygons else None


def read_json(file: Path) -> dict[str, Any]:
    text = read_file(file, "annotation file")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, endless nesting
        raise UserError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a COCO file: expected an object with images, annotations and categories")
    return content


def _read_categories(file: Path, content: dict[str, Any], faults: Faults) -> tuple[dict[int, str], set[int | None]]:
    """The names by id, and the ids of entries that cannot be read."""
    names: dict[int, str] = {}
    lost: set[int | None] = set()
    for index, entry in enumerate(_list(file, content, "categories")):
        category = whole(entry.get("id")) if isinstance(entry, dict) else None
        name = name_text(entry.get("name")) if isinstance(entry, dict) else None
        where = f"{file}: categories"
        if category is None or name is None:
            faults.add(CATEGORY, UserError(f"{where}: entry {index} has no integer id or no name; correct it"))
            lost |= {category} - {None}
        elif category in names:
            faults.add(CATEGORY, UserError(f"{where}: id {category} is used twice; give every category its own id"))
        else:
            names[category] = name
    if not names:
        found = faults.errors()
        raise UserError(
            found[0] if found else f"{file}: categories: the list is empty; a detector needs at least one class"
        )
    return names, lost


def _read_images(
    file: Path, content: dict[str, Any], folder: Path, faults: Faults
) -> tuple[dict[int, dict[str, Any]], set[int | None]]:
    """Path, width and height of the images by id, and the ids of entries that cannot be read."""
    images: dict[int, dict[str, Any]] = {}
    lost: set[int | None] = set()
    for index, entry in enumerate(_list(file, content, "images")):
        image_id = whole(entry.get("id")) if isinstance(entry, dict) else None
        try:
            if image_id is None:
                raise UserError(f"{file}: images: entry {index} has no integer id; correct it")
            if image_id in images:
                raise UserError(f"{file}: image {image_id}: id is used twice; give every image its own id")
            images[image_id] = _read_image_entry(f"{file}: image {image_id}", entry, folder)
        except UserError as error:
            faults.add(IMAGE, error)
            lost |= {image_id} - {None} - images.keys()
    return images, lost


def _read_image_entry(where: str, entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Path, width and height of one image; sizes that are missing (no key, null or 0) are those of the file."""
    if "file_name" not in entry:
        raise UserError(f"{where}: key 'file_name' is missing; add it")
    path = path_inside(folder, entry["file_name"], f"{where}: file_name")
    given = entry.get("width"), entry.get("height")
    measured = any(value in (None, 0) and value is not False for value in given)
    if measured:
        width, height = read_size(path)
    else:
        width, height = map(whole, given)
    if width is None or height is None or width < 1 or height < 1:
        raise UserError(
            f"{where}: width {given[0]!r} and height {given[1]!r} are not both positive integers; correct them"
        )
    check_pixels(height, width, where)
    return {"path": path, "width": width, "height": height, "measured": measured}


def _list(file: Path, content: dict[str, Any], key: str) -> list[Any]:
    value = content.get(key)
    if not isinstance(value, list):
        raise UserError(f"{file}: {key}: expected a list here; is this a COCO instances file?")
    return value
