"""Hugging Face's imagefolder: metadata.jsonl beside the pictures, with a column "objects".

A line is ``{"file_name": "a.png", "objects": {"bbox": [[x, y, width, height]], "categories": [0]}}``, in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from directdet.common.errors import UserError
from directdet.data.formats.folders import Found, find_picture, plain_path, split_folders, split_of
from directdet.data.formats.pictures import Picture, Shape, assemble
from directdet.data.formats.reading import IMAGE, OBJECT, Faults, read_text
from directdet.data.formats.values import is_number, name_text, whole
from directdet.data.records import Dataset

_FILE = "metadata.jsonl"
_CATEGORIES = ("categories", "category", "category_id", "label", "labels")


def open_imagefolder(root: Path) -> Found | None:
    """The reading of a folder with metadata.jsonl, or None; its splits are folders, or the first part of file names."""
    if not root.is_dir():
        return None
    folders = {**split_folders(root / "data"), **split_folders(root)}
    splits = {name: folder / _FILE for name, folder in folders.items() if (folder / _FILE).is_file()}
    if not splits and (root / _FILE).is_file():
        parts = {_split(str(entry.get("file_name"))) for _, entry in _lines(root / _FILE, Faults())}
        splits = {name: root / _FILE for name in ("train", "val", "test") if name in parts}
    if not splits:
        return None
    return Found("imagefolder", _FILE, tuple(splits), lambda split: read_imagefolder(root, split, splits))


def read_imagefolder(root: Path, split: str, splits: Mapping[str, Path]) -> Dataset:
    """Read one split. Classes are the names or numbers in all splits; numbers are in rising order, names sorted."""
    faults = Faults()
    pictures: dict[str, list[Picture]] = {}
    for name, file in splits.items():
        own = faults if name == split else Faults()
        shared = list(splits.values()).count(file) > 1
        pictures[name] = [
            picture
            for number, entry in _lines(file, own)
            if not shared or _split(str(entry.get("file_name"))) == name
            if (picture := _picture(root, file, number, entry, own)) is not None
        ]
    used = {shape.name for part in pictures.values() for picture in part for shape in picture.shapes}
    numbers = sorted(name for name in used if isinstance(name, int))
    # Numbers count from 0: a class that no picture shows keeps its place.
    names: list[str | int] = [*range(numbers[-1] + 1 if numbers and numbers[0] >= 0 else 0)]
    names += sorted(name for name in used if isinstance(name, str))
    note = f"{root}: classes are numbers in {_FILE}, which holds no names: they are called by their numbers"
    notes = (note,) if numbers else ()
    return assemble(root, split, "imagefolder", pictures[split], {name: str(name) for name in names}, 0, faults, notes)


def _split(name: str) -> str:
    return split_of(plain_path(name).parts[0]) or "train" if name else "train"


def _lines(file: Path, faults: Faults) -> list[tuple[int, dict[str, Any]]]:
    found: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(read_text(file, "annotation file").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.add(IMAGE, UserError(f"{file}: line {number}: not valid JSON: {error}"))
            continue
        if isinstance(entry, dict):
            found.append((number, cast("dict[str, Any]", entry)))
        else:
            faults.add(IMAGE, UserError(f"{file}: line {number}: expected an object with file_name; correct it"))
    return found


def _picture(root: Path, file: Path, number: int, entry: dict[str, Any], faults: Faults) -> Picture | None:
    where = f"{file}: line {number}"
    try:
        path = find_picture(root, [file.parent], entry.get("file_name"), f"{where}: file_name")
        objects = entry.get("objects")
        if not isinstance(objects, dict):
            raise UserError(f'{where}: objects: expected {{"bbox": [...], "categories": [...]}} here; correct it')
        columns = cast("dict[str, Any]", objects)
        key = next((key for key in _CATEGORIES if key in columns), _CATEGORIES[0])
        boxes, classes = columns.get("bbox"), columns.get(key)
        if not isinstance(boxes, list) or not isinstance(classes, list):
            raise UserError(f"{where}: objects: bbox and {key} are not both lists; correct them")
        rows, labels = cast("list[Any]", boxes), cast("list[Any]", classes)
        if len(rows) != len(labels):
            raise UserError(f"{where}: objects: {len(rows)} bbox but {len(labels)} {key}; give one for each")
    except UserError as error:
        faults.add(IMAGE, error)
        return None
    width, height = whole(entry.get("width")), whole(entry.get("height"))
    picture = Picture(path, (width, height) if width and height and min(width, height) > 0 else None)
    for index, (box, label) in enumerate(zip(rows, labels, strict=True)):
        here = f"{where}: object {index + 1}"
        name = label if isinstance(label, str) else whole(label)
        if name is None or name_text(name) is None or (isinstance(name, int) and not 0 <= name < 100_000):
            faults.add(OBJECT, UserError(f"{here}: {key} {label!r} is no name or number of a class; correct it"))
        elif not isinstance(box, list) or len(box) != 4 or not all(map(is_number, cast("list[Any]", box))):
            faults.add(OBJECT, UserError(f"{here}: bbox {box!r} is not four finite numbers; correct it"))
        else:
            x, y, w, h = cast("list[float]", box)
            picture.shapes.append(Shape(here, name, (x, y, x + w, y + h)))
    return picture
