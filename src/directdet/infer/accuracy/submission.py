"""Detections as the servers of COCO and VOC take them, which have the annotations that nobody else has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from directdet.common.errors import UserError
from directdet.common.files import is_file_name, write_pieces_atomic, write_text_atomic
from directdet.infer.detections import Detections

Found = Iterable[tuple[int, Detections]]  # (image id, detections with the dataset's labels)
_BOX_DIGITS = 2  # hundredths of a pixel
_SCORE_DIGITS = 6


def coco_file(out: Path, split: str, name: str) -> Path:
    """OUT/detections_SPLIT2017_NAME_results.json, as COCO calls the file.

    Raises:
        UserError: `name` cannot be in a file's name.
    """
    path = f"detections_{split}2017_{name}_results.json"
    _check_name(path, f"--name {name}")
    return out / path


def write_coco(path: Path, found: Found, category_ids: tuple[int, ...]) -> int:
    """Write COCO's list of results, one picture after the other; returns how many detections there are.

    Boxes are x, y, width, height, to hundredths of a pixel; masks, where there are any, compressed run lengths.
    """
    count = 0

    def pieces() -> Iterator[bytes]:
        nonlocal count
        yield b"["
        for image_id, detections in found:
            for entry in detections.to_coco(image_id, category_ids):
                text = json.dumps(_rounded(entry), separators=(",", ":"), allow_nan=False)
                yield f"{',' if count else ''}\n{text}".encode()
                count += 1
        yield b"\n]\n"

    write_pieces_atomic(path, pieces())
    return count


def _rounded(entry: dict[str, Any]) -> dict[str, Any]:
    box = [round(value, _BOX_DIGITS) for value in entry["bbox"]]
    return {**entry, "bbox": box, "score": round(entry["score"], _SCORE_DIGITS)}


def write_voc(
    out: Path, year: str, competition: str, split: str, found: Found, names: Mapping[int, str], classes: tuple[str, ...]
) -> tuple[list[Path], int]:
    """Write OUT/results/YEAR/Main/COMPETITION_det_SPLIT_CLASS.txt for every class, also for one that is nowhere.

    A line is the picture's name, the score, and x0 y0 x1 y1 in VOC's pixels, which begin at 1: the reverse of how its
    annotations are read. Returns the files, and how many detections there are.

    Args:
        names: of the pictures, by image id.

    Raises:
        UserError: a class cannot be in a file's name.
    """
    titles = {name: f"{competition}_det_{split}_{name}.txt" for name in classes}
    for name, title in titles.items():
        _check_name(title, f"class {name!r}")
    files = [out / "results" / year / "Main" / title for title in titles.values()]
    lines: list[list[str]] = [[] for _ in classes]
    for image_id, detections in found:
        for (x0, y0, x1, y1), score, label in zip(
            detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
        ):
            place = f"{x0 + 1:.3f} {y0 + 1:.3f} {x1:.3f} {y1:.3f}"
            lines[label].append(f"{names[image_id]} {score:.9f} {place}\n")
    for file, rows in zip(files, lines, strict=True):
        write_text_atomic(file, "".join(rows))
    return files, sum(map(len, lines))


def _check_name(file: str, what: str) -> None:
    if "/" in file or "\\" in file or not is_file_name(file):
        raise UserError(f"{what}: cannot be in a file's name; choose another")
