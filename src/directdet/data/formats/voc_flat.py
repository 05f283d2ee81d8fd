"""VOC's XML files in any other folder: beside the pictures, in two folders, and in train, valid and test (Roboflow)."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from directdet.common.errors import UserError
from directdet.data.formats.folders import (
    Found,
    files_in,
    find_picture,
    picture_called,
    picture_folders,
    plain_path,
    split_folders,
    subfolders,
)
from directdet.data.formats.reading import IMAGE, Faults, read_file
from directdet.data.formats.voc_xml import ObjectReader, element_text, object_names, parse_xml
from directdet.data.records import Dataset, Record

_FOLDERS = ("Annotations", "annotations", "xml", "xmls", "labels")


def open_voc_flat(root: Path) -> Found | None:
    """The reading of a folder with VOC's XML files, or None. Sub-folders called like splits are splits."""
    if not root.is_dir():
        return None
    splits = {name: files for name, folder in split_folders(root).items() if (files := _xml_files(folder))}
    if not splits:
        files = _xml_files(root)
        splits = {"train": files} if files else {}
    if not splits:  # Annotations/train, Annotations/val
        for folder in subfolders(root):
            if folder.name in _FOLDERS:
                splits = {name: files for name, inner in split_folders(folder).items() if (files := _xml_files(inner))}
    if not splits:
        return None
    return Found("voc", "VOC's XML files", tuple(splits), lambda split: read_voc_flat(root, split, splits))


def _xml_files(folder: Path) -> list[Path]:
    """The XML files in a folder, or in one in it that is called like annotations, if the first is one of VOC's."""
    for place in (folder, *(folder / name for name in _FOLDERS)):
        files = files_in(place, ".xml")
        if files and re.search(rb"<annotation[\s>]", read_file(files[0], "annotation file")[:4096]):
            return files
    return []


def read_voc_flat(root: Path, split: str, splits: Mapping[str, list[Path]]) -> Dataset:
    """Read one split of XML files, with boxes as in VOC; the classes are the names in all splits, sorted.

    Pictures without an XML file are not used: whether they hold objects is not known.
    """
    faults = Faults()
    trees: dict[Path, ElementTree.Element] = {}
    for name, files in splits.items():
        for file in files:
            try:
                trees[file] = parse_xml(file)
            except UserError as error:  # of other splits when they are read
                if name == split:
                    faults.add(IMAGE, error)
    classes = tuple(sorted(object_names(trees.values())))
    if not classes:
        raise UserError(f"{root}: no object in any XML file: a detector needs at least one class")
    reader = ObjectReader({name: label for label, name in enumerate(classes)}, faults)
    records: list[Record] = []
    for image_id, file in enumerate(splits[split], 1):
        if file in trees:
            try:
                path = _picture(root, file, element_text(trees[file], "filename"))
                records.append(reader.record(image_id, path, file, trees[file]))
            except UserError as error:
                faults.add(IMAGE, error)
    ids = tuple(range(1, len(classes) + 1))
    notes = _unused(split, records)
    return Dataset(root, split, "voc", classes, ids, tuple(records), tuple(faults.problems), notes, faults.errors())


def _picture(root: Path, file: Path, given: str) -> Path:
    """The picture of an XML file: the one that it names, else the one called like the file itself."""
    tops = [top for top in file.parents[1:3] if top == root or root in top.parents]
    names = [name for top in tops for name in (top / "images", top / "JPEGImages")]
    places = picture_folders(root, file.parent, *(name / file.parent.name for name in names), *names, *tops)
    own = next((found for place in places if (found := picture_called(place, file.stem))), None)
    if own is not None and plain_path(given).stem != file.stem:
        return own  # files are renamed more often than what they say
    try:
        return find_picture(root, places, given or f"{file.stem}.jpg", f"{file}: filename")
    except UserError:
        if own is None:
            raise
        return own


def _unused(split: str, records: list[Record]) -> tuple[str, ...]:
    """A note about pictures that lie beside the others and have no annotation."""
    used = {record.path for record in records}
    beside = [path for folder in {path.parent for path in used} for path in files_in(folder, ".jpg", ".jpeg", ".png")]
    unused = sorted(set(beside) - used)
    if not unused:
        return ()
    return (f"{split}: {len(unused)} pictures have no XML file and are not used (the first: {unused[0]})",)
