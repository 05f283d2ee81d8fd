"""What a notebook shows of `Detections`: a plan of the boxes, and a table."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from directdet.common.text import shown
from directdet.infer.draw import colour

if TYPE_CHECKING:
    from directdet.infer.detections import Detection, Detections

_ROWS = 20
_WIDEST, _HIGHEST = 320, 240  # pixels of the plan
_CELL = "text-align:left;padding:2px 10px"


def to_html(found: Detections) -> str:
    """One piece of HTML without scripts or files; texts take the colour of the page around it."""
    height, width = found.image_size
    scale = min(_WIDEST / width, _HIGHEST / height)
    boxes = "".join(_rectangle(one, scale) for one in reversed(list(found)))
    plan = (
        f'<svg width="{width * scale:.0f}" height="{height * scale:.0f}" role="img" aria-label="where the boxes lie" '
        f'style="border:1px solid currentColor;opacity:0.85">{boxes}</svg>'
    )
    head = "".join(f'<th style="{_CELL}">{name}</th>' for name in ("", "class", "score", "box: x0, y0, x1, y1"))
    rows = "".join(_row(number, one) for number, one in enumerate(found[:_ROWS]))
    rest = f"<p>and {len(found) - _ROWS} more</p>" if len(found) > _ROWS else ""
    title = f"{len(found)} detection{'s' * (len(found) != 1)} in a picture of {width} x {height} pixels"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if len(found) else ""
    return f"<div><p>{title}</p>{plan}{table}{rest}</div>"


def _rectangle(one: Detection, scale: float) -> str:
    x0, y0, x1, y1 = (float(value) * scale for value in one.box)
    return (
        f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" fill="none" stroke-width="2" '
        f'stroke="{_rgb(one.label)}"><title>{escape(shown(one.name))} {one.score:.2f}</title></rect>'
    )


def _row(number: int, one: Detection) -> str:
    box = ", ".join(f"{value:.1f}" for value in one.box)
    swatch = f'<span style="color:{_rgb(one.label)}">&#9632;</span> {escape(shown(one.name))}'
    cells = (str(number), swatch, f"{one.score:.2f}", box)
    return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"


def _rgb(label: int) -> str:
    blue, green, red = colour(label)
    return f"rgb({red},{green},{blue})"
