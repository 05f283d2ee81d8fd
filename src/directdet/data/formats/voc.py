"""Reading PASCAL VOC folders (VOCdevkit/VOC2007 and folders with the same layout)."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from directdet.common.errors import UserError
from directdet.data.formats.folders import Found, picture_called
from directdet.data.formats.reading import IMAGE, Faults, read_text
from directdet.data.formats.values import path_inside
from directdet.data.formats.voc_xml import ObjectReader, element_text, object_names, parse_xml
from directdet.data.records import Dataset, Record

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_LISTS = ("trainval", "train", "val", "test")


def find_voc(root: Path) -> Path | None:
    """The folder that holds ImageSets/Main and Annotations: root itself, root/VOC* or root/VOCdevkit/VOC*."""
    if _is_voc(root):
        return root
    for parent in (root, root / "VOCdevkit"):
        found = sorted(folder for folder in parent.glob("VOC*") if _is_voc(folder))
        if len(found) > 1:
            names = ", ".join(folder.name for folder in found)
            raise UserError(
                f"{parent}: contains several VOC folders ({names}); give one of them, e.g. {found[0]}, or a "
                "dataset.toml that lists what to use of each"
            )
        if found:
            return found[0]
    return None


@dataclass(frozen=True)
class VocSplits:
    """Image names of each split, and what was decided about the lists, in words."""

    names: dict[str, list[str]]
    notes: tuple[str, ...] = ()


def voc_splits(folder: Path) -> VocSplits:
    """The splits that ImageSets/Main says.

    train.txt, val.txt and test.txt are what they are called. Where there is a trainval.txt, or no val.txt, the papers'
    protocol holds: train is trainval.txt (or train.txt), val is test.txt (or val.txt). A test.txt without any
    annotation, as in VOC 2012, is left out. Names that val or test hold are removed from train, since trainval.txt
    contains the images of val.txt.

    Raises:
        UserError: there is none of these lists, or one cannot be read.
    """
    lists = {name: read_names(file) for name in _LISTS if (file := list_file(folder, name)).is_file()}
    if not lists:
        raise UserError(_no_lists(folder))
    notes: list[str] = []
    where = folder / "ImageSets" / "Main"
    if lists.get("test") and not any(os.path.isfile(_xml(folder, name)) for name in lists["test"]):
        notes.append(f"{where / 'test.txt'} is left out: none of its {len(lists.pop('test'))} images has annotations")
    sources = {"train": "trainval" if "trainval" in lists else "train", "val": "val", "test": "test"}
    if "test" in lists and ("trainval" in lists or "val" not in lists):
        sources["val"] = sources.pop("test")
        unused = f"; val.txt is not used ({len(lists['val'])} images)" if "val" in lists else ""
        notes.append(
            f"val is {where / 'test.txt'}, as in VOC's protocol{unused}: best.pt is chosen on it; a dataset.toml can "
            "name other lists"
        )
    splits = {split: lists[name] for split, name in sources.items() if name in lists}
    if "train" in splits:
        held_out = {name for split, names in splits.items() if split != "train" for name in names}
        kept = [name for name in splits["train"] if name not in held_out]
        if len(kept) < len(splits["train"]) and sources["train"] == "train":
            count = len(splits["train"]) - len(kept)
            notes.append(f"{where / 'train.txt'}: {count} images are in val or test, too; they are left out of train")
        splits["train"] = kept
    return VocSplits(splits, tuple(notes))


def _no_lists(folder: Path) -> str:
    where = folder / "ImageSets" / "Main"
    others = sorted(file.stem for file in where.glob("*.txt"))
    if not others:
        return f"{where}: holds no image lists; add train.txt and val.txt, with the names of images line by line"
    shown = ", ".join(f"{name}.txt" for name in others[:10]) + (", ..." if len(others) > 10 else "")
    example = f'{folder.name}/{others[0]}"]'
    return (
        f"{where}: holds no train.txt, val.txt, trainval.txt or test.txt, but {shown}; rename them, or write a "
        f'dataset.toml beside {folder.name} with [train] and voc = ["{example}, and [val] likewise'
    )


def open_voc(root: Path) -> Found | None:
    """The reading of a folder that is, or holds, one of VOC's kind; None if it does not."""
    folder = find_voc(root)
    if folder is None:
        return None
    splits = tuple(voc_splits(folder).names)
    return Found("voc", f"a VOC folder ({folder.name})", splits, lambda split: read_voc(root, split, folder))


def read_voc(root: Path, split: str, folder: Path) -> Dataset:
    """Read one split. VOC boxes are 1-based and inclusive; here they become 0-based (xmin-1, ymin-1, xmax, ymax).

    The classes are VOC's 20 if all names are among them, else the names found in all splits, sorted; ids are 1..C.
    XML files and objects that cannot be read are left out, and named in ``Dataset.errors``.

    Raises:
        UserError: an image list cannot be read.
    """
    splits = voc_splits(folder)
    images = {key: [(folder, name) for name in names] for key, names in splits.names.items()}
    return _read(root, split, "voc", images, splits.notes)


def read_voc_lists(root: Path, split: str, lists: dict[str, list[Path]]) -> Dataset:
    """Read one split of those that image lists define, each as FOLDER/LIST; lists of two years make VOC 07+12.

    Raises:
        UserError: as for read_voc(); also a missing list, or one image in two lists of the split.
    """
    images = {
        key: [(path.parent, name) for path in paths for name in read_names(list_file(path.parent, path.name))]
        for key, paths in lists.items()
    }
    seen: set[tuple[Path, str]] = set()
    for folder, name in images[split]:
        if (folder, name) in seen:
            raise UserError(f"{folder}: image {name!r} is in two lists of {split!r}; give lists without common images")
        seen.add((folder, name))
    return _read(root, split, "toml", images)


def _read(
    root: Path, split: str, layout: str, splits: dict[str, list[tuple[Path, str]]], notes: tuple[str, ...] = ()
) -> Dataset:
    """One split; ``splits`` gives the images of all of them as (VOC folder, image name)."""
    faults = Faults()
    trees: dict[tuple[Path, str], ElementTree.Element] = {}
    for key, images in splits.items():
        for image in images:
            try:
                trees[image] = _parse(*image)
            except UserError as error:  # of other splits when they are read
                if key == split:
                    faults.add(IMAGE, error)
    found = object_names(trees.values())
    classes = VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))
    reader = ObjectReader({name: label for label, name in enumerate(classes)}, faults)
    records: list[Record] = []
    for image_id, image in zip(_image_ids([name for _, name in splits[split]]), splits[split], strict=True):
        if image not in trees:
            continue
        try:
            path = _image_path(*image, trees[image])
            records.append(reader.record(image_id, path, _xml(*image), trees[image]))
        except UserError as error:
            faults.add(IMAGE, error)
    category_ids = tuple(range(1, len(classes) + 1))
    return Dataset(
        root, split, layout, classes, category_ids, tuple(records), tuple(faults.problems), notes, faults.errors()
    )


def _is_voc(folder: Path) -> bool:
    return (folder / "ImageSets" / "Main").is_dir() and (folder / "Annotations").is_dir()


def list_file(folder: Path, name: str) -> Path:
    """Where a VOC folder has an image list."""
    return folder / "ImageSets" / "Main" / f"{name}.txt"


def read_names(file: Path) -> list[str]:
    """The images that a list names; UserError if it cannot be read, or names one twice."""
    names = [line.strip() for line in read_text(file, "image list").splitlines() if line.strip()]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{file}: image {name!r} is listed twice; list every image once")
        seen.add(name)
    return names


def _image_ids(names: list[str]) -> list[int]:
    """VOC 2007 names are numbers and serve as ids; other names are numbered in the list's order."""
    if all(re.fullmatch("[0-9]{1,18}", name) for name in names):  # what fits into 64 bits
        numbers = [int(name) for name in names]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(names) + 1))


def _xml(folder: Path, name: str) -> Path:
    return path_inside(folder / "Annotations", f"{name}.xml", f"{folder / 'ImageSets' / 'Main'}: image list")


def _parse(folder: Path, name: str) -> ElementTree.Element:
    file = _xml(folder, name)
    if not os.path.isfile(file):
        raise UserError(f"{file}: annotation file not found, but an image list contains {name!r}")
    return parse_xml(file)


def _image_path(folder: Path, name: str, tree: ElementTree.Element) -> Path:
    """The image of an XML file: the one called like it, whatever its ending; else the one that <filename> names."""
    source, images = f"{folder / 'ImageSets' / 'Main'}: image list", folder / "JPEGImages"
    usual = path_inside(images, f"{name}.jpg", source)
    given = element_text(tree, "filename")
    named = images / PurePosixPath(given.replace("\\", "/")).name if given else usual
    if named.stem == usual.stem and os.path.isfile(usual.parent / named.name):
        return usual.parent / named.name
    if os.path.isfile(usual):
        return usual
    return picture_called(usual.parent, usual.stem) or (named if os.path.isfile(named) else usual)
