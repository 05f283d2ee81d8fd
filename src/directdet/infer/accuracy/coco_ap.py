"""COCO's average precision, computed by hotcoco or, where it cannot do the same, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

try:  # the same numbers to the last bit in a fraction of the time; a test compares them
    import hotcoco
except ImportError:  # no wheel for this machine
    hotcoco = None

from directdet.data.dataset import Dataset, Record
from directdet.data.masks import coco_mask
from directdet.infer.detections import Detections


def coco_ground_truth(dataset: Dataset, records: Iterable[Record] | None = None) -> COCO:
    """The dataset as a pycocotools `COCO`, created in memory.

    Objects marked difficult have "difficult": 1, which `_Evaluation` makes pycocotools ignore. Objects without a mask
    have their box as polygon, and "no_mask": 1.
    """
    records = dataset.records if records is None else tuple(records)
    return _coco(dataset, records, _annotations(dataset, records))


def _annotations(dataset: Dataset, records: Iterable[Record], masks: bool = True) -> list[dict[str, Any]]:
    """Every object as a COCO annotation, with ids from 1: pycocotools uses 0 for "not matched"."""
    return [
        {"id": number, **_annotation(record, index, dataset, masks)}
        for number, (record, index) in enumerate(
            ((record, index) for record in records for index in range(len(record.boxes))), start=1
        )
    ]


def _annotation(record: Record, index: int, dataset: Dataset, mask: bool) -> dict[str, Any]:
    """One object as a COCO annotation, with or without what masks are evaluated by."""
    x0, y0, x1, y1 = (float(value) for value in record.boxes[index])
    box = {
        "image_id": record.image_id,
        "category_id": dataset.category_ids[int(record.labels[index])],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": float(record.areas[index]),
        "iscrowd": int(record.crowd[index]),
    }
    if not mask:
        return box
    shape = record.segmentations[index]
    if shape is None:
        segmentation: Any = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    elif isinstance(shape, dict):
        segmentation = shape
    else:
        segmentation = [np.asarray(polygon, np.float64).tolist() for polygon in shape]
    return {
        **box,
        "segmentation": segmentation,
        "difficult": int(record.difficult[index]),
        "no_mask": int(shape is None),
    }


def _coco(dataset: Dataset, records: Iterable[Record], annotations: list[dict[str, Any]]) -> COCO:
    """An indexed `COCO` with the dataset's images and categories."""
    coco = COCO()
    coco.dataset = cast("Any", _content(dataset, records, annotations))  # the stubs ask for fields that nobody reads
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _content(dataset: Dataset, records: Iterable[Record], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """What a json of the dataset's images and categories with these annotations would hold."""
    pairs = zip(dataset.category_ids, dataset.classes, strict=True)
    return {
        "info": {},
        "images": [{"id": record.image_id, "width": record.width, "height": record.height} for record in records],
        "categories": [{"id": number, "name": name} for number, name in pairs],
        "annotations": annotations,
    }


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
    records = tuple(records)
    evaluation: Any = _fast(results, dataset, records, kind) or _evaluation(results, dataset, records, kind)
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
) -> list[list[dict[str, Any]]]:
    """The matches of objects of any size by class of the dataset, as `COCOeval.evaluateImg` of pycocotools gives them
    for each picture with objects or detections of the class, in the order of the image ids.

    Args:
        found: (image id, detections with the dataset's labels), at most one entry per image.
        records: the images that were processed.
    """
    if kind == "bbox":  # the run lengths of masks take longer than all the rest
        found = ((image, one.without_masks()) for image, one in found)
    results = [entry for image, one in found for entry in one.to_coco(image, dataset.category_ids)]
    evaluation: Any = _fast(results, dataset, records, kind) or _evaluation(results, dataset, records, kind)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    cells = [cell for cell in evaluation.evalImgs if cell is not None]
    by_id: dict[int, list[dict[str, Any]]] = {number: [] for number in dataset.category_ids}
    for cell in sorted(cells, key=lambda cell: cell["image_id"]):
        by_id[cell["category_id"]].append(cell)
    return list(by_id.values())


def _fast(
    results: list[dict[str, Any]], dataset: Dataset, records: Sequence[Record], kind: Literal["bbox", "segm"]
) -> Any:
    """hotcoco's evaluation, with pycocotools' interface; None where it cannot do the same.

    It cannot ignore objects that are no crowds, as difficult ones are and, for masks, those without one.
    """
    masks = kind == "segm"
    if hotcoco is None or any(_ignores(record, masks) for record in records):
        return None
    truth = _content(dataset, records, _annotations(dataset, records, masks))
    found = _content(dataset, records, _numbered(results, kind))
    return hotcoco.COCOeval(hotcoco.COCO(truth), hotcoco.COCO(found), kind)


def _ignores(record: Record, masks: bool) -> bool:
    """Whether objects of a picture must be ignored that are no crowd regions."""
    return bool(record.difficult.any()) or (masks and any(shape is None for shape in record.segmentations))


def _evaluation(
    results: list[dict[str, Any]], dataset: Dataset, records: Iterable[Record], kind: Literal["bbox", "segm"]
) -> _Evaluation:
    """Results against ground truth, ready to evaluate.

    They are not loaded with `loadRes`, which refuses an empty list, and which gives masks the area of their box, so
    that small, medium and large would not mean the same for masks as in the ground truth.
    """
    found = _numbered(results, kind)
    return _Evaluation(coco_ground_truth(dataset, records), _coco(dataset, records, found), kind)


def _numbered(results: list[dict[str, Any]], kind: Literal["bbox", "segm"]) -> list[dict[str, Any]]:
    """Results as annotations, with ids from 1 and the area of the box or the mask."""
    annotations = []
    for number, result in enumerate(results, start=1):
        area = result["bbox"][2] * result["bbox"][3]
        if kind == "segm":
            area = float(coco_mask().area(result["segmentation"]))
        annotations.append({**result, "id": number, "area": area, "iscrowd": 0})
    return annotations


def _mean(values: np.ndarray) -> float:
    """Mean of the valid entries (above -1), or -1 without any."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0
