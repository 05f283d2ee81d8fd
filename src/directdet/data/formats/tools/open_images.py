"""Open Images' csv files: a line for each box, in shares of the picture (storage.googleapis.com/openimages)."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from directdet.common.errors import UserError
from directdet.data.formats.folders import Found, files_in, picture_called, split_folders, split_of
from directdet.data.formats.pictures import Picture, Shape, assemble, found_names
from directdet.data.formats.reading import OBJECT, Faults, read_text
from directdet.data.formats.values import finite
from directdet.data.records import Dataset

_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
_PLACES = ("", "annotations", "labels", "metadata")


def open_open_images(root: Path) -> Found | None:
    """The reading of a folder with files such as train-annotations-bbox.csv and pictures in train, or None."""
    splits: dict[str, Path] = {}
    places = [root / name for name in _PLACES] + [
        folder / name for folder in split_folders(root).values() for name in _PLACES
    ]
    for file in [file for place in dict.fromkeys(places) for file in files_in(place, ".csv")]:
        with open(file, "rb") as stream:
            columns = stream.readline(4096).decode("utf-8-sig", "replace").strip().split(",")
        if set(_COLUMNS) <= set(columns):
            words = [*file.stem.replace("_", "-").split("-"), file.parent.name, file.parent.parent.name]
            split = next((name for word in words if (name := split_of(word))), "train")
            if split in splits:
                raise UserError(f"{root}: {splits[split].name} and {file.name} are both of {split!r}; keep one of them")
            splits[split] = file
    if not splits:
        return None
    ordered = {name: splits[name] for name in ("train", "val", "test") if name in splits}
    read = lambda split: read_open_images(root, split, ordered)  # noqa: E731
    return Found("open-images", "Open Images' csv", tuple(ordered), read)


def read_open_images(root: Path, split: str, splits: Mapping[str, Path]) -> Dataset:
    """Read one split: the boxes of the pictures that are there. IsGroupOf is a crowd region.

    The classes are those with a box in any split, sorted by name, as class-descriptions-boxable.csv (or
    class-descriptions.csv) gives it.
    """
    faults, notes = Faults(), list[str]()
    names = _descriptions(root)
    pictures = {
        name: _read(root, name, file, names, faults if name == split else Faults(), notes if name == split else [])
        for name, file in splits.items()
    }
    classes: dict[str | int, str] = {name: name for name in found_names(pictures)}
    return assemble(root, split, "open-images", pictures[split], classes, 1, faults, notes)


def _descriptions(root: Path) -> dict[str, str]:
    for place in (root / name for name in _PLACES):
        for file in files_in(place, ".csv"):
            if "class-descriptions" in file.name or file.name == "classes.csv":
                rows = csv.reader(read_text(file, "list of classes").splitlines())
                return {row[0]: row[1] for row in rows if len(row) >= 2}
    return {}


_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")


def _read(root: Path, split: str, file: Path, names: dict[str, str], faults: Faults, notes: list[str]) -> list[Picture]:
    own = split_folders(root).get(split, root)
    inner = split_folders(root / "images").get(split, root / "images")
    places = [own, own / "data", own / "images", inner, root / "images", root]
    found: dict[str, Picture] = {}
    missing: set[str] = set()
    rows = csv.DictReader(read_text(file, "annotation file").splitlines())
    if lost := [name for name in _COLUMNS if name not in (rows.fieldnames or ())]:
        raise UserError(f"{file}: line 1: the column {lost[0]} is missing; add it")
    for number, row in enumerate(rows, 2):
        image = (row["ImageID"] or "").strip()
        if image not in found and image not in missing:
            path = next((path for place in places if (path := picture_called(place, image))), None)
            if path is None:
                missing.add(image)
            else:
                found[image] = Picture(path, shares=True)
        if image not in found:
            continue
        where = f"{file}: line {number}"
        try:
            found[image].shapes.append(_shape(where, cast("dict[str, str | None]", row), names))
        except UserError as error:
            faults.add(OBJECT, error)
    if not found:
        raise UserError(f"{file}: none of its {len(missing)} pictures found in {', '.join(map(str, places[:3]))}")
    if missing:
        notes.append(f"{file}: {len(missing)} of {len(missing) + len(found)} pictures are not there; they are left out")
    return list(found.values())


def _shape(where: str, row: dict[str, str | None], names: dict[str, str]) -> Shape:
    numbers: list[float] = []
    for key in ("XMin", "YMin", "XMax", "YMax"):
        number = finite(row[key])
        if number is None or abs(number) > 2:
            raise UserError(f"{where}: {key} {row[key]!r} is not a share from 0 to 1; correct it")
        numbers.append(number)
    label = (row["LabelName"] or "").strip()
    if not label:
        raise UserError(f"{where}: LabelName is missing; add it or remove the line")
    return Shape(where, names.get(label, label), numbers, crowd=(row.get("IsGroupOf") or "").strip() == "1")
