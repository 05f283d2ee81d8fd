"""CVAT's "CVAT for images 1.1": one annotations.xml for all pictures (docs.cvat.ai, "CVAT format")."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from directdet.common.errors import UserError
from directdet.data.formats.folders import Found, files_in, find_picture, picture_folders, split_of
from directdet.data.formats.pictures import Picture, Shape, assemble, found_names
from directdet.data.formats.reading import IMAGE, OBJECT, Faults
from directdet.data.formats.values import finite
from directdet.data.formats.voc_xml import parse_xml
from directdet.data.picture_size import check_pixels
from directdet.data.records import RLE, Dataset

_WITHOUT_AREA = ("points", "polyline", "tag", "skeleton", "cuboid")


def open_cvat(root: Path) -> Found | None:
    """The reading of a folder with CVAT's annotations.xml, or of the file, or None; ``subset`` says the splits."""
    for file in [root] if root.suffix == ".xml" else files_in(root, ".xml"):
        with open(file, "rb") as stream:
            if b"<annotations" not in stream.read(4096):
                continue
        tree = parse_xml(file)
        if tree.find("track") is not None:
            raise UserError(f'{file}: CVAT\'s tracks of a video are not read; export "CVAT for images 1.1" instead')
        splits = list(dict.fromkeys(_split(image) for image in tree.findall("image")))
        names = tuple(name for name in ("train", "val", "test") if name in splits)
        if names:
            return Found("cvat", f"CVAT's {file.name}", names, lambda split, file=file: read_cvat(file, split))
    return None


def read_cvat(file: Path, split: str) -> Dataset:
    """Read the pictures of one split; the classes are those in the file's labels, else the names used, sorted.

    Boxes that are rotated become the boxes around them. Points, lines, tags and cuboids are left out, and told.
    """
    faults, notes = Faults(), list[str]()
    tree = parse_xml(file)
    pictures: dict[str, list[Picture]] = {}
    left_out = 0
    for image in tree.findall("image"):
        own = faults if _split(image) == split else Faults()
        where = f"{file}: image {image.get('id', '?')}"
        try:
            picture = _picture(file, where, image)
        except UserError as error:
            own.add(IMAGE, error)
            continue
        for index, item in enumerate(image):
            if item.tag in _WITHOUT_AREA:
                left_out += _split(image) == split
                continue
            try:
                picture.shapes.append(_shape(f"{where}: {item.tag} {index + 1}", item, picture.size))
            except UserError as error:
                own.add(OBJECT, error)
        pictures.setdefault(_split(image), []).append(picture)
    if left_out:
        notes.append(f"{file}: {left_out} points, lines, tags and cuboids are left out: they are no boxes or masks")
    listed = [name.strip() for label in tree.findall("meta//labels/label") if (name := label.findtext("name"))]
    classes: dict[str | int, str] = {name: name for name in listed or found_names(pictures)}
    return assemble(file.parent, split, "cvat", pictures.get(split, []), classes, 1, faults, notes)


def _split(image: ElementTree.Element) -> str:
    return split_of(image.get("subset") or "") or "train"


def _picture(file: Path, where: str, image: ElementTree.Element) -> Picture:
    root = file.parent
    subset = image.get("subset") or ""
    inner = [root / "images" / subset, root / subset] if subset and split_of(subset) else []
    path = find_picture(root, picture_folders(root, *inner), image.get("name"), f"{where}: name")
    try:
        width, height = int(image.get("width") or 0), int(image.get("height") or 0)
    except ValueError:
        raise UserError(f"{where}: width and height are not integers; correct them") from None
    if width <= 0 or height <= 0:
        return Picture(path)
    check_pixels(height, width, path)  # a mask is decoded to its picture's size
    return Picture(path, (width, height))


def _shape(where: str, item: ElementTree.Element, size: tuple[int, int] | None) -> Shape:
    name = (item.get("label") or "").strip()
    if not name:
        raise UserError(f"{where}: label is missing; add it or remove the object")
    if item.tag == "box":
        x1, y1, x2, y2 = (_number(where, item, key) for key in ("xtl", "ytl", "xbr", "ybr"))
        return Shape(where, name, _turned((x1, y1, x2, y2), _number(where, item, "rotation", 0.0)))
    if item.tag == "ellipse":
        x, y, rx, ry = (_number(where, item, key) for key in ("cx", "cy", "rx", "ry"))
        angle = math.radians(_number(where, item, "rotation", 0.0))
        half = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
        high = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
        return Shape(where, name, (x - half, y - high, x + half, y + high))
    if item.tag == "polygon":
        try:
            points = [float(value) for pair in (item.get("points") or "").split(";") for value in pair.split(",")]
        except ValueError:
            points = []
        if len(points) < 6 or len(points) % 2:
            raise UserError(f"{where}: points are not three or more x,y with ; between them; correct them")
        return Shape(where, name, (), (points,))
    if item.tag == "mask" and size is not None:
        return _mask(where, name, item, size)
    raise UserError(f"{where}: shapes of this kind are not read; remove it")


def _turned(box: tuple[float, float, float, float], degrees: float) -> tuple[float, float, float, float]:
    """The upright box around one that is rotated about its centre."""
    if not degrees:
        return box
    x1, y1, x2, y2 = box
    cosine, sine = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    half = ((x2 - x1) * cosine + (y2 - y1) * sine) / 2
    high = ((x2 - x1) * sine + (y2 - y1) * cosine) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - half, y - high, x + half, y + high


def _mask(where: str, name: str, item: ElementTree.Element, size: tuple[int, int]) -> Shape:
    """A mask: run lengths, row by row from zeros on, of a window of the picture."""
    left, top, width, height = (int(_number(where, item, key)) for key in ("left", "top", "width", "height"))
    try:
        counts = [int(word) for word in (item.get("rle") or "").split(",")]
    except ValueError:
        counts = [-1]
    fits = min(left, top) >= 0 and min(width, height) > 0 and left + width <= size[0] and top + height <= size[1]
    if not fits or min(counts) < 0 or sum(counts) != width * height:
        raise UserError(f"{where}: rle does not fill {width}x{height} pixels inside the picture; correct it")
    whole = np.zeros((size[1], size[0]), np.uint8)
    window = np.repeat(np.arange(len(counts)) % 2, counts).astype(np.uint8).reshape(height, width)
    whole[top : top + height, left : left + width] = window
    return Shape(where, name, (left, top, left + width, top + height), rle=column_runs(whole))


def column_runs(mask: np.ndarray) -> RLE:
    """The mask, uint8 [H, W] of 0 and 1, as COCO's run lengths: column by column, from zeros on."""
    flat = mask.reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return {"size": [mask.shape[0], mask.shape[1]], "counts": [0, *counts] if flat[0] else counts}


def _number(where: str, item: ElementTree.Element, key: str, default: float | None = None) -> float:
    text = item.get(key)
    if text is None and default is not None:
        return default
    value = finite(text)
    if value is None:
        raise UserError(f"{where}: {key} {text!r} is not a finite number; correct it")
    return value
