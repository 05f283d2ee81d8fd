"""Images for the report: ground truth next to detections."""

from __future__ import annotations

import cv2
import numpy as np

from directdet.data.masks import rasterise, to_shape
from directdet.data.records import Dataset, Record, detector_image
from directdet.infer.accuracy.evaluate import match_classes
from directdet.infer.detections import Detections
from directdet.infer.draw import draw
from directdet.infer.predictor import Predictor
from directdet.pages.page import Picture

_LONG_EDGE = 440  # pixels; smaller images are enlarged before drawing, so that names stay readable


def make_gallery(detector: Predictor, dataset: Dataset, count: int, score: float) -> list[Picture]:
    """Ground truth and detections of at least `score` on the first `count` images.

    Raises:
        UserError: the detector and the dataset have different classes.
    """
    order = match_classes(detector, dataset)
    pictures = []
    for record in dataset.records[:count]:
        image = detector_image(record)
        found = detector(image).above(score).relabelled(order, dataset.classes, dataset.category_ids)
        image = record.pixels.drawable(image)
        factor = max(1, round(_LONG_EDGE / max(record.height, record.width)))
        large = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        truth = draw(large, _enlarge(_ground_truth(record), factor), dataset.classes, scores=False)
        drawn = draw(large, _enlarge(found, factor), dataset.classes)
        pictures.append(Picture(record.path.name, _jpeg(truth), _jpeg(drawn)))
    return pictures


def _ground_truth(record: Record) -> Detections:
    """The record's objects as detections, without crowd regions; with masks if every object has one."""
    used = np.flatnonzero(~record.crowd)
    cells = []
    for index in used:
        shape = to_shape(record.segmentations[index], record.height, record.width)
        if shape is not None:
            cells.append(rasterise(shape, record.boxes[index]))
    masks = None
    if len(cells) == len(used):
        masks = np.stack(cells).astype(np.float32) if cells else np.zeros((0, 56, 56), np.float32)
    scores = np.ones(len(used), np.float32)
    return Detections(record.boxes[used], scores, record.labels[used], masks, (record.height, record.width))


def _enlarge(found: Detections, factor: int) -> Detections:
    height, width = found.image_size
    mask_boxes = None if found.mask_boxes is None else found.mask_boxes * factor
    size = (height * factor, width * factor)
    return Detections(found.boxes * factor, found.scores, found.labels, found.masks, size, mask_boxes)


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 86])[1].tobytes()
