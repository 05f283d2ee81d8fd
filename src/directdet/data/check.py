"""check-data: examine a whole dataset before spending time on training with it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from rich.progress import Progress

from directdet.common.cores import usable_cores
from directdet.common.errors import UserError
from directdet.common.terminal import terminal
from directdet.data.checks.doubts import misfit_text, mostly_misfit, split_doubts
from directdet.data.checks.finding import Doubt
from directdet.data.checks.near_duplicates import NearDuplicate, look_of, near_duplicates
from directdet.data.checks.report import CheckReport, FileProblem, SplitReport
from directdet.data.dataset import check_same_classes, find_splits, load_dataset
from directdet.data.headers import read_header
from directdet.data.image import is_picture_file, read_bytes, similar_file
from directdet.data.pixels.check import pixel_lines
from directdet.data.pixels.reading import decode_pixels, file_kind
from directdet.data.plausible import misfit_areas, too_small
from directdet.data.records import Dataset, Record, check_size

# COCO's limits between small, medium and large objects, in square pixels.
_SMALL, _LARGE = 32**2, 96**2
_FEW = 10  # classes with fewer objects in train are reported
# An image whose brightest level is below this is nearly black: 12 bits in 16 reach level 15, 13 bits 31.
_DARK, _DARK_16 = 16, 32


def check_data(
    root: str | os.PathLike[str], splits: Sequence[str] | None = None, verify_images: bool = True, progress: bool = True
) -> CheckReport:
    """Read all annotations of a dataset and, with ``verify_images``, every image.

    Without ``verify_images`` it is only checked that the files exist; damaged images and images that occur in several
    splits are not found.

    Raises:
        UserError: the annotations cannot be read at all, see :func:`directdet.data.dataset.load_dataset`.
    """
    return examine_data(root, splits, verify_images, progress)[0]


def examine_data(
    root: str | os.PathLike[str], splits: Sequence[str] | None = None, verify_images: bool = True, progress: bool = True
) -> tuple[CheckReport, tuple[Dataset, ...]]:
    """:func:`check_data`, and the splits that could be read, in the order of the report."""
    names = list(splits) if splits else find_splits(root)
    if not names:
        raise UserError(f"{root}: no splits found")
    datasets: list[Dataset] = []
    errors: list[str] = []
    for name in names:
        try:
            datasets.append(load_dataset(root, name, leave_out=True))
        except UserError as error:
            errors.append(str(error))
    if not datasets:
        raise UserError(errors[0])
    digests: dict[str, dict[str, set[str]]] = {}  # content -> split -> files
    looks: dict[str, dict[str, np.ndarray]] = {dataset.split: {} for dataset in datasets}
    reports: list[SplitReport] = []
    pixels: list[str] = []
    console = terminal(stderr=True)
    # A bar that disappears leaves an empty line in a log file.
    with Progress(console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        for dataset in datasets:
            task = bar.add_task(f"images of {dataset.split}", total=len(dataset))
            files = _Files()
            for record, found in _examine_images(dataset, verify_images):
                bar.advance(task)
                files.add(str(record.path), found)
                if found.look is not None:
                    looks[dataset.split][str(record.path)] = found.look
                if found.digest:
                    digests.setdefault(found.digest, {}).setdefault(dataset.split, set()).add(str(record.path))
            reports.append(_count(dataset, files))
            if verify_images and not files.missing and len(reports) == 1:  # the others are to be the same
                pixels += pixel_lines(dataset, files.kinds)
    duplicates = sorted(tuple(sorted(set().union(*found.values()))) for found in digests.values() if len(found) > 1)
    copies = {
        split: sum(len(found.get(split, ())) > 1 for found in digests.values()) for split in map(_split, datasets)
    }
    alike = near_duplicates(looks, {file for files in duplicates for file in files})
    report = _summarise(datasets, reports, errors, _Copies(tuple(duplicates), copies, alike), verify_images)
    return replace(report, pixels=tuple(pixels)), tuple(datasets)


@dataclass(frozen=True)
class _Image:
    """What was found out about one image file: why it cannot be used, or a digest of its content and what is odd."""

    missing: str = ""
    broken: str = ""
    digest: str = ""
    turned: bool = False
    dark: bool = False
    kind: tuple[int, str] | None = None  # channels and dtype
    look: np.ndarray | None = None  # see look_of


@dataclass
class _Files:
    """The image files of a split that are not as they should be."""

    missing: list[FileProblem] = field(default_factory=list)
    broken: list[FileProblem] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    dark: list[str] = field(default_factory=list)
    kinds: Counter[tuple[int, str]] = field(default_factory=Counter)

    def add(self, file: str, found: _Image) -> None:
        if found.kind:
            self.kinds[found.kind] += 1
        if found.missing:
            self.missing.append(FileProblem(file, found.missing))
        if found.broken:
            self.broken.append(FileProblem(file, found.broken))
        if found.turned:
            self.turned.append(file)
        if found.dark:
            self.dark.append(file)


def _examine_images(dataset: Dataset, verify: bool) -> Iterable[tuple[Record, _Image]]:
    """Each record, in order, with what was found out about its image."""
    # Threads are enough: reading, decoding and hashing release the GIL.
    with ThreadPoolExecutor(max_workers=min(8, usable_cores())) as pool:
        found = pool.map(_verify if verify else _exists, dataset.records)
        yield from zip(dataset.records, found, strict=True)


def _exists(record: Record) -> _Image:
    if is_picture_file(record.path):
        return _Image()
    hint = similar_file(record.path)
    return _Image(missing=f"{record.path}: image file not found{'; ' if hint else ''}{hint}")


def _verify(record: Record) -> _Image:
    found = _exists(record)
    if found.missing:
        return found
    kind = None
    try:
        content = read_bytes(record.path)
        kind = file_kind(content)
        image = decode_pixels(content, record.path, record.pixels)
        check_size(record, *image.shape[:2])
    except UserError as error:
        return _Image(broken=str(error), kind=kind)
    header = read_header(content)
    darkest = _DARK_16 if header.bits > 8 else _DARK
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    dark = record.pixels.is_rgb and int(image.max()) < darkest
    turned = header.orientation > 1 and not record.pixels.upright
    return _Image("", "", digest, turned, dark, kind, look_of(image, record.pixels))


def _count(dataset: Dataset, files: _Files) -> SplitReport:
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
        scored=sum(int((record.weights < 1).sum()) for record in records),
        empty_images=per_image.count(0),
        objects_with_mask=dataset.mask_counts()[0],
        first_without_mask=dataset.first_without_mask(),
        misfit_areas=int(misfit_areas(areas, sides).sum()),
        sizes={"small": small, "medium": len(areas) - small - large, "large": large},
        width_range=(min(widths, default=0), max(widths, default=0)),
        height_range=(min(heights, default=0), max(heights, default=0)),
        aspect_range=(round(min(aspects, default=0.0), 3), round(max(aspects, default=0.0), 3)),
        most_objects=max(per_image, default=0),
        class_counts=tuple(np.bincount(labels, minlength=len(dataset.classes)).tolist()),
        clipped_boxes=sum(problem.action == "clipped" for problem in dataset.problems),
        dropped_boxes=sum(problem.action == "dropped" for problem in dataset.problems),
        missing_files=tuple(files.missing),
        broken_files=tuple(files.broken),
        turned_files=tuple(files.turned),
        dark_files=tuple(files.dark),
        problems=dataset.problems,
        unreadable_entries=len(dataset.errors),
    )


@dataclass(frozen=True)
class _Copies:
    """Image files with the same content: those in several splits, and how many there are within each split; and those
    that only look the same."""

    across: tuple[tuple[str, ...], ...]
    within: dict[str, int]
    alike: tuple[NearDuplicate, ...]


def _split(dataset: Dataset) -> str:
    return dataset.split


def _summarise(
    datasets: list[Dataset], reports: list[SplitReport], errors: list[str], copies: _Copies, verified: bool
) -> CheckReport:
    first, duplicates = datasets[0], copies.across
    warnings = list(dict.fromkeys(note for dataset in datasets for note in dataset.notes))
    for other in datasets[1:]:
        try:
            check_same_classes(first, other)
        except UserError as error:
            errors.append(str(error))
    doubts: list[tuple[Doubt, ...]] = []
    if any(dataset.records and not dataset.pixels.mean for dataset in datasets):
        errors.append("[pixels]: mean and std are missing; write those that were measured into dataset.toml")
    for dataset, report in zip(datasets, reports, strict=True):
        if report.images == 0:
            errors.append(f"{report.split}: no images")
        elif report.objects == 0:
            errors.append(f"{report.split}: no objects")
        errors += too_small(dataset)
        doubts.append(tuple(split_doubts(dataset, report, copies.alike)))
        if copies.within[report.split]:
            warnings.append(f"{report.split}: {copies.within[report.split]} images occur under several names")
        if report.objects_with_mask == 0 < report.objects:
            warnings.append(f"{report.split}: no object has a mask; use a recipe without masks (faster_rcnn_...)")
        elif report.objects_with_mask < report.objects:
            warnings.append(
                f"{report.split}: {report.objects_with_mask} of {report.objects} objects have a mask (the "
                f"first without: {report.first_without_mask}); training with masks needs all of them"
            )
        if report.misfit_areas and not mostly_misfit(report):
            warnings.append(misfit_text(report))
    # One annotation file may hold several splits.
    errors += dict.fromkeys(error for dataset in datasets for error in dataset.errors)
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
        near_duplicates=copies.alike,
        untrained_classes=tuple(untrained),
        errors=tuple(errors),
        doubts=tuple(doubt.text for found in doubts for doubt in found),
        warnings=tuple(warnings),
        shown_doubts=tuple(doubts),
    )


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)
