"""A sheet of the pictures that training sees: augmented, with their boxes and masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from directdet.data.image import pad_bottom_right
from directdet.data.pixels.format import RGB, PixelFormat
from directdet.infer.detections import Detections
from directdet.infer.draw import draw

if TYPE_CHECKING:
    from torch import Tensor

CELL = 320  # pixels: the longer side of a picture on the sheet
COLUMNS = 6
GAP = 4


def drawn_batches(
    batches: Iterable[tuple[Tensor, Mapping[str, Tensor]]],
    classes: Sequence[str],
    count: int,
    pixels: PixelFormat = RGB,
) -> list[np.ndarray]:
    """The first `count` pictures of a loader's batches, uint8 [h, w, 3] BGR, with what they are trained on."""
    pictures: list[np.ndarray] = []
    for images, targets in batches:
        values = {name: value.numpy() for name, value in targets.items()}
        for index, image in enumerate(images.numpy()):
            if len(pictures) == count:
                return pictures
            target = {name: value[index] for name, value in values.items()}
            pictures.append(_drawn(pixels.drawable(pixels.for_detector(image.transpose(1, 2, 0))), target, classes))
    return pictures


def make_sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> bytes:
    """A JPEG with a title and a grid of pictures for each of `rows`."""
    width = COLUMNS * (CELL + GAP)
    parts: list[np.ndarray] = []
    for title, pictures in rows:
        head = np.full((32, width, 3), 255, np.uint8)
        cv2.putText(head, title, (6, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        parts.append(head)
        for start in range(0, len(pictures), COLUMNS):
            line = [_cell(picture) for picture in pictures[start : start + COLUMNS]]
            height = max(cell.shape[0] for cell in line)
            cells = [pad_bottom_right(cell, height + GAP, CELL + GAP, 255) for cell in line]
            parts.append(pad_bottom_right(np.concatenate(cells, axis=1), height + GAP, width, 255))
    return cv2.imencode(".jpg", np.concatenate(parts), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def _drawn(image: np.ndarray, target: Mapping[str, np.ndarray], classes: Sequence[str]) -> np.ndarray:
    height, width = image.shape[:2]
    valid = target["valid"]
    masks = target["masks"][valid].astype(np.float32) if "masks" in target else None
    scores = np.ones(int(valid.sum()), np.float32)
    found = Detections(target["boxes"][valid], scores, target["labels"][valid], masks, (height, width))
    return draw(image, found, classes, scores=False)


def _cell(picture: np.ndarray) -> np.ndarray:
    factor = CELL / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
