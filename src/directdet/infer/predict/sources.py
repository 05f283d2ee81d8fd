"""Image sources: a file, a folder, or a glob pattern."""

from __future__ import annotations

import glob
import heapq
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from directdet.common.errors import UserError
from directdet.data.pixels.format import RGB, PixelFormat
from directdet.data.pixels.reading import read_pixels

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".mjpeg")
_WILDCARDS = "*?["
_DEVICE = "/dev/video"
_LISTED = 50_000  # names held in memory at once


@dataclass(frozen=True)
class Images:
    """Image files sorted by name. Every loop lists them again, so that only a part of the names is in memory.

    Attributes:
        source: the file, folder or pattern.
        root: the folder that the relative names of the images start from.
        count: how many there were when they were counted.
        left_out: what else is there and is not taken, in words; "" if nothing is.
        paths: the files themselves where they are not found by listing, such as those of a dataset.
    """

    source: str
    root: Path
    count: int
    left_out: str = ""
    paths: tuple[Path, ...] | None = None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Path]:
        if self.paths is not None:
            yield from self.paths
            return
        last: list[str] | None = None
        while True:
            names = (name for name in _scan(self.source) if last is None or _order(name) > last)
            some = heapq.nsmallest(_LISTED, names, key=_order)
            yield from map(Path, some)
            if len(some) < _LISTED:
                return
            last = _order(some[-1])

    def name(self, path: Path) -> Path:
        """The relative name of an image, which differs for files of the same name in different folders."""
        return path.absolute().relative_to(self.root)


def source_kind(source: str | Path) -> str:
    """The kind of a source: "images" (also if it does not exist), "video" (a file), "camera" or "stream"."""
    text = str(source)
    path = Path(text)
    if "://" in text:
        return "stream"
    if path.is_file() and path.suffix.lower() in VIDEO_EXTENSIONS:
        return "video"
    if not path.exists() and path.suffix.lower() in VIDEO_EXTENSIONS and not any(char in text for char in _WILDCARDS):
        return "video"
    if (text.isdecimal() and not path.exists()) or text.startswith(_DEVICE):
        return "camera"
    return "images"


def find_images(source: str | Path) -> Images:
    """The image files of `source`.

    Args:
        source: one image file, a folder (its own images, not those of subfolders), or a pattern such as
            "shots/*.png" or "shots/**/*.jpg".

    Raises:
        UserError: it does not exist, or contains no images.
    """
    text, path = str(source), Path(source)
    root = path.parent
    if path.is_file():
        if not _is_image(path.name):
            raise UserError(f"{path}: not an image or a video; expected {', '.join((*EXTENSIONS, *VIDEO_EXTENSIONS))}")
        what = "file"
    elif path.is_dir():
        what, root = "folder", path
    elif any(char in text for char in _WILDCARDS):
        what = "pattern"
        while any(char in str(root) for char in _WILDCARDS):
            root = root.parent
    else:
        raise UserError(
            f"{source}: not found; give an image, a folder, a pattern in quotes such as 'folder/*.jpg', a video, the "
            "number of a camera or the URL of a stream"
        )
    count = sum(1 for _ in _scan(text))
    if not count:
        raise UserError(f"{source}: no images in this {what}; expected {', '.join(EXTENSIONS)}")
    return Images(text, root.absolute(), count, _left_out(text))


def read_for_detector(path: str | Path, pixels: PixelFormat = RGB) -> np.ndarray:
    """An image as detectors of this format take it, by default uint8 [h, w, 3] BGR.

    `UserError` with the file name if it cannot be read or is of another format.
    """
    return np.ascontiguousarray(pixels.for_detector(read_pixels(path, pixels)))


def _scan(source: str) -> Iterator[str]:
    """The names of the image files, in any order."""
    if os.path.isdir(source):
        with os.scandir(source) as entries:
            for entry in entries:
                if _is_image(entry.name) and entry.is_file():
                    yield os.path.join(source, entry.name)
    elif os.path.isfile(source):
        yield source
    else:
        for name in glob.iglob(source, recursive=True):
            if _is_image(os.path.basename(name)) and os.path.isfile(name):
                yield name


def _left_out(source: str) -> str:
    """What a folder or a pattern holds that is not taken: subfolders, files of other endings, hidden pictures."""
    folders = hidden = 0
    endings: Counter[str] = Counter()
    if os.path.isfile(source):
        return ""
    if os.path.isdir(source):
        with os.scandir(source) as found:
            entries = [(entry.name, entry.is_dir()) for entry in found]
    else:
        entries = [(os.path.basename(name), os.path.isdir(name)) for name in glob.iglob(source, recursive=True)]
    for name, is_folder in entries:
        ending = os.path.splitext(name)[1].lower()
        if is_folder:
            folders += os.path.isdir(source) and not name.startswith(".")
        elif name.startswith("."):
            hidden += ending in EXTENSIONS
        elif ending not in EXTENSIONS:
            endings[ending or "none"] += 1
    count = endings.total()
    common = ", ".join(f"{number} {ending}" for ending, number in endings.most_common(4))
    common += ", ..." if len(endings) > 4 else ""
    parts = [f"{folders} subfolder{'s' * (folders > 1)} (the pattern '{source}/**/*' takes them in)"] * bool(folders)
    parts += [f"{count} file{'s' * (count > 1)} with other endings ({common})"] * bool(count)
    parts += [f"{hidden} hidden picture{'s' * (hidden > 1)}"] * bool(hidden)
    return ", ".join(parts)


def _order(name: str) -> list[str]:
    """Sort key that orders names folder by folder, as paths compare."""
    return name.split(os.sep)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")
