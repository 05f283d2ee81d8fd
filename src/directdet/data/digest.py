"""A short description of a dataset's content, by which the same data is known again under any path."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from directdet.data.records import Dataset, Segmentation

# What is described, and what to call it where two datasets differ; the earlier explains the later.
PARTS = {
    "images": "number of images",
    "names": "file names of images",
    "sizes": "sizes of images",
    "objects": "number of objects",
    "boxes": "boxes, classes, flags or scores of objects",
    "masks": "masks of objects",
}


def describe_content(dataset: Dataset) -> dict[str, int | str]:
    """Counts and digests of a split, by the names of `PARTS`.

    Names are those of the image files alone, not of their folders, which may be moved; the files are not opened. It
    takes some seconds on all of COCO.
    """
    digests = {name: hashlib.blake2b(digest_size=16) for name in ("names", "sizes", "boxes", "masks")}
    objects = 0
    for record in dataset.records:
        objects += len(record.boxes)
        digests["names"].update(f"{record.image_id} {record.path.name}\n".encode("utf-8", "surrogatepass"))
        digests["sizes"].update(f"{record.width} {record.height}\n".encode())
        parts = (record.boxes.astype(np.float32), record.labels, record.crowd, record.difficult)
        if (record.weights != 1).any():  # left out elsewhere: older descriptions have none
            parts = (*parts, record.weights)
        digests["boxes"].update(b"%d " % len(record.boxes) + b"".join(part.tobytes() for part in parts))
        digests["masks"].update(b"\n".join(map(_mask_bytes, record.segmentations)))
    found: dict[str, int | str] = {name: digest.hexdigest() for name, digest in digests.items()}
    return {"images": len(dataset), "objects": objects, **found}


def _mask_bytes(segmentation: Segmentation) -> bytes:
    if segmentation is None:
        return b"none"
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return counts if isinstance(counts, bytes) else json.dumps(counts).encode()
    return b" ".join(b"%d " % len(polygon) + polygon.tobytes() for polygon in segmentation)


def difference(before: dict[str, int | str], now: dict[str, int | str]) -> str:
    """What differs first between two descriptions, in words; nothing if they are the same."""
    for part, what in PARTS.items():
        if before.get(part) != now.get(part):
            values = f" ({before.get(part)}, now {now.get(part)})" if part in ("images", "objects") else ""
            return what + values
    return ""
