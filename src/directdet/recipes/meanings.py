"""What each setting means, from the place where it is written: the docstring of its dataclass."""

from __future__ import annotations

import inspect
import re

_ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*)$")


def meanings(kind: type) -> dict[str, str]:
    """The texts under "Attributes" in the docstrings of a class and its bases, by the names of the attributes.

    Names that share a text ("epochs, repeat: ...") each get it. Empty where docstrings were stripped (python -OO).
    """
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        found |= _attributes(inspect.cleandoc(one.__doc__ or ""))
    return found


def _attributes(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in text.splitlines():
        if line and not line.startswith(" "):
            inside, names = line == "Attributes:", []
        elif inside and (entry := _ENTRY.match(line)):
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif inside and names and line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
