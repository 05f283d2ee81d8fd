"""A small synthetic instance-segmentation dataset: bright shapes on dull textures, in the COCO 2017 layout."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from directdet.common.files import write_bytes_atomic, write_json_atomic
from directdet.data.pixels.made import sensor_file

CLASSES = ("disk", "square", "triangle", "star")
# Not contiguous, like COCO's own, so that mapping ids to labels matters.
CATEGORY_IDS = (1, 2, 4, 7)

_HUES = (0.0, 60.0, 110.0, 150.0)  # out of OpenCV's 180; each class has a typical hue, not a fixed one
_MAX_HIDDEN = 0.5  # share of a shape that others may cover
_FINE = 8  # sub-pixel precision of outlines, as a factor


@dataclass(frozen=True)
class _Scene:
    """An image being drawn: uint8 [H, W, 3] BGR, and for every shape its label and visible bool [H, W] mask."""

    image: np.ndarray
    labels: list[int]
    masks: list[np.ndarray]
    crowd: np.ndarray | None


def make_synthetic(
    root: str | os.PathLike[str],
    images_train: int = 48,
    images_val: int = 16,
    size: tuple[int, int] = (160, 200),
    seed: int = 0,
    sensor: str | None = None,
    shapes: tuple[int, int] = (2, 6),
    radius: tuple[float, float] = (0.09, 0.26),
) -> Path:
    """Write a dataset of ``images_train`` + ``images_val`` images into ``root``; returns ``root``.

    Width and height of each image are drawn from ``size`` (smallest, largest). Shapes overlap; boxes, masks (polygons)
    and areas are those of the visible parts. In each split of two or more images the last has no objects, and the first
    has a crowd region, given as run lengths. The same arguments give the same bytes.

    ``sensor``: one of pixels.made.SENSORS; the shapes are then in what no 8-bit RGB picture shows, and there is no
    dataset.toml yet that says so. None: ordinary colour pictures.
    ``shapes`` (fewest, most) of an image that has any; ``radius`` (smallest, largest) of the circle around a shape, as
    a share of the image's shorter side.

    Raises ValueError for sizes under 64 pixels, and UserError if ``root`` cannot be written.
    """
    if not 64 <= size[0] <= size[1]:
        raise ValueError(f"size = {size}: must be (smallest, largest), at least 64 pixels")
    root = Path(root)
    for number, (split, count) in enumerate((("train", images_train), ("val", images_val))):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            rng = np.random.default_rng([seed, number, index])
            width, height = (int(side) for side in rng.integers(size[0], size[1] + 1, 2))
            first, last = index == 0 and count > 1, index == count - 1 and count > 1
            drawn = 0 if last else int(rng.integers(shapes[0], shapes[1] + 1))
            scene = _draw_scene(rng, height, width, drawn, radius, crowd=first)
            image_id = (number + 1) * 100000 + index + 1
            ending, encoded = ".jpg", b""
            if sensor is None:
                encoded = cv2.imencode(ending, scene.image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
            else:
                masks = [*scene.masks, *([] if scene.crowd is None else [scene.crowd])]
                ending, encoded = sensor_file(sensor, (height, width), masks, rng)
            file_name = f"{image_id:012d}{ending}"
            write_bytes_atomic(root / f"{split}2017" / file_name, encoded)
            images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
            for entry in _annotate(scene):
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **entry})
        pairs = zip(CATEGORY_IDS, CLASSES, strict=True)
        categories = [{"id": category, "name": name, "supercategory": "shape"} for category, name in pairs]
        content = {
            "info": {"description": f"directdet synthetic shapes, seed {seed}"},
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        # After the images: an interrupted dataset must not look complete.
        write_json_atomic(root / "annotations" / f"instances_{split}2017.json", content, indent=None)
    return root


def _draw_scene(
    rng: np.random.Generator, height: int, width: int, shapes: int, radii: tuple[float, float], crowd: bool
) -> _Scene:
    scene = _Scene(_background(rng, height, width), [], [], np.zeros((height, width), bool) if crowd else None)
    if scene.crowd is not None:
        _draw_crowd(scene, rng)
    drawn = [0] * shapes  # full areas, to limit how much of each becomes hidden
    for _ in range(shapes * 10):
        if len(scene.labels) == shapes:
            break
        label = int(rng.integers(len(CLASSES)))
        radius = float(rng.uniform(*radii) * min(height, width))
        centre = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
        angle = float(rng.uniform(0, 2 * math.pi))
        mask = _fill(_outline(label, centre, radius, angle), height, width)
        whole = math.pi * radius**2 * (1.0, 0.64, 0.41, 0.46)[label]
        if mask.sum() < 0.6 * whole or (scene.crowd is not None and (mask & scene.crowd).any()):
            continue  # mostly outside the image, or on the crowd
        rest = [old & ~mask for old in scene.masks]
        if any(new.sum() < (1 - _MAX_HIDDEN) * full for new, full in zip(rest, drawn, strict=False)):
            continue
        if any(_has_hole(new) for new in rest):
            continue  # polygons have no holes
        scene.masks[:] = rest
        drawn[len(scene.labels)] = int(mask.sum())
        scene.masks.append(mask)
        scene.labels.append(label)
        _paint(scene.image, mask, label, rng)
    return scene


def _draw_crowd(scene: _Scene, rng: np.random.Generator) -> None:
    """A grid of small disks in the top left corner."""
    assert scene.crowd is not None
    height, width = scene.crowd.shape
    for row in range(3):
        for column in range(4):
            radius = 0.035 * min(height, width)
            centre = ((column + 1.2) * 1.8 * radius + rng.normal(), (row + 1.2) * 1.8 * radius + rng.normal())
            mask = _fill(_outline(0, centre, radius, 0.0), height, width)
            _paint(scene.image, mask, 0, rng)
            scene.crowd[mask] = True


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Dull texture: two colours mixed by coarse noise, stripes, and fine noise; uint8 [H, W, 3]."""
    coarse = cv2.resize(rng.random((6, 6)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    turn, wave = rng.uniform(0, math.pi), rng.uniform(6, 30)
    stripes = np.sin((x * math.cos(turn) + y * math.sin(turn)) * (2 * math.pi / wave)) * rng.uniform(0, 0.25)
    mixed = np.clip(coarse + stripes, 0, 1)[..., None]
    grey = rng.uniform(60, 170, 2)
    first, second = (level + rng.uniform(-18, 18, 3) for level in grey)
    fine = rng.normal(0, 5, (height, width, 1))
    return np.clip(first * mixed + second * (1 - mixed) + fine, 0, 255).astype(np.uint8)


def _outline(label: int, centre: tuple[float, float], radius: float, angle: float) -> np.ndarray:
    """Corner points float64 [P, 2] of a shape inscribed in a circle of ``radius``."""
    count = (40, 4, 3, 10)[label]
    angles = angle + np.arange(count) * (2 * math.pi / count)
    radii = np.full(count, radius)
    if CLASSES[label] == "star":
        radii[1::2] *= 0.5
    return np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], axis=1)


def _fill(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool [H, W]: pixels whose centre is inside, apart from OpenCV's rounding."""
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint((points - 0.5) * 16).astype(np.int32)], 1, shift=4)
    return mask.astype(bool)


def _paint(image: np.ndarray, mask: np.ndarray, label: int, rng: np.random.Generator) -> None:
    hue = int(_HUES[label] + rng.normal(0, 12)) % 180
    colour = np.array([[[hue, rng.integers(150, 256), rng.integers(170, 256)]]], np.uint8)
    bgr = cv2.cvtColor(colour, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float64)
    image[mask] = np.clip(bgr + rng.normal(0, 8, (int(mask.sum()), 1)), 0, 255).astype(np.uint8)


def _has_hole(mask: np.ndarray) -> bool:
    hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[1]
    return hierarchy is not None and bool((hierarchy[0][:, 3] >= 0).any())


def _annotate(scene: _Scene) -> list[dict[str, Any]]:
    """COCO entries, without ids, of the visible parts."""
    entries = []
    for label, mask in zip(scene.labels, scene.masks, strict=True):
        entries.append(_entry(label, mask, _polygons(mask), crowd=0))
    if scene.crowd is not None:
        entries.append(_entry(0, scene.crowd, _run_lengths(scene.crowd), crowd=1))
    return entries


def _entry(label: int, mask: np.ndarray, segmentation: Any, crowd: int) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return {
        "category_id": CATEGORY_IDS[label],
        "bbox": [left, top, right - left, bottom - top],
        "area": int(mask.sum()),
        "iscrowd": crowd,
        "segmentation": segmentation,
    }


def _polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines along the pixels' outer edges (OpenCV's contours run through pixel centres and lose half a pixel)."""
    fine = cv2.resize(mask.astype(np.uint8), None, fx=_FINE, fy=_FINE, interpolation=cv2.INTER_NEAREST)
    contours = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    polygons = []
    for contour in contours:
        points = (cv2.approxPolyDP(contour, 0.6 * _FINE, closed=True).reshape(-1, 2) + 0.5) / _FINE
        if len(points) < 3:  # a sliver, simplified to a line: take all its points
            points = (contour.reshape(-1, 2) + 0.5) / _FINE
        polygons.append(np.round(points, 2).ravel().tolist())
    return polygons


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed COCO run lengths: column by column, starting with zeros."""
    flat = mask.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], changes, [len(flat)]])
    counts = np.diff(edges).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}
