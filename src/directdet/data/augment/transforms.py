"""Geometry of training samples: the paper's direct resize, the short-edge resize, and the flip.

Functions take a :class:`Sample` and return a new one; those that draw at random take a numpy Generator, so that a
sample can be made again exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from directdet.data.image import PAD_COLOUR, fit_size, pad_bottom_right, resize
from directdet.data.masks import Shape, flip_shape, rasterise, scale_and_shift, to_shape
from directdet.data.records import Record, read_record_image

__all__ = [
    "EdgesTransform",
    "PretrainTransform",
    "Sample",
    "clip_boxes",
    "direct_resize",
    "hflip",
    "load_sample",
    "rasterise",
    "short_edge_resize",
]


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture and its G objects, all in pixels of ``image``.

    ``size`` (height, width) is that of the picture; ``image`` may be larger: then it is padded at the bottom and right.
    """

    image: np.ndarray  # uint8 [H, W, 3] RGB
    boxes: np.ndarray  # float32 [G, 4] xyxy
    labels: np.ndarray  # int64 [G]
    segmentations: tuple[Shape, ...] | None  # one for each object, or None if masks are not wanted
    size: tuple[int, int]


def load_sample(record: Record, masks: bool) -> Sample:
    """Read a record's picture and the objects that training uses: all but crowd regions.

    Raises UserError naming the file if the picture is missing, broken or of another size than annotated, and ValueError
    if masks are wanted of an object that has none.
    """
    image = read_record_image(record)
    keep = np.flatnonzero(~record.crowd)
    shapes = None
    if masks:
        found = [to_shape(record.segmentations[index], record.height, record.width) for index in keep]
        shapes = tuple(shape for shape in found if shape is not None)
        if len(shapes) != len(found):
            raise ValueError(f"{record.path}: an object has no mask")
    return Sample(image, record.boxes[keep], record.labels[keep], shapes, image.shape[:2])


def short_edge_resize(sample: Sample, short: int = 800, long: int = 1333, shrink: float = 1.0) -> Sample:
    """Resize in proportion so that the short edge is ``short``, or the long edge ``long`` if it would exceed that.

    Both edges of that size are then divided by ``shrink``, rounded half up; the pixels are resampled only once.
    """
    height, width = fit_size(*sample.size, min(short, long), max(short, long))
    return _resize(sample, max(1, int(height / shrink + 0.5)), max(1, int(width / shrink + 0.5)))


def direct_resize(sample: Sample, length: int, rng: np.random.Generator, scale: Sequence[float] = (0.8, 1.2)) -> Sample:
    """The resize of direct pre-training (paper section 3.2): a picture of exactly ``length`` x ``length``.

    With alpha uniform in ``scale``, the picture is resized in proportion to fit alpha * length squared, then cropped at
    random where it is larger than ``length`` and padded at the bottom and right where it is smaller.
    """
    limit = int(length * rng.uniform(scale[0], scale[1]))
    sample = _resize(sample, *fit_size(*sample.size, limit, limit))
    height, width = sample.size
    # Both numbers are drawn whether they are needed or not, so that what comes after does not hang on the alpha.
    top = int(rng.integers(0, max(height - length, 0) + 1))
    left = int(rng.integers(0, max(width - length, 0) + 1))
    sample = _crop(sample, top, left, min(height, length), min(width, length))
    return replace(sample, image=pad_bottom_right(sample.image, length, length, PAD_COLOUR))


def hflip(sample: Sample) -> Sample:
    """Mirror the picture left and right; padding stays at the right."""
    height, width = sample.size
    image = sample.image.copy()
    image[:height, :width] = cv2.flip(sample.image[:height, :width], 1)
    boxes = sample.boxes.copy()
    boxes[:, 0], boxes[:, 2] = width - sample.boxes[:, 2], width - sample.boxes[:, 0]
    shapes = sample.segmentations
    if shapes is not None:
        shapes = tuple(flip_shape(shape, width) for shape in shapes)
    return replace(sample, image=image, boxes=boxes, segmentations=shapes)


def clip_boxes(sample: Sample, min_size: float = 1.0) -> Sample:
    """Clip boxes to the picture and drop objects whose clipped box is narrower or lower than ``min_size`` pixels.

    An object cut by the border is kept whatever part of it is left: that is the rule of the papers' code.
    """
    height, width = sample.size
    boxes = np.clip(sample.boxes, 0, np.array([width, height, width, height], np.float32))
    keep = ((boxes[:, 2:] - boxes[:, :2]) >= min_size).all(axis=1)
    shapes = sample.segmentations
    if shapes is not None:
        shapes = tuple(shape for shape, kept in zip(shapes, keep, strict=True) if kept)
    return replace(sample, boxes=boxes[keep], labels=sample.labels[keep], segmentations=shapes)


@dataclass(frozen=True)
class PretrainTransform:
    """Direct pre-training: :func:`direct_resize` to ``length``, and a flip half the time."""

    length: int = 448
    scale: tuple[float, float] = (0.8, 1.2)
    flip: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return _flip_sometimes(clip_boxes(direct_resize(sample, self.length, rng, self.scale)), self.flip, rng)


@dataclass(frozen=True)
class EdgesTransform:
    """Fine-tuning, and Stitcher-style pre-training: :func:`short_edge_resize`, and a flip half the time.

    ValueError if ``shrink`` is under 1.

    Attributes:
        short, long: the edges in pixels, (800, 1333) in the paper.
        flip: its probability.
        shrink: n >= 1, the Stitcher style of the paper's section 3.2: the picture is given the size (H / n, W / n),
            (H, W) being what the edges make of it.
        short_edges: multi-scale training (Table 6: 640, 672, 704, 736, 768, 800): the short edge is one of these, each
            as likely as any other, and ``short`` is not used; none: always ``short``.
    """

    short: int = 800
    long: int = 1333
    flip: float = 0.5
    shrink: float = 1.0
    short_edges: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.shrink >= 1:
            raise ValueError(f"shrink = {self.shrink}: a picture is divided by 1 or more")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        # The edge is drawn before the flip, and neither hangs on the picture or on shrink.
        short = self.short_edges[int(rng.integers(len(self.short_edges)))] if self.short_edges else self.short
        return _flip_sometimes(clip_boxes(short_edge_resize(sample, short, self.long, self.shrink)), self.flip, rng)


def _flip_sometimes(sample: Sample, probability: float, rng: np.random.Generator) -> Sample:
    return hflip(sample) if rng.random() < probability else sample


def _resize(sample: Sample, height: int, width: int) -> Sample:
    """Resize an unpadded sample; boxes and masks follow the true factors, which rounding makes differ a little."""
    old_height, old_width = sample.size
    scale = (width / old_width, height / old_height)
    boxes = (sample.boxes * np.array(scale * 2)).astype(np.float32)
    return Sample(
        resize(sample.image[:old_height, :old_width], height, width),
        boxes,
        sample.labels,
        _move(sample.segmentations, scale, (0.0, 0.0)),
        (height, width),
    )


def _crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Cut out a window of the picture; objects are clipped to it and those with nothing left in it dropped."""
    if (top, left) == (0, 0) and (height, width) == sample.size:
        return clip_boxes(sample)
    boxes = sample.boxes - np.array([left, top, left, top], np.float32)
    shapes = _move(sample.segmentations, (1.0, 1.0), (-float(left), -float(top)))
    image = np.ascontiguousarray(sample.image[top : top + height, left : left + width])
    return clip_boxes(Sample(image, boxes, sample.labels, shapes, (height, width)))


def _move(
    shapes: tuple[Shape, ...] | None, scale: tuple[float, float], shift: tuple[float, float]
) -> tuple[Shape, ...] | None:
    return None if shapes is None else tuple(scale_and_shift(shape, scale, shift) for shape in shapes)
