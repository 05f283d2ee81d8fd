"""Where images come from: a file, a folder, or a pattern."""

from __future__ import annotations

import glob
from pathlib import Path

import cv2
import numpy as np

from ..data.image import read_image
from ..errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_PATTERN = "*?["


def find_images(source: str | Path) -> list[Path]:
    """Image files that `source` names, sorted by name.

    Args:
        source: one image file, a folder (its own images, not those of subfolders), or a pattern such as
            "shots/*.png" or "shots/**/*.jpg".

    Raises:
        UserError: nothing there, or no images among it.
    """
    path = Path(source)
    if path.is_file():
        if not _is_image(path):
            raise UserError(f"{path}: not an image; expected {', '.join(EXTENSIONS)}")
        return [path]
    if path.is_dir():
        found = [entry for entry in path.iterdir() if entry.is_file() and _is_image(entry)]
        what = "folder"
    elif any(sign in str(source) for sign in _PATTERN):
        found = [Path(name) for name in glob.glob(str(source), recursive=True)]
        found = [entry for entry in found if entry.is_file() and _is_image(entry)]
        what = "pattern"
    else:
        raise UserError(f"{source}: not found; give an image, a folder or a pattern in quotes such as 'folder/*.jpg'")
    if not found:
        raise UserError(f"{source}: no images in this {what}; expected {', '.join(EXTENSIONS)}")
    return sorted(found)


def read_bgr(path: str | Path) -> np.ndarray:
    """An image as detectors take it, uint8 [h, w, 3] BGR; `UserError` naming the file if it cannot be read."""
    return cv2.cvtColor(read_image(path), cv2.COLOR_RGB2BGR)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
