"""Several sets that a dataset.toml joins::

    [[sets]]
    format = "coco"
    folder = "export"

    [[sets]]
    format = "yolo"
    folder = "labelled_later"
    classes = {lorry = "truck"}  # of this set; see classes.py

    [[sets]]
    images = "drawn"
    annotations = "drawn.json"
    split = "train"  # all of this set

Each table says where its set is as the file of a single set does (sets.py), or names a dataset: ``data = "DATA"``.
Splits of the same name are joined; a set without splits is train. With ``val_fraction``, or another key of splits.py,
above the tables, the sets without splits are divided as if they were one. ``split`` in a table says otherwise: "train",
"val" or "test" (all of it goes there), "own" (its own splits) or "divide" (divided with the others, whatever its own
splits).

Classes are the same if their names are: those of the first set, in its order, then what the second adds, and so on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.data.flat.arrays import ImageFile, image_files
from directdet.data.formats.described.classes import KEEP, ClassRules, class_rules, relabelled, with_classes
from directdet.data.formats.described.classes import TABLE as CLASSES
from directdet.data.formats.described.sets import (
    DATA,
    SINGLE_KEYS,
    SPLITS,
    VOC,
    Finder,
    check_keys,
    is_divided,
    open_set,
)
from directdet.data.formats.described.splits import held_out
from directdet.data.formats.folders import Found
from directdet.data.records import Dataset, Record, take

SETS = "sets"
_SPLIT, _OWN, _DIVIDE = "split", "own", "divide"
_ROLES = (*SPLITS, _OWN, _DIVIDE)
_OPENING: ContextVar[tuple[Path, ...]] = ContextVar("opening", default=())  # files whose sets are being opened


@dataclass(frozen=True)
class _Set:
    """One of the sets: how messages and people call it, its reading, where it goes (of _ROLES), its own class rules."""

    where: str
    name: str
    found: Found
    role: str
    rules: ClassRules | None

    def read(self, split: str) -> Dataset:
        dataset = self.found.read(split)
        return dataset if self.rules is None else with_classes(dataset, self.rules)

    def sources(self, split: str) -> tuple[str, ...]:
        """Its own splits whose pictures may be in the joined split."""
        if self.role == _OWN:
            return (split,) if split in self.found.splits else ()
        divided = self.role == _DIVIDE and split in ("train", "val")
        return self.found.splits if divided or self.role == split else ()


def joined_splits(file: Path, content: dict[str, Any], find: Finder) -> list[str]:
    """Names of the splits of the sets that are joined."""
    sets = _sets(file, content, find)
    return [split for split in SPLITS if any(one.sources(split) for one in sets)]


def read_joined(
    file: Path, content: dict[str, Any], split: str, find: Finder, rules: ClassRules | None = None
) -> Dataset:
    """Read one split of all sets. Image ids stay where no sets share one, those of classes where all have the same.

    Args:
        file: the dataset.toml.
        content: of it.
        split: what to read.
        find: opens the datasets that tables name.
        rules: what becomes of the classes after joining.

    Raises:
        UserError: as for a single set; or it is not plain where one of the sets goes.
    """
    sets = _sets(file, content, find)
    parts = [_part(one, split) for one in sets]
    pool = [part for one, part in zip(sets, parts, strict=True) if one.role == _DIVIDE]
    if split in ("train", "val") and pool:
        val = _beside_the_others(_held_out(file, content, pool), pool, sets)
        parts = [
            _chosen(part, val, split == "val") if one.role == _DIVIDE else part
            for one, part in zip(sets, parts, strict=True)
        ]
    counts = ", ".join(f"{one.name} {len(part)}" for one, part in zip(sets, parts, strict=True))
    joined = join(file.parent, split, parts)
    notes = [f"{split}: pictures of {len(sets)} joined sets: {counts}", *joined.notes]
    if len({record.image_id for record in joined.records}) < len(joined):
        renumbered = tuple(replace(record, image_id=number) for number, record in enumerate(joined.records, 1))
        joined = replace(joined, records=renumbered)
        notes.append(f"{split}: image ids are 1 to {len(joined)}, as the joined sets share some of theirs")
    notes += [*_shared_pictures(split, sets, parts), *_class_notes(file, sets, parts, rules)]
    joined = replace(joined, notes=tuple(dict.fromkeys(notes)))
    if rules is not None:
        joined = with_classes(joined, rules)
    return joined if _same_classes(parts) else replace(joined, category_ids=tuple(range(1, len(joined.classes) + 1)))


def join(root: Path, split: str, parts: Sequence[Dataset]) -> Dataset:
    """The pictures of all parts as one split, with their own image ids, and with the union of the classes by name."""
    classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
    records: list[Record] = []
    for part in parts:
        table = np.array([classes.index(name) for name in part.classes], np.int64)
        records += [relabelled(record, table) for record in part.records]
    return Dataset(
        root,
        split,
        "toml",
        classes,
        parts[0].category_ids if _same_classes(parts) else tuple(range(1, len(classes) + 1)),
        tuple(records),
        tuple(problem for part in parts for problem in part.problems),
        tuple(note for part in parts for note in part.notes),
        tuple(dict.fromkeys(error for part in parts for error in part.errors)),
    )


def _same_classes(parts: Sequence[Dataset]) -> bool:
    """Whether all parts have the same classes under the same ids, each name once."""
    first = parts[0].classes
    return len(set(first)) == len(first) and len({(part.classes, part.category_ids) for part in parts}) == 1


def _sets(file: Path, content: dict[str, Any], find: Finder) -> list[_Set]:
    tables = content[SETS]
    if not isinstance(tables, list) or not tables:
        raise UserError(f"{file}: {SETS}: write a table [[{SETS}]] for each set, with format and folder")
    if file.resolve() in _OPENING.get():
        raise UserError(f"{file}: joins itself; leave that set out")
    token = _OPENING.set((*_OPENING.get(), file.resolve()))
    try:
        where = [f"{file}: [[{SETS}]] {number}" for number in range(1, len(tables) + 1)]
        sets = [_one(file, table, said, content, find) for table, said in zip(tables, where, strict=True)]
    finally:
        _OPENING.reset(token)
    if is_divided(content) and not any(one.role == _DIVIDE for one in sets):
        raise UserError(f'{file}: nothing to divide: no set has split = "{_DIVIDE}", and all have splits of their own')
    return sets


def _one(file: Path, table: Any, where: str, content: dict[str, Any], find: Finder) -> _Set:
    if not isinstance(table, dict):
        raise UserError(f"{where}: {table!r} is not a table; write [[{SETS}]] above the keys of each set")
    check_keys(where, table, (*SINGLE_KEYS, VOC, DATA, _SPLIT, CLASSES), above=(KEEP, "pixels"))
    place = {key: value for key, value in table.items() if key not in (_SPLIT, CLASSES)}
    found = open_set(file, place, where, find)
    if not found.splits:
        raise UserError(f"{where}: none of its splits has annotations; leave this set out")
    role = table.get(_SPLIT)
    if role is not None and role not in _ROLES:
        raise UserError(f"{where}: {_SPLIT}: {role!r} is not one of {', '.join(_ROLES)}")
    if role == _DIVIDE and not is_divided(content):
        raise UserError(f'{where}: {_SPLIT} = "{_DIVIDE}": how is not said; write val_fraction = 0.2 above [[{SETS}]]')
    if role is None and is_divided(content) and len(found.splits) > 1:
        raise UserError(
            f'{where}: has the splits {", ".join(found.splits)} already; write {_SPLIT} = "{_OWN}" to keep them, '
            f'"{_DIVIDE}" to divide all of it with the other sets, or "train" for all of it'
        )
    if role is None:
        role = _DIVIDE if is_divided(content) else _OWN
    name = (
        ", ".join(table[VOC])
        if VOC in table
        else str(next((table[key] for key in (DATA, "folder", "annotations") if table.get(key)), "."))
    )
    rules = class_rules(table.get(CLASSES), None, f"{where}: {CLASSES}", "")
    return _Set(where, name, found, role, rules)


def _part(one: _Set, split: str) -> Dataset:
    """What may be in the joined split of one set; without pictures if nothing of it is, since its classes count."""
    sources = one.sources(split)
    if not sources:
        return replace(one.read(one.found.splits[0]), records=(), problems=(), notes=(), errors=())
    read = [one.read(source) for source in sources]
    return read[0] if len(read) == 1 else join(read[0].root, split, read)


def _held_out(file: Path, content: dict[str, Any], pool: Sequence[Dataset]) -> set[str]:
    """The places of the pictures that are val. A picture that several sets have is one."""
    places = [place for part in pool for place in _places(part.records)]
    images = [image for part in pool for image in image_files(part.records)]
    firsts = {place: number for number, place in reversed(list(enumerate(places)))}
    numbers = sorted(firsts.values())
    unique = [ImageFile(number, images[number].path) for number in numbers]
    val = held_out(file, content, unique, str(file))
    return {places[number] for number in numbers if number in val}


def _beside_the_others(val: set[str], pool: Sequence[Dataset], sets: Sequence[_Set]) -> set[str]:
    """The places of the pictures that are val, with those that a set outside the division has on the side where it has
    them, or else they would be on both."""
    others = [one for one in sets if one.role != _DIVIDE]
    train, held = (
        {place for one in others for place in _places(_part(one, side).records)} for side in ("train", "val")
    )
    return (val | held & {place for part in pool for place in _places(part.records)}) - train


def _chosen(part: Dataset, val: set[str], inside: bool) -> Dataset:
    chosen = np.flatnonzero([(place in val) == inside for place in _places(part.records)])
    return replace(part, records=take(part.records, chosen))


def _places(records: Sequence[Record]) -> list[str]:
    """Where the picture files are, the same for the same file through links to it or to its folder."""
    folders: dict[Path, str] = {}
    found: list[str] = []
    for _, path in image_files(records):
        if path.parent not in folders:
            folders[path.parent] = os.path.realpath(path.parent)
        place = os.path.join(folders[path.parent], path.name)
        found.append(os.path.realpath(place) if os.path.islink(place) else place)
    return found


def _shared_pictures(split: str, sets: Sequence[_Set], parts: Sequence[Dataset]) -> list[str]:
    """A note about picture files that several sets have."""
    owners: dict[str, int] = {}
    shared: dict[str, str] = {}
    for number, part in enumerate(parts):
        for place in _places(part.records):
            if owners.setdefault(place, number) != number:
                shared.setdefault(place, f"{sets[owners[place]].name} and {sets[number].name}")
    if not shared:
        return []
    place, names = next(iter(shared.items()))
    return [
        f"{split}: {len(shared)} pictures are in several sets (the first: {place}, in {names}); each counts once for "
        "every set, with the objects of that set alone"
    ]


def _class_notes(file: Path, sets: Sequence[_Set], parts: Sequence[Dataset], rules: ClassRules | None) -> list[str]:
    """Notes about names that differ in case only, and about classes that a set does not have."""
    found = [_final(part.classes, rules) for part in parts]
    union = list(dict.fromkeys(name for names in found for name in names))
    notes: list[str] = []
    by_case: dict[str, str] = {}
    for name in union:
        other = by_case.setdefault(name.lower(), name)
        if other != name:
            notes.append(
                f'{file}: classes {other!r} and {name!r} are two; [{CLASSES}] with "{name}" = "{other}" joins them'
            )
    lacking: list[str] = []
    for one, names in zip(sets, found, strict=True):
        missing = [name for name in union if name not in names]
        if missing:
            lacking.append(f"{one.name} lacks {', '.join(missing[:20])}" + (", ..." if len(missing) > 20 else ""))
    if lacking:
        notes.append(f"{file}: classes that a set lacks are background in its pictures: {'; '.join(lacking)}")
    return notes


def _final(classes: Sequence[str], rules: ClassRules | None) -> list[str]:
    names = [name if rules is None else rules.new_name(name) for name in classes]
    return [name for name in names if name is not None]
