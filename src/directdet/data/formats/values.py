"""Single values of an annotation file, as the tools that write such files spell them."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard, cast

from directdet.common.errors import UserError
from directdet.common.urls import url_of


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value from a file is a number, not NaN and not absurdly large (booleans are not numbers)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e15 < value < 1e15


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether a value from a file is an integer (booleans are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def path_inside(folder: Path, name: Any, source: str) -> Path:
    """``folder / name`` for a name read from a file; UserError if it could point outside ``folder``.

    Absolute names, addresses, drive letters and ``..`` are refused; backslashes count as slashes. Symbolic links are
    followed: they were made by whoever set up the folder, not by the annotation file.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise UserError(f"{source}: {name!r} is not a file name; give a path relative to {folder}")
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or PureWindowsPath(name).drive or ".." in parts.parts or url_of(parts) is not None:
        raise UserError(f"{source}: path {name!r} may point outside {folder}; give a path inside it")
    return folder / parts


def whole(value: Any) -> int | None:
    """The integer that a value stands for: 7 or 7.0 (as pandas and numpy write it); None if it is none of 64 bits."""
    if is_integer(value):
        return value if -(2**63) <= value < 2**63 else None
    if isinstance(value, float) and abs(value) <= 2**53 and value.is_integer():
        return int(value)
    return None


def finite(text: str | None) -> float | None:
    """The number that a text of an XML or CSV file spells; None if it is none, or not finite."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if is_number(value) else None


def is_point(value: Any) -> bool:
    """Whether a JSON value is [x, y], two finite numbers."""
    return isinstance(value, list) and len(cast("list[Any]", value)) == 2 and all(map(is_number, value))


def flag(where: str, key: str, value: Any) -> bool:
    """A field that is 0 or 1, also written as 0.0, "0", false; null is 0.

    Raises:
        UserError: any other value: guessing at it would leave objects out of training without a word.
    """
    if value is None:
        return False
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip() in ("0", "1"):
        return value.strip() == "1"
    raise UserError(f"{where}: {key} {value!r} is neither 0 nor 1; correct it")


def name_text(value: Any) -> str | None:
    """A class name: a text, or the text of a number (1.0 is "1"); None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 1e18 else None  # isfinite() cannot take every integer
    if not isinstance(value, float) or not math.isfinite(value):
        return None
    number = whole(value)
    return str(value if number is None else number)


def area_or_none(where: str, value: Any) -> float | None:
    """An area in square pixels; None where the file has none (null, or pandas' NaN), or one that is not positive.

    Raises:
        UserError: it is not a number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: area {value!r} is not a number; correct or remove it")
    return float(value) if 0 < value < 1e15 else None


def score_or_one(where: str, value: Any) -> float:
    """A pseudo-label's score, 0 to 1; 1 where the file has none (null, or pandas' NaN).

    Raises:
        UserError: it is something else.
    """
    if value is None or value != value:
        return 1.0
    if not is_number(value) or not 0 <= value <= 1:
        raise UserError(f"{where}: score {value!r} is not a number from 0 to 1; correct or remove it")
    return float(value)
