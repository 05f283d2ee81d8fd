"""Fixtures of the infer tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_artefact import BOXES, CATEGORY_IDS, CLASSES, LABELS, write_artefact

from directdet.data.dataset import Dataset
from directdet.data.records import AnnotatedObject, make_record


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """Artefact of batch 1 with masks, input 96 x 128."""
    return write_artefact(tmp_path / "artefact")


@pytest.fixture
def edit_meta() -> Callable[..., None]:
    """Change fields of an artefact's meta.json; None removes one."""

    def edit(folder: Path, **changes: object) -> None:
        meta = json.loads((folder / "meta.json").read_text()) | changes
        (folder / "meta.json").write_text(json.dumps({key: value for key, value in meta.items() if value is not None}))

    return edit


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> Dataset:
    """Three images of 192 x 256 on which the tiny artefact is right: its boxes, doubled, are the ground truth."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(1, 4):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (192, 256, 3), dtype=np.uint8))
        objects = [
            AnnotatedObject(
                annotation_id=10 * number + row,
                label=int(LABELS[row]),
                box=[2 * float(value) for value in BOXES[row]],
                area=float(4 * np.prod(BOXES[row, 2:] - BOXES[row, :2])),
            )
            for row in range(2)
        ]
        records.append(make_record(number, path, 256, 192, objects))
    return Dataset(tmp_path, "val", "coco", CLASSES, CATEGORY_IDS, tuple(records))
