"""One set as a table of a dataset.toml says where it is, in one of four ways: images and annotations (COCO's json),
format and folder (any layout), voc (image lists of VOC folders), or data (a dataset with all that its own dataset.toml
says)."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.common.urls import shown, url_of
from directdet.data.flat.arrays import image_files
from directdet.data.formats.coco import read_coco
from directdet.data.formats.described.splits import KEYS as SPLIT_KEYS
from directdet.data.formats.described.splits import held_out
from directdet.data.formats.folders import Found, within
from directdet.data.formats.packed.parquet import BOX_FORMATS, open_parquet
from directdet.data.formats.recognise import LAYOUTS
from directdet.data.formats.values import path_inside
from directdet.data.formats.voc import read_voc_lists
from directdet.data.records import Dataset, take

SPLITS = ("train", "val", "test")
VOC = "voc"
DATA = "data"
COCO_KEYS = ("images", "annotations")
BOX_FORMAT = "box_format"
FORMAT_KEYS = ("format", "folder", BOX_FORMAT)
SINGLE_KEYS = (*COCO_KEYS, *FORMAT_KEYS, *SPLIT_KEYS)
Finder = Callable[[Path], Found]  # the reading of a dataset's folder or file, as `find_dataset`


def open_set(file: Path, table: dict[str, Any], where: str, find: Finder) -> Found:
    """The reading of a set with all its splits: its own, or train and val as the keys of splits.py say, or train.

    Args:
        file: the dataset.toml.
        table: of the keys :data:`SINGLE_KEYS`, voc and data.
        where: for messages.
        find: opens the dataset that a table names.

    Raises:
        UserError: a value is missing or wrong, or the set has splits already and is to be divided.
    """
    if DATA in table:
        return _dataset(file, table, where, find)
    if VOC in table:
        lists = {"train": voc_lists(file, table, where)}
        return Found(VOC, where, ("train",), lambda split: read_voc_lists(file.parent, split, lists))
    if is_divided(table):
        return Found("toml", where, ("train", "val"), lambda split: hold_out(file, table, split, where))
    if in_a_format(table):
        return replace(opened(file, table, where), read=lambda split: read_set(file, table, split, where))
    _coco_places(file, table, where)
    return Found("coco", where, ("train",), lambda split: read_set(file, table, split, where))


def read_set(file: Path, table: dict[str, Any], split: str, where: str, others: Sequence[Path] = ()) -> Dataset:
    """One split of a set; ``others`` are the annotation files of the other splits."""
    if in_a_format(table):
        found = opened(file, table, where)
        part = found.splits[0] if len(found.splits) == 1 else split
        if part not in found.splits or (is_divided(table) and len(found.splits) > 1):
            raise UserError(f"{where}: format: has the splits {', '.join(found.splits)} already; leave the others out")
        dataset = replace(found.read(part), root=file.parent, split=split, layout="toml")
        return _outside(file, dataset, _path(file, table.get("folder", "."), where))
    images, annotations = _coco_places(file, table, where)
    return _outside(file, read_coco(file.parent, split, "toml", annotations, images, others), images, annotations)


def _dataset(file: Path, table: dict[str, Any], where: str, find: Finder) -> Found:
    """A dataset as `load_dataset` reads it."""
    other = next((key for key in table if key != DATA), None)
    if other is not None:
        raise UserError(f"{where}: give either {DATA}, or {other}, not both")
    found = find(_path(file, table[DATA], f"{where}: {DATA}"))
    return replace(found, read=lambda split: replace(found.read(split), root=file.parent, layout="toml"))


def _coco_places(file: Path, table: dict[str, Any], where: str) -> list[Path]:
    """Image folder and annotation file."""
    for key in COCO_KEYS:
        if key not in table:
            raise UserError(f"{where}: key {key!r} is missing; add it")
    return [_path(file, table[key], f"{where}: {key}") for key in COCO_KEYS]


def in_a_format(table: dict[str, Any]) -> bool:
    """Whether a table says where its set is by format and folder."""
    return any(key in table for key in FORMAT_KEYS)


def is_divided(table: dict[str, Any]) -> bool:
    """Whether a table says how a part is held out."""
    return any(key in table for key in SPLIT_KEYS)


def opened(file: Path, table: dict[str, Any], where: str) -> Found:
    """The folder of a table, read in the format that it names."""
    name = table.get("format")
    if name is None:
        raise UserError(f"{where}: key 'format' is missing; add one of {', '.join(LAYOUTS)}")
    if not isinstance(name, str) or name not in LAYOUTS:
        raise UserError(f"{where}: format: {name!r} is not one of {', '.join(LAYOUTS)}")
    if "images" in table or "annotations" in table:
        raise UserError(f"{where}: give either format and folder, or images and annotations, not both")
    folder = _path(file, table.get("folder", "."), f"{where}: folder")
    if url_of(folder) is not None and name != "shards":
        raise UserError(f"{where}: folder: {shown(folder)}: of an address, only shards are read; copy the set here")
    if url_of(folder) is None and not os.path.isdir(folder):
        raise UserError(f"{where}: folder: {folder} not found; correct it")
    box_format = table.get(BOX_FORMAT)
    if box_format is not None and name != "parquet":
        raise UserError(f"{where}: {BOX_FORMAT}: {name} says itself what its boxes are; leave it out")
    if box_format is not None and (not isinstance(box_format, str) or box_format not in BOX_FORMATS):
        raise UserError(f"{where}: {BOX_FORMAT}: {box_format!r} is not one of {', '.join(BOX_FORMATS)}")
    found = LAYOUTS[name](folder) if box_format is None else open_parquet(folder, box_format)
    if found is None:
        raise UserError(f"{where}: format: nothing of {name!r} in {shown(folder)}; correct it")
    return found


def voc_lists(file: Path, table: dict[str, Any], where: str) -> list[Path]:
    """The image lists of a table."""
    if any(key in table for key in SINGLE_KEYS):
        raise UserError(f"{where}: {VOC}: give lists of VOC folders, or images and annotations, not both")
    names = table[VOC]
    if not isinstance(names, list) or not names:
        raise UserError(f'{where}: {VOC}: {names!r} is not a list such as ["VOC2007/trainval", "VOC2012/trainval"]')
    return [path_inside(file.parent, name, f"{where}: {VOC}") for name in names]


def check_keys(where: str, table: dict[str, Any], known: Sequence[str], above: Sequence[str] = ()) -> None:
    """UserError if a table has an unknown key; ``above`` are those that belong to the whole file."""
    for key in table:
        if key in known:
            continue
        nearest = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
        if key in above:
            hint = "it is about the whole file, and belongs above its first [table]"
        raise UserError(f"{where}: unknown key {key!r}; {hint}")


def hold_out(file: Path, table: dict[str, Any], split: str, where: str) -> Dataset:
    """The train or val part of a single set, in the file's order."""
    whole = read_set(file, table, split, where)
    images = image_files(whole.records)
    val = held_out(file, table, images, where)
    own = np.flatnonzero([(image.image_id in val) == (split == "val") for image in images])
    return replace(whole, records=take(whole.records, own))


def _path(file: Path, name: Any, where: str) -> Path:
    """A path inside the folder of ``file``, or an absolute one or an address: those are the user's own choice."""
    if isinstance(name, str) and (Path(name).is_absolute() or url_of(name)) and "\0" not in name:
        return Path(name)
    return path_inside(file.parent, name, where)


def _outside(file: Path, dataset: Dataset, *places: Path) -> Dataset:
    """The dataset with a note about each place that is outside the folder of ``file``."""
    others = [place for place in places if not within(file.parent, place)]
    notes = [f"{file}: reads {shown(place)}, outside its own folder" for place in others]
    return replace(dataset, notes=(*dataset.notes, *notes))
