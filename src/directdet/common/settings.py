"""Settings that check themselves: a dataclass states in its types what each field may hold, and is held to it.

Words are `Literal["live", "sync"]`, numbers `Annotated[float, Between(0, 1)]`, and tuples and `None` what they say. A
type checker reads the same types, so a wrong word is found before the program runs, too.
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


class SettingError(UsageProblem, ValueError):
    """A setting that cannot be: the message names it, what was given, and the nearest value that would do."""


@dataclass(frozen=True)
class Between:
    """Numbers from `low` to `high`; with `above`, `low` itself is too little."""

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
        """The value of the range that is nearest to one outside; None where the range has no last value there."""
        if not math.isfinite(value) or (self.above and value <= self.low):
            return None
        return min(max(value, self.low), self.high)


Count: TypeAlias = Annotated[int, Between(1, MANY)]
ZeroOrMore: TypeAlias = Annotated[int, Between(0, MANY)]
Share: TypeAlias = Annotated[float, Between(0, 1)]
Positive: TypeAlias = Annotated[float, Between(0, 1e9, above=True)]
NotNegative: TypeAlias = Annotated[float, Between(0, 1e9)]


def check_fields(settings: Any, prefix: str) -> None:
    """Hold every field of a dataclass to its type; lists become tuples.

    Args:
        settings: a dataclass instance, frozen or not.
        prefix: what the field's name is preceded by in messages, as it is written with --set ("pretrain.").

    Raises:
        SettingError: a field holds something else.
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
    """The types of a dataclass's fields with their rules, by name."""
    return typing.get_type_hints(kind, include_extras=True)


def check_value(name: str, value: Any, wanted: Any) -> None:
    """SettingError unless `value` is of the type `wanted` and within its rule."""
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Annotated:
        check_value(name, value, parts[0])
        for rule in parts[1:]:
            if isinstance(rule, Between) and value not in rule:
                near = rule.nearest(value)
                hint = "" if near is None else f"; the nearest is {near:g}"
                raise SettingError(f"{name}: {value:g} is not {rule}{hint}")
    elif origin is Literal:
        if value not in parts:
            raise SettingError(f"{name}: {value!r} is not one of {_listed(parts)}{nearest(value, parts)}")
    elif origin in (typing.Union, types.UnionType):
        inner = [part for part in parts if part is not type(None)]
        if value is not None or len(inner) == len(parts):
            check_value(name, value, inner[0])
    elif origin is tuple:
        if not isinstance(value, tuple) or (parts[-1] is not Ellipsis and len(value) != len(parts)):
            raise SettingError(f"{name}: {value!r} is not {describe_type(wanted)}")
        for one, kind in zip(value, parts[:1] * len(value) if parts[-1] is Ellipsis else parts, strict=True):
            check_value(name, one, kind)
    elif not _is_a(value, wanted):
        raise SettingError(f"{name}: {value!r} is not {describe_type(wanted)}")


def check_word(name: str, value: object, known: Iterable[str]) -> None:
    """SettingError with the nearest of the `known` words unless `value` is one of them."""
    words = tuple(known)
    if value not in words:
        raise SettingError(f"{name}: {value!r} is not one of {_listed(words)}{nearest(value, words)}")


def check_key(name: str, key: str, known: Iterable[str]) -> None:
    """SettingError with the nearest of the `known` settings unless `key` is one of them."""
    words = tuple(known)
    if key not in words:
        raise SettingError(f"{name}: unknown setting{nearest(key, words, f'; there are {_listed(words)}')}")


def nearest(word: object, known: Iterable[object], otherwise: str = "") -> str:
    """ ", did you mean 'x'?" with the nearest of the `known` words; `otherwise` where none is near."""
    words = {str(one).lower(): str(one) for one in known}
    close = difflib.get_close_matches(str(word).lower(), words, n=1, cutoff=0.4)
    return f"; did you mean {words[close[0]]!r}?" if close else otherwise


def describe_type(wanted: Any) -> str:
    """A type in words: "a whole number", "2 numbers", "words, each one of a, b"."""
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Annotated:
        return describe_type(parts[0])
    if origin is Literal:
        return f"one of {_listed(parts)}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if part is type(None) else describe_type(part) for part in parts)
    if origin is tuple:
        kind = describe_type(parts[0])
        kinds = f"{kind.removeprefix('a ')}s" if kind.startswith("a ") else f"words, each {kind}"
        return kinds if parts[-1] is Ellipsis else f"{len(parts)} {kinds}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}.get(wanted, str(wanted))


def _is_a(value: Any, wanted: Any) -> bool:
    if wanted in (int, float):
        kind = numbers.Integral if wanted is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return not isinstance(wanted, type) or isinstance(value, wanted)


def _listed(words: Iterable[object]) -> str:
    return ", ".join(map(str, words))
