"""Writing YOLO labels and data.yaml."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from directdet.common.files import write_text_atomic
from directdet.data.records import Dataset, Record

_DECIMALS = 10  # of shares: a millionth of a pixel in the largest pictures


def write_yolo(
    root: Path, splits: Mapping[str, Dataset], names: Mapping[str, list[str]]
) -> tuple[dict[str, str], Counter[str]]:
    """images/train, labels/train and so on; each picture has a label file, which is empty where it has no objects.

    An object with one polygon becomes that polygon, if it spans the box to within a pixel, and otherwise the box.
    """
    lost: Counter[str] = Counter()
    for split, dataset in splits.items():
        for record, name in zip(dataset.records, names[split], strict=True):
            lines = [line for index in range(len(record.boxes)) if (line := _line(record, index, lost))]
            write_text_atomic(root / "labels" / split / f"{Path(name).stem}.txt", "".join(lines))
        lost["category ids, which become 0, 1, ..."] = sum(
            number != label for label, number in enumerate(dataset.category_ids)
        )
    first = next(iter(splits.values()))
    content = {"path": ".", **{split: f"images/{split}" for split in splits}, "names": dict(enumerate(first.classes))}
    write_text_atomic(root / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return {split: f"images/{split}" for split in splits}, lost


def _line(record: Record, index: int, lost: Counter[str]) -> str:
    if record.crowd[index]:
        lost["crowd regions, which are left out"] += 1
        return ""
    lost["marks of difficult objects"] += int(record.difficult[index])
    lost["scores of objects, which count fully"] += bool(record.weights[index] != 1)
    size = np.array([record.width, record.height], np.float64)
    box = record.boxes[index].astype(np.float64)
    mask = record.segmentations[index]
    values = np.concatenate([(box[:2] + box[2:]) / 2 / size, (box[2:] - box[:2]) / size])
    if isinstance(mask, list) and len(mask) == 1:
        points = mask[0].reshape(-1, 2)
        spanned = np.clip(np.concatenate([points.min(axis=0), points.max(axis=0)]), 0, np.tile(size, 2))
        apart = float(np.abs(spanned - box).max())
        if apart <= 1:
            values = (points / size).reshape(-1)
            lost["boxes that differ by up to a pixel from their polygon, which stands for both"] += apart > 1e-4
        else:
            lost["masks of objects whose box is another than their polygon's"] += 1
    elif mask is not None:
        lost["masks of several polygons or run lengths: their boxes are kept"] += 1
    return " ".join([str(int(record.labels[index])), *(_text(value) for value in values.tolist())]) + "\n"


def _text(value: float) -> str:
    return f"{value:.{_DECIMALS}f}".rstrip("0").rstrip(".")
