"""Dividing one set into train and val, the same way every time: by fraction, count, list, group or folds."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.data.flat.arrays import ImageFile
from directdet.data.formats.folders import plain_path
from directdet.data.formats.reading import read_text
from directdet.data.formats.values import is_integer, is_number, path_inside

WAYS = ("val_fraction", "val_count", "val_list", "folds")
KEYS = (*WAYS, "fold", "group", "seed")
FOLDER = "folder"  # in place of the pattern of group


def held_out(file: Path, content: dict[str, Any], records: Sequence[ImageFile], where: str) -> set[int]:
    """The ids of the images that are val, as the keys :data:`KEYS` of ``file`` say; it depends on nothing else.

    With ``group``, a regular expression with one group that is searched in the name of each image file, images for
    which that group is the same text stay together; with ``group = "folder"`` those of one folder do. Fractions,
    counts and folds are then of groups.

    Raises:
        UserError: no way or several are given, a value is wrong, or a split would be empty.
    """
    ways = [key for key in WAYS if key in content]
    if len(records) < 2:
        raise UserError(
            f"{where}: {ways[0] if ways else 'val_fraction'}: {len(records)} image{'' if len(records) == 1 else 's'} "
            "cannot be divided into two splits; move images and annotations into a table [train], without [val], to "
            "train without validation"
        )
    if len(ways) != 1:
        raise UserError(
            f"{where}: give either val_fraction (0.3 keeps 30 % for validation), val_count, val_list or folds"
        )
    if "fold" in content and "folds" not in content:
        raise UserError(f"{where}: fold: says which of the folds is val; add folds = 5")
    seed = content.get("seed", 0)
    if not is_integer(seed) or seed < 0:
        raise UserError(f"{where}: seed: {seed!r} is not an integer of at least 0")
    if ways[0] == "val_list":
        if "group" in content:
            raise UserError(f"{where}: group: val_list names every image itself; remove one of the two")
        return _listed(file, content["val_list"], records, where)
    if "group" in content:
        groups = _groups(file, content["group"], records, where)
    else:
        groups = {str(record.image_id): [record.image_id] for record in sorted(records, key=lambda one: one.image_id)}
    what = "groups" if "group" in content else "images"
    order = np.random.default_rng(seed).permutation(len(groups))
    if ways[0] == "folds":
        drawn = order[_fold(where, content, len(groups), what)]
    else:
        drawn = order[: _count(where, content, len(groups), what)]
    names = list(groups)
    return {image_id for index in drawn for image_id in groups[names[index]]}


def _count(where: str, content: dict[str, Any], there: int, what: str) -> int:
    fraction, count = content.get("val_fraction"), content.get("val_count")
    if fraction is not None:
        if not is_number(fraction) or not 0 < fraction < 1:
            raise UserError(f"{where}: val_fraction: {fraction!r} is not a number between 0 and 1")
        count = max(1, min(there - 1, round(there * fraction)))  # at least one in each split
    if not is_integer(count) or not 0 < count < there:
        raise UserError(f"{where}: val_count: {count!r} does not leave {what} for both splits; there are {there}")
    return count


def _fold(where: str, content: dict[str, Any], there: int, what: str) -> slice:
    """Every ``folds``-th of the shuffled images: folds differ in size by one at most, and each image is in one."""
    folds, fold = content["folds"], content.get("fold", 0)
    if not is_integer(folds) or not 2 <= folds <= there:
        raise UserError(f"{where}: folds: {folds!r} is not an integer from 2 to the number of {what}, {there}")
    if not is_integer(fold) or not 0 <= fold < folds:
        raise UserError(f"{where}: fold: {fold!r} is not one of the {folds} folds, 0 to {folds - 1}")
    return slice(fold, None, folds)


def _groups(file: Path, pattern: Any, records: Sequence[ImageFile], where: str) -> dict[str, list[int]]:
    """The ids of images by their group, sorted by its name."""
    found: dict[str, list[int]] = {}
    if pattern == FOLDER:
        for record in records:
            found.setdefault(os.path.relpath(record.path.parent, file.parent), []).append(record.image_id)
    else:
        for record in records:
            found.setdefault(_group_of(record.path.name, pattern, where), []).append(record.image_id)
    if len(found) < 2:
        raise UserError(f"{where}: group: all images are of one group, {next(iter(found))!r}; correct it")
    return {name: found[name] for name in sorted(found)}


def _group_of(name: str, pattern: Any, where: str) -> str:
    """The text of the pattern's group in a file name."""
    try:
        searched = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UserError(f"{where}: group: {pattern!r} is not a regular expression: {error}") from None
    if searched.groups != 1:
        raise UserError(
            f"{where}: group: {pattern!r} has {searched.groups} groups; give one, such as '^(.+)_[0-9]+', or {FOLDER!r}"
        )
    match = searched.search(name)
    if match is None or match[1] is None:
        raise UserError(f"{where}: group: {pattern!r} does not match the file name {name!r}; correct it")
    return match[1]


def _listed(file: Path, name: Any, records: Sequence[ImageFile], where: str) -> set[int]:
    """The images that a text file names, one a line: by file name, its stem, or the end of its path."""
    source = path_inside(file.parent, name, f"{where}: val_list")
    places: dict[str, list[int]] = {}
    for record in records:
        parts = record.path.parts
        ends = {"/".join(parts[-count:]) for count in range(1, len(parts) + 1)} | {record.path.stem}
        for end in ends:
            places.setdefault(end, []).append(record.image_id)
    chosen: set[int] = set()
    for number, line in enumerate(read_text(source, "image list").splitlines(), 1):
        if not line.strip():
            continue
        found = places.get(str(plain_path(line.strip())), [])
        if len(found) != 1:
            why = "is none of the images" if not found else f"stands for {len(found)} images; give more of its path"
            raise UserError(f"{source}: line {number}: {line.strip()!r} {why}")
        chosen.add(found[0])
    if not 0 < len(chosen) < len(records):
        raise UserError(f"{source}: names {len(chosen)} of {len(records)} images; leave some for both splits")
    return chosen
