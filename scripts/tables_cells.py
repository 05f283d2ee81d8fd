"""The cells of result tables: where a figure stands in a file of results/, and how it is written."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Cell = Callable[[Row], str]
Rows = Callable[..., Iterable[Row]]
Figure = Callable[[Any], str]  # from the content of a file to a figure of the prose


class TableError(Exception):
    """A figure that is missing, or a name that nothing has; the message is one line for people."""


@dataclass(frozen=True)
class Table:
    """A table of docs/results.md.

    Attributes:
        files: the files of results/ that it is made of, without their ending.
        rows: from the contents of these files, in this order, to what the columns read.
        columns: the text of a cell from a row, by the column's heading.
    """

    files: tuple[str, ...]
    rows: Rows
    columns: dict[str, Cell]

    def markdown(self, contents: list[Any]) -> str:
        """The table of these files' `contents`."""
        lines = [list(self.columns), ["---"] * len(self.columns)]
        lines += [[cell(row) for cell in self.columns.values()] for row in self.rows(*contents)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def find(content: Any, path: str) -> Any:
    """What `path` leads to: a JSON pointer (RFC 6901) without its first slash. TableError if it leads nowhere."""
    for part in path.split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        try:
            content = content[int(part)] if isinstance(content, list) else content[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise TableError(f"{path}: there is no {part!r}") from None
    return content


def minutes(seconds: float) -> str:
    """Seconds as people write them: 64 s, 24 min 50 s."""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"


FORMATS: dict[str, Callable[[Any], str]] = {
    "percent": lambda value: f"{100 * value:.1f}",  # AP
    "fine percent": lambda value: f"{100 * value:.2f}",
    "share": lambda value: f"{100 * value:.0f} %",
    "fine share": lambda value: f"{100 * value:.1f} %",
    "time": minutes,
}


def written(value: Any, how: str = "") -> str:
    """`value` in one of FORMATS, or by a format specification of Python; None is an empty cell."""
    if value is None:
        return ""
    try:
        return FORMATS[how](value) if how in FORMATS else format(value, how)
    except (TypeError, ValueError):
        raise TableError(f"{value!r} cannot be written as {how!r}") from None


def cell(path: str, how: str = "") -> Cell:
    """A column that shows what `path` leads to in every row."""
    return lambda row: written(find(row, path), how)


def cell_if_any(path: str, how: str = "") -> Cell:
    """A column that stays empty in rows that have no such figure."""

    def text(row: Row) -> str:
        try:
            return written(find(row, path), how)
        except TableError:
            return ""

    return text


def labelled(labels: dict[str, str], path: str = "rows", key: str = "key") -> Callable[[Any], list[Row]]:
    """Rows in the order of `labels`, each with its label.

    The rows are an object by their names, or a list of objects with their names under `key`. TableError if rows and
    labels do not match one to one: no row of a file is left out unseen.
    """

    def rows(content: Any) -> list[Row]:
        found = find(content, path)
        named = found if isinstance(found, dict) else {row[key]: row for row in found}
        if odd := sorted(named.keys() ^ labels.keys()):
            raise TableError(f"{path}: {odd[0]!r} is in the file or in the table, not in both")
        return [{**named[name], "label": label} for name, label in labels.items()]

    return rows
