"""Finding and reading a dataset, in any of the layouts that are recognised, or as a dataset.toml says."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from directdet.common.errors import UserError
from directdet.common.urls import shown, url_of
from directdet.data.formats.described.dataset_toml import read_toml, toml_splits
from directdet.data.formats.folders import Found
from directdet.data.formats.packed.shards import CLASSES, open_shards
from directdet.data.formats.recognise import recognise
from directdet.data.records import Dataset, Problem, Record, Segmentation, read_record_image

__all__ = [
    "Dataset",
    "Problem",
    "Record",
    "Segmentation",
    "check_same_classes",
    "find_splits",
    "load_dataset",
    "read_record_image",
]

_DESCRIPTIONS = (".json", ".yaml", ".yml", ".xml")  # files that may be given instead of their folder


def find_splits(root: str | os.PathLike[str]) -> list[str]:
    """Names of the splits of the dataset at ``root``, in the order "train", "val", "test".

    Raises:
        UserError: no such folder, or none of the known layouts.
    """
    return list(find_dataset(root).splits)


def load_dataset(root: str | os.PathLike[str], split: str, *, leave_out: bool = False) -> Dataset:
    """Read the annotations of one split, without opening the images (unless their sizes are not given).

    ``root`` is the dataset's folder, a .toml file, or the address of shards (s3://..., https://...). Boxes are clipped
    to their image, objects with nothing left are dropped, and each such case is listed in ``Dataset.problems``. With
    ``leave_out``, entries that cannot be read are left out and listed in ``Dataset.errors``.

    Raises:
        UserError: unknown layout or split, or unusable annotations; the message names the file and annotation.
    """
    dataset = _load(root, split)
    if dataset.errors and not leave_out:
        others = len(dataset.errors) - 1
        raise UserError(dataset.errors[0] + (f" (and {others} more: check-data lists them)" if others else ""))
    return dataset


def _load(root: str | os.PathLike[str], split: str) -> Dataset:
    found = find_dataset(root)
    if split not in found.splits:
        raise UserError(f"{shown(root)}: no split {split!r} here; found: {', '.join(found.splits) or 'none'}")
    dataset = found.read(split)
    if found.layout == "toml" or found.splits != ("train",):
        return dataset
    note = (
        f"{root}: one set without splits, so all of it is train; to hold out a part, write dataset.toml there with "
        f'format = "{"coco" if found.layout == "roboflow" else found.layout}" and val_fraction = 0.2'
    )
    return replace(dataset, notes=(*dataset.notes, note))


def check_same_classes(first: Dataset, second: Dataset) -> None:
    """UserError if two splits map labels to different classes: results of one would be wrong on the other."""
    if (first.classes, first.category_ids) == (second.classes, second.category_ids):
        return
    pairs = zip(
        zip(first.category_ids, first.classes, strict=True),
        zip(second.category_ids, second.classes, strict=True),
        strict=False,
    )
    differing = next((pair for pair in pairs if pair[0] != pair[1]), None)
    if differing is None:
        what = f"{len(first.classes)} and {len(second.classes)} categories"
    else:
        (first_id, first_name), (second_id, second_name) = differing
        what = f"id {first_id} {first_name!r} and id {second_id} {second_name!r}"
    raise UserError(
        f"{first.root}: categories of {first.split!r} and {second.split!r} differ ({what}); "
        "give both annotation files the same categories"
    )


def find_dataset(root: str | os.PathLike[str]) -> Found:
    """The reading of a folder, or of a file that describes one; UserError if there is none."""
    folder = Path(root)
    if url_of(folder) is not None:
        found = open_shards(folder)
        if found is None:
            raise UserError(
                f"{shown(folder)}: no {CLASSES} there: of an address, only shards are read; see docs/data.md"
            )
        return found
    if not folder.exists():
        raise UserError(f"{folder}: dataset folder not found")
    described = folder if folder.is_file() else folder / "dataset.toml"
    if described.suffix == ".toml" and described.is_file():
        splits = tuple(toml_splits(described, find_dataset))
        return Found("toml", str(described), splits, lambda split: read_toml(described, split, find_dataset))
    if folder.is_file() and folder.suffix.lower() not in _DESCRIPTIONS:
        raise UserError(f"{folder}: is a file; give the dataset's folder")
    return recognise(folder)
