"""The elements of the project's self-contained HTML pages; all text is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from directdet.common.text import shown
from directdet.pages.style import CSS


@dataclass(frozen=True)
class Grid:
    """A table: headers, and rows of values, shown with str. The first column is text, the others are numbers."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Picture:
    """One image of the gallery twice, as JPEG bytes: with the ground truth and with the detections; or two that belong
    together."""

    name: str
    truth: bytes
    found: bytes


@dataclass(frozen=True)
class Figure:
    """One headline figure; `state` is "good", "bad" or "" for neither."""

    label: str
    value: str
    detail: str = ""
    state: str = ""


def safe(value: object) -> str:
    """Any value as text for a page: escaped, and with what would turn the rest of a line around shown as an escape."""
    return escape(shown(str(value), keep="\n"))


def document(title: str, intro: str, figures: Sequence[Figure], sections: Iterable[str]) -> str:
    """The page as HTML text, which loads no other files. `sections` are made by `section`."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{safe(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{safe(title)}</h1><p>{safe(intro)}</p>{_figures(figures)}</header>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """A section of the page with a heading; `content` is HTML."""
    return f"<section><h2>{safe(title)}</h2>{content}</section>"


def small_print(text: str) -> str:
    """An explanatory paragraph."""
    return f'<p class="note">{safe(text)}</p>'


def charts(drawn: Iterable[tuple[str, str]]) -> str:
    """Charts (SVG text, caption), side by side where there is room."""
    figures = "".join(f"<figure>{chart}<figcaption>{safe(text)}</figcaption></figure>" for chart, text in drawn)
    return f'<div class="charts">{figures}</div>'


def gallery(
    pictures: Iterable[Picture], explained: str, sides: tuple[str, str] = ("ground truth", "detections")
) -> str:
    """Images side by side, by default with ground truth and detections, under an explanatory paragraph."""
    items = "".join(
        f"<figure><div>{_image(item.truth, f'{item.name}, {sides[0]}')}"
        f"{_image(item.found, f'{item.name}, {sides[1]}')}</div><figcaption>{safe(item.name)}</figcaption></figure>"
        for item in pictures
    )
    return f'{small_print(explained)}<div class="gallery">{items}</div>'


def stills(pictures: Iterable[tuple[str, bytes]], wide: bool = False) -> str:
    """Small pictures (caption, JPEG), as many in a line as there is room for; fewer and larger ones if `wide`."""
    items = "".join(
        f"<figure>{_image(jpeg, text)}<figcaption>{safe(text)}</figcaption></figure>" for text, jpeg in pictures
    )
    return f'<div class="stills{" wide" if wide else ""}">{items}</div>'


def listed(lines: Sequence[str], first: int = 10) -> str:
    """Lines of text; those after the `first` ones are folded."""

    def items(some: Sequence[str]) -> str:
        return f'<ul class="lines">{"".join(f"<li>{safe(line)}</li>" for line in some)}</ul>'

    more = folded(f"{len(lines) - first} more", items(lines[first:])) if len(lines) > first else ""
    return items(lines[:first]) + more


def folded(title: str, content: str) -> str:
    """HTML that a click on its title unfolds."""
    return f"<details><summary>{safe(title)}</summary>{content}</details>"


def about(facts: dict[str, str]) -> str:
    """A list of labels and texts."""
    rows = "".join(f"<dt>{safe(label)}</dt><dd>{safe(text)}</dd>" for label, text in facts.items())
    return f'<dl class="about">{rows}</dl>'


def table(grid: Grid) -> str:
    """A table that scrolls horizontally on a narrow screen."""
    body = "".join(row(values) for values in grid.rows)
    return f'<div class="scroll"><table><thead>{row(grid.headers, "th")}</thead><tbody>{body}</tbody></table></div>'


def row(values: Iterable[Any], tag: str = "td") -> str:
    """One row of a table."""
    return "<tr>" + "".join(f"<{tag}>{_cell(value)}</{tag}>" for value in values) + "</tr>"


def _cell(value: Any) -> str:
    text = safe(value)
    state = {"PASS": "good", "FAIL": "bad"}.get(text)
    return f'<strong class="{state}">{text}</strong>' if state else text


def _figures(figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    cells = (
        f'<div class="figure {safe(item.state)}"><dt>{safe(item.label)}</dt><dd>{safe(item.value)}</dd>'
        f"<span>{safe(item.detail)}</span></div>"
        for item in figures
    )
    return f'<dl class="figures">{"".join(cells)}</dl>'


def _image(jpeg: bytes, name: str) -> str:
    return f'<img alt="{safe(name)}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode("ascii")}">'
