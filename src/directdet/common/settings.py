"""Settings that validate themselves: the types of a dataclass state what each field may hold and are enforced.

Words are declared as `Literal["live", "sync"]`, numbers as `Annotated[float, Between(0, 1)]`, tuples and `None` in
the usual way. Type checkers read the same declarations, so they find a wrong word before the program runs.
"""

from __future__ import annotations

import difflib
import functools
import math
import numbers
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeAlias

from directdet.common.errors import UsageProblem

MANY = 10**9
MOST_CHANNELS = 16  # of a picture


class SettingError(UsageProblem, ValueError):
    """An invalid setting: the message names the setting, the value given, and the nearest valid value."""


@dataclass(frozen=True)
class Between:
    """Numbers from `low` to `high`, both included; with `above`, `low` itself is excluded."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if self.high in (math.inf, MANY):
            return f"{'above' if self.above else 'at least'} {self.low:g}"
        low, high = f"{self.low:g}", f"{self.high:g}"
        return f"above {low} and at most {high}" if self.above else f"between {low} and {high}"

    def nearest(self, value: float) -> float | None:
        """The valid value nearest to an invalid one; None if there is no such value (NaN, or an excluded bound)."""
        if value != value or abs(value) == math.inf or (self.above and value <= self.low):
            return None
        return min(max(value, self.low), self.high)


Count: TypeAlias = Annotated[int, Between(1, MANY)]
Channels: TypeAlias = Annotated[int, Between(1, MOST_CHANNELS)]
ZeroOrMore: TypeAlias = Annotated[int, Between(0, MANY)]
Share: TypeAlias = Annotated[float, Between(0, 1)]
Positive: TypeAlias = Annotated[float, Between(0, 1e9, above=True)]
NotNegative: TypeAlias = Annotated[float, Between(0, 1e9)]


def check_fields(settings: Any, prefix: str) -> None:
    """Check every field of a dataclass against its declared type; lists are converted to tuples.

    Args:
        settings: a dataclass instance, frozen or not.
        prefix: put before the field's name in messages, so that it reads as in --set ("pretrain.").

    Raises:
        SettingError: a field has an invalid value.
    """
    hints = field_types(type(settings))
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, list):
            value = tuple(value)
            object.__setattr__(settings, field.name, value)
        check_value(f"{prefix}{field.name}", value, hints[field.name])


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
    """The declared types of a dataclass's fields, by name, including their `Annotated` rules."""
    return typing.get_type_hints(kind, include_extras=True)


def check_value(name: str, value: Any, expected: Any) -> None:
    """Raise SettingError unless `value` matches the type `expected` and its rules."""
    origin, parts = typing.get_origin(expected), typing.get_args(expected)
    if origin is Annotated:
        check_value(name, value, parts[0])
        for rule in parts[1:]:
            if isinstance(rule, Between) and value not in rule:
                near = rule.nearest(value)
                hint = "" if near is None else f"; the nearest is {near:g}"
                raise SettingError(f"{name}: {_number(value)} is not {rule}{hint}")
    elif origin is Literal:
        if value not in parts:
            raise SettingError(f"{name}: {value!r} is not one of {_join(parts)}{nearest(value, parts)}")
    elif origin in (typing.Union, types.UnionType):
        inner = [part for part in parts if part is not type(None)]
        if value is not None or len(inner) == len(parts):
            check_value(name, value, inner[0])
    elif origin is tuple:
        if not isinstance(value, tuple) or (parts[-1] is not Ellipsis and len(value) != len(parts)):
            raise SettingError(f"{name}: {value!r} is not {describe_type(expected)}")
        for one, kind in zip(value, parts[:1] * len(value) if parts[-1] is Ellipsis else parts, strict=True):
            check_value(name, one, kind)
    elif origin is dict:
        if not isinstance(value, dict):
            raise SettingError(f"{name}: {value!r} is not {describe_type(expected)}")
        for key, one in value.items():
            check_value(f"{name}: a key", key, parts[0])
            check_value(f"{name}.{key}", one, parts[1])
    elif not _is_instance(value, expected):
        raise SettingError(f"{name}: {value!r} is not {describe_type(expected)}")


def check_word(name: str, value: object, known: Iterable[str]) -> None:
    """Raise SettingError, suggesting the most similar word, unless `value` is one of the `known` words."""
    words = tuple(known)
    if value not in words:
        raise SettingError(f"{name}: {value!r} is not one of {_join(words)}{nearest(value, words)}")


def check_key(name: str, key: str, known: Iterable[str]) -> None:
    """Raise SettingError, suggesting the most similar name, unless `key` is one of the `known` settings."""
    words = tuple(known)
    if key not in words:
        raise SettingError(f"{name}: unknown setting{nearest(key, words, f'; the settings are {_join(words)}')}")


def nearest(word: object, known: Iterable[object], otherwise: str = "") -> str:
    """The text "; did you mean 'x'?" with the most similar `known` word; `otherwise` if none is similar."""
    words = {str(one).lower(): str(one) for one in known}
    close = difflib.get_close_matches(str(word).lower(), words, n=1, cutoff=0.4)
    return f"; did you mean {words[close[0]]!r}?" if close else otherwise


def describe_type(expected: Any) -> str:
    """A type in words: "a whole number", "2 numbers", "words, each one of a, b"."""
    origin, parts = typing.get_origin(expected), typing.get_args(expected)
    if origin is Annotated:
        return describe_type(parts[0])
    if origin is Literal:
        return f"one of {_join(parts)}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if part is type(None) else describe_type(part) for part in parts)
    if origin is tuple:
        kind = describe_type(parts[0])
        kinds = f"{kind.removeprefix('a ')}s" if kind.startswith("a ") else f"words, each {kind}"
        return kinds if parts[-1] is Ellipsis else f"{len(parts)} {kinds}"
    if dict in (origin, expected):
        return f"a table of {describe_type(parts[1]).removeprefix('a ')}s" if parts else "a table"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}.get(expected, str(expected))


def _number(value: float) -> str:
    """A number in a few characters; whole ones of Python may have any number of digits, which no float has."""
    digits = value.bit_length() // 3 if isinstance(value, int) else 0
    return f"a number of some {digits} digits" if digits > 300 else f"{value:g}"


def _is_instance(value: Any, expected: Any) -> bool:
    if expected in (int, float):
        kind = numbers.Integral if expected is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return expected is Any or not isinstance(expected, type) or isinstance(value, expected)


def _join(words: Iterable[object]) -> str:
    return ", ".join(map(str, words))
