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
    val_fraction = 0.3  # or val_count = 50
    seed = 0

A table may instead name image lists of VOC folders, each as FOLDER/LIST (VOC 07+12)::

    [train]
    voc = ["VOC2007/trainval", "VOC2012/trainval"]
    [val]
    voc = ["VOC2007/test"]
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.data.formats.coco import read_coco
from directdet.data.formats.reading import read_text
from directdet.data.formats.voc import read_voc_lists
from directdet.data.records import Dataset, is_integer, is_number, path_inside

_SPLITS = ("train", "val", "test")
_SPLIT_KEYS = ("images", "annotations")
_VOC = "voc"
_SINGLE_KEYS = (*_SPLIT_KEYS, "val_fraction", "val_count", "seed")


def toml_splits(file: Path) -> list[str]:
    """Names of the splits that ``file`` describes."""
    content = _read(file)
    if "images" in content or "annotations" in content:
        return ["train", "val"]
    return [split for split in _SPLITS if split in content]


def read_toml(file: Path, split: str) -> Dataset:
    """Read one split. Paths are relative to the folder of ``file`` and stay inside it.

    Raises:
        UserError: an unknown key (with the nearest known one), a missing or wrong value, or anything that
            :func:`directdet.data.formats.coco.read_coco` refuses.
    """
    content = _read(file)
    if "images" in content or "annotations" in content:
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
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{file}: not readable TOML: {error}") from None
    tables = [split for split in _SPLITS if isinstance(content.get(split), dict)]
    single = [key for key in content if key in _SINGLE_KEYS]
    if tables and single:
        raise UserError(f"{file}: {single[0]}: give either [train] and [val] tables or one set, not both")
    _check_keys(str(file), content, _SPLITS if tables else (*_SINGLE_KEYS, *_SPLITS))
    for split in tables:
        _check_keys(f"{file}: [{split}]", content[split], (*_SPLIT_KEYS, _VOC))
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
    for key in _SPLIT_KEYS:
        if key not in table:
            raise UserError(f"{where}: key {key!r} is missing; add it")
    images, annotations = (path_inside(file.parent, table[key], f"{where}: {key}") for key in _SPLIT_KEYS)
    return read_coco(file.parent, split, "toml", annotations, images, others)


def _hold_out(file: Path, content: dict[str, Any], split: str) -> Dataset:
    """The train or val part of a single set, in the file's order; the split depends only on image ids and seed."""
    seed = content.get("seed", 0)
    if not is_integer(seed) or seed < 0:
        raise UserError(f"{file}: seed: {seed!r} is not an integer of at least 0")
    whole = _read_set(file, content, split, str(file))
    count = _hold_out_count(file, content, len(whole))
    ids = sorted(record.image_id for record in whole.records)
    held_out = {ids[index] for index in np.random.default_rng(seed).permutation(len(ids))[:count]}
    records = tuple(record for record in whole.records if (record.image_id in held_out) == (split == "val"))
    return replace(whole, records=records)


def _hold_out_count(file: Path, content: dict[str, Any], images: int) -> int:
    fraction, count = content.get("val_fraction"), content.get("val_count")
    if images < 2:
        key = "val_count" if fraction is None else "val_fraction"
        raise UserError(
            f"{file}: {key}: {images} image{'' if images == 1 else 's'} cannot be divided into two splits; move images "
            "and annotations into a table [train], without [val], to train without validation"
        )
    if (fraction is None) == (count is None):
        raise UserError(f"{file}: give either val_fraction (0.3 keeps 30 % for validation) or val_count")
    if fraction is not None:
        if not is_number(fraction) or not 0 < fraction < 1:
            raise UserError(f"{file}: val_fraction: {fraction!r} is not a number between 0 and 1")
        # At least one image in each split.
        count = max(1, min(images - 1, round(images * fraction)))
    if not is_integer(count) or not 0 < count < images:
        raise UserError(f"{file}: val_count: {count!r} does not leave images for both splits; there are {images}")
    return count
