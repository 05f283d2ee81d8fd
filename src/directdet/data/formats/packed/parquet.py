"""Parquet files that hold pictures and annotations, as Hugging Face's datasets writes them.

A row is ``image`` (a struct of bytes and path), ``objects`` (bbox, category and, if it is there, id, area, iscrowd,
difficult, score and segmentation; lists of the same length, or a list of structs), and image_id, width and height if
they are there. Boxes are COCO's, [x, y, width, height], unless it is said otherwise: the files do not say it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from directdet.common.errors import UserError
from directdet.data.flat.annotations import about_split
from directdet.data.flat.coco_objects import Images, ObjectReader
from directdet.data.flat.columns import Columns
from directdet.data.flat.json_lists import Piece
from directdet.data.formats.coco import Measured, read_image_entry
from directdet.data.formats.folders import PICTURES, SPLIT_NAMES, Found, files_in, split_folders, split_of
from directdet.data.formats.packed.kept import kept_split, states_of
from directdet.data.formats.packed.parquet_classes import CLASSES, Classes, category_key, find_classes
from directdet.data.formats.reading import IMAGE, OBJECT, Faults
from directdet.data.formats.values import is_number, whole
from directdet.data.inside.rows import RowFile, read_row, row_file
from directdet.data.records import Dataset

OBJECTS = "objects"
_MAGIC = b"PAR1"
_FOOTER = 2**26  # bytes that are looked at, at most
_OPTIONAL = ("area", "iscrowd", "difficult", "score", "segmentation")
_SIZES = ("width", "height")


def _xyxy(box: Sequence[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _centre(box: Sequence[float]) -> list[float]:
    return [box[0] - box[2] / 2, box[1] - box[3] / 2, box[2], box[3]]


# What `box_format` may be: each gives x, y, width, height.
BOX_FORMATS = {"xywh": list[float], "xyxy": _xyxy, "cxcywh": _centre}


def open_parquet(root: Path, box_format: str = "xywh") -> Found | None:
    """The reading of a folder with Parquet files that have a column of objects with boxes; None if there are none.

    They lie in it, in ``data/``, or in folders that are called like splits; else their names begin with a split.

    Raises:
        UserError: some are of a split and others are not.
    """
    if not root.is_dir():
        return None
    splits: dict[str, list[Path]] = {}
    unknown: list[Path] = []
    for place in (root, root / "data"):
        for split, folder in split_folders(place).items():
            splits.setdefault(split, []).extend(files_in(folder, ".parquet"))
        for file in files_in(place, ".parquet"):
            split = split_of(re.split(r"[-_.]", file.name)[0])
            (splits.setdefault(split, []) if split else unknown).append(file)
    splits = {split: splits[split] for split in SPLIT_NAMES if splits.get(split)}
    files = [*(file for own in splits.values() for file in own), *unknown]
    if not files or not _has_objects(files[0]):
        return None
    if splits and unknown:
        raise UserError(f"{unknown[0]}: its name begins with no split, such as train-; rename it or move it away")
    splits = splits or {"train": unknown}
    what = f"Parquet files ({files[0].name}{', ...' if len(files) > 1 else ''})"
    return Found("parquet", what, tuple(splits), lambda split: read_parquet(root, split, splits, box_format))


def read_parquet(root: Path, split: str, splits: Mapping[str, Sequence[Path]], box_format: str = "xywh") -> Dataset:
    """Read the annotations of one split; its pictures stay in the order of the rows, file by file.

    What was read of large files is kept, see kept.py.

    Raises:
        UserError: a file is damaged, or has no column of pictures or objects; or there is no class.
        MissingLibraryError: pyarrow is not installed.
    """
    states = states_of(file for own in (splits[split], *splits.values()) for file in own)  # classes may be those of all
    read = partial(_read, root, split, splits, box_format)
    return kept_split(root, split, "parquet", states, (CLASSES,), read, box_format)


def _has_objects(file: Path) -> bool:
    """Whether the end of a Parquet file names what is wanted; nothing of it is parsed, so pyarrow is not needed."""
    try:
        with open(file, "rb") as stream:
            start, end = stream.read(4), stream.seek(0, 2)
            stream.seek(max(0, end - 8))
            tail = stream.read(8)
            if start != _MAGIC or tail[4:] != _MAGIC:
                return start == _MAGIC  # it was cut short, which is told when it is read
            length = min(int.from_bytes(tail[:4], "little"), _FOOTER, end - 8)
            stream.seek(end - 8 - length)
            footer = stream.read(length)
    except OSError:
        return False
    return OBJECTS.encode() in footer and b"bbox" in footer


@dataclass(frozen=True)
class _Row:
    """A row that has a picture."""

    file: RowFile
    group: int
    number: int  # in the file

    @property
    def where(self) -> str:
        """File, row group and row, for messages."""
        return f"{self.file.path}: row group {self.group}, row {self.number}"


def _read(
    root: Path, split: str, splits: Mapping[str, Sequence[Path]], box_format: str
) -> tuple[Columns, dict[str, Any]]:
    """The columns of a split, and what else is known of it."""
    faults, measured = Faults(), Measured()
    files = [row_file(file) for file in splits[split]]
    for file in files:
        _check_columns(file)
    classes = find_classes(root, [row_file(file) for own in splits.values() for file in own], OBJECTS, faults)
    images = Images(root)
    kept: list[tuple[RowFile, int, np.ndarray]] = []  # of each row group, which rows have an image
    object_ids: list[np.ndarray] = []
    for file in files:
        suffix = _suffix(file)
        columns = [name for name in ("image_id", *_SIZES, OBJECTS) if name in file.names]
        columns += [f"{file.image}.path"] * file.has_path()
        for group in range(len(file.starts) - 1):
            rows = file.rows(group, columns)
            good = [
                _add_image(_Row(file, group, int(file.starts[group]) + index), row, suffix, images, measured, faults)
                for index, row in enumerate(rows)
            ]
            kept.append((file, group, np.array(good, bool)))
            object_ids.append(_ids([row for row, one in zip(rows, good, strict=True) if one]))
    numbers = np.concatenate([np.zeros(0, np.int64), *object_ids])
    has_ids = len(np.unique(numbers)) == len(numbers) and not (numbers == _NO_ID).any()
    labels = {category: label for label, category in enumerate(sorted(classes.names))}
    reader = ObjectReader(root, labels, images, (set(), set()), faults)

    def pieces() -> Iterator[Piece]:
        place = 0
        for file, group, good in kept:
            rows = file.rows(group, [OBJECTS])
            for index in np.flatnonzero(good).tolist():
                row = _Row(file, group, int(file.starts[group]) + index)
                reader.file = row.where
                objects = _objects(row, rows[index][OBJECTS], images.ids[place], classes, box_format, has_ids, faults)
                yield Piece(objects, lambda objects=objects: objects)
                place += 1

    gathered = reader.read_all(pieces)
    notes = list(classes.notes)
    if measured.done:
        notes.append(f"{root}: {len(measured.done)} images have no width or height; theirs are those of the pictures")
    about = about_split(classes.names, faults.problems, notes, faults.errors())
    return gathered.finish(images.ids, images.widths, images.heights, images.names), about


def _check_columns(file: RowFile) -> None:
    """Raise UserError if a file lacks the columns of pictures or objects."""
    _ = file.image
    fields = file.fields_of(OBJECTS) if OBJECTS in file.names else []
    if "bbox" not in fields or category_key(fields) is None:
        raise UserError(
            f"{file.path}: {OBJECTS}: expected a column of structs with bbox and category; found "
            f"{', '.join(fields or file.names)[:200]}"
        )


def _suffix(file: RowFile) -> str:
    """The ending of pictures that have no path: that of the first one's content."""
    try:
        start = read_row(file.path, "0", 12)
    except UserError:  # it is told of the row
        return ".jpg"
    known = {b"\x89PNG": ".png", b"RIFF": ".webp", b"BM": ".bmp", b"II*\0": ".tif", b"MM\0*": ".tif"}
    return next((suffix for magic, suffix in known.items() if start.startswith(magic)), ".jpg")


def _add_image(
    row: _Row, content: dict[str, Any], suffix: str, images: Images, measured: Measured, faults: Faults
) -> bool:
    """Add a row's picture; False if it cannot be read."""
    given = content.get("image_id") if "image_id" in row.file.names and row.file.holds_integers("image_id") else None
    try:
        image_id = len(images.ids) + 1 if given is None else whole(given)
        if image_id is None or image_id in images.places:
            raise UserError(f"{row.where}: image_id {given or image_id} is used twice; give every picture its own")
        picture = content.get(row.file.image)
        path = cast("dict[str, Any]", picture).get("path") if isinstance(picture, dict) else None
        name = re.split(r"[/\\]", path)[-1] if isinstance(path, str) else ""
        if not name.lower().endswith(PICTURES) or "\0" in name:
            name = f"{row.number:06d}{suffix}"
        place = f"{row.file.path.relative_to(images.folder).as_posix()}/{row.number}/{name}"
        entry = {"file_name": place, **{key: content.get(key) for key in _SIZES}}
        _, width, height = read_image_entry(row.where, image_id, entry, images.folder, measured)
    except UserError as error:
        faults.add(IMAGE, error)
        return False
    images.add(image_id, place, width, height)
    return True


_NO_ID = -(2**63)


def _ids(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """The ids of all objects of some rows, int64; `_NO_ID` for each that has none."""
    found: list[int] = []
    for row in rows:
        objects = row[OBJECTS]
        if isinstance(objects, dict):
            columns = cast("dict[str, Any]", objects)
            values: list[Any] = columns.get("id") or [None] * len(columns.get("bbox") or ())
        else:
            values = [one and one.get("id") for one in cast("list[Any]", objects or ())]
        numbers = [whole(value) for value in values]
        found += [_NO_ID if number is None else number for number in numbers]
    return np.array(found, np.int64)


def _objects(
    row: _Row, value: Any, image_id: int, classes: Classes, box_format: str, has_ids: bool, faults: Faults
) -> list[dict[str, Any]]:
    """A row's objects as COCO's annotations; those whose category is none are faults."""
    try:
        entries = _entries(row, value)
    except UserError as error:
        faults.add(OBJECT, error)
        return []
    found: list[dict[str, Any]] = []
    for index, entry in enumerate(entries):
        key = category_key(list(entry)) or "category"
        given = entry.get(key)
        value = given if isinstance(given, str) else whole(given)
        category = None if value is None else classes.by_value.get(value)
        if category is None:
            known = ", ".join(map(str, list(classes.by_value)[:20]))
            shown = f"{OBJECTS}.{key}[{index}]: {given!r}"
            faults.add(OBJECT, UserError(f"{row.where}: {shown} is not among the classes ({known}); correct or add it"))
            continue
        box = entry.get("bbox")
        if isinstance(box, list) and len(cast("list[Any]", box)) == 4 and all(map(is_number, cast("list[Any]", box))):
            box = BOX_FORMATS[box_format](cast("list[float]", box))
        taken = {name: entry[name] for name in _OPTIONAL if entry.get(name) is not None}
        ids = {"id": entry["id"]} if has_ids else {}
        found.append({"image_id": image_id, "category_id": category, "bbox": box, **taken, **ids})
    return found


def _entries(row: _Row, value: Any) -> list[dict[str, Any]]:
    """The objects of a row, each with its fields."""
    if value is None:
        return []
    if isinstance(value, list):
        return [cast("dict[str, Any]", entry or {}) for entry in cast("list[Any]", value)]
    columns = {name: one for name, one in cast("dict[str, Any]", value).items() if isinstance(one, list)}
    lengths = {name: len(cast("list[Any]", one)) for name, one in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{OBJECTS}.{name} {length}" for name, length in lengths.items())
        raise UserError(f"{row.where}: lists of different lengths: {told}; give each object one value of each")
    count = next(iter(lengths.values()), 0)
    return [{name: one[index] for name, one in columns.items()} for index in range(count)]
