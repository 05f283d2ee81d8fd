"""From pictures and shapes, as a reader finds them in a tool's files, to a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.data.flat.gather import Gathered
from directdet.data.formats.reading import IMAGE, OBJECT, Faults
from directdet.data.formats.values import is_number
from directdet.data.image import read_size
from directdet.data.picture_size import check_pixels
from directdet.data.records import RLE, Dataset, Records, Segmentation

MANY = 10_000  # pictures from which on records are made when they are asked for: fewer fit into memory as they are


@dataclass(frozen=True)
class Shape:
    """One object as its file gives it; ``where`` names file and entry for messages."""

    where: str
    name: str | int  # its class
    box: Sequence[float]  # xyxy; empty: that of the polygons
    polygons: tuple[Sequence[float], ...] = ()  # each x, y, x, y, ...
    rle: RLE | None = None
    crowd: bool = False
    difficult: bool = False


@dataclass
class Picture:
    """One picture and its shapes; ``size`` is (width, height), None where the file itself has to be asked."""

    path: Path
    size: tuple[int, int] | None = None
    shapes: list[Shape] = field(default_factory=list)
    shares: bool = False  # coordinates are shares of width and height, not pixels


def found_names(splits: Mapping[str, Iterable[Picture]]) -> tuple[str, ...]:
    """The names of classes that occur in any split, sorted, so that all splits have the same classes."""
    return tuple(sorted({str(shape.name) for pictures in splits.values() for one in pictures for shape in one.shapes}))


def assemble(
    root: Path,
    split: str,
    layout: str,
    pictures: Iterable[Picture],
    classes: Mapping[str | int, str],
    first_id: int,
    faults: Faults,
    notes: Sequence[str] = (),
) -> Dataset:
    """The dataset of one split; images and objects are numbered 1, 2, ... in the order given.

    Args:
        root: the dataset's folder, or the file that describes it.
        split: its name.
        layout: for people.
        pictures: of this split. They are asked for one at a time, and let go.
        classes: what shapes call a class -> its name, in the order of the labels.
        first_id: the category id of the first class.
        faults: what was found while reading; more is added.
        notes: as in :class:`Dataset`.

    Raises:
        UserError: there is no class.
    """
    if not classes:
        errors = faults.errors()
        raise UserError(errors[0] if errors else f"{root}: no object in any split: a detector needs at least one class")
    labels = {name: label for label, name in enumerate(classes)}
    gathered = Gathered()
    image_ids: list[int] = []
    sizes: list[tuple[int, int]] = []
    paths: list[str] = []
    number = 0
    for image_id, picture in enumerate(pictures, 1):
        try:
            width, height = picture.size or read_size(picture.path)
            check_pixels(height, width, picture.path)
        except UserError as error:
            faults.add(IMAGE, error)
            continue
        faults.picture = picture.path
        for shape in picture.shapes:
            number += 1
            try:
                made = _object(number, shape, labels, (width, height), picture.shares, faults)
            except UserError as error:
                faults.add(OBJECT, error)
                continue
            if made is not None:
                gathered.add(len(image_ids), number, *made)
        image_ids.append(image_id)
        sizes.append((width, height))
        paths.append(str(picture.path))
    widths, heights = ([size[side] for size in sizes] for side in (0, 1))
    records = Records(gathered.finish(image_ids, widths, heights, paths), Path())
    ids = tuple(range(first_id, first_id + len(classes)))
    names = tuple(classes.values())
    problems = tuple(faults.problems)
    kept = records if len(records) >= MANY else tuple(records)
    return Dataset(root, split, layout, names, ids, kept, problems, tuple(notes), faults.errors())


def _object(
    number: int, shape: Shape, labels: Mapping[str | int, int], size: tuple[int, int], shares: bool, faults: Faults
) -> tuple[dict[str, Any], Segmentation] | None:
    """Values by column and the mask, or None if nothing of the box is left; UserError if it cannot be read."""
    label = labels.get(shape.name)
    if label is None:
        known = ", ".join(str(name) for name in list(labels)[:20]) + (", ..." if len(labels) > 20 else "")
        raise UserError(f"{shape.where}: class {shape.name!r} is not among the classes ({known}); correct it or add it")
    if any(not is_number(value) for values in (shape.box, *shape.polygons) for value in values):
        raise UserError(f"{shape.where}: a coordinate is not a finite number; correct it")
    width, height = size if shares else (1, 1)
    polygons = [(np.array(one, np.float64).reshape(-1, 2) * (width, height)).reshape(-1) for one in shape.polygons]
    if len(shape.box) == 4:
        x1, y1, x2, y2 = map(float, shape.box)
        box = [x1 * width, y1 * height, x2 * width, y2 * height]
    else:
        points = np.concatenate(polygons).reshape(-1, 2)
        box = [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
    clipped = faults.clip(box, size, shape.where, number)
    if clipped is None:
        return None
    segmentation: Segmentation = shape.rle
    if polygons:
        segmentation = faults.near(polygons, size, shape.where, number)
    values = {
        "boxes": clipped,
        "labels": label,
        "crowd": shape.crowd,
        "difficult": shape.difficult,
        "areas": (clipped[2] - clipped[0]) * (clipped[3] - clipped[1]),
        "weights": 1.0,
        "annotation_ids": number,
    }
    return values, segmentation
