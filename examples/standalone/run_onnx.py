"""Run an artefact of `directdet export --format onnx` with numpy, OpenCV and ONNX Runtime alone.

    python run_onnx.py ARTEFACT PICTURE [--score 0.3] [--out FOUND.png]

Prints one JSON line for each detection. Without --score it keeps the scores that the export found best, or 0.3. It can
be copied into any project: nothing here imports directdet.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime


def load(folder: Path) -> tuple[dict[str, Any], onnxruntime.InferenceSession]:
    """meta.json and a session for the model file that it names."""
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    if meta["format"] != 2 or meta["kind"] != "onnx":
        raise SystemExit(f"{folder}: this program reads ONNX artefacts of format 2")
    model = folder / meta["file"]
    if hashlib.sha256(model.read_bytes()).hexdigest() != meta["files"][meta["file"]]:
        raise SystemExit(f"{model}: not the file that meta.json belongs to")
    return meta, onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])


def least_scores(meta: dict[str, Any], score: float | None) -> list[float]:
    """By label, the least score to keep: `score`, or else what the export found best, which may differ by class."""
    best = meta.get("suggested_score", {"score": 0.3})
    own = best.get("per_class", {})
    return [own.get(name, best["score"]) if score is None else score for name in meta["classes"]]


def prepare(picture: np.ndarray, meta: dict[str, Any]) -> tuple[np.ndarray, float, float]:
    """The network's input for one picture, uint8 [h, w, 3] BGR, and the canvas's pixels per picture's pixel, x and y.

    The picture is resized into the top left corner of the canvas; the rest has the mean colour.
    """
    rules = meta["preprocess"]
    height, width = rules["size"]
    old_height, old_width = picture.shape[:2]
    if rules["warp"]:  # SSD: fill the canvas, whatever the proportions
        new_height, new_width = height, width
    else:  # keep the proportions; halves are rounded up
        scale = min(height / old_height, width / old_width)
        new_height = min(height, max(1, int(old_height * scale + 0.5)))
        new_width = min(width, max(1, int(old_width * scale + 0.5)))
    small = cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    mean, std = np.array(rules["mean"]), np.array(rules["std"])  # of RGB, on the scale of 0 to 255
    if meta["input"]["dtype"] == "uint8":  # BGR pixels, height x width x 3; the graph normalises them
        image = np.empty((height, width, 3), np.uint8)
        image[:] = np.clip(mean[::-1] + 0.5, 0, 255).astype(np.uint8)
        image[:new_height, :new_width] = small
    else:  # normalised RGB planes, 3 x height x width
        image = np.zeros((3, height, width), np.float32)
        image[:, :new_height, :new_width] = ((small[:, :, ::-1] - mean) / std).transpose(2, 0, 1)
    rows = meta["shapes"]["batch"]["min"]  # a graph that takes no single picture gets copies beside it
    return np.repeat(image[None], rows, axis=0), new_width / old_width, new_height / old_height


def decode(
    outputs: list[np.ndarray], size: tuple[int, int], scale_x: float, scale_y: float, least: list[float]
) -> list[dict[str, Any]]:
    """The detections of the batch's first picture, of `size` (height, width), with a score of `least[label]` or more.

    Each has label, score, box (x0, y0, x1, y1 in the picture's pixels) and, where the model has masks, (x, y, mask):
    a bool mask and the place of its top left corner in the picture.
    """
    height, width = size
    num, boxes, scores, labels = (value[0] for value in outputs[:4])
    found = []
    for row in range(int(num[0])):  # rows from num on are empty
        predicted = boxes[row] / np.array([scale_x, scale_y] * 2, np.float32)
        box = np.clip(predicted, 0, np.array([width, height] * 2, np.float32))
        if scores[row] < least[labels[row]] or box[2] <= box[0] or box[3] <= box[1]:  # the latter lie in the padding
            continue
        one = {"label": int(labels[row]), "score": float(scores[row]), "box": [float(value) for value in box]}
        if len(outputs) == 5:
            one["mask"] = paste(outputs[4][0, row], predicted.tolist(), size)  # it covers what was predicted
        found.append(one)
    return found


def paste(mask: np.ndarray, box: list[float], size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """(x, y, bool [h, w]): where the probabilities [M, M], spread over the box, reach 0.5 at the pixels' centres."""
    left, column, across = taps(box[0], box[2], size[1], mask.shape[1])
    top, row, down = taps(box[1], box[3], size[0], mask.shape[0])
    cells = np.pad(mask, 1)  # beyond the outermost cells' centres the probability falls to zero
    wide = cells[:, column] + (cells[:, column + 1] - cells[:, column]) * across
    return left, top, wide[row] + (wide[row + 1] - wide[row]) * down[:, None] >= 0.5


def taps(low: float, high: float, limit: int, cells: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Along one axis: the first pixel with its centre in the box; for each the first of two cells, the second's weight.

    Cells are counted with the zero cell that stands before the first one.
    """
    first, last = max(0, math.ceil(low - 0.5)), min(limit, math.floor(high - 0.5) + 1)
    centres = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    if first >= last:  # what the picture shows of it is thinner than a pixel: it takes the one that it lies in
        start = max(low, 0.0)
        first, centres = math.floor(start), np.array([(start + min(high, limit)) / 2], np.float32)
    place = (centres - np.float32(low)) * np.float32(cells / (high - low)) + np.float32(0.5)
    cell = np.clip(np.floor(place).astype(int), 0, cells)
    return first, cell, place - cell.astype(np.float32)


def detect(
    meta: dict[str, Any], session: onnxruntime.InferenceSession, picture: np.ndarray, least: list[float]
) -> list[dict[str, Any]]:
    """The detections of one picture, uint8 [h, w, 3] BGR as OpenCV reads it; see `decode`."""
    image, scale_x, scale_y = prepare(picture, meta)
    outputs = session.run(meta["outputs"], {meta["input"]["name"]: image})
    return decode(outputs, picture.shape[:2], scale_x, scale_y, least)


def draw(picture: np.ndarray, found: list[dict[str, Any]], classes: list[str]) -> np.ndarray:
    """A copy of the picture with masks, boxes and names, the best on top."""
    canvas = picture.copy()
    for one in reversed(found):
        colour = [int(value) for value in np.random.default_rng(one["label"]).integers(64, 256, 3)]
        if "mask" in one:
            x, y, mask = one["mask"]
            part = canvas[y : y + mask.shape[0], x : x + mask.shape[1]]
            part[mask] = (0.5 * part[mask] + 0.5 * np.array(colour)).astype(np.uint8)
        x0, y0, x1, y1 = (round(value) for value in one["box"])
        cv2.rectangle(canvas, (x0, y0), (x1, y1), colour, 2)
        text = f"{classes[one['label']]} {one['score']:.2f}"
        cv2.putText(canvas, text, (x0, max(y0 - 4, 12)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description="Detect objects in a picture with an exported model.")
    parser.add_argument("artefact", type=Path, help="folder of `directdet export`")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--score", type=float, help="leave out what is below; default: what suits, by the export")
    parser.add_argument("--out", type=Path, help="write the picture with what was found")
    given = parser.parse_args()
    meta, session = load(given.artefact)
    picture = cv2.imread(str(given.picture), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None:
        raise SystemExit(f"{given.picture}: not a picture that OpenCV reads")
    found = detect(meta, session, picture, least_scores(meta, given.score))
    for one in found:
        line = {"class": meta["classes"][one["label"]], "score": round(one["score"], 4)}
        line["box"] = [round(value, 2) for value in one["box"]]
        if "mask" in one:
            line["mask_pixels"] = int(one["mask"][2].sum())
        print(json.dumps(line))
    if given.out is not None and not cv2.imwrite(str(given.out), draw(picture, found, meta["classes"])):
        raise SystemExit(f"{given.out}: cannot be written")


if __name__ == "__main__":
    main()
