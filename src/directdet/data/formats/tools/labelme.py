"""labelme: a json file for each picture, with shapes in pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from directdet.common.errors import UserError
from directdet.data.formats.coco import read_json
from directdet.data.formats.folders import (
    Found,
    files_in,
    find_picture,
    picture_called,
    picture_folders,
    split_folders,
)
from directdet.data.formats.pictures import Picture, Shape, assemble, found_names
from directdet.data.formats.reading import IMAGE, OBJECT, Faults
from directdet.data.formats.values import is_point, name_text, whole
from directdet.data.records import Dataset

_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def open_labelme(root: Path) -> Found | None:
    """The reading of a folder of labelme's files, or None. Sub-folders called like splits are splits."""
    if not root.is_dir():
        return None
    splits = {name: files for name, folder in split_folders(root).items() if (files := _files(folder))}
    if not splits:
        splits = {"train": files} if (files := _files(root)) else {}
    if not splits:
        return None
    return Found("labelme", "labelme's json files", tuple(splits), lambda split: read_labelme(root, split, splits))


def _files(folder: Path) -> list[Path]:
    """The json files in a folder, or in one in it that is called like annotations, if the first is one of labelme's."""
    for place in (folder, *(folder / name for name in ("annotations", "labels", "json", "jsons"))):
        files = files_in(place, ".json")
        if not files:
            continue
        try:
            content = read_json(files[0])
        except UserError:
            continue
        if "shapes" in content and "imagePath" in content:
            return files
    return []


def read_labelme(root: Path, split: str, splits: Mapping[str, list[Path]]) -> Dataset:
    """Read one split. Shapes of one label and group_id are one object; points and lines have no area and are left out.

    The classes are the labels in all splits, sorted. Pictures without a json file are not used.
    """
    faults = Faults()
    notes: list[str] = []
    pictures = {
        name: _read_files(root, files, faults if name == split else Faults(), notes if name == split else [])
        for name, files in splits.items()
    }
    classes: dict[str | int, str] = {name: name for name in found_names(pictures)}
    return assemble(root, split, "labelme", pictures[split], classes, 1, faults, notes)


def _read_files(root: Path, files: list[Path], faults: Faults, notes: list[str]) -> list[Picture]:
    pictures: list[Picture] = []
    left_out = 0
    for file in files:
        try:
            content = read_json(file)
            shapes = content.get("shapes")
            if not isinstance(shapes, list):
                raise UserError(f"{file}: shapes: expected a list here; is this a file of labelme's?")
            picture = Picture(_picture(root, file, content.get("imagePath")), _size(content))
        except UserError as error:
            faults.add(IMAGE, error)
            continue
        groups: dict[tuple[str, Any], Shape] = {}
        for index, entry in enumerate(cast("list[Any]", shapes)):
            where = f"{file}: shape {index + 1}"
            try:
                kind = entry.get("shape_type") or "polygon" if isinstance(entry, dict) else None
                if kind in _WITHOUT_AREA:
                    left_out += 1
                    continue
                shape = _read_shape(where, kind, entry)
            except UserError as error:
                faults.add(OBJECT, error)
                continue
            group = entry.get("group_id")
            key = (str(shape.name), index if group is None else f"group {group}")
            groups[key] = _join(groups[key], shape) if key in groups else shape
        picture.shapes += groups.values()
        pictures.append(picture)
    if left_out:
        notes.append(f"{left_out} shapes are points or lines, which have no area: they are left out")
    return pictures


def _picture(root: Path, file: Path, given: Any) -> Path:
    places = picture_folders(root, file.parent, file.parent.parent / "images")
    try:
        return find_picture(root, places, given, f"{file}: imagePath")
    except UserError:
        own = picture_called(file.parent, file.stem)
        if own is None:
            raise
        return own


def _size(content: dict[str, Any]) -> tuple[int, int] | None:
    width, height = whole(content.get("imageWidth")), whole(content.get("imageHeight"))
    return (width, height) if width and height and width > 0 and height > 0 else None


def _read_shape(where: str, kind: Any, entry: Any) -> Shape:
    name = name_text(entry.get("label")) if isinstance(entry, dict) else None
    if not name:
        raise UserError(f"{where}: label is missing; add it or remove the shape")
    points = entry.get("points")
    if not isinstance(points, list) or not all(is_point(point) for point in cast("list[Any]", points)):
        raise UserError(f"{where}: points: expected a list of [x, y]; correct it")
    xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
    if (kind == "rectangle" and len(points) in (2, 4)) or (kind == "mask" and len(points) == 2):
        return Shape(where, name, (min(xs), min(ys), max(xs), max(ys)))
    if kind == "circle" and len(points) == 2:  # its centre, and a point on it
        radius = math.dist(*points)
        return Shape(where, name, (xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius))
    if kind in ("polygon", "oriented_rectangle") and len(points) >= 3:
        return Shape(where, name, (), ([value for point in points for value in point],))
    raise UserError(f"{where}: shape_type {kind!r} with {len(points)} points is not read; draw a rectangle or polygon")


def _join(first: Shape, second: Shape) -> Shape:
    """One object from two shapes of a group; it has a mask if both have."""
    boxes = [_box(first), _box(second)]
    box = [min(boxes[0][i], boxes[1][i]) for i in (0, 1)] + [max(boxes[0][i], boxes[1][i]) for i in (2, 3)]
    both = first.polygons and second.polygons
    return Shape(first.where, first.name, box, (*first.polygons, *second.polygons) if both else ())


def _box(shape: Shape) -> list[float]:
    if len(shape.box) == 4:
        return list(shape.box)
    values = [value for polygon in shape.polygons for value in polygon]
    return [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
