"""shards.json: the tars that belong to a set of shards, so that one that is lost, cut or added is noticed.

``{"shards": [{"name": "train-000000.tar", "samples": 512, "bytes": 268431360}, ...]}``; sets of other tools have none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from directdet.common.errors import UserError
from directdet.common.urls import shown
from directdet.data.formats.coco import read_json
from directdet.data.formats.folders import split_of
from directdet.data.formats.values import whole
from directdet.data.inside.files import is_there

LIST = "shards.json"
_TAR = re.compile(r"(?P<split>[A-Za-z0-9]+)-\d+\.tar")
_MEND = "copy it there again, or correct the list"


@dataclass(frozen=True)
class Shard:
    """A tar as the list has it."""

    name: str
    samples: int
    bytes: int


def split_of_tar(name: str) -> str | None:
    """The split that a tar's name stands for; None if it stands for none."""
    found = _TAR.fullmatch(name)
    return split_of(found["split"]) if found else None


def read_list(root: Path) -> dict[str, dict[str, Shard]] | None:
    """The listed tars by split and name; None if the folder has no list.

    Raises:
        UserError: the list cannot be read.
    """
    file = root / LIST
    if not is_there(file):
        return None
    entries = read_json(file, "a list of shards", "shards").get("shards")
    if not isinstance(entries, list):
        raise UserError(
            f'{shown(file)}: shards: expected a list of {{"name": "train-000000.tar", "samples": N, "bytes": N}} here; '
            "correct it, or remove the file"
        )
    listed: dict[str, dict[str, Shard]] = {}
    for index, entry in enumerate(cast("list[Any]", entries)):
        shard = _shard(f"{shown(file)}: shards: entry {index}", entry)
        own = listed.setdefault(cast(str, split_of_tar(shard.name)), {})
        if shard.name in own:
            raise UserError(f"{shown(file)}: shards: {shard.name} is listed twice; correct it")
        own[shard.name] = shard
    return listed


def check_tars(root: Path, listed: Mapping[str, Shard], sizes: Mapping[str, int]) -> None:
    """Raise UserError if the tars of a split, whose ``sizes`` in bytes are given, are not those of the list."""
    for name, shard in listed.items():
        if name not in sizes:
            raise UserError(
                f"{shown(root / name)}: is not there, but {LIST} lists it with {shard.samples} pictures; {_MEND}"
            )
        if sizes[name] != shard.bytes:
            raise UserError(f"{shown(root / name)}: has {sizes[name]} bytes, but {LIST} says {shard.bytes}; {_MEND}")
    more = next((name for name in sizes if name not in listed), None)
    if more is not None:
        raise UserError(
            f"{shown(root / more)}: is not listed in {LIST}; remove it, or list it with its samples and bytes"
        )


def check_samples(file: Path, listed: Mapping[str, Shard], found: int) -> None:
    """Raise UserError if a tar holds another number of samples than the list says."""
    shard = listed.get(file.name)
    if shard is not None and shard.samples != found:
        raise UserError(f"{shown(file)}: holds {found} samples, but {LIST} says {shard.samples}; {_MEND}")


def _shard(where: str, entry: Any) -> Shard:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not an object with name, samples and bytes; correct it")
    values = cast("dict[str, Any]", entry)
    name = values.get("name")
    if not isinstance(name, str) or split_of_tar(name) is None:
        raise UserError(f"{where}: name {name!r} is not that of a tar such as train-000000.tar; correct it")
    numbers = {key: whole(values.get(key)) for key in ("samples", "bytes")}
    for key, number in numbers.items():
        if number is None or number < 0:
            raise UserError(f"{where}: {key} {values.get(key)!r} is not a number of {key}; correct it")
    return Shard(name, *(number or 0 for number in numbers.values()))
