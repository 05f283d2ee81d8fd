"""check-data: examine a whole dataset before spending time on training with it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.progress import Progress

from directdet.common.errors import UserError
from directdet.common.terminal import terminal
from directdet.data.dataset import check_same_classes, find_splits, load_dataset
from directdet.data.image import decode_image, read_bytes
from directdet.data.records import Dataset, Problem, Record, check_size

# COCO's limits between small, medium and large objects, in square pixels.
_SMALL, _LARGE = 32**2, 96**2
_FEW = 10  # classes with fewer objects in train are reported


@dataclass(frozen=True)
class FileProblem:
    """An image file that cannot be used."""

    file: str
    message: str


@dataclass(frozen=True)
class SplitReport:
    """Counts of one split. Objects are those that training uses: without crowd regions and dropped boxes."""

    split: str
    images: int
    objects: int
    crowd: int
    difficult: int
    empty_images: int
    objects_with_mask: int
    first_without_mask: str | None  # annotation and image file of the first of the others
    misfit_areas: int  # objects whose area in the file is no fit for their box
    sizes: dict[str, int]  # small, medium, large: COCO's area limits, in pixels of the file
    width_range: tuple[int, int]
    height_range: tuple[int, int]
    aspect_range: tuple[float, float]  # width / height
    most_objects: int  # in one image
    class_counts: tuple[int, ...]  # objects of each label
    clipped_boxes: int
    dropped_boxes: int
    missing_files: tuple[FileProblem, ...]
    broken_files: tuple[FileProblem, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check_data` found. ``label_map`` lists (label, id in the file, name)."""

    root: str
    layout: str
    images_verified: bool
    label_map: tuple[tuple[int, int, str], ...]
    splits: tuple[SplitReport, ...]
    duplicates: tuple[tuple[str, ...], ...] = ()  # image files with the same content in more than one split
    untrained_classes: tuple[str, ...] = ()  # with objects in val or test, but none in train
    errors: tuple[str, ...] = ()  # reasons why the splits cannot be used together
    warnings: tuple[str, ...] = field(default=())

    @property
    def fatal(self) -> bool:
        """Whether training or evaluation would fail: missing or broken images, or splits that do not match."""
        return bool(self.errors) or any(split.missing_files or split.broken_files for split in self.splits)

    @property
    def dropped(self) -> tuple[Problem, ...]:
        """The objects that were dropped because they have no valid box."""
        return tuple(p for split in self.splits for p in split.problems if p.action == "dropped")

    def to_dict(self) -> dict[str, Any]:
        """The whole report as plain dicts, lists, numbers and strings, for a report file."""
        return {"fatal": self.fatal, **_plain(asdict(self))}


def check_data(
    root: str | os.PathLike[str], splits: Sequence[str] | None = None, verify_images: bool = True, progress: bool = True
) -> CheckReport:
    """Read all annotations of a dataset and, with ``verify_images``, every image.

    Without ``verify_images`` it is only checked that the files exist; damaged images and images that occur in several
    splits are not found.

    Raises:
        UserError: the annotations cannot be read at all, see :func:`directdet.data.dataset.load_dataset`.
    """
    names = list(splits) if splits else find_splits(root)
    if not names:
        raise UserError(f"{root}: no splits found")
    datasets = [load_dataset(root, name) for name in names]
    digests: dict[str, dict[str, set[str]]] = {}  # content -> split -> files
    reports = []
    console = terminal(stderr=True)
    # A bar that disappears leaves an empty line in a log file.
    with Progress(console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        for dataset in datasets:
            task = bar.add_task(f"images of {dataset.split}", total=len(dataset))
            missing, broken = [], []
            for record, kind, detail in _examine_images(dataset, verify_images):
                bar.advance(task)
                if kind == "missing":
                    missing.append(FileProblem(str(record.path), detail))
                elif kind == "broken":
                    broken.append(FileProblem(str(record.path), detail))
                elif detail:
                    digests.setdefault(detail, {}).setdefault(dataset.split, set()).add(str(record.path))
            reports.append(_count(dataset, missing, broken))
    duplicates = sorted(tuple(sorted(set().union(*found.values()))) for found in digests.values() if len(found) > 1)
    return _summarise(datasets, reports, tuple(duplicates), verify_images)


def _examine_images(dataset: Dataset, verify: bool) -> Iterable[tuple[Record, str, str]]:
    """(record, "ok" | "missing" | "broken", content digest or message) for each image, in order."""
    # Threads are enough: reading, decoding and hashing release the GIL.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(_verify if verify else _exists, dataset.records)
        for record, (kind, detail) in zip(dataset.records, found, strict=True):
            yield record, kind, detail


def _exists(record: Record) -> tuple[str, str]:
    return ("ok", "") if record.path.is_file() else ("missing", f"{record.path}: image file not found")


def _verify(record: Record) -> tuple[str, str]:
    if not record.path.is_file():
        return _exists(record)
    try:
        content = read_bytes(record.path)
        check_size(record, *decode_image(content, record.path).shape[:2])
    except UserError as error:
        return "broken", str(error)
    return "ok", hashlib.blake2b(content, digest_size=16).hexdigest()


def _count(dataset: Dataset, missing: list[FileProblem], broken: list[FileProblem]) -> SplitReport:
    records = dataset.records
    used = [~record.crowd for record in records]
    areas = _join([record.areas[keep] for record, keep in zip(records, used, strict=True)])
    boxes = [record.boxes[keep] for record, keep in zip(records, used, strict=True)]
    sides = _join([box[:, 2:] - box[:, :2] for box in boxes]).reshape(-1, 2)
    labels = _join([record.labels[keep] for record, keep in zip(records, used, strict=True)]).astype(np.int64)
    small, large = int((areas < _SMALL).sum()), int((areas >= _LARGE).sum())
    per_image = [int(keep.sum()) for keep in used]
    widths, heights = [record.width for record in records], [record.height for record in records]
    aspects = [record.width / record.height for record in records]
    return SplitReport(
        split=dataset.split,
        images=len(records),
        objects=sum(per_image),
        crowd=sum(int(record.crowd.sum()) for record in records),
        difficult=sum(int(record.difficult.sum()) for record in records),
        empty_images=per_image.count(0),
        objects_with_mask=dataset.mask_counts()[0],
        first_without_mask=dataset.first_without_mask(),
        misfit_areas=int(_misfits(areas, sides).sum()),
        sizes={"small": small, "medium": len(areas) - small - large, "large": large},
        width_range=(min(widths, default=0), max(widths, default=0)),
        height_range=(min(heights, default=0), max(heights, default=0)),
        aspect_range=(round(min(aspects, default=0.0), 3), round(max(aspects, default=0.0), 3)),
        most_objects=max(per_image, default=0),
        class_counts=tuple(np.bincount(labels, minlength=len(dataset.classes)).tolist()),
        clipped_boxes=sum(problem.action == "clipped" for problem in dataset.problems),
        dropped_boxes=sum(problem.action == "dropped" for problem in dataset.problems),
        missing_files=tuple(missing),
        broken_files=tuple(broken),
        problems=dataset.problems,
    )


def _misfits(areas: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Which objects, bool [N], have an area [N] that their box of ``sides`` [N, 2] cannot have.

    A mask lies inside its box but for its border's pixels, and even a rod that crosses its box fills more than a
    hundredth of it.
    """
    width, height = sides[:, 0], sides[:, 1]
    most = (width + 2) * (height + 2)
    return (areas > 1.5 * most) | (areas < width * height / 100)


def _summarise(
    datasets: list[Dataset], reports: list[SplitReport], duplicates: tuple[tuple[str, ...], ...], verified: bool
) -> CheckReport:
    first = datasets[0]
    errors, warnings = [], []
    for other in datasets[1:]:
        try:
            check_same_classes(first, other)
        except UserError as error:
            errors.append(str(error))
    for report in reports:
        if report.images == 0:
            errors.append(f"{report.split}: no images")
        elif report.objects == 0:
            errors.append(f"{report.split}: no objects")
        if report.objects_with_mask == 0 < report.objects:
            warnings.append(f"{report.split}: no object has a mask; use a recipe without masks (faster_rcnn_...)")
        elif report.objects_with_mask < report.objects:
            warnings.append(
                f"{report.split}: {report.objects_with_mask} of {report.objects} objects have a mask (the "
                f"first without: {report.first_without_mask}); training with masks needs all of them"
            )
        if report.misfit_areas:
            warnings.append(
                f"{report.split}: the area of {report.misfit_areas} of {report.objects} objects does not fit their "
                "box; AP of small, medium and large objects goes by it: correct or remove the areas"
            )
    if duplicates:
        warnings.append(f"{len(duplicates)} images are in several splits: results on them will be too good")
    by_name = {report.split: report for report in reports}
    untrained: list[str] = []
    if "train" in by_name and not errors:
        train = by_name["train"].class_counts
        others = [report.class_counts for report in reports if report.split != "train"]
        totals = [sum(counts) for counts in zip(*others, strict=True)] if others else [0] * len(train)
        untrained = [name for name, seen, total in zip(first.classes, train, totals, strict=True) if total and not seen]
        unused = [
            name for name, seen, total in zip(first.classes, train, totals, strict=True) if not total and not seen
        ]
        rare = [name for name, seen in zip(first.classes, train, strict=True) if 0 < seen < _FEW]
        if rare:
            warnings.append(f"classes with fewer than {_FEW} objects in train: {len(rare)} of {len(train)}")
        if untrained:
            warnings.append(f"classes with objects in other splits, but none in train: {', '.join(untrained)}")
        if unused:
            warnings.append(f"classes without any objects: {', '.join(unused)}")
    if len(set(first.classes)) < len(first.classes):
        warnings.append("several categories have the same name")
    label_map = tuple(
        (label, category, name)
        for label, (category, name) in enumerate(zip(first.category_ids, first.classes, strict=True))
    )
    return CheckReport(
        root=str(first.root),
        layout=first.layout,
        images_verified=verified,
        label_map=label_map,
        splits=tuple(reports),
        duplicates=duplicates,
        untrained_classes=tuple(untrained),
        errors=tuple(errors),
        warnings=tuple(warnings),
    )


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
