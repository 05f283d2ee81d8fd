"""COCO annotations of any name and place in a folder, as CVAT, Label Studio, FiftyOne and others write them."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path

from directdet.common.errors import UserError
from directdet.data.formats.coco import coco_splits, read_coco, roboflow_splits
from directdet.data.formats.folders import Found, files_in, plain_path, split_of, subfolders, within
from directdet.data.records import Dataset

_KEYS = [re.compile(rb'"%s"\s*:\s*\[' % key) for key in (b"images", b"annotations", b"categories")]
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_BLOCK = 2**22
_OVERLAP = 256  # bytes, of blocks that are searched one after the other
_OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")  # of COCO's own files
_MOST_FILES = 64  # that are looked at in a folder: one json for each picture is another layout


def open_coco(root: Path) -> Found | None:
    """The reading of a folder as COCO 2017, Roboflow's export, or json files of any name; None if there is none.

    Raises:
        UserError: which file is which split, or where the pictures are, is not plain.
    """
    for layout, files in (("coco", coco_splits(root)), ("roboflow", roboflow_splits(root))):
        if files:
            return _found(root, layout, files)
    if root.suffix.lower() == ".json":
        if not is_coco(root):
            return None
        top = root.parent.parent if root.parent.name.lower() in ("annotations", "labels") else root.parent
        return _found(top, "coco", {"train": (root, image_folder(top, root, _split_of_file(top, root) or "train"))})
    files = _files_of_splits(root)
    return _found(root, "coco", files) if files else None


def _found(root: Path, layout: str, files: dict[str, tuple[Path, Path]]) -> Found:
    def read(split: str) -> Dataset:
        others = [annotations for name, (annotations, _) in files.items() if name != split]
        return read_coco(root, split, layout, *files[split], others)

    names = ", ".join(str(annotations.relative_to(root)) for annotations, _ in files.values())
    return Found(layout, f"COCO annotations ({names})", tuple(files), read)


def is_coco(file: Path) -> bool:
    """Whether a json file holds lists of images, annotations and categories; it is searched, not parsed."""
    try:
        with open(file, "rb") as stream:  # mapped, a large file would count as memory
            block = stream.read(_BLOCK)
            if not block[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
                return False
            left, before = _KEYS, b""
            while block and left:
                searched = before + block
                left = [key for key in left if not key.search(searched)]
                before, block = searched[-_OVERLAP:], stream.read(_BLOCK)
            return not left
    except (OSError, ValueError):
        return False


def _files_of_splits(root: Path) -> dict[str, tuple[Path, Path]]:
    folders = [root, *subfolders(root), *(inner for folder in subfolders(root) for inner in subfolders(folder))]
    files = [file for folder in folders for file in files_in(folder, ".json")[:_MOST_FILES] if is_coco(file)]
    files = [file for file in files if not file.stem.startswith(_OTHER_TASKS)] or files
    if not files:
        return {}
    if len(files) == 1:
        split = _split_of_file(root, files[0]) or "train"
        return {split: (files[0], image_folder(root, files[0], split))}
    found: dict[str, Path] = {}
    for file in files:
        split = _split_of_file(root, file)
        if split is None or split in found:
            raise UserError(_several(root, files))
        found[split] = file
    ordered = {split: found[split] for split in ("train", "val", "test") if split in found}
    return {split: (file, image_folder(root, file, split)) for split, file in ordered.items()}


def _split_of_file(root: Path, file: Path) -> str | None:
    """The split that the words of a file's name say, or else its folders'."""
    words = re.split(r"[^a-z]+", file.stem.lower())
    folders = [part for part in reversed(file.parent.relative_to(root).parts)]
    return next((split for word in (*words, *folders) if (split := split_of(word))), None)


def _several(root: Path, files: list[Path]) -> str:
    names = ", ".join(str(file.relative_to(root)) for file in files[:10]) + (", ..." if len(files) > 10 else "")
    first = files[0]
    try:
        images = image_folder(root, first, "train").relative_to(root).as_posix()
    except (UserError, ValueError):
        images = "images"
    line = f'{{images = "{images}", annotations = "{first.relative_to(root).as_posix()}"}}'
    return (
        f"{root}: several COCO files ({names}), and their names do not say which is which split; write "
        f"{root / 'dataset.toml'} with a line for each: train = {line}, and val likewise"
    )


def image_folder(root: Path, file: Path, split: str) -> Path:
    """The folder of a COCO file's pictures: the first likely one that holds the first that it names.

    Raises:
        UserError: none does; the message has the dataset.toml to write.
    """
    beside = file.parent.parent if file.parent != root else root
    tops = list(dict.fromkeys((file.parent, beside, root)))
    names = ("images", "data", "img", "imgs", "JPEGImages", "")
    inner = (split, f"{split}2017", "valid" if split == "val" else split, "default", file.stem, "")
    likely = [top / name / part for top in tops for name in names for part in inner]
    likely = [folder for folder in dict.fromkeys(likely) if os.path.isdir(folder) and within(root, folder)]
    first = next(_file_names(file), None)
    if first is None:  # no image at all; the reader says what is wrong
        return file.parent
    path = plain_path(first)
    for folder in likely:
        if ".." not in path.parts and not path.is_absolute() and os.path.isfile(folder / path):
            return folder
    relative = file.relative_to(root).as_posix()
    raise UserError(
        f"{file}: COCO annotations whose picture {first!r} is in none of {', '.join(map(str, likely))}; put the "
        f"pictures there, or write {root / 'dataset.toml'} with the line "
        f'{split} = {{images = "FOLDER_OF_PICTURES", annotations = "{relative}"}}'
    )


def _file_names(file: Path) -> Iterator[str]:
    """The names of pictures in a COCO file, as they come."""
    try:
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for match in _FILE_NAME.finditer(content):
                try:
                    yield json.loads(match[1])
                except ValueError:
                    continue
    except (OSError, ValueError):
        return
