"""Drawing detections on an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from directdet.common.text import shown

if TYPE_CHECKING:
    from directdet.infer.detections import Detections

_ALPHA = 0.45
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SHIFT = 4  # outlines are drawn at sixteenths of a pixel


@lru_cache(maxsize=1024)
def colour(label: int) -> tuple[int, int, int]:
    """BGR colour of a class. Hues step by the golden ratio, so that consecutive classes get very different colours."""
    hue = (0.02 + label * 0.6180339887) % 1.0
    saturation, value = ((0.85, 1.0), (0.6, 0.95), (0.95, 0.75))[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * blue), round(255 * green), round(255 * red)


def draw(
    image: np.ndarray,
    detections: Detections,
    classes: Sequence[str],
    scores: bool = True,
    crops: list[tuple[int, int, np.ndarray]] | None = None,
) -> np.ndarray:
    """A copy of a BGR uint8 image [h, w, 3] with boxes, masks and class names; the highest scores are drawn on top.

    `scores`: write them after the names; False for ground truth. `crops`: the result of `detections.mask_crops`, if it
    is already known.
    """
    canvas = np.array(image, order="C")
    height, width = canvas.shape[:2]
    # Line and font sizes follow the image size, but text never gets too small to read.
    edge = min(height, width)
    line = max(1, round(edge / 300))
    order = np.argsort(detections.scores, kind="stable")
    for index in order:
        label = int(detections.labels[index])
        if detections.masks is not None:
            x, y, crop = detections.mask_crop(index) if crops is None else crops[index]
            _blend(canvas, x, y, crop, label, line)
        x0, y0, x1, y1 = (round(float(value)) for value in detections.boxes[index])
        corner = min(x1, width - 1), min(y1, height - 1)
        cv2.rectangle(canvas, (x0, y0), corner, colour(label), line, cv2.LINE_AA)
    for index in order:  # after all boxes, so that no line crosses a name
        label = int(detections.labels[index])
        name = classes[label] if label < len(classes) else str(label)
        name = shown(name)
        text = f"{name} {detections.scores[index]:.2f}" if scores else name
        write(canvas, text, detections.boxes[index], colour(label), edge)
    return canvas


def _blend(canvas: np.ndarray, x: int, y: int, crop: np.ndarray, label: int, line: int) -> None:
    """Tint the pixels of the mask and draw its outline; in bytes and only inside the box, so fast enough for video."""
    if not crop.size:
        return
    region = canvas[y : y + crop.shape[0], x : x + crop.shape[1]]
    mask = crop.view(np.uint8)
    cv2.copyTo(cv2.LUT(region, _tint_table(label)), mask, region)
    # The smoothed outlines hide the jagged edge of the mask.
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if outlines:
        cv2.polylines(canvas, _smooth(outlines, x, y), True, colour(label), line, cv2.LINE_AA, _SHIFT)


def _smooth(outlines: Sequence[np.ndarray], x: int, y: int) -> list[np.ndarray]:
    """Closed outlines [N, 1, 2] moved by (x, y), each point averaged with two neighbours on either side, in sixteenths
    of a pixel; all at once, since a ragged mask has hundreds of outlines."""
    lengths = np.array([len(outline) for outline in outlines])
    starts = np.cumsum(lengths) - lengths
    start, length = np.repeat(starts, lengths), np.repeat(lengths, lengths)
    points = np.concatenate(outlines)[:, 0].astype(np.float32)
    place = np.arange(len(points)) - start
    mean = sum(points[start + (place + step) % length] for step in (-2, -1, 0, 1, 2)) / np.float32(5)
    fine = np.round((mean + np.array([x, y], np.float32)) * (1 << _SHIFT)).astype(np.int32)
    return np.split(fine, starts[1:])


@lru_cache(maxsize=1024)
def _tint_table(label: int) -> np.ndarray:
    """Look-up table that blends each level of each channel with the class's colour, uint8 [1, 256, 3]."""
    levels = np.arange(256, dtype=np.float64)[:, None]
    tinted = levels * (1 - _ALPHA) + np.asarray(colour(label), np.float64) * _ALPHA
    return np.round(tinted).astype(np.uint8)[None]


def write(canvas: np.ndarray, text: str, box: np.ndarray, tint: tuple[int, int, int], edge: int) -> None:
    """Text on a background of the class's colour, above the box or, if there is no room, inside it; never cut off."""
    height, width = canvas.shape[:2]
    scale = float(np.clip(edge / 1000, 0.4, 1.2))
    thick = max(1, round(scale * 1.4))
    (text_width, text_height), base = cv2.getTextSize(text, _FONT, scale, thick)
    pad = max(1, round(2 * scale))
    plate_width, plate_height = text_width + 2 * pad, text_height + base + 2 * pad
    x = int(np.clip(round(float(box[0])), 0, max(0, width - plate_width)))
    y = round(float(box[1])) - plate_height
    if y < 0:
        y = min(max(0, round(float(box[1]))), max(0, height - plate_height))
    cv2.rectangle(canvas, (x, y), (x + plate_width - 1, y + plate_height - 1), tint, cv2.FILLED)
    blue, green, red = tint
    bright = 0.114 * blue + 0.587 * green + 0.299 * red > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(canvas, text, (x + pad, y + pad + text_height), _FONT, scale, ink, thick, cv2.LINE_AA)
