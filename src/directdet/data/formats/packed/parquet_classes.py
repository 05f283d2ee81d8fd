"""The classes of Parquet files: of classes.json, of the files' own list of names, or what the objects are called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from directdet.common.errors import UserError
from directdet.data.formats.coco import read_categories, read_json
from directdet.data.formats.reading import Faults
from directdet.data.formats.values import whole
from directdet.data.inside.rows import RowFile

CLASSES = "classes.json"
_KEYS = ("category", "categories", "category_id", "label", "labels")
_MOST = 100_000  # the largest number of a class


@dataclass(frozen=True)
class Classes:
    """The names by category id, the id by what objects say, and notes as in :class:`Dataset`."""

    names: dict[int, str]
    by_value: dict[str | int, int]
    notes: tuple[str, ...] = ()


def category_key(fields: Sequence[str]) -> str | None:
    """The field that holds the class of an object."""
    return next((key for key in _KEYS if key in fields), None)


def find_classes(root: Path, files: Sequence[RowFile], column: str, faults: Faults) -> Classes:
    """The classes of a set, whose objects are in ``column`` of the files of all splits.

    Raises:
        UserError: there is none.
    """
    if (root / CLASSES).is_file():
        entries = read_json(root / CLASSES, "a list of classes", "categories").get("categories")
        if not isinstance(entries, list):
            raise UserError(f"{root / CLASSES}: categories: expected a list here; correct it")
        names, _ = read_categories(root / CLASSES, cast("list[Any]", entries), faults)
        return _called(names)
    told = next((names for file in files if (names := _names(file.features.get(column)))), None)
    if told is not None:
        return _called(dict(enumerate(told)))
    used = {value for file in files for value in _values(file, column)}
    numbers = sorted(value for value in used if isinstance(value, int))
    texts = sorted(value for value in used if isinstance(value, str))
    if not used:
        raise UserError(f"{root}: no object in any split: a detector needs at least one class")
    if not numbers:
        return _called(dict(enumerate(texts)))
    if numbers[0] < 0 or numbers[-1] > _MOST:
        raise UserError(f"{root}: {column}: class {numbers[0] if numbers[0] < 0 else numbers[-1]} is no class's number")
    # Numbers count from 0: a class that no picture shows keeps its place.
    note = f"{root}: classes are numbers, without names: they are called by their numbers; {CLASSES} may name them"
    return Classes({number: str(number) for number in range(numbers[-1] + 1)}, {n: n for n in numbers}, (note,))


def _called(names: dict[int, str]) -> Classes:
    return Classes(names, {**{name: number for number, name in names.items()}, **{number: number for number in names}})


def _names(feature: Any) -> list[str] | None:
    """The names of the first list of classes in what Hugging Face's datasets says of a column."""
    if isinstance(feature, list):
        parts: Iterable[Any] = cast("list[Any]", feature)
    elif isinstance(feature, dict):
        own = cast("dict[str, Any]", feature)
        names = own.get("names")
        if own.get("_type") == "ClassLabel" and isinstance(names, list):
            texts = cast("list[Any]", names)
            return texts if texts and all(isinstance(name, str) for name in texts) else None
        keys = list(own)
        first = category_key(keys)
        parts = [own[key] for key in ([first] if first else []) + [key for key in keys if key != first]]
    else:
        return None
    return next((names for part in parts if (names := _names(part)) is not None), None)


def _values(file: RowFile, column: str) -> set[str | int]:
    """What the objects of a file say their class is."""
    if column not in file.names:
        return set()
    found: set[str | int] = set()
    for group in range(len(file.starts) - 1):
        for row in file.rows(group, [column]):
            value = row[column]
            if isinstance(value, dict):
                columns = cast("dict[str, Any]", value)
                classes: list[Any] = columns.get(category_key(list(columns)) or "") or []
            else:
                entries = [cast("dict[str, Any]", entry) for entry in cast("list[Any]", value or ()) if entry]
                classes = [entry.get(category_key(list(entry)) or "") for entry in entries]
            found |= {one for one in classes if isinstance(one, str) or whole(one) is not None}
    return found
