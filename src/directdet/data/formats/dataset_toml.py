"""dataset.toml: a short file that says where the images and annotations of any other folder layout are.

Either one table per split::

    [train]
    images = "photos"
    annotations = "train.json"
    [val]
    images = "photos"
    annotations = "val.json"

or one set, which is split the same way every time::

    images = "photos"
    annotations = "all.json"
    val_fraction = 0.3  # or val_count = 50, val_list = "val.txt", or folds = 5 and fold = 0
    seed = 0

In place of images and annotations either may say ``format = "yolo"`` and the ``folder`` to read so.

A table may instead name image lists of VOC folders, each as FOLDER/LIST (VOC 07+12)::

    [train]
    voc = ["VOC2007/trainval", "VOC2012/trainval"]
    [val]
    voc = ["VOC2007/test"]

With pictures of other sensors, a table says what they hold; see pixels/format.py::

    [pixels]
    channels = 1
    dtype = "uint16"  # or "uint8", "float32"
    mean = [20312.0]  # of each channel; check-data measures and prints both
    std = [4711.0]
    show = [0]  # the channel to draw as grey, or three as red, green and blue
    upright = true  # turn pictures as EXIF says; by default they are taken as stored
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.data.formats.coco import read_coco
from directdet.data.formats.folders import Found, within
from directdet.data.formats.reading import read_text
from directdet.data.formats.recognise import LAYOUTS
from directdet.data.formats.splits import KEYS as SPLIT_KEYS
from directdet.data.formats.splits import held_out
from directdet.data.formats.voc import read_voc_lists
from directdet.data.pixels.format import pixel_format
from directdet.data.records import Dataset, path_inside, take, with_pixels

_SPLITS = ("train", "val", "test")
_SPLIT_KEYS = ("images", "annotations")
_VOC = "voc"
_FORMAT_KEYS = ("format", "folder")
_SINGLE_KEYS = (*_SPLIT_KEYS, *_FORMAT_KEYS, *SPLIT_KEYS)
_PIXELS = "pixels"
_PIXEL_KEYS = ("channels", "dtype", "mean", "std", "show", "upright")


def toml_splits(file: Path) -> list[str]:
    """Names of the splits that ``file`` describes."""
    content = _read(file)
    if "format" in content and not _is_single(content):  # as it is, with the splits that it has
        return list(_opened(file, content, str(file)).splits)
    if _is_one_set(content):
        return ["train", "val"]
    return [split for split in _SPLITS if split in content]


def read_toml(file: Path, split: str) -> Dataset:
    """Read one split. Paths are relative to the folder of ``file`` and stay inside it, or absolute, which is told.

    Raises:
        UserError: an unknown key (with the nearest known one), a missing or wrong value, or anything that
            :func:`directdet.data.formats.coco.read_coco` refuses.
    """
    content = _read(file)
    pixels = content.pop(_PIXELS, None)
    dataset = _read_split(file, content, split)
    if pixels is None:
        return dataset
    format_ = pixel_format(pixels, f"{file}: [{_PIXELS}]")
    return replace(dataset, records=with_pixels(dataset.records, format_))


def _read_split(file: Path, content: dict[str, Any], split: str) -> Dataset:
    if "format" in content and not _is_single(content):
        return _read_set(file, content, split, str(file))
    if _is_one_set(content):
        return _hold_out(file, content, split)
    if _VOC in content[split]:
        # All of them, whichever split is read: they share one set of classes.
        lists = {key: _voc_lists(file, key, table) for key, table in content.items() if _VOC in table}
        return read_voc_lists(file.parent, split, lists)
    return _read_set(file, content[split], split, f"{file}: [{split}]", _other_files(file, content, split))


def _other_files(file: Path, content: dict[str, Any], split: str) -> list[Path]:
    """The annotation files of the other splits; what is wrong with one is told when that split is read."""
    names = [table.get("annotations") for key, table in content.items() if key != split]
    return [file.parent / name for name in names if isinstance(name, str)]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(read_text(file, "file"))
    except (ValueError, RecursionError) as error:  # also numbers of more digits than Python reads
        raise UserError(f"{file}: not readable TOML: {error}") from None
    tables = [split for split in _SPLITS if isinstance(content.get(split), dict)]
    single = [key for key in content if key in _SINGLE_KEYS]
    if tables and single:
        raise UserError(f"{file}: {single[0]}: give either [train] and [val] tables or one set, not both")
    _check_keys(str(file), content, (*(_SPLITS if tables else (*_SINGLE_KEYS, *_SPLITS)), _PIXELS))
    if _PIXELS in content:
        if not isinstance(content[_PIXELS], dict):
            raise UserError(f"{file}: {_PIXELS}: expected a table [{_PIXELS}] with channels and dtype")
        _check_keys(f"{file}: [{_PIXELS}]", content[_PIXELS], _PIXEL_KEYS)
    for split in tables:
        _check_keys(f"{file}: [{split}]", content[split], (*_SPLIT_KEYS, *_FORMAT_KEYS, _VOC))
    if not tables and not single:
        raise UserError(f"{file}: images and annotations are missing; add them, or [train] and [val] tables")
    return content


def _check_keys(where: str, table: dict[str, Any], known: tuple[str, ...]) -> None:
    for key, value in table.items():
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
        if key in _SPLITS and not isinstance(value, dict):
            raise UserError(f"{where}: {key}: expected a table [{key}] with images and annotations, or with voc")


def _voc_lists(file: Path, split: str, table: dict[str, Any]) -> list[Path]:
    """The image lists of a table."""
    where = f"{file}: [{split}]: {_VOC}"
    if len(table) > 1:
        raise UserError(f"{where}: give lists of VOC folders, or images and annotations, not both")
    names = table[_VOC]
    if not isinstance(names, list) or not names:
        raise UserError(f'{where}: {names!r} is not a list such as ["VOC2007/trainval", "VOC2012/trainval"]')
    return [path_inside(file.parent, name, where) for name in names]


def _read_set(file: Path, table: dict[str, Any], split: str, where: str, others: Sequence[Path] = ()) -> Dataset:
    if "format" in table:
        found = _opened(file, table, where)
        part = found.splits[0] if len(found.splits) == 1 else split
        if part not in found.splits or (_is_single(table) and len(found.splits) > 1):
            raise UserError(f"{where}: format: has the splits {', '.join(found.splits)} already; leave the others out")
        dataset = replace(found.read(part), root=file.parent, split=split, layout="toml")
        return _outside(file, dataset, _path(file, table.get("folder", "."), where))
    for key in _SPLIT_KEYS:
        if key not in table:
            raise UserError(f"{where}: key {key!r} is missing; add it")
    images, annotations = (_path(file, table[key], f"{where}: {key}") for key in _SPLIT_KEYS)
    return _outside(file, read_coco(file.parent, split, "toml", annotations, images, others), images, annotations)


def _is_one_set(content: dict[str, Any]) -> bool:
    return any(key in content for key in ("images", "annotations", "format"))


def _is_single(table: dict[str, Any]) -> bool:
    return any(key in table for key in SPLIT_KEYS)


def _hold_out(file: Path, content: dict[str, Any], split: str) -> Dataset:
    """The train or val part of a single set, in the file's order."""
    whole = _read_set(file, content, split, str(file))
    val = held_out(file, content, whole.records)
    own = np.flatnonzero([(record.image_id in val) == (split == "val") for record in whole.records])
    return replace(whole, records=take(whole.records, own))


def _opened(file: Path, table: dict[str, Any], where: str) -> Found:
    """The folder of a table, read in the format that it names."""
    name = table.get("format")
    if not isinstance(name, str) or name not in LAYOUTS:
        raise UserError(f"{where}: format: {name!r} is not one of {', '.join(LAYOUTS)}")
    if "images" in table or "annotations" in table:
        raise UserError(f"{where}: give either format and folder, or images and annotations, not both")
    folder = _path(file, table.get("folder", "."), f"{where}: folder")
    if not os.path.isdir(folder):
        raise UserError(f"{where}: folder: {folder} not found; correct it")
    found = LAYOUTS[name](folder)
    if found is None:
        raise UserError(f"{where}: format: nothing of {name!r} in {folder}; correct it")
    return found


def _path(file: Path, name: Any, where: str) -> Path:
    """A path inside the folder of ``file``, or an absolute one: that is the user's own choice."""
    if isinstance(name, str) and Path(name).is_absolute() and "\0" not in name:
        return Path(name)
    return path_inside(file.parent, name, where)


def _outside(file: Path, dataset: Dataset, *places: Path) -> Dataset:
    """The dataset with a note about each place that is outside the folder of ``file``."""
    notes = [f"{file}: reads {place}, outside its own folder" for place in places if not within(file.parent, place)]
    return replace(dataset, notes=(*dataset.notes, *notes))
