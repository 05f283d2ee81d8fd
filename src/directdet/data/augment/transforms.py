"""Resizing of training samples: direct pre-training's resize and the short-edge resize, each with a random flip.

Functions that draw at random take a numpy Generator, so that a sample can be reproduced exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from directdet.data.augment.sample import Sample, clip_boxes, hflip, with_image
from directdet.data.image import fit_size, pad_bottom_right, resize
from directdet.data.pixels.format import RGB, PixelFormat


def short_edge_resize(sample: Sample, short: int = 800, long: int = 1333, shrink: float = 1.0) -> Sample:
    """Resize in proportion: the short edge becomes ``short``, unless the long edge would then exceed ``long``.

    In that case the long edge becomes ``long``. Both edges are then divided by ``shrink`` and rounded half up; the
    pixels are resampled only once.
    """
    height, width = fit_size(*sample.size, min(short, long), max(short, long))
    return _resize(sample, max(1, int(height / shrink + 0.5)), max(1, int(width / shrink + 0.5)))


def direct_resize(
    sample: Sample,
    length: int,
    rng: np.random.Generator,
    scale: Sequence[float] = (0.8, 1.2),
    padding: tuple[float, ...] = RGB.padding,
    flip: float = 0.0,
) -> Sample:
    """The resize of direct pre-training (paper section 3.2): an image of exactly ``length`` x ``length``.

    With alpha uniform in ``scale``, the image is resized, keeping its proportions, to fit a square of alpha * length,
    then cropped at random where it is larger than ``length``, mirrored with probability ``flip``, and padded at the
    bottom and right where it is smaller.
    """
    limit = int(length * rng.uniform(scale[0], scale[1]))
    sample = _resize(sample, *fit_size(*sample.size, limit, limit))
    height, width = sample.size
    # Both numbers are always drawn, so that later random draws do not depend on alpha.
    top = int(rng.integers(0, max(height - length, 0) + 1))
    left = int(rng.integers(0, max(width - length, 0) + 1))
    sample = _flip_sometimes(_crop(sample, top, left, min(height, length), min(width, length)), flip, rng)
    return replace(sample, image=pad_bottom_right(sample.image, length, length, padding))


@dataclass(frozen=True)
class PretrainTransform:
    """Direct pre-training: :func:`direct_resize` to ``length``, and a flip half the time; padded as ``pixels`` are."""

    length: int = 448
    scale: tuple[float, float] = (0.8, 1.2)
    flip: float = 0.5
    pixels: PixelFormat = RGB

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return direct_resize(sample, self.length, rng, self.scale, self.pixels.padding, self.flip)


@dataclass(frozen=True)
class EdgesTransform:
    """Fine-tuning, and Stitcher-style pre-training: :func:`short_edge_resize`, and a flip half the time.

    Attributes:
        short, long: the edges in pixels, (800, 1333) in the paper.
        flip: probability of the flip.
        shrink: n >= 1, the Stitcher style of the paper's section 3.2: the image is resized to (H / n, W / n) instead of
            the (H, W) that ``short`` and ``long`` give.
        short_edges: multi-scale training (Table 6: 640, 672, 704, 736, 768, 800): the short edge is drawn uniformly
            from these, and ``short`` is ignored; if empty, it is always ``short``.

    Raises:
        ValueError: ``shrink`` is below 1.
    """

    short: int = 800
    long: int = 1333
    flip: float = 0.5
    shrink: float = 1.0
    short_edges: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.shrink >= 1:
            raise ValueError(f"shrink = {self.shrink}: must be at least 1")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        # The edge is drawn before the flip, and neither depends on the image or on shrink.
        short = self.short_edges[int(rng.integers(len(self.short_edges)))] if self.short_edges else self.short
        return _flip_sometimes(clip_boxes(short_edge_resize(sample, short, self.long, self.shrink)), self.flip, rng)


def _flip_sometimes(sample: Sample, probability: float, rng: np.random.Generator) -> Sample:
    return hflip(sample) if rng.random() < probability else sample


def _resize(sample: Sample, height: int, width: int) -> Sample:
    """Resize an unpadded sample; boxes and masks follow the true factors, which rounding makes slightly unequal."""
    old_height, old_width = sample.size
    image = resize(sample.image[:old_height, :old_width], height, width)
    return with_image(sample, image, (width / old_width, height / old_height), (0.0, 0.0))


def _crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Cut out a window of the image; objects are clipped to it, and those outside it are dropped."""
    if (top, left) == (0, 0) and (height, width) == sample.size:
        return clip_boxes(sample)
    image = np.ascontiguousarray(sample.image[top : top + height, left : left + width])
    return clip_boxes(with_image(sample, image, (1.0, 1.0), (-float(left), -float(top))))
