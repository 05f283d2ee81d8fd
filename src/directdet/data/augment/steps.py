"""Small steps on one picture: quarter turns, colours, SSD's zoom-out and crop, and flips, each drawn at random.

A step is ``step(sample, rng, another) -> Sample``; ``another(rng)`` reads another picture of the dataset, which only
the steps in mixing.py need. Nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import cv2
import numpy as np

from directdet.data.augment import ssd_transforms
from directdet.data.augment.sample import Sample, clip_boxes, hflip
from directdet.data.masks import turn_shape
from directdet.data.pixels.format import RGB, PixelFormat, planewise

Another: TypeAlias = Callable[[np.random.Generator], Sample]
Step: TypeAlias = Callable[[Sample, np.random.Generator, Another], Sample]
Resize: TypeAlias = Callable[[Sample, np.random.Generator], Sample]

# Steps of OpenCV's hue (180 to the full circle), saturation and value (255 each): YOLOX's, which RTMDet took over.
HSV_STEPS = (5, 30, 30)


@dataclass(frozen=True)
class Turn:
    """With this probability, turn the picture by one, two or three quarters; it must not be padded."""

    probability: float

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
        quarters = int(rng.integers(1, 4)) if rng.random() < self.probability else 0
        for _ in range(quarters):
            sample = quarter_turn(sample)
        return sample


@dataclass(frozen=True)
class Resized:
    """A transform of single pictures as a step."""

    resize: Resize

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
        return self.resize(sample, rng)


@dataclass(frozen=True)
class ZoomAndCrop:
    """SSD's geometry without its stretching: half the time zoom out, then crop by overlap with the objects."""

    pixels: PixelFormat = RGB

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
        sample = ssd_transforms.expand(sample, rng, self.pixels.padding)
        window = ssd_transforms.sample_window(sample.boxes, *sample.size, rng)
        return clip_boxes(ssd_transforms.crop(sample, window))


@dataclass(frozen=True)
class Colour:
    """Change the colours of the whole canvas: "hsv" as YOLOX and RTMDet do, "photometric" as SSD does.

    For 8-bit RGB alone.
    """

    kind: Literal["hsv", "photometric"]

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
        if self.kind == "photometric":
            changed = ssd_transforms.distort(_visible(sample), rng)
        else:
            steps = rng.uniform(-1, 1, 3) * HSV_STEPS * rng.integers(0, 2, 3)
            changed = shift_hsv(_visible(sample), *np.trunc(steps).astype(int).tolist())
        if changed.shape == sample.image.shape:
            return replace(sample, image=changed)
        image = sample.image.copy()
        image[: sample.size[0], : sample.size[1]] = changed
        return replace(sample, image=image)


@dataclass(frozen=True)
class Flip:
    """With this probability, mirror left and right."""

    probability: float

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
        return hflip(sample) if rng.random() < self.probability else sample


def quarter_turn(sample: Sample) -> Sample:
    """The unpadded picture turned by a quarter, counter-clockwise."""
    height, width = sample.size
    image = planewise(_visible(sample), lambda one: cv2.rotate(one, cv2.ROTATE_90_COUNTERCLOCKWISE))
    x1, y1, x2, y2 = sample.boxes.T
    boxes = np.stack([y1, width - x2, y2, width - x1], axis=1)
    shapes = sample.segmentations
    if shapes is not None:
        shapes = tuple(turn_shape(shape, height, width) for shape in shapes)
    return replace(sample, image=image, boxes=boxes, segmentations=shapes, size=(width, height))


def shift_hsv(image: np.ndarray, hue: int, saturation: int, value: int) -> np.ndarray:
    """A new uint8 RGB image with steps added in OpenCV's HSV: hue wraps around, saturation and value are clipped."""
    if not (hue or saturation or value):
        return image.copy()
    levels = np.arange(256)
    tables = [(levels + hue) % 180, np.clip(levels + saturation, 0, 255), np.clip(levels + value, 0, 255)]
    table = np.stack(tables, axis=-1).astype(np.uint8)[None]
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB)


def _visible(sample: Sample) -> np.ndarray:
    return sample.image[: sample.size[0], : sample.size[1]]
