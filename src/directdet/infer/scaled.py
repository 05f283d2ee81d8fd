"""Multi-scale testing: each picture detected at several sizes, and mirrored, and what is found put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from directdet.common.errors import UsageProblem
from directdet.infer.detections import Detections
from directdet.infer.merge import joined, merged, nms_of
from directdet.infer.pictures import PictureLike, to_array
from directdet.infer.predictor import Predictor
from directdet.infer.tiled import in_tiles

SCALES = (0.25, 4.0)  # the smallest and the largest


class ScaledDetector(Predictor):
    """A detector that looks at every picture at several scales: `ScaledDetector(Detector("RUN"), (0.8, 1, 1.2))`.

    Of boxes of a class that overlap by more than the model's own NMS allows, the one of the highest score is kept, with
    its mask. It takes as long as all its looks together.

    Args:
        detector: finds the objects; a checkpoint, unless 1 is the only scale, since an exported model has one size.
        scales: of the pictures on its canvas, relative to the size that it is made for.
        flip: at each scale, look at the mirrored picture as well.

    Raises:
        UsageProblem: no scale, one twice or out of range.
        UserError: the detector takes no such size.
    """

    def __init__(self, detector: Predictor, scales: Sequence[float] = (1.0,), flip: bool = False) -> None:
        of = detector
        super().__init__(of.backend, of.preprocess, of.classes, of.category_ids, of.source, of.meta)
        low, high = SCALES
        if not scales or len(set(scales)) != len(scales) or not all(low <= scale <= high for scale in scales):
            given = ", ".join(f"{scale:g}" for scale in scales)
            raise UsageProblem(f"scales: {given or 'none'}; give different ones from {low:g} to {high:g}")
        self.scales, self.flip = tuple(scales), flip
        self._detectors = [detector.at_scale(scale) for scale in scales]

    def __call__(self, image: PictureLike) -> Detections:
        """The objects of a picture in any form that a `Detector` takes (arrays as OpenCV reads them)."""
        image = to_array(image, self.preprocess, "bgr")
        looks = [detector(image) for detector in self._detectors]
        if self.flip:
            mirrored = np.ascontiguousarray(image[:, ::-1])
            looks += [hflip(detector(mirrored)) for detector in self._detectors]
        found = joined(looks)
        return merged(found, np.zeros((len(found), 2), bool), nms_of(self.meta))

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detections of each image, in order."""
        return [self(image) for image in images]

    def describe(self) -> dict[str, Any]:
        """Plain values for reports, with the scales, and whether mirrored pictures are looked at."""
        return {**super().describe(), "scales": list(self.scales), "flip": self.flip}


def hflip(found: Detections) -> Detections:
    """The detections of a mirrored picture, in pixels of the picture itself."""

    def turned(boxes: np.ndarray) -> np.ndarray:
        left, top, right, bottom = boxes.T
        width = found.image_size[1]
        return np.stack([width - right, top, width - left, bottom], axis=1)

    masks = {}
    if found.masks is not None and found.mask_boxes is not None:
        masks = {"masks": found.masks[:, :, ::-1], "mask_boxes": turned(found.mask_boxes)}
    return replace(found, boxes=turned(found.boxes), **masks)


def with_looks(
    detector: Predictor, tiles: int | None, overlap: float | None, scales: Sequence[float] | None, flip: bool
) -> Predictor:
    """A `TiledDetector`, a `ScaledDetector` or, where neither is asked for, the detector; UsageProblem for both."""
    if scales is None and not flip:
        return in_tiles(detector, tiles, overlap)
    if tiles is not None or overlap is not None:
        raise UsageProblem("tiles: are of one scale; leave out scales and flip")
    return ScaledDetector(detector, (1.0,) if scales is None else scales, flip)
