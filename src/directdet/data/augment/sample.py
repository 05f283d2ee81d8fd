"""A training sample, one image with its objects, and the steps that every augmentation shares.

Functions take a :class:`Sample` and return a new one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from directdet.data.masks import Shape, flip_shape, scale_and_shift, to_shape
from directdet.data.pixels.format import planewise
from directdet.data.records import Record, read_record_image


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its G objects, all in pixels of ``image``.

    ``size`` is the (height, width) of the visible image; ``image`` is larger if it is padded at the bottom and right.
    """

    image: np.ndarray  # [H, W, C], uint8 RGB or as the set's format says
    boxes: np.ndarray  # float32 [G, 4] xyxy
    labels: np.ndarray  # int64 [G]
    segmentations: tuple[Shape, ...] | None  # one for each object, or None if masks are not needed
    size: tuple[int, int]
    # float32 [G], see Record; by default 1
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        if not len(self.weights):
            object.__setattr__(self, "weights", np.ones(len(self.boxes), np.float32))


def load_sample(record: Record, masks: bool) -> Sample:
    """Read a record's image and the objects that training uses: all but crowd regions.

    Raises UserError naming the file if the image is missing, broken or not of the annotated size, and ValueError if
    ``masks`` is True and an object has no mask.
    """
    image = read_record_image(record)
    keep = np.flatnonzero(~record.crowd)
    shapes = None
    if masks:
        found = [to_shape(record.segmentations[index], record.height, record.width) for index in keep]
        shapes = tuple(shape for shape in found if shape is not None)
        if len(shapes) != len(found):
            raise ValueError(f"{record.path}: an object has no mask")
    size = (image.shape[0], image.shape[1])
    return Sample(image, record.boxes[keep], record.labels[keep], shapes, size, record.weights[keep])


def with_image(sample: Sample, image: np.ndarray, scale: tuple[float, float], shift: tuple[float, float]) -> Sample:
    """``sample`` with another image, unpadded, and the objects moved along: x -> x * scale + shift, (x, y) each."""
    shapes = sample.segmentations
    if shapes is not None:
        shapes = tuple(scale_and_shift(shape, scale, shift) for shape in shapes)
    boxes = (sample.boxes * np.array(scale * 2) + np.array(shift * 2)).astype(np.float32)
    return replace(sample, image=image, boxes=boxes, segmentations=shapes, size=(image.shape[0], image.shape[1]))


def hflip(sample: Sample) -> Sample:
    """Mirror the image left and right; padding stays at the right."""
    height, width = sample.size
    image = planewise(sample.image[:height, :width], lambda one: cv2.flip(one, 1))
    if sample.image.shape[:2] != sample.size:
        image, visible = sample.image.copy(), image
        image[:height, :width] = visible
    boxes = sample.boxes.copy()
    boxes[:, 0], boxes[:, 2] = width - sample.boxes[:, 2], width - sample.boxes[:, 0]
    shapes = sample.segmentations
    if shapes is not None:
        shapes = tuple(flip_shape(shape, width) for shape in shapes)
    return replace(sample, image=image, boxes=boxes, segmentations=shapes)


def clip_boxes(sample: Sample, min_size: float = 1.0) -> Sample:
    """Clip boxes to the image and drop objects whose clipped box is narrower or lower than ``min_size`` pixels.

    An object cut by the border is kept however little of it is left: that is the rule of the papers' code.
    """
    height, width = sample.size
    boxes = np.clip(sample.boxes, 0, np.array([width, height, width, height], np.float32))
    return select(replace(sample, boxes=boxes), np.all(boxes[:, 2:] - boxes[:, :2] >= min_size, axis=1))


def select(sample: Sample, keep: np.ndarray) -> Sample:
    """The sample with only the objects of ``keep``, bool [G]."""
    shapes = sample.segmentations
    if shapes is not None:
        shapes = tuple(shapes[index] for index in np.flatnonzero(keep))
    boxes, labels, weights = sample.boxes[keep], sample.labels[keep], sample.weights[keep]
    return replace(sample, boxes=boxes, labels=labels, segmentations=shapes, weights=weights)
