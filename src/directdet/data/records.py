"""A dataset in memory: records of annotated images, and the problems found while reading them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypedDict, overload

import numpy as np

from directdet.common.errors import UserError
from directdet.data.flat.columns import NO_MASK, Columns
from directdet.data.pixels.format import RGB, PixelFormat
from directdet.data.pixels.reading import read_pixels


class RLE(TypedDict):
    """A mask as COCO run lengths: column by column, starting with zeros; ``counts`` is a list or compressed."""

    size: list[int]  # height, width
    counts: list[int] | str | bytes


# One object's mask as the file gives it: polygons, each float64 [2P] (x, y, x, y, ...) in pixels of the image; or run
# lengths; or None.
Segmentation = list[np.ndarray] | RLE | None


@dataclass(frozen=True)
class Problem:
    """A fault in an annotation file that did not stop it from being read, and what was done about it."""

    kind: str  # "empty-box", "outside-box", "clipped-box", "bad-polygon", "far-polygon", "bad-area"
    file: str
    annotation_id: int | None
    message: str
    action: str  # "dropped" and "clipped" are about the box; else what became of the field, in words
    outside: float = 0.0  # the share of a box's area that lies outside its image
    picture: str = ""  # the image file
    box: tuple[float, float, float, float] | None = None  # xyxy as the file gives it, of a problem with the box


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its G objects. Boxes are xyxy, 0-based pixels, clipped to the image.

    Crowd regions and VOC's difficult objects are kept: evaluation ignores detections on them. Training leaves out crowd
    regions, and difficult objects if its phase says so (`Dataset.without_difficult`).
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes: np.ndarray  # float32 [G, 4]
    labels: np.ndarray  # int64 [G], 0..C-1
    crowd: np.ndarray  # bool [G]
    difficult: np.ndarray  # bool [G]
    segmentations: tuple[Segmentation, ...]
    annotation_ids: tuple[int, ...]
    # float32 [G], square pixels as the file gives them (COCO: of the mask), by default those of the boxes; COCO AP
    # classes objects as small, medium and large by them.
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    # float32 [G], 0..1, what training multiplies the losses of each object by: the score of a pseudo-label, else 1.
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    pixels: PixelFormat = RGB  # what the image file is read as

    def __post_init__(self) -> None:
        if not len(self.areas):
            sizes = self.boxes[:, 2:] - self.boxes[:, :2]
            object.__setattr__(self, "areas", (sizes[:, 0] * sizes[:, 1]).astype(np.float32))
        count = len(self.boxes)
        if not len(self.weights):
            object.__setattr__(self, "weights", np.ones(count, np.float32))
        lists = (self.labels, self.crowd, self.difficult, self.segmentations, self.annotation_ids, self.areas)
        if self.boxes.shape != (count, 4) or any(len(values) != count for values in (*lists, self.weights)):
            raise ValueError(f"record of {self.path}: the object lists differ in length")

    @property
    def learnt(self) -> np.ndarray:
        """Which objects are learnt, bool [G]: neither crowd regions nor of weight 0."""
        return ~self.crowd & (self.weights > 0)


class Records(Sequence[Record]):
    """The records of a split that lies in columns: each is made, and copied, when it is asked for.

    Args:
        columns: the annotations.
        folder: that the paths of images are relative to.
        chosen: the images that are meant, in their order, int64; None: all.
        pixels: what the image files are read as.
    """

    def __init__(
        self, columns: Columns, folder: Path, chosen: np.ndarray | None = None, pixels: PixelFormat = RGB
    ) -> None:
        self.columns, self.folder, self.pixels = columns, folder, pixels
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self.columns.image_ids if self._chosen is None else self._chosen)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Record | Records:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = range(len(self))[index]
        image = place if self._chosen is None else int(self._chosen[place])
        columns = self.columns
        first, stop = columns.firsts[image : image + 2].tolist()
        return Record(
            image_id=int(columns.image_ids[image]),
            path=self.folder / columns.name(image),
            width=int(columns.widths[image]),
            height=int(columns.heights[image]),
            boxes=columns.boxes[first:stop].copy(),
            labels=columns.labels[first:stop].astype(np.int64),
            crowd=columns.crowd[first:stop].copy(),
            difficult=columns.difficult[first:stop].copy(),
            segmentations=columns.masks(image),
            annotation_ids=tuple(columns.annotation_ids[first:stop].tolist()),
            areas=columns.areas[first:stop].copy(),
            weights=columns.weights[first:stop].copy(),
            pixels=self.pixels,
        )

    def __add__(self, others: Sequence[Record]) -> tuple[Record, ...]:
        return (*self, *others)

    def relabelled(self, table: np.ndarray) -> Records:
        """The same images with ``table[label]`` in place of each label, without the objects for which that is -1."""
        labels = table[self.columns.labels].astype(np.int32)
        columns = Columns(**{**dict(self.columns.arrays()), "labels": labels})
        return Records(columns.only(labels >= 0), self.folder, self._chosen, self.pixels)

    def take(self, indices: np.ndarray) -> Records:
        """The records at these indices, in their order."""
        chosen = np.asarray(indices, np.int64)
        return Records(self.columns, self.folder, chosen if self._chosen is None else self._chosen[chosen], self.pixels)

    def with_pixels(self, pixels: PixelFormat) -> Records:
        """The same images, read as another format."""
        return Records(self.columns, self.folder, self._chosen, pixels)

    def sizes(self) -> np.ndarray:
        """(width, height) of each image, int64 [I, 2]."""
        return self._of_chosen(np.stack([self.columns.widths, self.columns.heights], axis=1))

    def objects_with(self, flags: np.ndarray) -> np.ndarray:
        """How many objects of each image have a flag, bool [objects of the columns]: int64 [I]."""
        return self._of_chosen(self.columns.per_image(flags))

    def objects(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the objects are in the columns, image by image, int64 [N]; how many each image has, int64 [I]."""
        firsts, counts = self._of_chosen(self.columns.firsts[:-1]), self._of_chosen(np.diff(self.columns.firsts))
        before = np.cumsum(counts) - counts
        return np.arange(int(counts.sum())) + np.repeat(firsts - before, counts), counts

    def files(self) -> Iterator[tuple[int, Path]]:
        """The id and the file of each image."""
        for image in range(len(self.columns.image_ids)) if self._chosen is None else self._chosen.tolist():
            yield int(self.columns.image_ids[image]), self.folder / self.columns.name(image)

    def only(self, keep: np.ndarray) -> Records:
        """The same images with the objects for which ``keep``, bool [objects of the columns], is true."""
        return Records(self.columns.only(keep), self.folder, self._chosen, self.pixels)

    def _of_chosen(self, values: np.ndarray) -> np.ndarray:
        return values if self._chosen is None else values[self._chosen]


def take(records: Sequence[Record], indices: np.ndarray) -> Sequence[Record]:
    """The records at these indices, in their order; in columns if they are in columns."""
    return records.take(indices) if isinstance(records, Records) else tuple(records[index] for index in indices)


def with_pixels(records: Sequence[Record], pixels: PixelFormat) -> Sequence[Record]:
    """The same images, read as another format; in columns if they are in columns."""
    if isinstance(records, Records):
        return records.with_pixels(pixels)
    return tuple(replace(record, pixels=pixels) for record in records)


def object_counts(records: Sequence[Record]) -> np.ndarray:
    """The objects of each image without crowd regions, int64 [I]."""
    if isinstance(records, Records):
        return records.objects_with(~records.columns.crowd)
    return np.array([int((~record.crowd).sum()) for record in records], np.int64)


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a dataset. ``category_ids[label]`` is the annotation file's id of ``classes[label]``.

    ``notes`` say what was decided about the whole split, such as which list it was read from; ``errors`` name the
    entries that could not be read and are left out, the worst first.
    """

    root: Path
    split: str
    layout: str  # "coco", "roboflow", "voc" or "toml"
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: Sequence[Record]  # a tuple, or Records
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def pixels(self) -> PixelFormat:
        """What the image files are read as: one format for all of them."""
        return self.records[0].pixels if self.records else RGB

    def mask_counts(self) -> tuple[int, int]:
        """(objects with a mask, objects), both without crowd regions."""
        if isinstance(self.records, Records):
            columns = self.records.columns
            masks = self.records.objects_with(~columns.crowd & (columns.mask_kinds != NO_MASK))
            return int(masks.sum()), int(object_counts(self.records).sum())
        masks = objects = 0
        for record in self.records:
            for crowd, segmentation in zip(record.crowd.tolist(), record.segmentations, strict=True):
                objects += not crowd
                masks += not crowd and segmentation is not None
        return masks, objects

    def first_without_mask(self) -> str | None:
        """Image and annotation of the first object that training uses and that has no mask, in words; None: none."""
        for record in self.records:
            objects = zip(record.crowd.tolist(), record.segmentations, record.annotation_ids, strict=True)
            for crowd, segmentation, annotation_id in objects:
                if segmentation is None and not crowd:
                    return f"annotation {annotation_id}, {record.path}"
        return None

    @cached_property
    def has_masks(self) -> bool:
        """Whether every object that training uses has a mask (and there is at least one)."""
        masks, objects = self.mask_counts()
        return 0 < masks == objects

    @cached_property
    def has_weights(self) -> bool:
        """Whether the losses of some objects count less than those of others."""
        if isinstance(self.records, Records):
            return bool(self.records.objects_with(self.records.columns.weights != 1).any())
        return any((record.weights != 1).any() for record in self.records)

    def most_objects(self) -> int:
        """Objects of the fullest image, without crowd regions."""
        return int(object_counts(self.records).max(initial=0))

    def without_difficult(self) -> Dataset:
        """The dataset without :meth:`difficult_objects`; images that had no others stay, without objects."""
        if not self.difficult_objects():
            return self
        if isinstance(self.records, Records):
            return replace(self, records=self.records.only(~_difficult(self.records.columns)))
        return replace(self, records=tuple(_without_difficult(record) for record in self.records))

    def difficult_objects(self) -> int:
        """Objects that are marked difficult, but those of weight 0: without them their place would be background."""
        if isinstance(self.records, Records):
            return int(self.records.objects_with(_difficult(self.records.columns)).sum())
        return sum(int(_difficult(record).sum()) for record in self.records)

    def subset(self, fraction: float, seed: int) -> Dataset:
        """A random ``fraction`` of the images, which depends only on ``seed``; at least one, in their original order.

        The tenth of COCO in the paper's Table 9 is ``subset(0.1, seed)``; which images the paper drew is not known.
        With the same seed, a smaller fraction is part of a larger one. ``problems`` remain those of the whole file.

        Raises:
            ValueError: ``fraction`` is not in (0, 1].
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction = {fraction}: must be more than 0 and at most 1")
        count = max(1, int(fraction * len(self.records) + 0.5))
        drawn = np.sort(np.random.default_rng(seed).permutation(len(self.records))[:count])
        return replace(self, records=take(self.records, drawn))


def _without_difficult(record: Record) -> Record:
    return only_objects(record, ~_difficult(record)) if record.difficult.any() else record


def _difficult(of: Record | Columns) -> np.ndarray:
    return of.difficult & (of.weights > 0)


def only_objects(record: Record, keep: np.ndarray) -> Record:
    """The record with the objects for which ``keep``, bool [G], is true."""
    kept = np.flatnonzero(keep)
    arrays = ("boxes", "labels", "crowd", "difficult", "areas", "weights")
    lists = {
        name: tuple(getattr(record, name)[index] for index in kept) for name in ("segmentations", "annotation_ids")
    }
    return replace(record, **{name: getattr(record, name)[kept] for name in arrays}, **lists)


def read_record_image(record: Record) -> np.ndarray:
    """The record's image, [H, W, C] as its format says (8-bit RGB: in that order).

    Raises:
        UserError: it cannot be read, holds another format, or its size differs from the annotated one.
    """
    image = read_pixels(record.path, record.pixels)
    check_size(record, *image.shape[:2])
    return image


def detector_image(record: Record) -> np.ndarray:
    """The record's image as detectors take it, 8-bit RGB in BGR order; errors as :func:`read_record_image`."""
    return record.pixels.for_detector(read_record_image(record))


def drawable_image(record: Record) -> np.ndarray:
    """The record's image to draw on, uint8 [H, W, 3] BGR; errors as :func:`read_record_image`."""
    return record.pixels.drawable(detector_image(record))


def check_size(record: Record, height: int, width: int) -> None:
    """UserError if the image of ``record`` does not have the annotated size."""
    if (height, width) == (record.height, record.width):
        return
    hint = "correct the annotations or restore the image"
    if (height, width) == (record.width, record.height):
        hint = (
            "the boxes seem to be drawn on the image as rotated by its EXIF orientation: save it rotated, "
            "or correct the sizes"
        )
    raise UserError(
        f"{record.path}: image is {width}x{height} pixels, its annotation says {record.width}x{record.height}; {hint}"
    )


def clip_box(
    box: Sequence[float], width: int, height: int, file: str, annotation_id: int | None
) -> tuple[list[float] | None, Problem | None]:
    """Clip an xyxy box to the image. Returns (the box, or None if nothing is left; the problem, if there was one)."""
    x1, y1, x2, y2 = box
    given = float(x1), float(y1), float(x2), float(y2)
    if x2 <= x1 or y2 <= y1:
        message = f"box {_shown(given)} (x1, y1, x2, y2) has no width or no height"
        return None, Problem("empty-box", file, annotation_id, message, "dropped", box=given)
    clipped = [min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height)]
    # Compared as float32, which is how boxes are stored: a sliver thinner than that has no area.
    if np.float32(clipped[2]) <= np.float32(clipped[0]) or np.float32(clipped[3]) <= np.float32(clipped[1]):
        message = f"box {_shown(given)} lies outside its {width}x{height} image"
        return None, Problem("outside-box", file, annotation_id, message, "dropped", 1.0, box=given)
    if max(abs(old - new) for old, new in zip(box, clipped, strict=True)) > 1e-3:
        message = f"box {_shown(given)} extends beyond its {width}x{height} image"
        left = (clipped[2] - clipped[0]) * (clipped[3] - clipped[1]) / ((x2 - x1) * (y2 - y1))
        return clipped, Problem("clipped-box", file, annotation_id, message, "clipped", 1 - left, box=given)
    return clipped, None


def _shown(box: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


@dataclass(frozen=True, eq=False)
class AnnotatedObject:
    """One object as a reader of annotations gives it to :func:`make_record`; fields as in :class:`Record`."""

    annotation_id: int
    label: int
    box: Sequence[float]  # xyxy
    area: float
    segmentation: Segmentation = None
    crowd: bool = False
    difficult: bool = False
    weight: float = 1.0


def make_record(image_id: int, path: Path, width: int, height: int, objects: Sequence[AnnotatedObject]) -> Record:
    """The record of one image and its objects."""
    return Record(
        image_id=image_id,
        path=path,
        width=width,
        height=height,
        boxes=np.array([item.box for item in objects], np.float32).reshape(-1, 4),
        labels=np.array([item.label for item in objects], np.int64),
        crowd=np.array([item.crowd for item in objects], bool),
        difficult=np.array([item.difficult for item in objects], bool),
        segmentations=tuple(item.segmentation for item in objects),
        annotation_ids=tuple(item.annotation_id for item in objects),
        areas=np.array([item.area for item in objects], np.float32),
        weights=np.array([item.weight for item in objects], np.float32),
    )
