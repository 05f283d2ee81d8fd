"""Printing with rich, where square brackets, colons and control characters in names of users mean nothing.

rich takes "[/hex]" for markup and ":car:" for a picture of a car. Words of our own are styled with rich's Text instead.
"""

from __future__ import annotations

from typing import IO, Any

from rich.console import Console
from rich.text import Text

from directdet.common.text import shown

TITLE, CAPTION = "table.title", "table.caption"  # rich's styles of them, for :func:`plain`


class _Terminal(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed, also in tables, comes through here."""
        return super().render_str(shown(text, keep="\n"), **options)


def terminal(*, stderr: bool = False, quiet: bool = False, file: IO[str] | None = None, **options: Any) -> Console:
    """A console that prints strings as they are."""
    return _Terminal(stderr=stderr, quiet=quiet, file=file, markup=False, emoji=False, **options)


def plain(text: object, style: str = "") -> Text:
    """A cell, title or caption of a table with text from users, printed as it is by any console."""
    return Text(shown(str(text), keep="\n" if style == CAPTION else ""), style)


def verdict(passed: bool) -> Text:
    """PASS in green or FAIL in red."""
    return Text("PASS", "bold green") if passed else Text("FAIL", "bold red")
