"""What the pixels of a set's pictures are: how many channels, of which type, and how they are normalised and shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from directdet.common.errors import UserError
from directdet.common.settings import MOST_CHANNELS

# ImageNet's pixel statistics on the 0-255 scale, RGB: both papers' code normalises with them (direct pre-training,
# §4.1 and its configurations; ScratchDet uses the mean).
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

DTYPES = ("uint8", "uint16", "float32")
_SHOWN = (1.0, 99.0)  # the percentiles of a channel that are drawn black and white


@dataclass(frozen=True)
class PixelFormat:
    """What a set's pictures hold, and what a model takes.

    Three channels of 8 bits are RGB; any others are taken in the order of the file.

    Attributes:
        channels: 1 to 16.
        dtype: "uint8", "uint16" or "float32".
        mean, std: of each channel, in the file's own units, std above 0; both empty: not measured yet.
        show: the channel that is drawn as grey, or the three that are drawn as red, green and blue, counted from 0;
            empty: the first, or the first three.
        upright: turn pictures as EXIF says, as viewers show them; False: take them as they are stored. (A TIFF's
            orientation is a part of the format, and followed in any case.)

    Raises:
        ValueError: a value is not allowed.
    """

    channels: int = 3
    dtype: str = "uint8"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    show: tuple[int, ...] = ()
    upright: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise ValueError(f"channels: {self.channels}; expected 1 to {MOST_CHANNELS}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: {self.dtype!r}; expected {', '.join(DTYPES)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in ({self.channels} if self.mean or self.std else {0}):
                raise ValueError(f"{name}: {len(values)} numbers; expected one for each of {self.channels} channels")
            if not np.isfinite(values).all():
                raise ValueError(f"{name}: expected finite numbers")
        if min(self.std, default=1) <= 0:
            raise ValueError("std: expected numbers above 0")
        if len(self.show) not in (0, 1, 3) or any(not 0 <= channel < self.channels for channel in self.show):
            raise ValueError(f"show: {list(self.show)}; expected one channel or three, 0 to {self.channels - 1}")

    @property
    def is_rgb(self) -> bool:
        """Whether pictures are ordinary ones, 8-bit RGB: files of other kinds are then converted, see read_image."""
        return self.channels == 3 and self.dtype == "uint8"

    @property
    def kind(self) -> str:
        """The channels and their type, in words."""
        return describe(self.channels, self.dtype) + (", turned as EXIF says" if self.upright else "")

    @cached_property
    def padding(self) -> tuple[float, ...]:
        """What pictures are padded with: the mean, for whole levels rounded, so (nearly) zero once normalised."""
        if self.dtype == "float32":
            return self.mean
        most = np.iinfo(self.dtype).max
        return tuple(int(np.clip(value + 0.5, 0, most)) for value in self.mean)

    def toml_lines(self) -> tuple[str, ...]:
        """The table [pixels] of a dataset.toml that says this."""
        lists = {name: ", ".join(map(repr, getattr(self, name))) for name in ("mean", "std", "show")}
        turned = ("upright = true",) if self.upright else ()
        about = (f"channels = {self.channels}", f'dtype = "{self.dtype}"')
        return ("[pixels]", *about, *(f"{name} = [{values}]" for name, values in lists.items() if values), *turned)

    def same_kind(self, other: PixelFormat) -> bool:
        """Whether pictures of one are pictures of the other."""
        return (self.channels, self.dtype, self.upright) == (other.channels, other.dtype, other.upright)

    def for_detector(self, image: np.ndarray) -> np.ndarray:
        """A picture as detectors take it: RGB in BGR order, as OpenCV has it; others as they are."""
        return image[:, :, ::-1] if self.is_rgb else image

    def drawable(self, image: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] BGR of a detector's picture, to draw on: one as it is shown, never what a network sees.

        Each channel that is shown is stretched by itself: its 1st percentile is black, its 99th white.
        """
        if self.is_rgb:
            return image
        chosen = self.show or (tuple(range(3)) if self.channels > 2 else (0,))
        levels = [_stretch(image[:, :, channel]) for channel in chosen]
        return cv2.merge(levels[::-1] if len(levels) == 3 else levels * 3)


RGB = PixelFormat(3, "uint8", MEAN, STD)


def describe(channels: int, dtype: str) -> str:
    """ "1 channel of uint16" and the like."""
    return f"{channels} channel{'s' * (channels != 1)} of {dtype}"


def pixel_format(table: Mapping[str, Any], where: str) -> PixelFormat:
    """The format that a table of a file says: channels, dtype, and perhaps mean, std, show and upright.

    Without channels and dtype it is 8-bit RGB.

    Raises:
        UserError: a value is missing, unknown or not allowed; `where` names the file.
    """
    try:
        if "channels" not in table and "dtype" not in table:
            table = {"channels": 3, "dtype": "uint8", "mean": list(MEAN), "std": list(STD), **table}
        for key in ("channels", "dtype"):
            if key not in table:
                raise ValueError(f"{key} is missing; add it")
        if type(table.get("upright", False)) is not bool:
            raise ValueError(f"upright: {table['upright']!r} is not true or false")
        numbers: dict[str, tuple[Any, ...]] = {}
        for key in ("mean", "std", "show"):
            value = table.get(key, [])
            right = (int,) if key == "show" else (int, float)
            if not isinstance(value, list) or any(type(number) not in right for number in value):
                raise ValueError(f"{key}: {value!r} is not a list of numbers")
            numbers[key] = tuple(value if key == "show" else map(float, value))
        if type(table["channels"]) is not int:
            raise ValueError(f"channels: {table['channels']!r} is not a whole number")
        return PixelFormat(table["channels"], table["dtype"], **numbers, upright=table.get("upright", False))
    except (ValueError, OverflowError) as error:
        raise UserError(f"{where}: {error}") from None


def planewise(image: np.ndarray, operation: Any) -> np.ndarray:
    """``operation(image)`` for any number of channels: OpenCV's geometry takes 1, 3 or 4, and drops the axis of one.

    Args:
        image: [H, W, C].
        operation: from an image to an image; called once for three or four channels, else for each channel.
    """
    if image.shape[2] in (3, 4):
        return operation(image)
    return np.stack([operation(np.ascontiguousarray(image[:, :, index])) for index in range(image.shape[2])], axis=-1)


def _stretch(plane: np.ndarray) -> np.ndarray:
    low, high = np.percentile(plane, _SHOWN)
    if high <= low:
        low, high = float(plane.min()), float(plane.max())
    scaled = (plane.astype(np.float64) - low) * (255 / max(high - low, 1e-12))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
