"""What a dataset is once read: records of annotated images, and the problems met on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.data.image import read_image

# One object's mask as the file gives it: polygons, each float64 [2P] (x, y, x, y, ...) in pixels of the image; or a
# COCO run-length dict {"size": [h, w], "counts": list | str}; or None.
Segmentation = list[np.ndarray] | dict[str, Any] | None


@dataclass(frozen=True)
class Problem:
    """Something wrong in an annotation file that reading it could live with, and what was done about it."""

    kind: str  # "empty-box", "outside-box", "clipped-box", "bad-polygon"
    file: str
    annotation_id: int | None
    message: str
    action: str  # "dropped" or "clipped"


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its G objects. Boxes are xyxy, 0-based pixels, clipped to the image.

    Crowd regions and VOC's difficult objects are kept: evaluation ignores detections on them. Training leaves out crowd
    regions only.
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
    # float32 [G], square pixels as the file says (COCO: of the mask); decides small, medium and large in COCO AP.
    areas: np.ndarray = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.areas is None:
            sizes = self.boxes[:, 2:] - self.boxes[:, :2]
            object.__setattr__(self, "areas", (sizes[:, 0] * sizes[:, 1]).astype(np.float32))
        count = len(self.boxes)
        lists = (self.labels, self.crowd, self.difficult, self.segmentations, self.annotation_ids, self.areas)
        if self.boxes.shape != (count, 4) or any(len(values) != count for values in lists):
            raise ValueError(f"record of {self.path}: the object lists differ in length")


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a dataset. ``category_ids[label]`` is the id the annotation file has for ``classes[label]``."""

    root: Path
    split: str
    layout: str  # "coco", "roboflow", "voc" or "toml"
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: tuple[Record, ...]
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def mask_counts(self) -> tuple[int, int]:
        """(objects with a mask, objects), crowd regions left out of both."""
        masks = objects = 0
        for record in self.records:
            for crowd, segmentation in zip(record.crowd.tolist(), record.segmentations, strict=True):
                objects += not crowd
                masks += not crowd and segmentation is not None
        return masks, objects

    @cached_property  # counting takes a second on the whole of COCO
    def has_masks(self) -> bool:
        """Whether every object that training uses has a mask (and there is at least one)."""
        masks, objects = self.mask_counts()
        return 0 < masks == objects

    def subset(self, fraction: float, seed: int) -> Dataset:
        """``fraction`` of the images, drawn by ``seed`` alone; at least one, in the order they have here.

        The tenth of COCO in the paper's Table 9 is ``subset(0.1, seed)``; which images the paper drew is not known. A
        smaller fraction with the same seed draws part of a larger one. ``problems`` stay those of the whole file.

        Raises:
            ValueError: ``fraction`` is not in (0, 1].
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction = {fraction}: a part of a dataset is more than 0 and at most 1")
        count = max(1, int(fraction * len(self.records) + 0.5))
        drawn = np.sort(np.random.default_rng(seed).permutation(len(self.records))[:count])
        return replace(self, records=tuple(self.records[index] for index in drawn))


def read_record_image(record: Record) -> np.ndarray:
    """The record's picture, uint8 [H, W, 3] RGB; UserError if it has another size than the annotations say."""
    image = read_image(record.path)
    check_size(record, *image.shape[:2])
    return image


def check_size(record: Record, height: int, width: int) -> None:
    """UserError if the picture of ``record`` is not of the annotated size."""
    if (height, width) == (record.height, record.width):
        return
    hint = "correct the annotations or restore the image"
    if (height, width) == (record.width, record.height):
        hint = "the boxes seem to be drawn on a picture turned by its EXIF note: save it turned, or correct the sizes"
    raise UserError(
        f"{record.path}: image is {width}x{height} pixels, its annotation says {record.width}x{record.height}; {hint}"
    )


def path_inside(folder: Path, name: Any, source: str) -> Path:
    """``folder / name`` for a name read from a file; UserError if it could lead out of ``folder``.

    Absolute names, drive letters and ``..`` are refused; backslashes count as slashes. Symbolic links are followed:
    they are the work of whoever laid out the folder, not of the annotation file.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise UserError(f"{source}: {name!r} is not a file name; give a path relative to {folder}")
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or PureWindowsPath(name).drive or ".." in parts.parts:
        raise UserError(f"{source}: path {name!r} may lead out of {folder}; give a path inside it")
    return folder / parts


def clip_box(
    box: Sequence[float], width: int, height: int, file: str, annotation_id: int | None
) -> tuple[list[float] | None, Problem | None]:
    """Clip an xyxy box to the image. Returns (box or None if nothing is left, the problem if there was one)."""
    x1, y1, x2, y2 = box
    shown = "[" + ", ".join(f"{value:g}" for value in box) + "]"
    if x2 <= x1 or y2 <= y1:
        message = f"box {shown} (x1, y1, x2, y2) has no width or no height"
        return None, Problem("empty-box", file, annotation_id, message, "dropped")
    clipped = [min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height)]
    # Compared as the float32 that is stored: a sliver thinner than that is no box.
    if np.float32(clipped[2]) <= np.float32(clipped[0]) or np.float32(clipped[3]) <= np.float32(clipped[1]):
        message = f"box {shown} lies outside its {width}x{height} image"
        return None, Problem("outside-box", file, annotation_id, message, "dropped")
    if max(abs(old - new) for old, new in zip(box, clipped, strict=True)) > 1e-3:
        message = f"box {shown} leaves its {width}x{height} image"
        return clipped, Problem("clipped-box", file, annotation_id, message, "clipped")
    return clipped, None


def is_number(value: Any) -> bool:
    """Whether a value from a file is a number, neither NaN nor absurdly large (booleans are none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e15 < value < 1e15


def make_record(image_id: int, path: Path, width: int, height: int, objects: Sequence[dict[str, Any]]) -> Record:
    """A record from one dict per object with keys box, label, crowd, difficult, segmentation, id and area."""
    return Record(
        image_id=image_id,
        path=path,
        width=width,
        height=height,
        boxes=np.array([item["box"] for item in objects], np.float32).reshape(-1, 4),
        labels=np.array([item["label"] for item in objects], np.int64),
        crowd=np.array([item["crowd"] for item in objects], bool),
        difficult=np.array([item["difficult"] for item in objects], bool),
        segmentations=tuple(item["segmentation"] for item in objects),
        annotation_ids=tuple(item["id"] for item in objects),
        areas=np.array([item["area"] for item in objects], np.float32),
    )
