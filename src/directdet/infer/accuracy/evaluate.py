"""COCO and VOC average precision of a `Predictor` on a `Dataset`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table

from directdet.common.errors import UserError
from directdet.common.files import write_json_atomic
from directdet.common.terminal import plain, terminal
from directdet.data.masks import coco_mask
from directdet.data.records import Dataset, Record, detector_image
from directdet.infer.accuracy.voc_ap import voc_precision
from directdet.infer.detections import Detections
from directdet.infer.predictor import Predictor

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass
class Metrics:
    """COCO's twelve numbers and VOC's two, 0 to 1; -1 where the ground truth has no such objects, as in pycocotools.

    Attributes:
        bbox: the twelve numbers of the boxes by `METRIC_NAMES`.
        segm: the same of the masks, or None if the model or the dataset has no masks.
        classes: class names of the dataset.
        per_class: AP of the boxes of each class.
        voc: mAP of the boxes at IoU 0.5 by VOC's rules: "mAP_11point" (2007) and "mAP_area" (since 2010).
        per_class_voc: AP of each class by the same rules, "11point" and "area".
        per_class_segm: AP of the masks of each class, or None.
        n_images: images evaluated.
        seconds: wall time of reading and detecting, without the evaluation.
        per_class_50: AP50 of the boxes of each class.
        per_class_sizes: AP of the boxes of each class, of small, medium and large objects.
        by_iou: AP of the boxes at each IoU threshold, 0.5 to 0.95 in steps of 0.05.
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
    per_class_50: list[float] = field(default_factory=list)
    per_class_sizes: list[list[float]] = field(default_factory=list)
    by_iou: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "classes": list(self.classes)}

    def table(self, per_class: bool = False) -> Table:
        """The numbers in percent as a rich table, one row per kind (and per class); VOC's two in the caption."""
        # Narrow enough for thirteen columns in a terminal of 80 characters.
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
                table.add_row(plain(f"{name}, box"), _per_cent(self.per_class[index]))
                if self.per_class_segm is not None:
                    table.add_row(plain(f"{name}, mask"), _per_cent(self.per_class_segm[index]))
        return table

    def voc_table(self) -> Table:
        """VOC's AP of each class in percent."""
        table = Table("", title=f"VOC AP@.5 on {self.n_images} images (%)", box=SIMPLE_HEAD, padding=0)
        for name in ("11-point", "area"):
            table.add_column(name, justify="right", min_width=9)
        for name, *values in zip(
            self.classes, *(self.per_class_voc[rule] for rule in ("11point", "area")), strict=True
        ):
            table.add_row(plain(name), *map(_per_cent, values))
        return table


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A detector's numbers on a dataset, and what they were computed from.

    Attributes:
        found: (image id, detections with the dataset's labels) of each of `records`, by default without masks, which
            take by far the most memory.
    """

    metrics: Metrics
    found: list[tuple[int, Detections]]
    dataset: Dataset
    records: Sequence[Record]


def evaluate(
    detector: Predictor,
    dataset: Dataset,
    progress: bool = True,
    max_images: int | None = None,
    results: str | Path | None = None,
) -> Metrics:
    """Run a detector on a dataset and compute its AP.

    Args:
        detector: must have the same classes as the dataset (in any order).
        dataset: crowd regions and objects marked difficult are ignored.
        progress: show a progress bar.
        max_images: use only this many images, from the first on.
        results: also write the detections into this file, as the list of results that pycocotools' `loadRes` takes.

    Raises:
        UserError: different classes, no images, or an image that cannot be read.
    """
    return examine(detector, dataset, progress, max_images, results).metrics


def examine(
    detector: Predictor,
    dataset: Dataset,
    progress: bool = True,
    max_images: int | None = None,
    results: str | Path | None = None,
    keep_masks: bool = False,
) -> Evaluation:
    """`evaluate`, with the detections."""
    records = dataset.records[:max_images]
    start = time.perf_counter()
    found = detect(detector, dataset, records, progress)
    seconds = time.perf_counter() - start
    if results is not None:
        entries = [entry for number, one in found for entry in one.to_coco(number, dataset.category_ids)]
        write_json_atomic(results, entries, indent=None)
    evaluation = scored(found, dataset, records, keep_masks)
    evaluation.metrics.seconds = seconds
    return evaluation


def scored(
    found: Iterable[tuple[int, Detections]],
    dataset: Dataset,
    records: Sequence[Record] | None = None,
    keep_masks: bool = False,
) -> Evaluation:
    """`score_detections`, with the detections."""
    found, records = list(found), dataset.records if records is None else records
    metrics = score_detections(found, dataset, records)
    kept = found if keep_masks else [(number, one.without_masks()) for number, one in found]
    return Evaluation(metrics, kept, dataset, records)


def detect(
    detector: Predictor, dataset: Dataset, records: Sequence[Record], progress: bool = False
) -> list[tuple[int, Detections]]:
    """(image id, detections with the dataset's labels) of each record, for score_detections.

    Raises:
        UserError: different classes, no images, or an image that cannot be read.
    """
    return list(detections_of(detector, dataset, records, progress))


def detections_of(
    detector: Predictor, dataset: Dataset, records: Sequence[Record], progress: bool = False
) -> Iterator[tuple[int, Detections]]:
    """`detect`, one picture after the other; errors about the whole dataset are raised at once."""
    order = match_classes(detector, dataset)
    require_format(detector, dataset)
    if not dataset.records:
        raise UserError(f"{dataset.root}: {dataset.split}: no images to evaluate on")
    console = terminal(stderr=True)
    hidden = not (progress and console.is_terminal)  # a bar that disappears leaves an empty line in a log file
    shown = track(records, description="evaluating", console=console, disable=hidden, transient=True)

    def one(record: Record) -> tuple[int, Detections]:
        detections = detector(detector_image(record))
        return record.image_id, detections.relabelled(order, dataset.classes, dataset.category_ids)

    return map(one, shown)


def match_classes(detector: Predictor, dataset: Dataset) -> np.ndarray:
    """The dataset's label for every label of the detector, int64 [C].

    Raises:
        UserError: the detector and the dataset have different classes.
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


def require_format(detector: Predictor, dataset: Dataset) -> None:
    """UserError if the pictures of a dataset are of another format than the detector's."""
    pixels = detector.preprocess.pixels
    if not dataset.pixels.same_kind(pixels):
        raise UserError(
            f"{dataset.root}: pictures are read as {dataset.pixels.kind}, but {detector.source} takes {pixels.kind}; "
            "[pixels] in dataset.toml says as what they are read"
        )


def score_detections(
    found: Iterable[tuple[int, Detections]], dataset: Dataset, records: Iterable[Record] | None = None
) -> Metrics:
    """Evaluate detections, given as (image id, detections with the dataset's labels); masks too if all have them.

    Args:
        found: at most one entry per image; an image without entry has no detections.
        dataset: the ground truth.
        records: the images that were processed; None: all of the dataset.
    """
    coco_mask()  # raises a one-line error if pycocotools is missing
    from directdet.infer.accuracy.coco_ap import score

    records = dataset.records if records is None else tuple(records)
    found = list(found)
    masks = dataset.has_masks and all(detections.masks is not None for _, detections in found)
    scored = found if masks else ((image_id, detections.without_masks()) for image_id, detections in found)
    results = [entry for image_id, one in scored for entry in one.to_coco(image_id, dataset.category_ids)]
    bbox = score(results, dataset, records, "bbox")
    segm = score(results, dataset, records, "segm") if masks else None
    voc = voc_precision(found, records, len(dataset.classes))
    return Metrics(
        dict(zip(METRIC_NAMES, bbox.twelve, strict=True)),
        None if segm is None else dict(zip(METRIC_NAMES, segm.twelve, strict=True)),
        dataset.classes,
        bbox.per_class,
        voc.means(),
        voc.per_class(),
        None if segm is None else segm.per_class,
        n_images=len(records),
        per_class_50=bbox.per_class_50,
        per_class_sizes=bbox.per_class_sizes,
        by_iou=bbox.by_iou,
    )


def _per_cent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"
