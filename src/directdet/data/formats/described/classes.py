"""Classes renamed, merged, left out and put in order, as a dataset.toml says::

    keep_classes = ["person", "vehicle"]  # only these, in this order; by default all, in the data's own order

    [classes]
    car = "vehicle"  # the class on the left is the one on the right
    truck = "vehicle"
    "wheel clamp" = false  # objects of this class are left out

A class that no line names stays. All lines are meant at once, so that two classes can be swapped. A merged class stands
where the first of its parts stood. Pictures stay, with or without objects.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.data.flat.arrays import all_objects
from directdet.data.records import Dataset, Record, Records, only_objects

TABLE, KEEP = "classes", "keep_classes"


@dataclass(frozen=True)
class ClassRules:
    """What becomes of the classes of a dataset; ``where`` and ``keep_where`` begin the messages about either part."""

    where: str
    keep_where: str
    names: dict[str, str | None]  # old name -> new name, None: left out
    keep: tuple[str, ...] | None = None  # new names, in order

    def new_name(self, old: str) -> str | None:
        """What a class is called afterwards; None if it is left out."""
        name = self.names.get(old, old)
        return name if self.keep is None or name in self.keep else None


def class_rules(table: Any, keep: Any, where: str, keep_where: str) -> ClassRules | None:
    """The rules that the table and the list of a file say (None: not there); None if there is neither.

    Raises:
        UserError: one is of another form, or the list names a class twice.
    """
    if table is None and keep is None:
        return None
    if not isinstance(table, dict | None):
        raise UserError(f'{where}: {table!r} is not a table; write [{TABLE}] with lines such as car = "vehicle"')
    names: dict[str, str | None] = {}
    for old, new in (table or {}).items():
        named = new if isinstance(new, str) and new.strip() else None
        if named is None and new is not False:
            raise UserError(
                f"{where}: {old}: {new!r} is neither the new name of class {old!r} nor false, which leaves it out; "
                f"what is not about classes belongs above [{TABLE}]"
            )
        names[old] = named
    if keep is None:
        return ClassRules(where, keep_where, names)
    if not isinstance(keep, list) or not keep or not all(isinstance(name, str) for name in keep):
        raise UserError(f'{keep_where}: {keep!r} is not a list of names such as ["person", "vehicle"]')
    twice = next((name for place, name in enumerate(keep) if name in keep[:place]), None)
    if twice is not None:
        raise UserError(f"{keep_where}: names {twice!r} twice; name every class once")
    return ClassRules(where, keep_where, names, tuple(keep))


def with_classes(dataset: Dataset, rules: ClassRules) -> Dataset:
    """The dataset with its classes as the rules say, and notes that tell it.

    Category ids stay; a merged class has the lowest of its parts'. Where they would not rise any more, since the
    order is another, they are 1, 2, ...

    Raises:
        UserError: a rule names a class that is not there, with the nearest that are; or no class is left.
    """
    for old in rules.names:
        if old not in dataset.classes:
            raise UserError(f"{rules.where}: {dataset.split} has no class {old!r}; {nearest(old, dataset.classes)}")
    new = [rules.new_name(old) for old in dataset.classes]
    classes = tuple(dict.fromkeys(name for name in new if name is not None))
    if rules.keep is not None:
        there = tuple(dict.fromkeys(rules.names.get(old, old) for old in dataset.classes))
        known = [name for name in there if name is not None]
        for name in rules.keep:
            if name not in known:
                raise UserError(f"{rules.keep_where}: {dataset.split} has no class {name!r}; {nearest(name, known)}")
        classes = rules.keep
    if not classes:
        raise UserError(f"{rules.where}: leaves out all classes; a detector needs at least one")
    ids = [min(_ids_of(dataset, new, name)) for name in classes]
    table = np.array([-1 if name is None else classes.index(name) for name in new], np.int64)
    if isinstance(dataset.records, Records):
        records: Sequence[Record] = dataset.records.relabelled(table)
    else:
        records = tuple(_relabelled(record, table) for record in dataset.records)
    return replace(
        dataset,
        classes=classes,
        category_ids=rising(ids),
        records=records,
        notes=(*dataset.notes, *_notes(dataset, records, new, rules)),
    )


def rising(ids: Sequence[int]) -> tuple[int, ...]:
    """The ids of classes if they rise, as readers of COCO's files expect; else 1, 2, ..."""
    return tuple(ids) if list(ids) == sorted(set(ids)) else tuple(range(1, len(ids) + 1))


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that are most like one that is not, in words."""
    names = list(dict.fromkeys(known))
    by_case: dict[str, list[str]] = {}
    for one in names:
        by_case.setdefault(one.lower(), []).append(one)
    close = [one for key in difflib.get_close_matches(name.lower(), by_case, n=3) for one in by_case[key]]
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"its classes are {', '.join(names[:20])}" + (", ..." if len(names) > 20 else "")


def relabelled(record: Record, table: np.ndarray) -> Record:
    """The record with ``table[label]`` in place of each label, int64 [C]; it is the same one if nothing changes."""
    labels = table[record.labels]
    return record if np.array_equal(labels, record.labels) else replace(record, labels=labels)


def _relabelled(record: Record, table: np.ndarray) -> Record:
    """As :func:`relabelled`, without the objects whose new label is -1."""
    keep = table[record.labels] >= 0
    return relabelled(record if keep.all() else only_objects(record, keep), table)


def _ids_of(dataset: Dataset, new: Sequence[str | None], name: str) -> list[int]:
    return [number for number, one in zip(dataset.category_ids, new, strict=True) if one == name]


def _notes(dataset: Dataset, records: Sequence[Record], new: Sequence[str | None], rules: ClassRules) -> list[str]:
    """What was done, the same for every split; and how many objects of this one are left out."""
    parts: dict[str, list[str]] = {}
    for old, name in zip(dataset.classes, new, strict=True):
        if name is not None:
            parts.setdefault(name, []).append(old)
    changed = [f"{' and '.join(old)} -> {name}" for name, old in parts.items() if old != [name]]
    gone = [old for old, name in zip(dataset.classes, new, strict=True) if name is None]
    source = rules.where if rules.names else rules.keep_where
    notes: list[str] = []
    if changed:
        notes.append(f"{source}: {'; '.join(changed)}")
    if gone:
        shown = ", ".join(gone[:20]) + (", ..." if len(gone) > 20 else "")
        notes.append(f"{source}: left out: {shown} ({len(gone)} of {len(dataset.classes)} classes)")
    before, after = (all_objects(one).counts for one in (dataset.records, records))
    lost = int(before.sum() - after.sum())
    if lost:
        emptied = int(((before > 0) & (after == 0)).sum())
        notes.append(
            f"{dataset.split}: {lost} objects are of classes that are left out; {emptied} pictures have no others and "
            "stay, without objects"
        )
    return notes
