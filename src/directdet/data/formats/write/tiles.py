"""A dataset of tiles, cut out of large pictures for training.

An object belongs to every tile in which enough of it is visible. Where less of it is, it gets the weight 0 there, so
that its place is neither object nor background, and evaluation ignores it as difficult. All tiles of a picture are in
the split of that picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np

from directdet.common.errors import UsageProblem
from directdet.common.files import write_bytes_atomic
from directdet.data.formats.polygons import cut_polygon, polygon_area
from directdet.data.image import read_bytes
from directdet.data.masks import CropMask, coco_mask, to_shape
from directdet.data.pixels.made import tiff
from directdet.data.pixels.tiles import OVERLAP, Tile, check_tiles, tiles
from directdet.data.records import AnnotatedObject, Dataset, Record, Segmentation, make_record, read_record_image

VISIBLE = 0.5  # the share of an object that has to be in a tile
QUALITY = 95  # of JPEG tiles
_LEAST = 1.0  # pixels: what is narrower of a cut object is not in the tile


@dataclass(frozen=True)
class Cutting:
    """How pictures are cut.

    Attributes:
        side: of a tile, in pixels; pictures that are no larger stay whole.
        overlap: at least this share of `side` is common to neighbours.
        visible: the share of an object's area that has to be in a tile, for it to be an object there.

    Raises:
        UsageProblem: a number out of range.
    """

    side: int
    overlap: float = OVERLAP
    visible: float = VISIBLE

    def __post_init__(self) -> None:
        check_tiles(self.side, self.overlap)
        if not 0 < self.visible <= 1:
            raise UsageProblem(f"visible: {self.visible}; give a share above 0, at most 1")


@dataclass(frozen=True)
class Piece:
    """A tile of a record."""

    source: Record
    tile: Tile

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the picture."""
        return not any(self.tile.inner)


def cut_dataset(dataset: Dataset, how: Cutting) -> tuple[Dataset, tuple[Piece, ...]]:
    """The tiles of all pictures as a dataset, and what each is cut from; `write_piece_files` writes their files.

    Ids of images and annotations are 1, 2, ... The paths are of files that do not exist: the source's, with the place
    of the tile in its name.
    """
    records: list[Record] = []
    pieces: list[Piece] = []
    number = 0
    for record in dataset.records:
        for tile in tiles(record.height, record.width, how.side, how.overlap):
            piece = Piece(record, tile)
            objects = []
            for item in _objects(piece, how.visible):
                number += 1
                objects.append(replace(item, annotation_id=number))
            made = make_record(len(records) + 1, _path(piece), tile.width, tile.height, objects)
            records.append(replace(made, pixels=record.pixels))
            pieces.append(piece)
    return replace(dataset, records=tuple(records), problems=()), tuple(pieces)


def write_piece_files(pieces: Sequence[Piece], paths: Sequence[Path]) -> None:
    """Write the file of each piece; every source is read once, and one at a time.

    Raises:
        UserError: a picture cannot be read.
        MissingLibraryError: a TIFF is to be written, and tifffile is not installed.
    """
    together = groupby(zip(pieces, paths, strict=True), key=lambda pair: id(pair[0].source))
    for _, group in together:
        image = None
        for piece, path in group:
            if piece.is_whole:
                path.write_bytes(read_bytes(piece.source.path))  # it may lie in a tar
                continue
            image = read_record_image(piece.source) if image is None else image
            tile = piece.tile
            part = image[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
            write_bytes_atomic(path, _encoded(part, path.suffix))


def _path(piece: Piece) -> Path:
    """The source's path with the tile's place: JPEG stays JPEG, others are PNG where that holds them, else TIFF."""
    path, pixels = piece.source.path, piece.source.pixels
    if piece.is_whole:
        return path
    suffix = ".png" if pixels.channels in (1, 3, 4) and pixels.dtype != "float32" else ".tif"
    if path.suffix.lower() in (".jpg", ".jpeg"):
        suffix = ".jpg"
    return path.with_name(f"{path.stem}_{piece.tile.x}_{piece.tile.y}{suffix}")


def _encoded(image: np.ndarray, suffix: str) -> bytes:
    """An image [H, W, C] as a file."""
    if suffix == ".tif":
        return tiff(np.ascontiguousarray(image))
    if image.shape[2] >= 3:  # OpenCV has colours the other way round
        image = image[:, :, [2, 1, 0, *range(3, image.shape[2])]]
    settings = [cv2.IMWRITE_JPEG_QUALITY, QUALITY] if suffix == ".jpg" else []
    return cv2.imencode(suffix, np.ascontiguousarray(image), settings)[1].tobytes()


def _objects(piece: Piece, visible: float) -> Iterator[AnnotatedObject]:
    """The objects of a tile, in its pixels."""
    record, tile = piece.source, piece.tile
    shift, limits = np.array([tile.x, tile.y] * 2, np.float64), np.array([tile.width, tile.height] * 2, np.float64)
    moved = record.boxes.astype(np.float64) - shift
    inside = np.clip(moved, 0, limits)
    uncut = (inside == moved).all(axis=1)
    there = uncut | ((inside[:, 2:] - inside[:, :2]) >= _LEAST).all(axis=1)
    for index in np.flatnonzero(there).tolist():
        seen = _seen(record, index, tile, inside[index], bool(uncut[index]))
        if seen is None:
            continue
        share, box, mask = seen
        crowd, enough = bool(record.crowd[index]), share >= visible
        yield AnnotatedObject(
            annotation_id=0,
            label=int(record.labels[index]),
            box=box.tolist(),
            area=float(record.areas[index]) * share,
            segmentation=mask,
            crowd=crowd,
            difficult=bool(record.difficult[index]) or not (enough or crowd),
            weight=float(record.weights[index]) if enough or crowd else 0.0,
        )


def _seen(
    record: Record, index: int, tile: Tile, box: np.ndarray, uncut: bool
) -> tuple[float, np.ndarray, Segmentation] | None:
    """The share of an object that a tile shows, its box and mask there; None if nothing is to be seen.

    The share is of the mask where there is one, else of the box. The box of a cut object is that of its part of the
    mask.
    """
    segmentation = record.segmentations[index]
    if segmentation is None:
        whole = record.boxes[index].astype(np.float64)
        return (1.0 if uncut else float(np.prod(box[2:] - box[:2]) / np.prod(whole[2:] - whole[:2]))), box, None
    found = _cut_crop(record, index, tile) if isinstance(segmentation, dict) else _cut_polygons(segmentation, tile)
    if found is None:
        if not uncut:
            return None
        empty = np.zeros((tile.height, tile.width), np.uint8, order="F")
        return 1.0, box, coco_mask().encode(empty)  # as in the picture, a mask without a pixel
    share, around, mask = found
    if uncut:
        return 1.0, box, mask
    box = np.concatenate([np.maximum(box[:2], around[:2]), np.minimum(box[2:], around[2:])])
    return (share, box, mask) if (box[2:] - box[:2] >= _LEAST).all() else None


def _cut_polygons(polygons: Sequence[np.ndarray], tile: Tile) -> tuple[float, np.ndarray, Segmentation] | None:
    parts = [cut_polygon(polygon, tile.x, tile.y, tile.width, tile.height) for polygon in polygons]
    kept = [part for part in parts if part is not None]
    if not kept:
        return None
    points = np.concatenate(kept).reshape(-1, 2)
    # What crosses itself has less area than its parts.
    share = min(1.0, sum(map(polygon_area, kept)) / sum(map(polygon_area, polygons)))
    return share, np.concatenate([points.min(axis=0), points.max(axis=0)]), kept


def _cut_crop(record: Record, index: int, tile: Tile) -> tuple[float, np.ndarray, Segmentation] | None:
    shape = to_shape(record.segmentations[index], record.height, record.width)
    assert isinstance(shape, CropMask)  # of run lengths
    left, top, right, bottom = (int(value) for value in shape.box)
    x1, y1 = max(left, tile.x), max(top, tile.y)
    x2, y2 = min(right, tile.x + tile.width), min(bottom, tile.y + tile.height)
    if x1 >= x2 or y1 >= y2:
        return None
    drawn = np.zeros((tile.height, tile.width), np.uint8, order="F")
    drawn[y1 - tile.y : y2 - tile.y, x1 - tile.x : x2 - tile.x] = shape.mask[y1 - top : y2 - top, x1 - left : x2 - left]
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    if not len(rows):
        return None
    around = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
    return float(drawn.sum() / shape.mask.sum()), around, coco_mask().encode(drawn)
