"""Made pictures of other sensors, whose shapes cannot be seen once they are turned into 8-bit RGB."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from directdet.common.errors import MissingLibraryError

# What a sensor is given, float64 [H, W] from 0 to 1, and its noise -> the ending of a file and its content.
_Write = Callable[[np.ndarray, np.random.Generator], tuple[str, bytes]]


def sensor_file(
    sensor: str, size: tuple[int, int], masks: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[str, bytes]:
    """The ending and the content of a picture of ``size`` (height, width) with these shapes, bool [H, W].

    Raises:
        MissingLibraryError: a TIFF is to be written, and tifffile is not installed.
    """
    coarse = cv2.resize(rng.random((5, 5)).astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    field = 0.15 + 0.1 * np.clip(coarse, 0, 1) + rng.normal(0, 0.02, size)
    for mask in masks:
        field[mask] = rng.uniform(0.65, 0.9) + rng.normal(0, 0.02, int(mask.sum()))
    return SENSORS[sensor](np.clip(field, 0, 1), rng)


def _deep_grey(field: np.ndarray, _: np.random.Generator) -> tuple[str, bytes]:
    """16-bit grey, all of it between two multiples of 256, so that a conversion to 8 bits leaves one even grey."""
    content = cv2.imencode(".png", (0x5000 + np.rint(field * 255)).astype(np.uint16))[1]
    return ".png", content.tobytes()


def _six_bands(field: np.ndarray, rng: np.random.Generator) -> tuple[str, bytes]:
    """Six channels of 8 bits, the shapes bright in the fifth and dark in the sixth; the first four are noise."""
    bands = rng.normal(110, 25, (*field.shape, 6))
    bands[:, :, 4], bands[:, :, 5] = 255 * field, 255 * (1 - field)
    return ".tif", tiff(np.clip(np.rint(bands), 0, 255).astype(np.uint8))


def _metres(field: np.ndarray, _: np.random.Generator) -> tuple[str, bytes]:
    """float32, as of a depth camera: a floor 4 metres away, and shapes a metre or so nearer."""
    return ".tif", tiff((4.2 - 2.0 * field).astype(np.float32))


SENSORS: dict[str, _Write] = {"deep-grey": _deep_grey, "six-bands": _six_bands, "metres": _metres}


def tiff(image: np.ndarray) -> bytes:
    """A TIFF file of [H, W] or [H, W, C] with any number of channels; MissingLibraryError without tifffile."""
    try:
        import tifffile
    except ImportError as error:
        raise MissingLibraryError(f'writing a TIFF needs tifffile ({error}); pip install "directdet[tiff]"') from None
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image, photometric="minisblack", planarconfig="contig" if image.ndim == 3 else None)
    return buffer.getvalue()
