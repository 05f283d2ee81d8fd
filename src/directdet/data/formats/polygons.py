"""Polygons of masks, kept near their picture.

pycocotools walks along every edge in steps of a fifth of a pixel and counts in 32 bits: a corner at 1e9 costs it 20 GB,
one at 3e9 the process. What lies outside the picture is never drawn, so it can be cut off.
"""

from __future__ import annotations

import numpy as np


def near_picture(polygon: np.ndarray, width: int, height: int) -> np.ndarray | None:
    """A polygon, float64 [2P] (x, y, x, y, ...), cut to the picture and a margin of its size on each side.

    Returns it unchanged where it does not reach beyond, and None if nothing of it is left.
    """
    shorter = min(width, height)
    if polygon.min() >= -shorter and polygon.max() <= 2 * shorter:  # most of them: COCO has a million
        return polygon
    whole = points = polygon.reshape(-1, 2)
    for axis, size in ((0, width), (1, height)):
        points = _cut(points, axis, -float(size), 1)
        points = _cut(points, axis, 2.0 * size, -1)
    if points is whole:
        return polygon
    return points.reshape(-1) if len(points) >= 3 else None


def cut_polygon(polygon: np.ndarray, x: float, y: float, width: float, height: float) -> np.ndarray | None:
    """The part of a polygon, float64 [2P], in a window, in pixels of the window; None if it has no area there.

    Where several parts of it are inside, edges of no width along the window's border join them.
    """
    points = polygon.reshape(-1, 2) - (x, y)
    for axis, size in ((0, width), (1, height)):
        points = _cut(points, axis, 0.0, 1)
        if len(points):
            points = _cut(points, axis, float(size), -1)
        if not len(points):
            return None
    return points.reshape(-1) if polygon_area(points) > 0 else None


def polygon_area(polygon: np.ndarray) -> float:
    """The area of a polygon, float64 [2P] or [P, 2], in square pixels (the shoelace formula)."""
    x, y = polygon.reshape(-1, 2).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _cut(points: np.ndarray, axis: int, bound: float, side: int) -> np.ndarray:
    """The part of a polygon [P, 2] on one side of a line (Sutherland and Hodgman, 1974).

    ``side`` 1 keeps what is at ``bound`` or above it, -1 what is at it or below.
    """
    inside = side * (points[:, axis] - bound) >= 0
    if inside.all():
        return points
    kept: list[np.ndarray] = []
    for here, following, is_in, next_in in zip(
        points, np.roll(points, -1, axis=0), inside, np.roll(inside, -1), strict=True
    ):
        if is_in:
            kept.append(here)
        if is_in != next_in:
            crossing = here + (following - here) * ((bound - here[axis]) / (following[axis] - here[axis]))
            crossing[axis] = bound  # exactly, whatever was rounded
            kept.append(crossing)
    return np.array(kept).reshape(-1, 2)
