"""Overlapping tiles that cover a picture: for detection in them (infer/tiled.py) and for training on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from directdet.common.errors import UsageProblem

OVERLAP = 0.25  # of neighbouring tiles, as a share of their side


@dataclass(frozen=True)
class Tile:
    """A window of a picture, in its pixels; `inner` says which of its edges (left, top, right, bottom) are inside."""

    x: int
    y: int
    width: int
    height: int
    inner: tuple[bool, bool, bool, bool]


def tiles(height: int, width: int, side: int, overlap: float = OVERLAP) -> list[Tile]:
    """Square tiles that cover a picture, evenly spread, row by row; one as large as the picture if that is no larger.

    Args:
        side: of a tile, in pixels of the picture.
        overlap: at least this share of `side` is common to neighbours.
    """
    return [
        Tile(x, y, across, down, (x > 0, y > 0, x + across < width, y + down < height))
        for y, down in _spread(height, side, overlap)
        for x, across in _spread(width, side, overlap)
    ]


def _spread(length: int, side: int, overlap: float) -> list[tuple[int, int]]:
    """(start, length) of the windows along one axis."""
    if length <= side:
        return [(0, length)]
    count = math.ceil((length - side) / max(1.0, side * (1 - overlap))) + 1
    return [(round(number * (length - side) / (count - 1)), side) for number in range(count)]


def check_tiles(side: int, overlap: float) -> None:
    """UsageProblem if tiles cannot have this side or overlap."""
    if side < 16:
        raise UsageProblem(f"tiles: {side} pixels; give at least 16")
    if not 0 <= overlap <= 0.9:
        raise UsageProblem(f"overlap: {overlap}; give a share from 0 to 0.9")
