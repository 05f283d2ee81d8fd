"""Pictures larger than the canvas: detected in overlapping tiles and once as a whole, and put together.

Scaled to the canvas, a large picture loses its small objects. Its tiles keep them. An object that an inner edge of a
tile cuts is whole in the next tile, if it is some pixels smaller than the overlap, and else in the whole picture, which
is detected, too; so what is cut counts only where nothing covers it (`merged`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from directdet.common.errors import UsageProblem
from directdet.data.formats.values import is_number
from directdet.data.pixels.tiles import OVERLAP, Tile, check_tiles, tiles
from directdet.infer.detections import Detections
from directdet.infer.pictures import PictureLike, to_array
from directdet.infer.predictor import Predictor

COVERED = 0.5  # the share of a cut box that another has to cover to stand for it
NMS = 0.5  # the IoU of boxes of one object in two tiles, where the model has no threshold of its own
EDGE = 2.0  # pixels of the canvas within which a box touches the edge of its tile


class TiledDetector(Predictor):
    """A detector that looks at large pictures in tiles: `TiledDetector(Detector("ARTEFACT"), 640)("survey.tif")`.

    Pictures of at most `side` pixels on either side are detected as they are. Besides the picture itself, memory holds
    one batch of tiles.

    Args:
        detector: finds the objects of each tile, scaled to its canvas as any picture is.
        side: of a tile, in pixels of the picture; None: the shorter side of the canvas, so that nothing is scaled.
        overlap: at least this share of `side` is common to neighbours: larger objects are cut in every tile, and taken
            from the whole picture.

    Raises:
        UsageProblem: a number out of range.
    """

    def __init__(self, detector: Predictor, side: int | None = None, overlap: float = OVERLAP) -> None:
        of = detector
        super().__init__(of.backend, of.preprocess, of.classes, of.category_ids, of.source, of.meta)
        self.side = min(detector.preprocess.size) if side is None else side
        self.overlap = overlap
        check_tiles(self.side, overlap)

    def __call__(self, image: PictureLike) -> Detections:
        """The objects of a picture in any form that a `Detector` takes (arrays as OpenCV reads them), see `merged`."""
        image = to_array(image, self.preprocess, "bgr")
        whole = super().__call__(image)
        parts = tiles(image.shape[0], image.shape[1], self.side, self.overlap)
        if len(parts) == 1:
            return whole
        found, cut = [whole], [np.zeros((len(whole), 2), bool)]
        for tile, inside in self._each(image, parts):
            cut.append(_cut(inside, tile, self._edge(tile.height, tile.width)))
            found.append(_moved(inside, tile, whole.image_size))
        slack = self._edge(image.shape[0], image.shape[1])
        return merged(_joined(found), np.concatenate(cut), _nms_of(self.meta), slack)

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detections of each image, in order."""
        return [self(image) for image in images]

    def describe(self) -> dict[str, Any]:
        """Plain values for reports, with the side and the overlap of the tiles."""
        return {**super().describe(), "tiles": self.side, "overlap": self.overlap}

    def _each(self, image: np.ndarray, parts: Sequence[Tile]) -> Iterator[tuple[Tile, Detections]]:
        size = self.backend.input.batch or self.backend.input.max_batch or 1
        for start in range(0, len(parts), size):
            group = parts[start : start + size]
            crops = [np.ascontiguousarray(image[t.y : t.y + t.height, t.x : t.x + t.width]) for t in group]
            yield from zip(group, super().detect_batch(crops), strict=True)

    def _edge(self, height: int, width: int) -> float:
        """`EDGE` in pixels of a picture of this size."""
        placement = self.preprocess.place(height, width)
        return EDGE / min(placement.scale_x, placement.scale_y)


def merged(found: Detections, cut: np.ndarray, nms: float, slack: float = 0.0) -> Detections:
    """One detection an object, of those of all tiles in pixels of the picture; the highest scores first.

    Whole boxes suppress each other as in NMS, by score. A cut box gives way to a box of its class that covers most of
    it, the largest of the cut ones last; that box then has the higher of both scores, since the tile saw more than the
    whole picture shows.

    Args:
        cut: bool [K, 2], boxes that end at an inner edge of their tile: at its left or right, at its top or bottom.
        nms: the IoU above which the lower of two whole boxes is left out.
        slack: what covers a cut box counts as larger by so many pixels on both sides across which the box is cut: the
            whole picture is coarse, and without it a strip that a tile cuts off a large object would stay.
    """
    boxes, labels = found.boxes.astype(np.float64), found.labels
    scores = found.scores.astype(np.float64).copy()
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    is_cut = np.asarray(cut.any(axis=1))
    order = np.lexsort((np.where(is_cut, -areas, -scores), is_cut))
    more = np.concatenate([-slack * cut, slack * cut], axis=1)
    kept: list[int] = []
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        # What is kept of this class, in front; large pictures have tens of thousands of boxes.
        taken, there, count = np.empty_like(rows), np.empty((len(rows), 4), order="F"), 0
        for row in rows.tolist():
            others = there[:count]
            common = _common(boxes[row], others)
            if not is_cut[row]:
                covered = common > nms * (areas[row] + areas[taken[:count]] - common)
            else:
                covered = _common(boxes[row], others + more[row]) >= COVERED * areas[row]
                if covered.any():  # by the slack, also by what only stands beside it
                    best = taken[np.argmax(np.where(covered, common, -1.0))]
                    scores[best] = max(scores[best], scores[row])
            if not covered.any():
                taken[count], there[count] = row, boxes[row]
                count += 1
        kept += taken[:count].tolist()
    best_first = np.array(sorted(kept, key=lambda row: -scores[row]), np.int64)
    return replace(found[best_first.tolist()], scores=scores[best_first].astype(np.float32))


def _common(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The areas that a box [4] has in common with others [K, 4]."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return np.maximum(width, 0) * np.maximum(height, 0)


def _nms_of(meta: dict[str, Any]) -> float:
    """The model's own threshold, as an artefact ("thresholds") or a checkpoint has it; else `NMS`."""
    for part in (meta.get("thresholds"), meta.get("model_config")):
        value = part.get("nms") if isinstance(part, dict) else None
        if is_number(value) and 0 <= value <= 1:
            return float(value)
    return NMS


def _cut(found: Detections, tile: Tile, edge: float) -> np.ndarray:
    """Which boxes, in pixels of the tile, end at its inner edges: at the left or right, top or bottom, bool [K, 2]."""
    limits = np.array([0, 0, tile.width, tile.height], np.float32)
    sides = (np.abs(found.boxes - limits) <= edge) & np.array(tile.inner)
    return sides[:, :2] | sides[:, 2:]


def _moved(found: Detections, tile: Tile, image_size: tuple[int, int]) -> Detections:
    """The detections of a tile in pixels of the picture."""
    by = np.array([tile.x, tile.y, tile.x, tile.y], np.float32)
    masks = None if found.mask_boxes is None else found.mask_boxes + by
    return replace(found, boxes=found.boxes + by, mask_boxes=masks, image_size=image_size)


def _joined(found: Sequence[Detections]) -> Detections:
    """The detections of all, one after the other."""

    def all_of(name: str) -> np.ndarray:
        return np.concatenate([getattr(one, name) for one in found])

    with_masks = {"masks": all_of("masks"), "mask_boxes": all_of("mask_boxes")} if found[0].masks is not None else {}
    return replace(found[0], boxes=all_of("boxes"), scores=all_of("scores"), labels=all_of("labels"), **with_masks)


def in_tiles(detector: Predictor, side: int | None, overlap: float | None) -> Predictor:
    """A `TiledDetector`, or the detector itself without a `side`; UsageProblem for an overlap of no tiles."""
    if side is None and overlap is not None:
        raise UsageProblem("overlap: is that of tiles; give tiles, too")
    return detector if side is None else TiledDetector(detector, side, OVERLAP if overlap is None else overlap)
