"""What lies in a dataset's folder: its pictures, its parts for training and validation, and paths that stay inside."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from directdet.common.errors import UserError
from directdet.common.urls import url_of
from directdet.data.records import Dataset

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# What tools call the splits; the first name that is there counts.
SPLIT_NAMES = {
    "train": ("train", "training", "train2017"),
    "val": ("val", "valid", "validation", "dev", "val2017"),
    "test": ("test", "testing", "test2017"),
}


@dataclass(frozen=True)
class Found:
    """A reading of a folder: how its layout is called, what was seen of it, its splits, and what reads one of them."""

    layout: str
    what: str
    splits: tuple[str, ...]
    read: Callable[[str], Dataset]


def split_of(name: str) -> str | None:
    """The split that a folder's or subset's name stands for, whatever its case; None if it stands for none."""
    lower = name.strip().lower()
    return next((split for split, names in SPLIT_NAMES.items() if lower in names), None)


def split_folders(root: Path) -> dict[str, Path]:
    """The folders in ``root`` that are called like splits, in the order train, val, test.

    Raises:
        UserError: two folders stand for one split, such as val and valid.
    """
    found: dict[str, Path] = {}
    for folder in subfolders(root):
        split = split_of(folder.name)
        if split in found:
            raise UserError(
                f"{root}: {found[split].name} and {folder.name} both stand for {split!r}; rename or move one of them"
            )
        if split is not None:
            found[split] = folder
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def subfolders(root: Path) -> list[Path]:
    """The folders in ``root``, sorted, without hidden ones; none if it is no folder."""
    return [root / name for name in _names(root) if not name.startswith(".") and (root / name).is_dir()]


def files_in(root: Path, *endings: str) -> list[Path]:
    """The files in ``root`` with one of these endings, whatever their case, sorted, without hidden ones."""
    names = [name for name in _names(root) if name.lower().endswith(endings) and not name.startswith(".")]
    return [root / name for name in names]


def pictures_below(root: Path) -> list[Path]:
    """All pictures in ``root`` and the folders below it, sorted by their paths."""
    found: list[str] = []
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        pictures = [name for name in names if name.lower().endswith(PICTURES) and not name.startswith(".")]
        found += [os.path.join(folder, name) for name in pictures]
    return [Path(name) for name in sorted(found)]


@lru_cache(maxsize=8)
def _stems(folder: Path, changed: int) -> dict[str, str]:
    """The pictures of a folder that was ``changed`` then, by their names without the ending."""
    names = [name for name in sorted(os.listdir(folder), reverse=True) if name.lower().endswith(PICTURES)]
    return {os.path.splitext(name)[0]: name for name in names}


def picture_called(folder: Path, stem: str) -> Path | None:
    """The picture in ``folder`` with this name but for its ending; None if there is none."""
    try:
        name = _stems(folder, folder.stat().st_mtime_ns).get(stem)
    except (OSError, ValueError):  # no folder, or no usable name
        return None
    return None if name is None else folder / name


def within(root: Path, path: Path) -> bool:
    """Whether ``path`` lies in ``root`` as written, after its ``..`` are resolved; symbolic links count as inside.

    An address is inside nothing: pathlib makes one of a name of an annotation file below the folder ".".
    """
    top, place = os.path.abspath(root), os.path.abspath(path)
    return url_of(path) is None and (place == top or place.startswith(top.rstrip(os.sep) + os.sep))


def plain_path(name: str) -> PurePosixPath:
    """A path as any system writes it, with slashes."""
    return PurePosixPath(name.replace("\\", "/"))


def find_picture(root: Path, folders: list[Path], name: object, where: str) -> Path:
    """The picture that an annotation file names: the first that is there below ``folders``, by path, then by name.

    Args:
        root: the dataset's folder, which the picture may not leave.
        folders: where to look, the likeliest first.
        name: as the file gives it, with slashes or backslashes, absolute or relative.
        where: file and entry, for messages.

    Raises:
        UserError: it is no file name, or nothing of this name is there.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise UserError(f"{where}: {name!r} is not a file name; correct it")
    path = plain_path(name)
    if not path.parts:
        raise UserError(f"{where}: {name!r} is not a file name; correct it")
    relative = None if path.is_absolute() or ":" in path.parts[0] else path
    for folder in folders:
        if relative is not None and within(root, folder / relative) and os.path.isfile(folder / relative):
            return folder / relative
    for folder in folders:
        if path.name not in ("", "..") and os.path.isfile(folder / path.name):
            return folder / path.name
    places = ", ".join(dict.fromkeys(str(folder) for folder in folders))
    outside = relative is None or ".." in relative.parts
    more = " (paths outside the dataset are not followed)" if outside else ""
    raise UserError(f"{where}: picture {name!r} not found in {places}{more}; put it there or correct the name")


def picture_folders(root: Path, *first: Path) -> list[Path]:
    """Where the pictures of a file at ``root`` may lie: ``first``, ``root``, and the folders that tools make."""
    usual = [root, root / "images", root / "data", root / "images" / "default", root / "JPEGImages", root / "img"]
    return [folder for folder in dict.fromkeys((*first, *usual)) if folder.is_dir()]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder}: folder cannot be read: {error.strerror or error}") from None
