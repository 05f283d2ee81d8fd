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
from directdet.data.pixels.tiles import OVERLAP, Tile, check_tiles, tiles
from directdet.infer.detections import Detections
from directdet.infer.merge import joined, merged, nms_of
from directdet.infer.pictures import PictureLike, to_array
from directdet.infer.predictor import Predictor

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
        return merged(joined(found), np.concatenate(cut), nms_of(self.meta), slack)

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


def in_tiles(detector: Predictor, side: int | None, overlap: float | None) -> Predictor:
    """A `TiledDetector`, or the detector itself without a `side`; UsageProblem for an overlap of no tiles."""
    if side is None and overlap is not None:
        raise UsageProblem("overlap: is that of tiles; give tiles, too")
    return detector if side is None else TiledDetector(detector, side, OVERLAP if overlap is None else overlap)
