"""Writing COCO annotations, in COCO 2017's folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from directdet.common.files import write_json_atomic
from directdet.data.records import Dataset, Record, Segmentation


def write_coco(
    root: Path, splits: Mapping[str, Dataset], names: Mapping[str, list[str]]
) -> tuple[dict[str, str], Counter[str]]:
    """annotations/instances_train2017.json and so on; COCO holds all that a dataset has.

    Ids of annotations that several objects of a split have, as those of joined sets may, are numbered anew.
    """
    lost: Counter[str] = Counter()
    for split, dataset in splits.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for record, name in zip(dataset.records, names[split], strict=True):
            image = {"id": record.image_id, "file_name": name, "width": record.width, "height": record.height}
            images.append(image)
            annotations += coco_objects(record, dataset.category_ids)
        if len({entry["id"] for entry in annotations}) < len(annotations):
            for number, entry in enumerate(annotations, 1):
                entry["id"] = number
            lost["ids of annotations, which become 1, 2, ... as joined sets share some"] += len(annotations)
        categories = [
            {"id": number, "name": name, "supercategory": ""}
            for number, name in zip(dataset.category_ids, dataset.classes, strict=True)
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json_atomic(root / "annotations" / f"instances_{split}2017.json", content, indent=None)
    return {split: f"{split}2017" for split in splits}, lost


def coco_objects(record: Record, category_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    """The entries of a record's objects."""
    found: list[dict[str, Any]] = []
    for index, box in enumerate(record.boxes.astype(float).tolist()):
        entry: dict[str, Any] = {
            "id": record.annotation_ids[index],
            "image_id": record.image_id,
            "category_id": category_ids[int(record.labels[index])],
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "area": float(record.areas[index]),
            "iscrowd": int(record.crowd[index]),
            "segmentation": _segmentation(record.segmentations[index]),
        }
        if record.difficult[index]:
            entry["difficult"] = 1
        if record.weights[index] != 1:
            entry["score"] = float(record.weights[index])
        found.append(entry)
    return found


def _segmentation(segmentation: Segmentation) -> Any:
    if segmentation is None:
        return []
    if isinstance(segmentation, list):
        return [polygon.tolist() for polygon in segmentation]
    counts = segmentation["counts"]
    return {"size": segmentation["size"], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
