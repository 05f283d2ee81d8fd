"""Reading the JSON files that this program wrote itself, and that a disk, an editor or a merge may have damaged.

What a file must hold is declared as a dataclass, whose types are checked as those of settings are. Every fault is one
line: the file, the line, the field and what to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from directdet.common.errors import UserError
from directdet.common.settings import SettingError, check_value, field_types

MOST_BYTES = 64 * 2**20  # of a file, and of a line of one with a value on each line
Kind = TypeVar("Kind")


def read_json(path: str | os.PathLike[str], kind: type[Kind], fix: str) -> tuple[dict[str, Any], Kind]:
    """The JSON object in a file, as it is and as the dataclass ``kind``; fields that ``kind`` lacks may hold anything.

    Args:
        fix: what to do about a damaged file, for the error.

    Raises:
        UserError: it is missing, cannot be read, is no JSON object, or a field is missing or of another type.
    """
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; {fix}") from None
    value = parse_json(content, str(path), fix)
    return value, check_json(value, kind, str(path), fix)


def read_json_lines(path: str | os.PathLike[str], fix: str) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """(number from 1, line, its JSON object) for the lines of a file, one at a time.

    A last line without its end is left out: a killed process leaves one.

    Raises:
        UserError: it cannot be read, or another line is no JSON object.
    """
    try:
        with Path(path).open("rb") as stream:
            number, line = 1, stream.readline(MOST_BYTES + 1)
            while line.endswith(b"\n") or len(line) > MOST_BYTES:
                yield number, line, parse_json(line, f"{path}: line {number}", fix)
                number, line = number + 1, stream.readline(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; {fix}") from None


def parse_json(content: bytes, where: str, fix: str) -> dict[str, Any]:
    """The JSON object in ``content``; UserError for anything else. ``where`` names it."""
    if len(content) > MOST_BYTES:
        raise UserError(f"{where}: larger than {MOST_BYTES >> 20} MiB; {fix}")
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also numbers of more digits than Python reads
        reason = str(error).splitlines()[0][:120] if isinstance(error, ValueError) else "nested too deeply"
        raise UserError(f"{where}: is damaged: not JSON ({reason}); {fix}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: is damaged: not a JSON object; {fix}")
    return value


def check_json(value: dict[str, Any], kind: type[Kind], where: str, fix: str) -> Kind:
    """A JSON object as the dataclass ``kind``; lists become tuples.

    Raises:
        UserError: a field is missing or of another type than ``kind`` declares.
    """
    hints = field_types(kind)
    found: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in value:
            if field.default is MISSING and field.default_factory is MISSING:
                raise UserError(f"{where}: {field.name}: is missing; {fix}")
            continue
        own = value[field.name]
        found[field.name] = tuple(own) if isinstance(own, list) else own
        try:
            check_value(field.name, found[field.name], hints[field.name])
        except SettingError as error:
            raise UserError(f"{where}: {_short(str(error))}; {fix}") from None
    return kind(**found)


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-60:]}"
