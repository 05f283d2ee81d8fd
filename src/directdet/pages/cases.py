"""Small pictures of what went wrong: truth beside detections, and single boxes with what is around them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from directdet.common.text import shown
from directdet.data.records import Record, drawable_image
from directdet.infer.accuracy.analysis import Analysis, BadPicture, Case
from directdet.infer.accuracy.error_types import ERRORS, RIGHT
from directdet.infer.draw import write
from directdet.pages.page import Picture

_EDGE = 340  # pixels: the longer side of a drawn picture
_NAMED = 5  # boxes of a picture that are named, the first ones: more would hide it
_TEXT = 560  # the side of a picture whose texts are as large: a page shows these pictures at half their size
_WHOLE = 0.6  # a part of the picture that takes more of its sides is not cut out
_GOOD, _WRONG, _LOST, _IGNORED = (96, 168, 30), (20, 110, 235), (60, 40, 215), (150, 150, 150)  # BGR
Tint = tuple[int, int, int]
Drawn = tuple[np.ndarray, str, Tint]  # box xyxy, text (none where all is well), colour


def worst_pictures(analysis: Analysis, classes: Sequence[str], records: Sequence[Record]) -> list[Picture]:
    """The worst pictures, cut to what is wrong in them: left the truth, right the detections above the threshold.

    Raises:
        UserError: a picture cannot be read.
    """
    rows = analysis.matches.score >= analysis.threshold
    found = analysis.matches.taken(rows)
    return [_worst(one, analysis, classes, records[one.picture], rows, found) for one in analysis.worst]


def _worst(
    bad: BadPicture,
    analysis: Analysis,
    classes: Sequence[str],
    record: Record,
    rows: np.ndarray,
    found: np.ndarray,
) -> Picture:
    matches, names = analysis.matches, {number: name for name, number in ERRORS.items()}
    truth: list[Drawn] = []
    for place in np.flatnonzero(matches.object_picture == bad.picture):
        name, box = classes[int(matches.object_label[place])], matches.object_box[place]
        if not matches.object_counts[place]:
            truth.append((box, "", _IGNORED))
        elif found[place]:
            truth.append((box, "", _GOOD))
        else:
            truth.append((box, name, _LOST))
    detected: list[Drawn] = []
    ignored = matches.ignored
    for place in np.flatnonzero(rows & (matches.picture == bad.picture)):
        kind, box = int(analysis.kind[place]), matches.box[place]
        if kind == RIGHT:
            detected.append((box, "", _IGNORED if ignored[place] else _GOOD))
        else:
            text = f"{classes[matches.label[place]]} {matches.score[place]:.2f} {names[kind]}"
            detected.append((box, text, _WRONG))
    image = drawable_image(record)
    part = _part(np.array([box for box, text, _ in (*truth, *detected) if text]), record.height, record.width)
    caption = f"{record.path.name}: {bad.wrong} wrong, {bad.missed} missed"
    return Picture(caption, _jpeg(_draw(image, truth, part)), _jpeg(_draw(image, detected, part)))


def single(case: Case, classes: Sequence[str], records: Sequence[Record]) -> tuple[str, bytes]:
    """(caption, JPEG) of one box in what is around it; UserError if the picture cannot be read."""
    record, box = records[case.picture], np.array(case.box)
    name = shown(classes[case.label])
    text = name if case.score is None else f"{name} {case.score:.2f}"
    if case.instead is not None:
        text += f", labelled {shown(classes[case.instead])}"
    margin = np.maximum(box[2:] - box[:2], 24) * 0.75
    around = np.concatenate([box[:2] - margin, box[2:] + margin])
    tint = _LOST if case.score is None else _WRONG
    part = _inside(around, record.height, record.width)
    image = _draw(drawable_image(record), [(box, "", tint)], part, _EDGE // 2)
    return f"{text}: {record.path.name}", _jpeg(image)


def _part(boxes: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """The part of the picture to show, x0 y0 x1 y1: what is wrong and its surroundings, or all of it."""
    whole = (0, 0, width, height)
    if not len(boxes):
        return whole
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    margin = np.maximum(0.3 * (high - low), 0.12 * np.array([width, height]))
    x0, y0, x1, y1 = _inside(np.concatenate([low - margin, high + margin]), height, width)
    return whole if max((x1 - x0) / width, (y1 - y0) / height) > _WHOLE else (x0, y0, x1, y1)


def _inside(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """A box in whole pixels, at least one of each side, within the picture."""
    x0, y0 = (
        int(np.clip(np.floor(value), 0, limit - 1)) for value, limit in zip(box[:2], (width, height), strict=True)
    )
    x1, y1 = (int(np.ceil(value)) for value in box[2:])
    return x0, y0, min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)


def _draw(image: np.ndarray, drawn: Sequence[Drawn], part: tuple[int, int, int, int], edge: int = _EDGE) -> np.ndarray:
    """The part of a BGR image, scaled so that its longer side is `edge`, with boxes; texts over all of them."""
    x0, y0, x1, y1 = part
    factor = edge / max(x1 - x0, y1 - y0)
    size = max(1, round((x1 - x0) * factor)), max(1, round((y1 - y0) * factor))
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    canvas = cv2.resize(np.ascontiguousarray(image[y0:y1, x0:x1]), size, interpolation=way)
    moved = [((box - np.array([x0, y0, x0, y0])) * factor, text, tint) for box, text, tint in drawn]
    for box, text, tint in moved:
        left, top, right, bottom = (round(float(value)) for value in box)
        cv2.rectangle(canvas, (left, top), (right, bottom), tint, 2 if text else 1, cv2.LINE_AA)
    for box, text, tint in [one for one in moved if one[1]][:_NAMED][::-1]:
        write(canvas, shown(text), box, tint, _TEXT)
    return canvas


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
