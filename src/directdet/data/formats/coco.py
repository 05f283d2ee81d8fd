"""Reading COCO instance annotations (COCO 2017 folders, Roboflow exports, or any JSON file with an image folder)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from directdet.common.errors import UserError
from directdet.common.urls import shown
from directdet.data.flat.annotations import about_split, dataset_about
from directdet.data.flat.cache import KeptColumns, cache_file, digest_of, find, keep
from directdet.data.flat.coco_objects import Images, ObjectReader
from directdet.data.flat.columns import Columns
from directdet.data.flat.json_lists import JSONLists, Piece, UnusualJSON, without_collection
from directdet.data.formats.folders import plain_path
from directdet.data.formats.reading import CATEGORY, IMAGE, Faults, read_file
from directdet.data.formats.values import name_text, path_inside, whole
from directdet.data.image import read_size
from directdet.data.picture_size import check_pixels, most_pixels
from directdet.data.records import Dataset, Records

# Bytes from which on a file is read in pieces, and kept: less is read in a second.
LARGE = 8_000_000
# Names that are paths inside a folder as they stand; others are looked at more closely.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_LISTS = ("images", "annotations", "categories")
_ROBOFLOW_FOLDERS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
_ROBOFLOW_FILE = "_annotations.coco.json"


def coco_splits(root: Path) -> dict[str, tuple[Path, Path]]:
    """Splits of a COCO 2017 folder: name -> (annotation file, image folder)."""
    found = {}
    for split in ("train", "val", "test"):
        annotations = root / "annotations" / f"instances_{split}2017.json"
        if annotations.is_file():
            images = root / f"{split}2017"
            alternative = root / "images" / f"{split}2017"
            found[split] = (annotations, alternative if not images.is_dir() and alternative.is_dir() else images)
    return found


def roboflow_splits(root: Path) -> dict[str, tuple[Path, Path]]:
    """Splits of a Roboflow COCO export: name -> (annotation file, image folder)."""
    found = {}
    for split, folders in _ROBOFLOW_FOLDERS.items():
        for folder in folders:
            if split not in found and (root / folder / _ROBOFLOW_FILE).is_file():
                found[split] = (root / folder / _ROBOFLOW_FILE, root / folder)
    return found


def read_coco(
    root: Path, split: str, layout: str, annotations: Path, images: Path, others: Sequence[Path] = ()
) -> Dataset:
    """Read one COCO JSON file; ``others`` are the annotation files of the other splits.

    Category ids are mapped to labels 0..C-1 in ascending order. Every category of the file is a class, used or not, so
    that the files of two splits agree; but for Roboflow's placeholder, see :func:`_placeholder`.

    Entries that cannot be read (missing keys, unknown or repeated ids, paths that point outside ``images``) are left
    out, and named in ``Dataset.errors``. What was read of a large file is kept, see flat/cache.py.

    Raises:
        UserError: not JSON, or without any category.
    """
    large = _is_large(annotations)
    kept = _find_kept(annotations, images, others) if large else None
    if kept is None:
        with without_collection():
            read = _read_large(annotations, images, others) if large else _read_whole(annotations, images, others)
        columns, about = read.columns, read.about
        if read.digest is not None and (file := cache_file(annotations, images)) is not None:
            columns = keep(file, about, columns) or columns
    else:
        columns, about = kept, kept.about
    records = Records(columns, images)
    return dataset_about(root, split, layout, records if large else tuple(records), about)


def read_coco_pictures(root: Path, split: str, file: Path, images: Path) -> Dataset:
    """Read a COCO JSON file that has images and categories, but no annotations, as those of COCO's test sets.

    Raises:
        UserError: not JSON, or an image or category cannot be read.
    """
    read = _read(file, _Pictures(file), images, ())
    if read.about["errors"]:
        raise UserError(read.about["errors"][0])
    dataset = dataset_about(root, split, "coco", tuple(Records(read.columns, images)), read.about)
    return replace(dataset, problems=(), notes=())


@dataclass(frozen=True)
class _Read:
    """What a file holds; ``digest`` is that of the file, None if it is not to be kept."""

    columns: Columns
    about: dict[str, Any]  # JSON values, with what it depends on
    digest: str | None


def _is_large(file: Path) -> bool:
    try:
        return file.stat().st_size >= LARGE
    except (OSError, ValueError):
        return False


def _find_kept(annotations: Path, images: Path, others: Sequence[Path]) -> KeptColumns | None:
    """What was read of this file before, if nothing that it depends on has changed."""
    file = cache_file(annotations, images)
    if file is None or (kept := find(file)) is None:
        return None
    about = kept.about
    same = about["most_pixels"] == most_pixels() and about["digest"] == digest_of(annotations)
    asked = about["others"]
    return kept if same and (asked is None or asked == _digests(others)) else None


def _digests(files: Sequence[Path]) -> dict[str, str | None]:
    return {str(file): digest_of(file) for file in files}


def _read_large(annotations: Path, images: Path, others: Sequence[Path]) -> _Read:
    try:
        return _read(annotations, JSONLists(annotations, _LISTS), images, others)
    except (UnusualJSON, OSError):
        return _read_whole(annotations, images, others)


def _read_whole(annotations: Path, images: Path, others: Sequence[Path]) -> _Read:
    return _read(annotations, _Whole(annotations), images, others)


class _Whole:
    """The lists of a file that is read at once; as :class:`JSONLists`."""

    digest = None

    def __init__(self, file: Path) -> None:
        self._file = file
        self._content = read_json(file)

    def pieces(self, name: str) -> list[Piece]:
        """The entries of a list.

        Raises:
            UserError: there is no such list.
        """
        value = self._content.get(name)
        if not isinstance(value, list):
            raise UserError(f"{self._file}: {name}: expected a list here; is this a COCO instances file?")
        return [Piece(value, lambda: value)]

    def prove(self) -> None:
        """Nothing to do: all of it has been parsed."""


class _Pictures(_Whole):
    """A file without annotations."""

    def pieces(self, name: str) -> list[Piece]:
        if name != "annotations":
            return super().pieces(name)
        nothing: list[Any] = []
        return [Piece(nothing, lambda: nothing)]


def _read(annotations: Path, source: JSONLists | _Whole, images: Path, others: Sequence[Path]) -> _Read:
    faults = Faults()
    categories = [entry for piece in source.pieces("categories") for entry in piece.exactly()]
    names, lost = read_categories(annotations, categories, faults)
    source.pieces("annotations")
    notes: list[str] = []
    placeholder, asked = _placeholder(categories, source, others)
    if placeholder is not None and len(names) > 1:
        name = names.pop(placeholder)
        notes.append(
            f"{annotations}: category {placeholder} {name!r} is no class: it is the placeholder of a Roboflow export "
            "(supercategory none, no objects)"
        )
    found, lost_images, measured = _read_images(annotations, source.pieces("images"), images, faults)
    if measured.done:
        notes.append(
            f"{annotations}: {len(measured.done)} images (the first: {measured.done[0]}) have no width or height; "
            "theirs are those of the image files"
        )
    labels = {category: label for label, category in enumerate(sorted(names))}
    reader = ObjectReader(annotations, labels, found, (lost_images, lost), faults)
    gathered = reader.read_all(lambda: source.pieces("annotations"))
    source.prove()
    digest = None if measured.tried else source.digest  # the sizes of image files may change
    about = about_split(names, faults.problems, notes, faults.errors())
    about |= {"digest": digest, "others": asked}  # of the other splits' files; None: they were not asked
    return _Read(gathered.finish(found.ids, found.widths, found.heights, found.names), about, digest)


def _placeholder(
    categories: list[Any], source: JSONLists | _Whole, others: Sequence[Path]
) -> tuple[int | None, dict[str, str | None] | None]:
    """The id of the category that Roboflow writes for a whole project: no class, and no object is of it.

    It has id 0 and supercategory "none", and the classes have another supercategory (the project's name). Some tools
    write "none" for every class, and a class may be rare: so it is one as soon as an object in any split is of it.
    Also returns the digests of the other splits' files if the answer depends on them, else None.
    """
    none = [entry for entry in categories if isinstance(entry, dict) and entry.get("supercategory") == "none"]
    if len(none) != 1 or whole(none[0].get("id")) != 0 or _uses(source, 0):
        return None, None
    asked = _digests(others) if source.digest is not None else None
    return (None if any(_other_uses(file, 0) for file in others) else 0), asked


def _other_uses(file: Path, category: int) -> bool:
    try:
        return _uses(JSONLists(file, _LISTS), category)
    except (UnusualJSON, OSError, ValueError):
        pass
    try:
        return _uses(_Whole(file), category)
    except UserError:  # it is told when that split is read
        return False


def _uses(source: JSONLists | _Whole, category: int) -> bool:
    entries = (entry for piece in source.pieces("annotations") for entry in piece.entries)
    return any(isinstance(entry, dict) and whole(entry.get("category_id")) == category for entry in entries)


def read_json(
    file: Path, what: str = "a COCO file", holds: str = "images, annotations and categories"
) -> dict[str, Any]:
    """The object in a JSON file; ``what`` it is and what it ``holds`` are for messages."""
    where = shown(file)
    text = read_file(file, "annotation file")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, endless nesting
        raise UserError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: not {what}: expected an object with {holds}")
    return content


def read_categories(file: Path, entries: list[Any], faults: Faults) -> tuple[dict[int, str], set[int | None]]:
    """The names by id, and the ids of entries that cannot be read."""
    names: dict[int, str] = {}
    lost: set[int | None] = set()
    for index, entry in enumerate(entries):
        category = whole(entry.get("id")) if isinstance(entry, dict) else None
        name = name_text(entry.get("name")) if isinstance(entry, dict) else None
        where = f"{shown(file)}: categories"
        if category is None or name is None:
            faults.add(CATEGORY, UserError(f"{where}: entry {index} has no integer id or no name; correct it"))
            lost |= {category} - {None}
        elif category in names:
            faults.add(CATEGORY, UserError(f"{where}: id {category} is used twice; give every category its own id"))
        else:
            names[category] = name
    if not names:
        found = faults.errors()
        raise UserError(
            found[0] if found else f"{file}: categories: the list is empty; a detector needs at least one class"
        )
    return names, lost


class Measured:
    """The images whose size is asked of their file: how many were tried, and the ids of those that have one."""

    def __init__(self) -> None:
        self.tried = 0
        self.done: list[int] = []


def _read_images(
    file: Path, pieces: Iterable[Piece], folder: Path, faults: Faults
) -> tuple[Images, set[int | None], Measured]:
    """The images, the ids of entries that cannot be read, and those whose size is that of the image file."""
    images = Images(folder)
    lost: set[int | None] = set()
    measured = Measured()
    for index, entry in enumerate(entry for piece in pieces for entry in piece.exactly()):
        image_id = whole(entry.get("id")) if isinstance(entry, dict) else None
        try:
            if image_id is None:
                raise UserError(f"{file}: images: entry {index} has no integer id; correct it")
            if image_id in images.places:
                raise UserError(f"{file}: image {image_id}: id is used twice; give every image its own id")
            name, width, height = read_image_entry(f"{file}: image {image_id}", image_id, entry, folder, measured)
        except UserError as error:
            faults.add(IMAGE, error)
            lost |= {image_id} - {None} - images.places.keys()
            continue
        images.add(image_id, name, width, height)
    return images, lost, measured


def read_image_entry(
    where: str, image_id: int, entry: dict[str, Any], folder: Path, measured: Measured
) -> tuple[str, int, int]:
    """Name, width and height of one image; sizes that are missing (no key, null or 0) are those of the file."""
    if "file_name" not in entry:
        raise UserError(f"{where}: key 'file_name' is missing; add it")
    name = entry["file_name"]
    if not (isinstance(name, str) and _PLAIN_NAME.fullmatch(name)):  # most are
        path_inside(folder, name, f"{where}: file_name")
        name = str(plain_path(name))
    given = entry.get("width"), entry.get("height")
    if any(value in (None, 0) and value is not False for value in given):
        measured.tried += 1
        width, height = read_size(folder / name)
        measured.done.append(image_id)
    else:
        width, height = map(whole, given)
    if width is None or height is None or width < 1 or height < 1:
        raise UserError(
            f"{where}: width {given[0]!r} and height {given[1]!r} are not both positive integers; correct them"
        )
    check_pixels(height, width, where)
    return name, width, height
