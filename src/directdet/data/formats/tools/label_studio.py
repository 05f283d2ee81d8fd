"""Label Studio's own JSON: a list of tasks, each a picture and its annotations in per cent (labelstud.io, "Export")."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from directdet.common.errors import UserError
from directdet.data.formats.folders import Found, files_in, find_picture, picture_folders, plain_path
from directdet.data.formats.pictures import Picture, Shape, assemble, found_names
from directdet.data.formats.reading import IMAGE, OBJECT, Faults, read_file
from directdet.data.formats.values import is_number, is_point
from directdet.data.records import Dataset

_HASH = re.compile(r"^[0-9a-f]{8}-")  # which Label Studio puts before the name of an uploaded file


def open_label_studio(root: Path) -> Found | None:
    """The reading of a folder with one file of Label Studio's tasks, or of that file; None if there is none."""
    files = [root] if root.suffix.lower() == ".json" else files_in(root, ".json")[:64]
    found = [file for file in files if _is_tasks(file)]
    if len(found) > 1:
        raise UserError(f"{root}: several files of Label Studio's tasks; give one of them, such as {found[0]}")
    if not found:
        return None
    file = found[0]
    return Found("label-studio", f"Label Studio's tasks ({file.name})", ("train",), lambda _: read_label_studio(file))


def _is_tasks(file: Path) -> bool:
    with open(file, "rb") as stream:
        head = stream.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"[") and b'"annotations"' in head and b'"result"' in head


def read_label_studio(file: Path) -> Dataset:
    """Read all tasks that were annotated; of several annotations the first that was not cancelled, which is told."""
    faults = Faults()
    try:
        tasks = json.loads(read_file(file, "annotation file"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON: {error}") from None
    pictures: list[Picture] = []
    without = several = 0
    for index, task in enumerate(cast("list[Any]", tasks)):
        where = f"{file}: task {task.get('id', index + 1) if isinstance(task, dict) else index + 1}"
        try:
            results, count = _results(where, task)
            several += count > 1
            without += count == 0
            if count:
                path = _picture(file.parent, where, task)
                pictures.append(Picture(path, shares=True))
        except UserError as error:
            faults.add(IMAGE, error)
            continue
        for number, result in enumerate(results, 1):
            here = f"{where}: result {number}"
            try:
                shape = _shape(here, result)
            except UserError as error:
                faults.add(OBJECT, error)
                continue
            if shape is not None:
                pictures[-1].shapes.append(shape)
    notes: list[str] = []
    if without:
        notes.append(f"{file}: {without} tasks have no annotation and are not used")
    if several:
        notes.append(f"{file}: {several} tasks have several annotations; the first of each is used")
    classes: dict[str | int, str] = {name: name for name in found_names({"train": pictures})}
    return assemble(file.parent, "train", "label-studio", pictures, classes, 1, faults, notes)


def _results(where: str, task: Any) -> tuple[list[Any], int]:
    """The results of the annotation that counts, and how many annotations there are."""
    annotations = task.get("annotations") if isinstance(task, dict) else None
    if not isinstance(annotations, list):
        raise UserError(f"{where}: annotations: expected a list here; export as JSON")
    kept = [entry for entry in cast("list[Any]", annotations) if isinstance(entry, dict)]
    kept = [entry for entry in kept if not entry.get("was_cancelled")]
    if not kept:
        return [], 0
    results = kept[0].get("result")
    if not isinstance(results, list):
        raise UserError(f"{where}: result: expected a list here; export as JSON")
    return cast("list[Any]", results), len(kept)


def _picture(root: Path, where: str, task: dict[str, Any]) -> Path:
    data = task.get("data")
    values = list(cast("dict[str, Any]", data).values()) if isinstance(data, dict) else []
    texts = [value for value in values if isinstance(value, str)]
    if not texts:
        raise UserError(f"{where}: data names no picture; correct it")
    text = cast("dict[str, Any]", data).get("image")
    parts = urlsplit(text if isinstance(text, str) else texts[0])
    local = parse_qs(parts.query).get("d")  # /data/local-files/?d=photos/a.png
    path = plain_path(local[0] if local else unquote(parts.path))
    folders = picture_folders(root)
    try:
        return find_picture(root, folders, str(path).lstrip("/"), f"{where}: data")
    except UserError:
        shorter = _HASH.sub("", path.name)
        if shorter == path.name:
            raise
        return find_picture(root, folders, shorter, f"{where}: data")


def _shape(where: str, result: Any) -> Shape | None:
    """The object of a result; None for choices, texts and relations, which are about no place."""
    if not isinstance(result, dict):
        raise UserError(f"{where}: expected an object here; correct or remove it")
    kind = result.get("type")
    if kind not in ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels", "keypointlabels"):
        return None
    value = result.get("value")
    if not isinstance(value, dict):
        raise UserError(f"{where}: value is missing; add it or remove the result")
    names = value.get(kind)
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise UserError(f"{where}: {kind}: label is missing; add it or remove the result")
    name = names[0]
    if kind == "polygonlabels":
        points = value.get("points")
        if not isinstance(points, list) or len(points) < 3 or not all(map(is_point, points)):
            raise UserError(f"{where}: points are not three or more [x, y]; correct them")
        return Shape(where, name, (), ([coordinate / 100 for point in points for coordinate in point],))
    if kind != "rectanglelabels":
        raise UserError(f"{where}: {kind} are not read; export these as COCO, or draw rectangles or polygons")
    numbers = [value.get(key) for key in ("x", "y", "width", "height")]
    if not all(map(is_number, numbers)):
        raise UserError(f"{where}: x, y, width and height {numbers!r} are not four finite numbers; correct them")
    x, y, width, height = cast("list[float]", numbers)
    turn = value.get("rotation") or 0
    size = result.get("original_width"), result.get("original_height")
    if not is_number(turn) or (turn and not all(is_number(edge) and edge > 0 for edge in size)):
        raise UserError(f"{where}: rotation {turn!r} needs original_width and original_height; add them")
    if not turn:
        return Shape(where, name, (x / 100, y / 100, (x + width) / 100, (y + height) / 100))
    # About the upper left corner, clockwise, in pixels: the upright box around it.
    across, down = cast("tuple[float, float]", size)
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    corners = [(w * across, h * down) for w in (0, width / 100) for h in (0, height / 100)]
    xs = [x / 100 + (w * cosine - h * sine) / across for w, h in corners]
    ys = [y / 100 + (w * sine + h * cosine) / down for w, h in corners]
    return Shape(where, name, (min(xs), min(ys), max(xs), max(ys)))
