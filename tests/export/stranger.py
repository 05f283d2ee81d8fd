"""A program of somebody who has an artefact's README.md and meta.json, and nothing of directdet: not even its OpenCV.

Everything is written out as the contract says it, pixel by pixel where that is the simplest reading; Pillow reads the
pictures. `test_export_contract.py` compares what it finds with what directdet finds.
"""

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


class Stranger:
    """`detect(path)` returns (label, score, box, mask or None) of each detection; masks are as large as the picture."""

    def __init__(self, folder: Path) -> None:
        self.meta = json.loads((folder / "meta.json").read_text("utf-8"))
        self.words = self.meta["contract"]
        self.session = onnxruntime.InferenceSession(str(folder / self.meta["file"]))

    def detect(self, path: Path) -> list[tuple[int, float, list[float], np.ndarray | None]]:
        picture = np.asarray(Image.open(path).convert("RGB")).astype(np.float64)  # red, green, blue, as stored
        height, width = picture.shape[:2]
        tensor, new_height, new_width = self.prepare(picture)
        rows = self.meta["shapes"]["batch"]["min"]
        names = list(self.words["outputs"])
        found = self.session.run(names, {self.meta["input"]["name"]: np.stack([tensor] * rows)})
        outputs = dict(zip(names, found, strict=True))
        result = []
        for row in range(outputs["num"][0, 0]):
            x0, y0, x1, y1 = (float(value) for value in outputs["boxes"][0, row])
            free = [x0 * width / new_width, y0 * height / new_height, x1 * width / new_width, y1 * height / new_height]
            box = [min(max(value, 0), limit) for value, limit in zip(free, [width, height] * 2, strict=True)]
            if box[2] <= box[0] or box[3] <= box[1]:
                continue
            mask = paste(outputs["masks"][0, row], free, box, height, width) if "masks" in outputs else None
            result.append((int(outputs["labels"][0, row]), float(outputs["scores"][0, row]), box, mask))
        return result

    def prepare(self, picture: np.ndarray) -> tuple[np.ndarray, int, int]:
        """The input of one picture, and the size that it has on the canvas."""
        height, width = picture.shape[:2]
        canvas_height, canvas_width = self.meta["preprocess"]["size"]
        if self.words["resize"].startswith("stretched"):
            new_height, new_width = canvas_height, canvas_width
        else:
            scale = min(canvas_height / height, canvas_width / width)
            new_height = min(canvas_height, max(1, math.floor(height * scale + 0.5)))
            new_width = min(canvas_width, max(1, math.floor(width * scale + 0.5)))
        small = np.rint(bilinear(bilinear(picture, new_height, 0), new_width, 1))
        if self.words["channel_order"] == "blue, green, red":
            small = small[:, :, ::-1]
        if self.meta["input"]["dtype"] == "float32":
            small = (small - np.array(self.meta["preprocess"]["mean"])) / np.array(self.meta["preprocess"]["std"])
        canvas = np.empty((canvas_height, canvas_width, 3))
        canvas[:] = self.words["padding_value"]
        canvas[:new_height, :new_width] = small
        if self.words["layout"] == "[picture, channel, row, column]":
            canvas = canvas.transpose(2, 0, 1)
        return canvas.astype(self.meta["input"]["dtype"]), new_height, new_width


def bilinear(values: np.ndarray, new: int, axis: int) -> np.ndarray:
    """Resized along one axis."""
    old = values.shape[axis]
    source = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(source).astype(int)
    weight = (source - low).reshape([-1 if number == axis else 1 for number in range(values.ndim)])
    high = np.minimum(low + 1, old - 1)
    return np.take(values, low, axis) * (1 - weight) + np.take(values, high, axis) * weight


def paste(mask: np.ndarray, free: list[float], box: list[float], height: int, width: int) -> np.ndarray:
    """The object's pixels, bool [height, width]."""
    cells = np.pad(mask.astype(np.float64), 1)
    x, across = along(width, free[0], free[2], box[0], box[2], mask.shape[1])
    y, down = along(height, free[1], free[3], box[1], box[3], mask.shape[0])
    column, row = np.minimum(across.astype(int), mask.shape[1]), np.minimum(down.astype(int), mask.shape[0])
    lines = cells[:, column] + (cells[:, column + 1] - cells[:, column]) * (across - column)
    result = np.zeros((height, width), bool)
    result[np.ix_(y, x)] = lines[row] + (lines[row + 1] - lines[row]) * (down - row)[:, None] >= 0.5
    return result


def along(limit: int, start: float, end: float, low: float, high: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels whose centres lie in the clipped box, and where those lie among the cells and the ring around them."""
    pixels = np.arange(limit)
    pixels = pixels[(low <= pixels + 0.5) & (pixels + 0.5 <= high)]
    return pixels, (pixels + 0.5 - start) / (end - start) * cells + 0.5
