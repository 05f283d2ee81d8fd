"""Steps that put several pictures into one: mosaic, mixup and copy-paste, with their boxes and masks.

Steps are as in steps.py. The result has the canvas and the padding colour of the other transforms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from directdet.data.augment.sample import Sample, clip_boxes, select, with_image
from directdet.data.augment.steps import Another, Resize
from directdet.data.image import fit_size, pad_bottom_right
from directdet.data.masks import CropMask, Shape, draw_pixels
from directdet.data.pixels.format import RGB, PixelFormat, planewise

CENTRE = (0.25, 0.75)  # where the four pictures of a mosaic meet, as a share of its side (YOLOX)


@dataclass(frozen=True)
class Mosaic:
    """With this probability, four pictures around a random point, cropped to ``length``; else ``otherwise``.

    The mosaic is 2 ``length`` wide and high, times a factor alpha uniform in ``scale``; each picture fits a quarter of
    that, and touches the point where the four meet with a corner. A window of ``length`` x ``length`` is cut out at
    random, or the rest padded where the mosaic is smaller: so objects have the sizes that direct_resize gives them.
    Only what the window shows is read and resampled. As published with YOLOX (arXiv 2107.08430) and RTMDet.
    """

    probability: float
    length: int
    scale: tuple[float, float]
    otherwise: Resize | None = None
    pixels: PixelFormat = RGB

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
        if rng.random() >= self.probability:
            return sample if self.otherwise is None else self.otherwise(sample, rng)
        alpha = float(rng.uniform(*self.scale))
        side = max(2, int(2 * self.length * alpha))
        shown = min(side, self.length)
        x, y = (int(value) for value in rng.uniform(*CENTRE, 2) * side - rng.integers(0, side - shown + 1, 2))
        limit = max(1, int(self.length * alpha))
        image = _canvas(self.length, self.pixels).copy()
        parts = []
        for right, below in ((False, False), (True, False), (False, True), (True, True)):
            # The square that a picture of any proportions stays in, and what the window shows of it.
            edges = (x if right else x - limit, y if below else y - limit)
            if max(edges) >= shown or min(edges) <= -limit:
                continue
            part = sample if not (right or below) else another(rng)
            parts.append(_place(part, image, (x, y), (right, below), limit, shown))
        return replace(_join(image, parts), size=(shown, shown))


@dataclass(frozen=True)
class MixUp:
    """With this probability, blend with another picture, resized on its own, half and half; all objects count fully."""

    probability: float
    resize: Resize
    pixels: PixelFormat = RGB

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
        if rng.random() >= self.probability:
            return sample
        other = self.resize(another(rng), rng)
        height, width = (max(sample.image.shape[axis], other.image.shape[axis]) for axis in (0, 1))
        images = [pad_bottom_right(one.image, height, width, self.pixels.padding) for one in (sample, other)]
        size = (max(sample.size[0], other.size[0]), max(sample.size[1], other.size[1]))
        mixed = cv2.addWeighted(images[0], 0.5, images[1], 0.5, 0.0).reshape(images[0].shape)
        return replace(_join(mixed, [sample, other]), size=size)


@dataclass(frozen=True)
class CopyPaste:
    """With this probability, paste objects of another picture, resized on its own, by their masks (arXiv 2012.07177).

    Each of them is pasted half the time. Masks and boxes of the objects below lose what is covered; an object is
    dropped if nothing of it is left.
    """

    probability: float
    resize: Resize

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
        if rng.random() >= self.probability:
            return sample
        other = self.resize(another(rng), rng)
        pasted = select(other, rng.random(len(other.boxes)) < 0.5)
        return paste(sample, clip_boxes(replace(pasted, size=_overlap(sample, other))))


def paste(sample: Sample, pasted: Sample) -> Sample:
    """``sample`` with all objects of ``pasted`` on top; both need masks, and ``pasted.size`` must not be larger."""
    if sample.segmentations is None or pasted.segmentations is None:
        raise ValueError("copy-paste needs masks")
    if not len(pasted.boxes):
        return sample
    alpha = np.zeros(sample.image.shape[:2], np.uint8)
    for shape, box in zip(pasted.segmentations, pasted.boxes, strict=True):
        crop, region = _drawn(shape, box, sample.size)
        alpha[region] |= crop
    image = sample.image.copy()
    height, width = pasted.size
    if image.shape[2] == 3:
        cv2.copyTo(pasted.image[:height, :width], alpha[:height, :width], image[:height, :width])
    else:
        np.copyto(image[:height, :width], pasted.image[:height, :width], where=alpha[:height, :width, None] != 0)
    below = _uncovered(sample, alpha)
    return replace(_join(image, [below, pasted]), size=sample.size)


@lru_cache(maxsize=8)
def _canvas(length: int, pixels: PixelFormat) -> np.ndarray:
    """Padding, [length, length, C], to be copied: that is ten times faster than filling."""
    canvas = np.empty((length, length, pixels.channels), pixels.dtype)
    canvas[:] = pixels.padding
    return canvas


def _place(
    part: Sample, image: np.ndarray, centre: tuple[int, int], side: tuple[bool, bool], limit: int, shown: int
) -> Sample:
    """Draw a picture, fitted to a square of ``limit``, into its quarter of ``image``; returns its objects there."""
    height, width = fit_size(*part.size, limit, limit)
    left = centre[0] if side[0] else centre[0] - width
    top = centre[1] if side[1] else centre[1] - height
    scale = (width / part.size[1], height / part.size[0])
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, shown), min(top + height, shown)
    if x1 >= x2 or y1 >= y2:
        return select(part, np.zeros(len(part.boxes), bool))
    source = part.image[: part.size[0], : part.size[1]]
    edges = np.array([[x1, y1] * 2, [x2, y2] * 2], np.float32)
    boxes = (part.boxes * np.array(scale * 2) + np.array([left, top] * 2)).clip(*edges).astype(np.float32)
    seen = np.all(boxes[:, 2:] - boxes[:, :2] >= 1, axis=1)
    moved = with_image(select(part, seen), image, scale, (float(left), float(top)))
    # Pixel i of the region, whose centre is i + 0.5, shows this place of the picture; as cv2.resize has it.
    steps = [1 / scale[0], 1 / scale[1]]
    starts = [(x1 - left + 0.5) * steps[0] - 0.5, (y1 - top + 0.5) * steps[1] - 0.5]
    matrix = np.array([[steps[0], 0.0, starts[0]], [0.0, steps[1], starts[1]]])
    flags, border = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, cv2.BORDER_REPLICATE
    image[y1:y2, x1:x2] = planewise(
        source, lambda one: cv2.warpAffine(one, matrix, (x2 - x1, y2 - y1), flags=flags, borderMode=border)
    )
    return replace(moved, boxes=boxes[seen])


def _uncovered(sample: Sample, alpha: np.ndarray) -> Sample:
    """The objects of a sample without the pixels where ``alpha`` is not 0."""
    boxes, kept = sample.boxes.copy(), np.ones(len(sample.boxes), bool)
    shapes: list[Shape] = list(sample.segmentations or ())
    for index, shape in enumerate(shapes):
        crop, region = _drawn(shape, sample.boxes[index], sample.size)
        covered = alpha[region]
        if not (crop & covered).any():
            continue
        crop = crop & (1 - covered)
        rows, columns = np.flatnonzero(crop.any(axis=1)), np.flatnonzero(crop.any(axis=0))
        kept[index] = bool(len(rows))
        if not len(rows):
            continue
        y, x = region[0].start, region[1].start
        boxes[index] = (x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1)
        left = np.ascontiguousarray(crop[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        shapes[index] = CropMask(left, boxes[index].astype(np.float64))
    return select(replace(sample, boxes=boxes, segmentations=tuple(shapes)), kept)


def _drawn(shape: Shape, box: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, tuple[slice, slice]]:
    """The object's pixels, uint8 of 0 and 1, and the region of the image that they cover."""
    drawn = draw_pixels(shape, box)
    left, top, right, bottom = (int(value) for value in drawn.box)
    bottom, right = min(bottom, size[0]), min(right, size[1])
    return drawn.mask[: bottom - top, : right - left], (slice(top, bottom), slice(left, right))


def _overlap(one: Sample, other: Sample) -> tuple[int, int]:
    return min(one.size[0], other.size[0]), min(one.size[1], other.size[1])


def _join(image: np.ndarray, parts: list[Sample]) -> Sample:
    """One sample with the objects of all parts; they all have masks or none has."""
    shapes: tuple[Shape, ...] | None = ()
    for part in parts:
        shapes = None if shapes is None or part.segmentations is None else shapes + part.segmentations
    boxes = np.concatenate([part.boxes for part in parts] or [np.zeros((0, 4), np.float32)])
    labels = np.concatenate([part.labels for part in parts] or [np.zeros(0, np.int64)])
    weights = np.concatenate([part.weights for part in parts] or [np.zeros(0, np.float32)])
    return Sample(image, boxes, labels, shapes, (image.shape[0], image.shape[1]), weights)
