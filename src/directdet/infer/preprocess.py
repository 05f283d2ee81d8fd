"""The preprocessing shared by evaluation during training, export, inference and the benchmark."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from directdet.common.errors import UserError
from directdet.data.image import fit_size, resize, resize_into
from directdet.data.pixels.format import MEAN as MEAN
from directdet.data.pixels.format import RGB, PixelFormat, pixel_format
from directdet.data.pixels.format import STD as STD

# Of a file that was not made here: a canvas that is larger would take gigabytes before anything is checked.
MOST_CANVAS = 2**24  # pixels, 4096 x 4096
MOST_DIVISOR = 4096

_CHECKSUM_BIN = 0.25  # in normalised units, with ImageNet's std about 14 grey levels
_CHECKSUM_LEVELS = 14.0  # the least number of grey levels in a bin, whatever the std
_CHECKSUM_MARGIN = 0.3  # points must lie this close (in bins) to the middle of their bin


@dataclass(frozen=True)
class Placement:
    """The position of the resized image on the canvas; their top left corners coincide.

    Attributes:
        scale_x, scale_y: canvas pixels per original pixel.
        height, width: size of the resized image on the canvas.
        original_height, original_width: size of the original image.
    """

    scale_x: float
    scale_y: float
    height: int
    width: int
    original_height: int
    original_width: int


@dataclass(frozen=True)
class Preprocess:
    """Resize, pad at the bottom and right with the mean colour (zero once normalised), RGB, normalise, CHW.

    It gives a network one of two inputs: the normalised float32 image (by calling it), or the uint8 canvas
    (`letterbox`) if the network's graph normalises by itself. The mean colour is not exact in uint8: that canvas is
    padded with the nearest colour, `pad_colour`, which the graph takes for zero wherever it meets it.

    Attributes:
        size: (H, W). If `fixed`, the size of the canvas; otherwise the limits (short edge, long edge) in any order.
        fixed: True: fit into exactly H x W, keeping the aspect ratio unless `warp`. False: the short edge becomes
            min(size) unless the long edge would then exceed max(size), and the canvas is padded to a multiple of
            `divisor`, so that its size differs between images (the papers' (1333, 800)).
        divisor: a canvas that is not fixed is padded to a multiple of it.
        mean, std: per channel, in the units of the pictures; three channels of 8 bits are RGB.
        warp: stretch the image to fill the fixed canvas, without padding (SSD, and so ScratchDet). The network is built
            for this one size, which need not be a multiple of 32.
        dtype, show, upright: of the pictures, see data.pixels.format.PixelFormat; only "uint8" ones have such a canvas.
    """

    size: tuple[int, int]
    fixed: bool = True
    divisor: int = 32
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    warp: bool = False
    dtype: str = "uint8"
    show: tuple[int, ...] = ()
    upright: bool = False

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"preprocess: size: {self.size}; expected (height, width), both at least 1")
        if self.divisor < 1:
            raise ValueError(f"preprocess: divisor: {self.divisor}; expected at least 1")
        if not self.mean:
            raise ValueError("preprocess: mean: expected a number for each channel")
        try:
            _ = self.pixels
        except ValueError as error:
            raise ValueError(f"preprocess: {error}") from None
        if self.warp and not self.fixed:
            raise ValueError("preprocess: warp: only possible with fixed=True")

    @cached_property
    def pixels(self) -> PixelFormat:
        """The format of the pictures that are taken."""
        return PixelFormat(len(self.mean), self.dtype, self.mean, self.std, self.show, self.upright)

    @property
    def takes(self) -> str:
        """What a picture has to be, in words."""
        pixels = self.pixels
        if pixels.is_rgb:
            return "uint8 [height, width, 3] in BGR order"
        return f"{pixels.dtype} [height, width, {pixels.channels}], channels in the order of the files trained on"

    @cached_property
    def _tables(self) -> tuple[np.ndarray, ...]:
        """Normalised value of every level of 8 bits, one float32 [1, 256] per channel: exact, in one pass."""
        levels = np.arange(256, dtype=np.float64)
        return tuple(
            ((levels - mean) / std).astype(np.float32)[None] for mean, std in zip(self.mean, self.std, strict=True)
        )

    def place(self, height: int, width: int) -> Placement:
        """Placement of an image of this size; edges are rounded half up, as in the papers' code."""
        if self.warp:
            new_height, new_width = self.size
        elif self.fixed:
            scale = min(self.size[0] / height, self.size[1] / width)
            new_height = min(self.size[0], max(1, int(height * scale + 0.5)))
            new_width = min(self.size[1], max(1, int(width * scale + 0.5)))
        else:
            new_height, new_width = fit_size(height, width, short=min(self.size), long=max(self.size))
        return Placement(new_width / width, new_height / height, new_height, new_width, height, width)

    def at_scale(self, scale: float) -> Preprocess:
        """The same for pictures `scale` times as large; a canvas with padding has multiples of 32, as networks want."""
        step = self.divisor if self.fixed and not self.warp else 1
        height, width = (max(step, int(edge * scale / step + 0.5) * step) for edge in self.size)
        return replace(self, size=(height, width))

    def canvas(self, placement: Placement) -> tuple[int, int]:
        """(H, W) of the network's input for this placement."""
        if self.fixed:
            return (int(self.size[0]), int(self.size[1]))
        height, width = (-(-edge // self.divisor) * self.divisor for edge in (placement.height, placement.width))
        return height, width

    def __call__(self, image: np.ndarray, out: np.ndarray | None = None) -> tuple[np.ndarray, Placement]:
        """Prepare one image.

        Args:
            image: [h, w, C] of the format of `pixels`; 8-bit RGB is BGR here, as OpenCV reads it.
            out: float32 [C, H, W] to overwrite, e.g. a row of a batch; None: a new array.

        Returns:
            (float32 [C, H, W] normalised, 8-bit RGB in that order; the placement of the image).

        Raises:
            ValueError: the image or `out` has a wrong shape or type.
        """
        _check_image(image, self)
        placement = self.place(image.shape[0], image.shape[1])
        shape = (len(self.mean), *self.canvas(placement))
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape or out.dtype != np.float32 or out.strides[2] != 4:
            raise ValueError(f"out: expected a float32 {list(shape)} buffer, got {out.dtype} {list(out.shape)}")
        height, width = placement.height, placement.width
        planes = cv2.split(resize(np.ascontiguousarray(image), height, width))
        planes = planes[::-1] if self.pixels.is_rgb else planes
        if self.dtype != "uint8":
            for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):  # as in training
                out[channel, :height, :width] = (planes[channel] - np.float32(mean)) / np.float32(std)
        else:
            for channel, table in enumerate(self._tables):
                target = out[channel, :height, :width]
                written = cv2.LUT(planes[channel], table, dst=target)
                if written is not target:  # OpenCV allocated its own array, e.g. for a view it cannot address
                    target[...] = written
        out[:, height:] = 0
        out[:, :height, width:] = 0
        return out, placement

    def letterbox(self, image: np.ndarray, out: np.ndarray | None = None) -> tuple[np.ndarray, Placement]:
        """The canvas as uint8 pixels, resized straight into `out` if that is given.

        Args:
            image: uint8 [h, w, C]; three channels are BGR, as OpenCV reads them.
            out: uint8 [H, W, C] to overwrite, e.g. a row of a batch; None: a new array.

        Returns:
            (uint8 [H, W, C], channels as in the image; the placement of the image).

        Raises:
            ValueError: the image or `out` has a wrong shape or type, or pictures of this format have no such canvas.
        """
        if self.dtype != "uint8":
            raise ValueError(f"{self.dtype} pictures have no canvas of uint8 pixels")
        _check_image(image, self)
        placement = self.place(image.shape[0], image.shape[1])
        channels = len(self.mean)
        shape = (*self.canvas(placement), channels)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8 or out.strides[1:] != (channels, 1):
            raise ValueError(f"out: expected a uint8 {list(shape)} buffer, got {out.dtype} {list(out.shape)}")
        height, width = placement.height, placement.width
        target = out[:height, :width]
        resize_into(np.ascontiguousarray(image), target)
        out[height:] = self.pad_colour
        out[:height, width:] = self.pad_colour
        return out, placement

    @property
    def pad_colour(self) -> tuple[int, ...]:
        """The padding of a uint8 canvas, of 8-bit RGB in BGR order: the mean, rounded."""
        colour = tuple(int(value) for value in self.pixels.padding)
        return colour[::-1] if self.pixels.is_rgb else colour

    @property
    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and 1 / std, float32 [C]; a graph normalises a uint8 canvas by (canvas - mean) * (1 / std).

        Those of RGB are in that order.
        """
        return np.asarray(self.mean, np.float32), (1 / np.asarray(self.std, np.float64)).astype(np.float32)

    def normalise(self, canvases: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, C] -> float32 [B, C, H, W] normalised, BGR to RGB, in the same steps as the exported graph.

        Pixels of the padding's colour become exactly zero, as the padding of a normalised image is; one of the picture
        that has this colour changes by half a grey level at most.
        """
        mean, factor = (values[:, None, None] for values in self.factors)
        planes = np.ascontiguousarray(self._turned(canvases).transpose(0, 3, 1, 2)).astype(np.float32)
        values = (planes - mean) * factor
        if not self.warp:
            colour = np.array(self.pixels.padding, np.float32)[:, None, None]
            np.copyto(values, 0, where=(planes == colour).all(1, keepdims=True))
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain values for meta.json and checkpoints; `from_dict` is the inverse."""
        other = {} if self.pixels.is_rgb else {"dtype": self.dtype, "show": [int(channel) for channel in self.show]}
        if self.upright:
            other["upright"] = True
        return {
            "size": [int(edge) for edge in self.size],
            "fixed": bool(self.fixed),
            "divisor": int(self.divisor),
            "mean": [float(value) for value in self.mean],
            "std": [float(value) for value in self.std],
            "warp": bool(self.warp),
            **other,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "preprocess") -> Preprocess:
        """Inverse of `to_dict`; "warp" defaults to False, since older files do not have it, and pictures to 8-bit RGB.

        Raises:
            UserError: a field is missing, unknown or invalid; `where` names the file.
        """
        wanted = {"size", "fixed", "divisor", "mean", "std"}
        if not isinstance(values, dict) or set(values) - {"warp", "dtype", "show", "upright"} != wanted:
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise UserError(f"{where}: preprocess: expected the fields {sorted(wanted)}, found {found}; export again")
        try:
            size = [int(edge) for edge in values["size"]]
            if len(size) != 2:
                raise ValueError(f"size: {size}; expected (height, width)")
            divisor = int(values["divisor"])
            if size[0] * size[1] > MOST_CANVAS or divisor > MOST_DIVISOR:
                raise ValueError(
                    f"size {size} with divisor {divisor}: more than {MOST_CANVAS} pixels, or a divisor above "
                    f"{MOST_DIVISOR}, which no network here is made for"
                )
            mean = values["mean"]
            about = {"channels": len(mean), "dtype": values.get("dtype", RGB.dtype), "show": values.get("show", [])}
            about["upright"] = values.get("upright", False)
            pixels = pixel_format({**about, "mean": mean, "std": values["std"]}, f"{where}: preprocess")
            if "dtype" not in values and not pixels.is_rgb:
                raise ValueError(f"mean and std: expected three numbers each, found {len(mean)}")
            return cls(
                size=(size[0], size[1]),
                fixed=bool(values["fixed"]),
                divisor=divisor,
                mean=pixels.mean,
                std=pixels.std,
                warp=bool(values.get("warp", False)),
                dtype=pixels.dtype,
                show=pixels.show,
                upright=pixels.upright,
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where}: preprocess: {error}; export again") from error

    def checksum(self, dtype: str = "float32") -> str:
        """sha256 of two preprocessed fixture images, which is stored in every artefact.

        With `dtype` "uint8" it is that of the letterboxed canvas, normalised as in the graph.

        It covers points on a grid, rounded to coarse bins. OpenCV's resize may differ by one grey level between
        processors, which would change the checksum if a value is close to the edge of its bin; so only those points
        count whose exact value, computed here in float64, is near the middle of its bin. Another size, padding, mean,
        std, channel order or interpolation still changes thousands of bins.
        """
        digest = hashlib.sha256(b"" if dtype == "float32" else dtype.encode())
        if not self.pixels.is_rgb:  # their made pictures follow the mean and std
            digest.update(repr((self.dtype, self.mean, self.std)).encode())
        levels = 0.0 if self.dtype == "float32" else _CHECKSUM_LEVELS
        bin_size = np.array([max(_CHECKSUM_BIN, levels / std) for std in self.std])[:, None, None]
        for height, width in ((427, 640), (333, 200)):
            image = made_picture(height, width, self.pixels)
            if dtype == "uint8":
                pixels, placement = self.letterbox(image)
                prepared = self.normalise(pixels[None])[0]
            else:
                prepared, placement = self(image)
            grid = np.ix_(range(len(self.mean)), range(0, prepared.shape[1], 5), range(0, prepared.shape[2], 5))
            exact = self._reference(image, placement, prepared.shape[1:], grid) / bin_size
            steady = np.abs(exact - np.round(exact)) < _CHECKSUM_MARGIN
            bins = np.round(prepared[grid] / bin_size).astype("<i4")
            digest.update(repr((prepared.shape, placement.height, placement.width)).encode())
            digest.update(np.where(steady, bins, 9999).astype("<i4").tobytes())
        return digest.hexdigest()

    def _turned(self, pixels: np.ndarray) -> np.ndarray:
        """[..., C] with BGR in RGB order; other channels as they are."""
        return pixels[..., ::-1] if self.pixels.is_rgb else pixels

    def _reference(self, image: np.ndarray, placement: Placement, canvas: tuple[int, ...], grid: tuple) -> np.ndarray:
        """Slow exact preprocessing (float64 bilinear at pixel centres) at the points of `grid`: [3, n, m]."""
        channels, rows, columns = (index.ravel() for index in grid)
        y0, y1, y_weight = _source_points(rows, placement.scale_y, image.shape[0])
        x0, x1, x_weight = _source_points(columns, placement.scale_x, image.shape[1])
        rgb = self._turned(image).astype(np.float64)
        upper = rgb[y0][:, x0] * (1 - x_weight)[None, :, None] + rgb[y0][:, x1] * x_weight[None, :, None]
        lower = rgb[y1][:, x0] * (1 - x_weight)[None, :, None] + rgb[y1][:, x1] * x_weight[None, :, None]
        resized = upper * (1 - y_weight)[:, None, None] + lower * y_weight[:, None, None]
        values = (resized - np.asarray(self.mean)) / np.asarray(self.std)
        values[rows >= placement.height] = 0
        values[:, columns >= placement.width] = 0
        return values.transpose(2, 0, 1)[channels]


def _check_image(image: np.ndarray, preprocess: Preprocess) -> None:
    if not fits(image, preprocess.pixels):
        raise ValueError(f"expected a picture of {preprocess.takes}, got {image.dtype} {list(image.shape)}")


def fits(image: np.ndarray, pixels: PixelFormat) -> bool:
    """Whether an array is a picture of this format: [h, w, C] with h and w at least 1."""
    return (
        image.dtype.name == pixels.dtype
        and image.ndim == 3
        and image.shape[2] == pixels.channels
        and 0 not in image.shape
    )


def _source_points(targets: np.ndarray, scale: float, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two neighbouring source indices and the second one's weight, for bilinear sampling at pixel centres."""
    position = np.clip((targets + 0.5) / scale - 0.5, 0, limit - 1)
    low = np.floor(position).astype(np.int64)
    return low, np.minimum(low + 1, limit - 1), position - low


def fixture_image(height: int, width: int) -> np.ndarray:
    """An image made by arithmetic only, uint8 [height, width, 3] BGR: ramps, tiles and rings."""
    y, x = np.mgrid[0:height, 0:width]
    ramp = (x * 2 + y) % 256
    tiles = ((x // 9 + y // 13) % 5) * 51
    rings = ((x - width // 3) ** 2 + (y - height // 2) ** 2) // 97 % 256
    return np.stack([ramp, tiles, rings], axis=-1).astype(np.uint8)


def made_picture(height: int, width: int, pixels: PixelFormat) -> np.ndarray:
    """:func:`fixture_image` as a picture of this format: for others than 8-bit RGB, two deviations around the mean."""
    patterns = fixture_image(height, width)
    if pixels.is_rgb:
        return patterns
    planes = []
    for channel, (mean, std) in enumerate(zip(pixels.mean, pixels.std, strict=True)):
        values = mean + (patterns[:, :, channel % 3] / 255 - 0.5) * 4 * std * (-1) ** (channel // 3)
        if pixels.dtype != "float32":
            values = np.clip(np.rint(values), 0, np.iinfo(pixels.dtype).max)
        planes.append(values.astype(pixels.dtype))
    return np.stack(planes, axis=-1)
