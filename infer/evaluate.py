"""Average precision of any `Detector` on any `Dataset`: COCO's, by pycocotools, and VOC's."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..data.dataset import Dataset, Record, read_record_image
from ..errors import UserError
from .detections import Detections
from .runtimes import Detector
from .voc_ap import voc_precision

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass
class Metrics:
    """COCO's twelve numbers and VOC's two, 0 to 1. As in pycocotools -1 stands for "no such objects in the truth".

    Attributes:
        bbox: the twelve numbers of the boxes by `METRIC_NAMES`.
        segm: those of the masks, or None where the model or the dataset has none.
        classes: class names of the dataset.
        per_class: AP of the boxes of each class.
        voc: mAP of the boxes at IoU 0.5 by VOC's rules: "mAP_11point" (2007) and "mAP_area" (2010 and after).
        per_class_voc: AP of each class by the same rules, "11point" and "area".
        per_class_segm: AP of the masks of each class, or None.
        n_images: images evaluated.
        seconds: wall time of reading and detecting, without the scoring.
    """

    bbox: dict[str, float]
    segm: dict[str, float] | None
    classes: tuple[str, ...]
    per_class: list[float]
    voc: dict[str, float]
    per_class_voc: dict[str, list[float]]
    per_class_segm: list[float] | None = field(default=None)
    n_images: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "classes": list(self.classes)}

    def table(self, per_class: bool = False) -> Table:
        """The numbers in per cent as a rich table, one row per kind (and per class); VOC's two in a line below."""
        # Narrow enough that thirteen columns stay whole in a terminal of 80.
        table = Table(title=f"COCO AP on {self.n_images} images (%)", box=SIMPLE_HEAD, padding=0)
        eleven_point, area = (_per_cent(self.voc[name]) for name in ("mAP_11point", "mAP_area"))
        table.caption = f"VOC mAP@.5: 11-point {eleven_point}, area {area}"
        table.add_column("")
        for name in METRIC_NAMES:
            table.add_column(name, justify="right")
        for name, values in (("box", self.bbox), ("mask", self.segm)):
            if values is not None:
                table.add_row(name, *(_per_cent(values[metric]) for metric in METRIC_NAMES))
        if per_class:
            table.add_section()
            for index, name in enumerate(self.classes):
                table.add_row(f"{name}, box", _per_cent(self.per_class[index]))
                if self.per_class_segm is not None:
                    table.add_row(f"{name}, mask", _per_cent(self.per_class_segm[index]))
        return table

    def voc_table(self) -> Table:
        """VOC's AP of each class in per cent."""
        table = Table("", title=f"VOC AP@.5 on {self.n_images} images (%)", box=SIMPLE_HEAD, padding=0)
        for name in ("11-point", "area"):
            table.add_column(name, justify="right", min_width=9)
        for name, *values in zip(
            self.classes, *(self.per_class_voc[rule] for rule in ("11point", "area")), strict=True
        ):
            table.add_row(name, *map(_per_cent, values))
        return table


def evaluate(detector: Detector, dataset: Dataset, progress: bool = True, max_images: int | None = None) -> Metrics:
    """Run a detector over a dataset and score it.

    Args:
        detector: its classes must be the dataset's (in any order).
        dataset: crowd regions and objects marked difficult are neither hits nor misses.
        progress: show a progress bar.
        max_images: only the first so many images.

    Raises:
        UserError: other classes, no images, or an image that cannot be read.
    """
    records = dataset.records[:max_images]
    start = time.perf_counter()
    found = detect(detector, dataset, records, progress)
    seconds = time.perf_counter() - start
    metrics = score_detections(found, dataset, records)
    metrics.seconds = seconds
    return metrics


def detect(
    detector: Detector, dataset: Dataset, records: Sequence[Record], progress: bool = False
) -> list[tuple[int, Detections]]:
    """(image id, detections with the dataset's labels) of each record, for score_detections.

    Raises:
        UserError: other classes than the dataset's, no images in it, or an image that cannot be read.
    """
    order = match_classes(detector, dataset)
    if not dataset.records:
        raise UserError(f"{dataset.root}: {dataset.split}: no images to evaluate on")
    found = []
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)  # a bar that vanishes leaves an empty line in a log file
    for record in track(records, description="evaluating", console=console, disable=hidden, transient=True):
        detections = detector(read_record_image(record)[:, :, ::-1])
        detections.labels = order[detections.labels]
        found.append((record.image_id, detections))
    return found


def match_classes(detector: Detector, dataset: Dataset) -> np.ndarray:
    """Label of the dataset for every label of the detector, int64 [C].

    Raises:
        UserError: the detector and the dataset know different classes.
    """
    if set(detector.classes) != set(dataset.classes) or len(detector.classes) != len(dataset.classes):
        only_model = [name for name in detector.classes if name not in dataset.classes][:5]
        only_data = [name for name in dataset.classes if name not in detector.classes][:5]
        raise UserError(
            f"{dataset.root}: {dataset.split}: its {len(dataset.classes)} classes are not the {len(detector.classes)} "
            f"of {detector.source} (only in the dataset: {only_data}, only in the model: {only_model}); "
            "evaluate on data with the classes the model was trained on"
        )
    if detector.classes == dataset.classes:
        return np.arange(len(dataset.classes))
    return np.array([dataset.classes.index(name) for name in detector.classes], np.int64)


def score_detections(
    found: Iterable[tuple[int, Detections]], dataset: Dataset, records: Iterable[Record] | None = None
) -> Metrics:
    """Score detections, given as (image id, detections with the dataset's labels); masks too where all have them.

    Args:
        found: at most one entry per image; images without one count as having no detections.
        dataset: the ground truth.
        records: the images that were looked at; all of the dataset's if None.
    """
    records = dataset.records if records is None else tuple(records)
    found = list(found)
    results: list[dict[str, Any]] = []
    masks = True
    for image_id, detections in found:
        results.extend(detections.to_coco(image_id, dataset.category_ids))
        masks = masks and detections.masks is not None
    bbox, per_class = _score(results, dataset, records, "bbox")
    segm, per_class_segm = _score(results, dataset, records, "segm") if masks and dataset.has_masks else (None, None)
    voc = voc_precision(found, records, len(dataset.classes))
    return Metrics(
        bbox,
        segm,
        dataset.classes,
        per_class,
        voc.means(),
        voc.per_class(),
        per_class_segm,
        n_images=len(records),
    )


def coco_ground_truth(dataset: Dataset, records: Iterable[Record] | None = None) -> COCO:
    """The dataset as a pycocotools `COCO`, made in memory.

    Objects marked difficult carry "difficult": 1, which `_Evaluation` makes pycocotools ignore. Objects without a mask
    carry their box as polygon, and "no_mask": 1.
    """
    records = dataset.records if records is None else tuple(records)
    annotations = [_annotation(record, index, dataset) for record in records for index in range(len(record.boxes))]
    for number, annotation in enumerate(annotations, start=1):  # pycocotools takes id 0 for "not matched"
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
    coco.dataset = {
        "info": {},
        "images": [{"id": record.image_id, "width": record.width, "height": record.height} for record in records],
        "categories": [{"id": number, "name": name} for number, name in pairs],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


class _Evaluation(COCOeval):
    """COCOeval that ignores difficult objects, and for masks those without one, without taking them for crowds."""

    def _prepare(self) -> None:
        super()._prepare()
        flags = ("difficult", "no_mask") if self.params.iouType == "segm" else ("difficult",)
        for objects in self._gts.values():
            for annotation in objects:
                annotation["ignore"] = int(annotation["ignore"] or any(annotation.get(flag) for flag in flags))


def _score(
    results: list[dict[str, Any]], dataset: Dataset, records: Iterable[Record], kind: str
) -> tuple[dict[str, float], list[float]]:
    """The twelve numbers and the AP per class for kind "bbox" or "segm".

    The results become a `COCO` here and not by `loadRes`, which refuses an empty list, and which gives masks their
    box's area, so that small, medium and large would mean another thing for masks than in the ground truth.
    """
    annotations = []
    for number, result in enumerate(results, start=1):
        area = result["bbox"][2] * result["bbox"][3]
        if kind == "segm":
            area = float(coco_mask.area(result["segmentation"]))
        annotations.append({**result, "id": number, "area": area, "iscrowd": 0})
    evaluation = _Evaluation(coco_ground_truth(dataset, records), _coco(dataset, records, annotations), kind)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = {name: float(value) for name, value in zip(METRIC_NAMES, evaluation.stats, strict=True)}
    precision = evaluation.eval["precision"]  # [IoU thresholds, recalls, categories, areas, detections]
    by_id = dict(zip(evaluation.params.catIds, range(precision.shape[2]), strict=True))
    per_class = [_mean(precision[:, :, by_id[number], 0, -1]) for number in dataset.category_ids]
    return numbers, per_class


def _mean(values: np.ndarray) -> float:
    """Mean of the entries that exist (above -1), or -1."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def _per_cent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"
