"""Finding and reading a dataset, in any of the layouts COCO 2017, Roboflow COCO, PASCAL VOC and dataset.toml."""

from __future__ import annotations

import os
from pathlib import Path

from directdet.common.errors import UserError
from directdet.data.formats.coco import coco_splits, read_coco, roboflow_splits
from directdet.data.formats.dataset_toml import read_toml, toml_splits
from directdet.data.formats.voc import find_voc, read_voc, voc_splits
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

_EXPECTED = (
    "expected annotations/instances_train2017.json (COCO), train/_annotations.coco.json (Roboflow), "
    "VOCdevkit/VOC2007 (PASCAL VOC), or a dataset.toml that names images and annotations"
)


def find_splits(root: str | os.PathLike[str]) -> list[str]:
    """Names of the splits of the dataset at ``root``, in the order "train", "val", "test".

    Raises:
        UserError: no such folder, or none of the known layouts.
    """
    folder, layout = _find_layout(root)
    if layout == "toml":
        return toml_splits(folder)
    return _names(folder, layout)


def load_dataset(root: str | os.PathLike[str], split: str, *, leave_out: bool = False) -> Dataset:
    """Read the annotations of one split, without opening the images (unless their sizes are not given).

    ``root`` is the dataset's folder, or a .toml file. Boxes are clipped to their image, objects with nothing left are
    dropped, and each such case is listed in ``Dataset.problems``. With ``leave_out``, entries that cannot be read are
    left out and listed in ``Dataset.errors``.

    Raises:
        UserError: unknown layout or split, or unusable annotations; the message names the file and annotation.
    """
    dataset = _load(root, split)
    if dataset.errors and not leave_out:
        others = len(dataset.errors) - 1
        raise UserError(dataset.errors[0] + (f" (and {others} more: check-data lists them)" if others else ""))
    return dataset


def _load(root: str | os.PathLike[str], split: str) -> Dataset:
    folder, layout = _find_layout(root)
    splits = find_splits(root)
    if split not in splits:
        raise UserError(f"{root}: no split {split!r} here; found: {', '.join(splits) or 'none'}")
    if layout == "toml":
        return read_toml(folder, split)
    if layout == "voc":
        return read_voc(Path(root), split, folder)
    files = (coco_splits if layout == "coco" else roboflow_splits)(folder)
    others = [annotations for name, (annotations, _) in files.items() if name != split]
    return read_coco(folder, split, layout, *files[split], others)


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


def _find_layout(root: str | os.PathLike[str]) -> tuple[Path, str]:
    """(the folder or toml file to read from, name of the layout)."""
    folder = Path(root)
    if folder.suffix == ".toml" and folder.is_file():
        return folder, "toml"
    if not folder.is_dir():
        what = "is a file; give the dataset's folder" if folder.exists() else "dataset folder not found"
        raise UserError(f"{folder}: {what}")
    if (folder / "dataset.toml").is_file():
        return folder / "dataset.toml", "toml"
    if coco_splits(folder):
        return folder, "coco"
    if roboflow_splits(folder):
        return folder, "roboflow"
    voc = find_voc(folder)
    if voc is not None:
        return voc, "voc"
    raise UserError(f"{folder}: no known dataset layout here; {_EXPECTED}")


def _names(folder: Path, layout: str) -> list[str]:
    if layout == "voc":
        return list(voc_splits(folder).names)
    return list((coco_splits if layout == "coco" else roboflow_splits)(folder))
