"""Splits whose pictures nobody but their owners has annotations of: COCO's test sets, VOC's test lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from directdet.common.errors import UserError
from directdet.data.formats.coco import read_coco_pictures
from directdet.data.formats.folders import picture_called
from directdet.data.formats.values import path_inside
from directdet.data.formats.voc import VOC_CLASSES, find_voc, list_file, read_names, read_voc, voc_splits
from directdet.data.image import read_size
from directdet.data.records import Dataset, Record, make_record


def read_coco_test(root: Path, split: str) -> Dataset | None:
    """The pictures of ROOT/annotations/image_info_SPLIT2017.json, in test2017; None without this file.

    "test-dev" and "test" are COCO's; the ids are those of the file.

    Raises:
        UserError: it cannot be read.
    """
    file = root / "annotations" / f"image_info_{split}2017.json"
    if not file.is_file():
        return None
    name = f"{split.partition('-')[0]}2017"  # test-dev is a part of test
    images = root / name
    other = root / "images" / name
    return read_coco_pictures(root, split, file, other if other.is_dir() and not images.is_dir() else images)


@dataclass(frozen=True)
class VOCList:
    """The pictures of one of VOC's lists, without any annotations.

    Attributes:
        year: the folder's name, such as VOC2007.
        dataset: records without objects.
        names: of the pictures in VOC's files, by image id.
    """

    year: str
    dataset: Dataset
    names: Mapping[int, str]


def read_voc_list(root: Path, split: str) -> VOCList:
    """The pictures of ImageSets/Main/SPLIT.txt, numbered in its order.

    The classes are those of the annotated splits, VOC's 20 if there are none.

    Raises:
        UserError: no VOC folder here, no such list, or a picture of it is missing or cannot be read.
    """
    folder = find_voc(root)
    if folder is None:
        raise UserError(f"{root}: no VOC folder here, with ImageSets/Main and Annotations")
    file = path_inside(folder / "ImageSets" / "Main", f"{split}.txt", "--split")
    if not file.is_file():
        raise UserError(f"{folder}: no list {split}.txt in ImageSets/Main; give the name of one with --split")
    names = dict(enumerate(read_names(file), 1))
    annotated = next((key for key, images in _annotated(folder).items() if images), None)
    classes = VOC_CLASSES if annotated is None else read_voc(root, annotated, folder).classes
    records = tuple(_record(folder, number, name) for number, name in names.items())
    category_ids = tuple(range(1, len(classes) + 1))
    return VOCList(folder.name, Dataset(root, split, "voc", classes, category_ids, records), names)


def _annotated(folder: Path) -> dict[str, list[str]]:
    """The splits that have annotations; none where only a test list is there."""
    others = [name for name in ("trainval", "train", "val", "test") if list_file(folder, name).is_file()]
    return voc_splits(folder).names if others else {}


def _record(folder: Path, number: int, name: str) -> Record:
    source, images = f"{folder / 'ImageSets' / 'Main'}: image list", folder / "JPEGImages"
    path = path_inside(images, f"{name}.jpg", source)
    if not path.is_file():
        path = picture_called(path.parent, path.stem) or path
    width, height = read_size(path)
    return make_record(number, path, width, height, ())
