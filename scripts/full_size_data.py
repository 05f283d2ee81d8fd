"""Made data with COCO 2017's numbers of pictures, objects and classes, for scripts/full_size.py."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from annotations_size import write_annotations

PICTURES = {"train": 118_287, "val": 5_000}
WITH_OBJECTS = {"train": 117_266, "val": 4_952}
OBJECTS = {"train": 860_001, "val": 36_781}
# Sizes that are frequent in COCO, width x height.
SIZES = [(640, 480)] * 9 + [(480, 640)] * 4 + [(640, 427)] * 6 + [(427, 640)] * 2 + [(640, 426)] * 2 + [(500, 375)] * 3
SIZES += [(426, 640), (375, 500), (640, 360), (612, 612), (640, 425), (333, 500)]


def make(folder: Path, share: float) -> dict[str, float]:
    """The data in ``folder``, unless it is there; what of it is on the disk, in MB."""
    files = []
    for split in PICTURES:
        images, shown, objects = (max(8, int(share * count[split])) for count in (PICTURES, WITH_OBJECTS, OBJECTS))
        file = folder / "annotations" / f"instances_{split}2017.json"
        files.append(file)
        if file.is_file():
            continue
        place = folder / f"{split}2017"
        place.mkdir(parents=True, exist_ok=True)
        for number in range(images):
            name = place / f"{number + 1:012}.jpg"
            if not name.exists():
                os.link(_picture(folder, number % len(SIZES)), name)
        sizes = np.array(SIZES, np.int64)[np.arange(images) % len(SIZES)]
        rng = np.random.default_rng(1)
        # Every picture with objects has one; the others fall as unevenly as COCO's, the fullest of which has 93.
        weights = rng.exponential(size=shown)
        more = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(objects - shown)).clip(max=shown - 1)
        owners = rng.permutation(images)[:shown][np.concatenate([np.arange(shown), more])]
        write_annotations(file, images, objects, True, sizes, rng.permutation(owners))
    kinds = [file.stat().st_size for file in (folder / "pictures").iterdir()]
    return {"json_mb": sum(file.stat().st_size for file in files) / 1e6, "pictures_mb": sum(kinds) / 1e6}


def _picture(folder: Path, number: int) -> Path:
    """A JPEG of about 150 KB: coarse shapes and some noise."""
    file = folder / "pictures" / f"{number}.jpg"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        rng, (width, height) = np.random.default_rng(number), SIZES[number]
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        picture += rng.normal(0, 8, picture.shape)
        cv2.imwrite(str(file), picture.clip(0, 255).astype(np.uint8))
    return file
