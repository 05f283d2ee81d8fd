"""COCO's average precision, computed by pycocotools from detections and ground truth in memory."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from directdet.data.dataset import Dataset, Record
from directdet.data.masks import coco_mask
from directdet.infer.detections import Detections


def coco_ground_truth(dataset: Dataset, records: Iterable[Record] | None = None) -> COCO:
    """The dataset as a pycocotools `COCO`, created in memory.

    Objects marked difficult have "difficult": 1, which `_Evaluation` makes pycocotools ignore. Objects without a mask
    have their box as polygon, and "no_mask": 1.
    """
    records = dataset.records if records is None else tuple(records)
    annotations = [_annotation(record, index, dataset) for record in records for index in range(len(record.boxes))]
    for number, annotation in enumerate(annotations, start=1):  # pycocotools uses id 0 for "not matched"
        annotation["id"] = number
    return _coco(dataset, records, annotations)


def _annotation(record: Record, index: int, dataset: Dataset) -> dict[str, Any]:
    """One object as a COCO annotation."""
    x0, y0, x1, y1 = (float(value) for value in record.boxes[index])
    shape = record.segmentations[index]
    if shape is None:
        segmentation: Any = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    elif isinstance(shape, dict):
        segmentation = shape
    else:
        segmentation = [np.asarray(polygon, np.float64).tolist() for polygon in shape]
    return {
        "image_id": record.image_id,
        "category_id": dataset.category_ids[int(record.labels[index])],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": float(record.areas[index]),
        "segmentation": segmentation,
        "iscrowd": int(record.crowd[index]),
        "difficult": int(record.difficult[index]),
        "no_mask": int(shape is None),
    }


def _coco(dataset: Dataset, records: Iterable[Record], annotations: list[dict[str, Any]]) -> COCO:
    """An indexed `COCO` with the dataset's images and categories."""
    coco = COCO()
    pairs = zip(dataset.category_ids, dataset.classes, strict=True)
    dataset_dict = {
        "info": {},
        "images": [{"id": record.image_id, "width": record.width, "height": record.height} for record in records],
        "categories": [{"id": number, "name": name} for number, name in pairs],
        "annotations": annotations,
    }
    coco.dataset = cast("Any", dataset_dict)  # the stubs ask for fields that pycocotools does not read
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


class _Evaluation(COCOeval):
    """COCOeval that ignores difficult objects and, for masks, objects without one, but does not treat them as crowds.

    `_prepare` and `_gts` are private to pycocotools and absent from its type stubs.
    """

    def _prepare(self) -> None:
        cast("Any", super())._prepare()
        flags = ("difficult", "no_mask") if self.params.iouType == "segm" else ("difficult",)
        for objects in cast("Any", self)._gts.values():
            for annotation in objects:
                annotation["ignore"] = int(annotation["ignore"] or any(annotation.get(flag) for flag in flags))


@dataclass(frozen=True)
class Scores:
    """COCO's numbers, 0 to 1; -1 where there are no objects.

    Attributes:
        twelve: in pycocotools' order.
        per_class, per_class_50: AP and AP50 of each class.
        per_class_sizes: AP of each class for small, medium and large objects.
        by_iou: AP at each IoU threshold, 0.5 to 0.95.
    """

    twelve: list[float]
    per_class: list[float]
    per_class_50: list[float]
    per_class_sizes: list[list[float]]
    by_iou: list[float]


def score(
    results: list[dict[str, Any]], dataset: Dataset, records: Iterable[Record], kind: Literal["bbox", "segm"]
) -> Scores:
    """The numbers for kind "bbox" or "segm"."""
    evaluation = _evaluation(results, dataset, records, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]  # [IoU thresholds, recalls, categories, areas, detections]
    by_id = dict(zip(evaluation.params.catIds, range(precision.shape[2]), strict=True))
    cells = [precision[:, :, by_id[number], :, -1] for number in dataset.category_ids]
    return Scores(
        [float(value) for value in evaluation.stats],
        [_mean(cell[:, :, 0]) for cell in cells],
        [_mean(cell[0, :, 0]) for cell in cells],
        [[_mean(cell[:, :, size]) for size in (1, 2, 3)] for cell in cells],
        [_mean(row) for row in precision[:, :, :, 0, -1]],
    )


def evaluated(
    found: Iterable[tuple[int, Detections]], dataset: Dataset, records: Sequence[Record], kind: Literal["bbox", "segm"]
) -> list[list[dict[str, Any] | None]]:
    """pycocotools' matches of objects of any size, by class of the dataset and picture: `COCOeval.evaluateImg`'s.

    Args:
        found: (image id, detections with the dataset's labels), at most one entry per image.
        records: the images that were processed.
    """
    results = [entry for image, one in found for entry in one.to_coco(image, dataset.category_ids)]
    evaluation = _evaluation(results, dataset, records, kind)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    images = len(evaluation.params.imgIds)
    cells = cast("list[dict[str, Any] | None]", evaluation.evalImgs)
    by_id = {number: cells[start * images :][:images] for start, number in enumerate(evaluation.params.catIds)}
    return [by_id[number] for number in dataset.category_ids]


def _evaluation(
    results: list[dict[str, Any]], dataset: Dataset, records: Iterable[Record], kind: Literal["bbox", "segm"]
) -> _Evaluation:
    """Results against ground truth, ready to evaluate.

    They are not loaded with `loadRes`, which refuses an empty list, and which gives masks the area of their box, so
    that small, medium and large would not mean the same for masks as in the ground truth.
    """
    annotations = []
    for number, result in enumerate(results, start=1):
        area = result["bbox"][2] * result["bbox"][3]
        if kind == "segm":
            area = float(coco_mask().area(result["segmentation"]))
        annotations.append({**result, "id": number, "area": area, "iscrowd": 0})
    return _Evaluation(coco_ground_truth(dataset, records), _coco(dataset, records, annotations), kind)


def _mean(values: np.ndarray) -> float:
    """Mean of the valid entries (above -1), or -1 without any."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0
