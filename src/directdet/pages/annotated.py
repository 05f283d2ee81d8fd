"""Pictures of a dataset with what is annotated in them: whole ones, and single objects in what is around them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from directdet.common.errors import UserError
from directdet.common.text import shown
from directdet.data.checks.finding import Box, Example
from directdet.data.masks import draw_pixels, scale_and_shift, to_shape
from directdet.data.records import Record, drawable_image
from directdet.infer.draw import colour, write

WHOLE, CROP = 400, 176  # pixels: the longer side of a picture, and of a single object
_NAMED = 6  # boxes of a picture that are named: more would hide it
_TEXT = 560  # the side of a picture whose texts are as large: a page shows these pictures smaller
_FAULT = (60, 40, 215)  # BGR
_FAINT = (170, 170, 170)
_OUTSIDE = (96, 96, 96)  # what is not the picture
_FAR = 1.5  # of the picture's longer side: so much is shown beyond it
_BESIDE = 0.15  # of it: so much where a box is still further away, with an arrow to it
_TINT = 0.4
_CONTEXT = 0.75  # of an object's sides: so much is shown around it
_LEAST = 24  # pixels of the picture: of a smaller object, what is around it is a share of this

Part = tuple[int, int, int, int]  # x0 y0 x1 y1 in whole pixels; may reach beyond the picture


def example_picture(example: Example, classes: Sequence[str]) -> bytes:
    """JPEG of the picture of a finding: what is in question in red, its other objects faintly; all of them in their
    colours if nothing is. Where boxes lie outside, grey stands for what is not the picture.

    Raises:
        UserError: the picture cannot be read.
    """
    record = example.record
    if not example.objects and not example.boxes:
        return annotated(record, classes)
    part = _with_boxes(record, example.boxes)
    canvas, factor = _canvas(record, part, WHOLE)
    questioned = set(example.objects)
    for place in range(len(record.boxes)):
        if place not in questioned:
            _outline(canvas, record.boxes[place], part, factor, _FAINT, 1)
    for place in sorted(questioned):
        _mask(canvas, record, place, part, factor, _FAULT)
        _outline(canvas, record.boxes[place], part, factor, _FAULT, 2)
    for box in example.boxes:
        _outline(canvas, np.array(box), part, factor, _FAULT, 2)
        _point_to(canvas, np.array(box), part, factor)
    for place in sorted(questioned)[:_NAMED]:
        _name(canvas, classes, int(record.labels[place]), record.boxes[place], part, factor, _FAULT)
    return _jpeg(canvas)


def annotated(record: Record, classes: Sequence[str]) -> bytes:
    """JPEG of a picture with all boxes and masks in the colours of their classes; crowd regions grey.

    Raises:
        UserError: it cannot be read.
    """
    part = (0, 0, record.width, record.height)
    canvas, factor = _canvas(record, part, WHOLE)
    for place in range(len(record.boxes)):
        tint = _FAINT if record.crowd[place] else colour(int(record.labels[place]))
        _mask(canvas, record, place, part, factor, tint)
        _outline(canvas, record.boxes[place], part, factor, tint, 1)
    if len(record.boxes) <= _NAMED:
        for place in range(len(record.boxes)):
            label = int(record.labels[place])
            tint = _FAINT if record.crowd[place] else colour(label)
            _name(canvas, classes, label, record.boxes[place], part, factor, tint)
    return _jpeg(canvas)


def single_object(record: Record, place: int) -> bytes:
    """JPEG of one object with its box and mask, in what is around it.

    Raises:
        UserError: the picture cannot be read.
    """
    box = record.boxes[place].astype(np.float64)
    margin = np.maximum(box[2:] - box[:2], _LEAST) * _CONTEXT
    low = np.floor(np.clip(box[:2] - margin, 0, [record.width - 1, record.height - 1]))
    high = np.ceil(np.clip(box[2:] + margin, low + 1, [record.width, record.height]))
    part = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    canvas, factor = _canvas(record, part, CROP)
    tint = colour(int(record.labels[place]))
    _mask(canvas, record, place, part, factor, tint)
    _outline(canvas, box, part, factor, tint, 1)
    return _jpeg(canvas)


def _canvas(record: Record, part: Part, edge: int) -> tuple[np.ndarray, float]:
    """The part of a picture, uint8 [h, w, 3] BGR, with its longer side `edge`; and by what factor it was resized."""
    x0, y0, x1, y1 = part
    factor = edge / max(x1 - x0, y1 - y0)
    canvas = np.full((max(1, round((y1 - y0) * factor)), max(1, round((x1 - x0) * factor)), 3), _OUTSIDE, np.uint8)
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, record.width), min(y1, record.height)
    image = drawable_image(record)[top:bottom, left:right]
    column = min(round((left - x0) * factor), canvas.shape[1] - 1)  # a picture of two columns may be none of the canvas
    row = min(round((top - y0) * factor), canvas.shape[0] - 1)
    width = min(max(1, round((right - left) * factor)), canvas.shape[1] - column)
    height = min(max(1, round((bottom - top) * factor)), canvas.shape[0] - row)
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    canvas[row : row + height, column : column + width] = cv2.resize(
        np.ascontiguousarray(image), (width, height), interpolation=way
    )
    return canvas, factor


def _with_boxes(record: Record, boxes: Sequence[Box]) -> Part:
    """The whole picture and, beyond its borders, as much as is needed to show these boxes; not too far."""
    width, height = record.width, record.height
    around = np.array([(0, 0, width, height), *boxes], np.float64)
    low, high = around[:, :2].min(axis=0), around[:, 2:].max(axis=0)
    longer, size = max(width, height), np.array([width, height])
    x0, y0 = np.where(low < -_FAR * longer, -_BESIDE * longer, low)
    x1, y1 = np.where(high > size + _FAR * longer, size + _BESIDE * longer, high)
    edge = 0.03 * longer  # so that a line on the border is seen
    moved = [x0 - edge * (x0 < 0), y0 - edge * (y0 < 0), x1 + edge * (x1 > width), y1 + edge * (y1 > height)]
    return int(np.floor(moved[0])), int(np.floor(moved[1])), int(np.ceil(moved[2])), int(np.ceil(moved[3]))


def _moved(box: np.ndarray, part: Part, factor: float) -> np.ndarray:
    return (box.astype(np.float64) - np.array([part[0], part[1]] * 2)) * factor


def _outline(
    canvas: np.ndarray, box: np.ndarray, part: Part, factor: float, tint: tuple[int, int, int], line: int
) -> None:
    height, width = canvas.shape[:2]
    left, top, right, bottom = _moved(box, part, factor)
    # What is far away is drawn at the border, since OpenCV counts in 32 bits; an empty box is a line or a dot.
    x0, x1 = (round(float(np.clip(value, -2, width + 1))) for value in (left, right))
    y0, y1 = (round(float(np.clip(value, -2, height + 1))) for value in (top, bottom))
    if line > 1 and max(abs(x1 - x0), abs(y1 - y0)) < 3:
        cv2.circle(canvas, (min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)), 6, tint, 2, cv2.LINE_AA)
    cv2.rectangle(canvas, (x0, y0), (min(x1, width - 1), min(y1, height - 1)), tint, line, cv2.LINE_AA)


def _point_to(canvas: np.ndarray, box: np.ndarray, part: Part, factor: float) -> None:
    """An arrow towards a box that is not on the canvas."""
    height, width = canvas.shape[:2]
    x0, y0, x1, y1 = _moved(box, part, factor)
    if x1 >= 0 and y1 >= 0 and x0 <= width and y0 <= height:
        return
    middle = np.array([width, height]) / 2
    away = np.array([x0 + x1, y0 + y1]) / 2 - middle
    away *= 0.96 * float((middle / np.maximum(np.abs(away), 1e-9)).min())  # to the border
    start, end = middle + 0.6 * away, middle + away
    ends = [(round(float(x)), round(float(y))) for x, y in (start, end)]
    cv2.arrowedLine(canvas, ends[0], ends[1], _FAULT, 3, cv2.LINE_AA, tipLength=0.3)


def _mask(
    canvas: np.ndarray, record: Record, place: int, part: Part, factor: float, tint: tuple[int, int, int]
) -> None:
    """Tint an object's mask where it is on the canvas; nothing where it has none, or none that can be drawn."""
    try:
        shape = to_shape(record.segmentations[place], record.height, record.width)
    except UserError:
        return
    if shape is None:
        return
    height, width = canvas.shape[:2]
    moved = scale_and_shift(shape, (factor, factor), (-part[0] * factor, -part[1] * factor))
    box = np.clip(_moved(record.boxes[place], part, factor), 0, [width, height] * 2)
    if not (box[2:] > box[:2]).all():
        return
    drawn = draw_pixels(moved, box)
    x, y = int(drawn.box[0]), int(drawn.box[1])
    region = canvas[y : y + drawn.mask.shape[0], x : x + drawn.mask.shape[1]]
    inside = drawn.mask[: region.shape[0], : region.shape[1]].astype(bool)
    region[inside] = np.rint(region[inside] * (1 - _TINT) + np.array(tint) * _TINT).astype(np.uint8)


def _name(
    canvas: np.ndarray,
    classes: Sequence[str],
    label: int,
    box: np.ndarray,
    part: Part,
    factor: float,
    tint: tuple[int, int, int],
) -> None:
    name = classes[label] if label < len(classes) else str(label)
    height, width = canvas.shape[:2]
    write(canvas, shown(name), np.clip(_moved(box, part, factor), 0, [width, height] * 2), tint, _TEXT)


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 78])[1].tobytes()
