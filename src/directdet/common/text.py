"""Text that users gave, such as names of classes and files, made safe to print."""

from __future__ import annotations

import json
import unicodedata

from directdet.common.errors import UserError

# Control characters, halves of surrogate pairs (a name that is not UTF-8), and breaks of lines and paragraphs.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they turn the rest of a line around


def shown(text: str, keep: str = "") -> str:
    r"""The text as it is, with what a terminal would obey instead of print as an escape: ESC becomes ``\x1b``.

    ``keep`` holds characters that stay, such as the line breaks of a message of several lines.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character in keep or not _obeyed(character) else _escape(character) for character in text
    )


def _obeyed(character: str) -> bool:
    return unicodedata.category(character) in _UNPRINTABLE or character in _REORDERING


def _escape(character: str) -> str:
    names = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
    number = ord(character)
    return names.get(character) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def toml_string(text: str) -> str:
    """The text as a string of TOML, whose basic strings are written like those of JSON.

    Raises:
        UserError: it is the name of a file, and not UTF-8: TOML has no way to write that.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{text}: its name is not UTF-8, which no dataset.toml can hold; rename it")
    return json.dumps(text, ensure_ascii=False)
