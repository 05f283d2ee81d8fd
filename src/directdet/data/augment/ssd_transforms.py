"""SSD's augmentation: distort colours, expand the canvas, crop by overlap, warp to a square, flip.

Order and constants are those of the SSD authors' code, which ScratchDet trains with. Functions that draw at random take
a numpy Generator and draw the same number of values for every image, so that a sample can be reproduced exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from directdet.data.augment.sample import Sample, clip_boxes, hflip, select, with_image
from directdet.data.pixels.format import RGB, PixelFormat, planewise

BRIGHTNESS = 32.0  # grey levels
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18.0  # steps of OpenCV's hue, 180 to the full circle: 36 degrees
LARGEST_EXPANSION = 4.0
# The seven ways to crop: the whole image; a window whose IoU with some object is at least this; any window.
WHOLE = None
OVERLAPS = (WHOLE, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
TRIALS = 50  # windows tried for each way
SCALE = (0.3, 1.0)  # square root of the window's share of the image area
ASPECT = (0.5, 2.0)  # the window's share of the image width divided by its share of the height
NARROWEST = SCALE[0] * ASPECT[0] ** 0.5  # window, as a share of the image's side
# Larger images and canvases are scaled down first: a photo of 48 megapixels on a canvas 16 times as large would take
# 2.3 GB. The narrowest window of such an image still has more than `size` pixels, and ordinary images are left alone.
MOST_PIXELS, MOST_CANVAS_PIXELS = 2**23, 2**25
INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)

_LEVELS = np.arange(256, dtype=np.float64)


@dataclass(frozen=True)
class SSDTransform:
    """The whole augmentation, to images of exactly ``size`` x ``size``; masks are transformed too if there are any.

    Objects that end up narrower or lower than a pixel are dropped, as in the other transforms. ``flip`` is the
    probability of the flip. Colours are distorted where ``pixels`` are 8-bit RGB.
    """

    size: int = 300
    flip: float = 0.5
    pixels: PixelFormat = RGB

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """``sample`` must not be padded."""
        sample = reduce(sample, max(MOST_PIXELS, int((self.size / NARROWEST) ** 2)))
        if self.pixels.is_rgb:
            sample = replace(sample, image=distort(sample.image, rng))
        sample = expand(sample, rng, self.pixels.padding)
        sample = crop(sample, sample_window(sample.boxes, *sample.size, rng))
        sample = warp(sample, self.size, INTERPOLATIONS[int(rng.integers(len(INTERPOLATIONS)))])
        return clip_boxes(hflip(sample) if rng.random() < self.flip else sample)


def reduce(sample: Sample, pixels: int) -> Sample:
    """An image of more than so many pixels, scaled down to them by averaging; others stay as they are."""
    height, width = sample.size
    if height * width <= pixels:
        return sample
    factor = (pixels / (height * width)) ** 0.5
    new_height, new_width = max(1, int(height * factor)), max(1, int(width * factor))
    image = _resized(sample.image, new_height, new_width, cv2.INTER_AREA)
    return with_image(sample, image, (new_width / width, new_height / height), (0.0, 0.0))


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of an RGB image, each half the time, by uniform amounts."""
    happens = rng.random(4) < 0.5
    lowest = (-BRIGHTNESS, CONTRAST[0], SATURATION[0], -HUE)
    highest = (BRIGHTNESS, CONTRAST[1], SATURATION[1], HUE)
    amounts = np.where(happens, rng.uniform(lowest, highest), (0.0, 1.0, 1.0, 0.0))
    return adjust_colours(image, *amounts.tolist(), contrast_last=rng.random() < 0.5)


def adjust_colours(
    image: np.ndarray,
    brightness: float = 0.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: float = 0.0,
    contrast_last: bool = False,
) -> np.ndarray:
    """A new image, uint8 RGB [H, W, 3] like ``image``; levels are rounded and clipped after every change.

    ``brightness`` is added to the levels, then they are multiplied by ``contrast`` (as the very last step if
    ``contrast_last``); ``saturation`` is a factor and ``hue`` is added, both in OpenCV's HSV. Hue wraps around: 180 is
    0, red (the authors' code clips at 0).
    """
    light, scaled = _round(_LEVELS + brightness), _round(_LEVELS * contrast)
    image = cv2.LUT(image, light if contrast_last else scaled[light])
    if saturation != 1 or hue:
        turned = (np.rint(_LEVELS + hue) % 180).astype(np.uint8)
        tables = np.stack([turned, _round(_LEVELS * saturation), _LEVELS.astype(np.uint8)], axis=-1)
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        image = cv2.cvtColor(cv2.LUT(hsv, tables[None]), cv2.COLOR_HSV2RGB)
    return cv2.LUT(image, scaled) if contrast_last else image


def expand(sample: Sample, rng: np.random.Generator, padding: tuple[float, ...] = RGB.padding) -> Sample:
    """Half the time, place the image at random on a canvas of the mean, up to four times as wide and high."""
    happens, *draws = rng.random(4).tolist()
    if happens >= 0.5:
        return sample
    (height, width), ratio = sample.size, 1 + (LARGEST_EXPANSION - 1) * draws[0]
    new_height, new_width = int(height * ratio), int(width * ratio)
    top, left = int(draws[1] * (new_height - height + 1)), int(draws[2] * (new_width - width + 1))
    if new_height * new_width > MOST_CANVAS_PIXELS:
        sample = reduce(sample, int(height * width * MOST_CANVAS_PIXELS / (new_height * new_width)))
        factors = sample.size[0] / height, sample.size[1] / width
        new_height, new_width = (
            int(side * factor) for side, factor in zip((new_height, new_width), factors, strict=True)
        )
        top, left = (int(place * factor) for place, factor in zip((top, left), factors, strict=True))
        height, width = sample.size
    bottom, right = new_height - height - top, new_width - width - left
    if sample.image.shape[2] == 3:
        image = cv2.copyMakeBorder(sample.image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=padding)
    else:  # OpenCV's colours have four channels at most
        image = np.empty((new_height, new_width, sample.image.shape[2]), sample.image.dtype)
        image[:] = padding
        image[top : top + height, left : left + width] = sample.image
    return with_image(sample, image, (1.0, 1.0), (float(left), float(top)))


def sample_window(
    boxes: np.ndarray,
    height: int,
    width: int,
    rng: np.random.Generator,
    overlaps: tuple[float | None, ...] = OVERLAPS,
) -> np.ndarray:
    """Where to crop an image with ``boxes`` [G, 4]: int64 [4], xyxy.

    The ways to crop are tried in random order, each with `TRIALS` windows; the first window that contains the centre of
    an object (the authors' code does not require that) and overlaps one by the required IoU is taken. So all ways that
    can succeed are equally likely. The whole image always succeeds; it is also the result if no way finds a window, as
    without objects.
    """
    order = rng.permutation(len(overlaps)).tolist()
    windows = _windows(rng.random((len(overlaps), TRIALS, 4)), height, width)
    for way in order:
        if overlaps[way] is WHOLE:
            break
        fits = (_iou(windows[way], boxes) >= overlaps[way]).any(1) & _contains_centre(windows[way], boxes).any(1)
        if fits.any():
            return windows[way, int(fits.argmax())]
    return np.array([0, 0, width, height])


def crop(sample: Sample, window: np.ndarray) -> Sample:
    """The part of the image in ``window`` (xyxy, whole pixels), with the objects centred in it, clipped to it."""
    left, top, right, bottom = (int(edge) for edge in window)
    if (left, top, right, bottom) == (0, 0, sample.size[1], sample.size[0]):
        return sample
    sample = select(sample, _contains_centre(window[None], sample.boxes)[0])
    moved = with_image(sample, sample.image[top:bottom, left:right], (1.0, 1.0), (-float(left), -float(top)))
    edges = np.array([right - left, bottom - top] * 2, np.float32)
    return replace(moved, boxes=np.clip(moved.boxes, 0, edges))


def warp(sample: Sample, size: int, interpolation: int = cv2.INTER_LINEAR) -> Sample:
    """Resize to ``size`` x ``size``, ignoring the proportions."""
    height, width = sample.size
    image = _resized(sample.image, size, size, interpolation)
    return with_image(sample, image, (size / width, size / height), (0.0, 0.0))


def _resized(image: np.ndarray, height: int, width: int, interpolation: int) -> np.ndarray:
    return planewise(image, lambda one: cv2.resize(one, (width, height), interpolation=interpolation))


def _round(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _windows(draws: np.ndarray, height: int, width: int) -> np.ndarray:
    """Windows int64 [..., 4] (xyxy, inside the image) from uniform numbers [..., 4] in [0, 1)."""
    scale = SCALE[0] + (SCALE[1] - SCALE[0]) * draws[..., 0]
    # Beyond scale ** 2 and its inverse a window of this area would be wider or higher than the image.
    root = np.sqrt(np.clip(ASPECT[0] + (ASPECT[1] - ASPECT[0]) * draws[..., 1], scale**2, scale**-2))
    limits = np.array([width, height])
    sizes = np.clip(np.rint(np.stack([scale * root, scale / root], axis=-1) * limits), 1, limits)
    starts = np.floor(draws[..., 2:] * (limits - sizes + 1))
    return np.concatenate([starts, starts + sizes], axis=-1).astype(np.int64)


def _iou(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of [T, 4] and [G, 4] xyxy boxes: [T, G]; all must have an area."""
    lower = np.maximum(windows[:, None, :2], boxes[None, :, :2])
    upper = np.minimum(windows[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(upper - lower, 0, None).prod(axis=-1)
    areas, sizes = ((value[:, 2:] - value[:, :2]).prod(axis=-1) for value in (windows, boxes))
    return shared / (areas[:, None] + sizes[None] - shared)


def _contains_centre(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether windows [T, 4] contain the centres of boxes [G, 4]: bool [T, G]."""
    centres = (boxes[None, :, :2] + boxes[None, :, 2:]) / 2
    inside = (windows[:, None, :2] < centres) & (centres < windows[:, None, 2:])
    return np.all(inside, axis=-1)
