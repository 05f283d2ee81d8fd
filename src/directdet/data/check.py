"""check-data: look at a whole dataset before time is spent on training with it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from directdet.common.errors import UserError
from directdet.data.dataset import check_same_classes, find_splits, load_dataset
from directdet.data.image import decode_image, read_bytes
from directdet.data.records import Dataset, Problem, Record, check_size

# COCO's limits between small, medium and large objects, in square pixels.
_SMALL, _LARGE = 32**2, 96**2
_FEW = 10  # with fewer objects in train a class is pointed out
_SHOWN = 10  # lines of each kind of problem that are printed; the report file has all


@dataclass(frozen=True)
class FileProblem:
    """An image file that cannot be used."""

    file: str
    message: str


@dataclass(frozen=True)
class SplitReport:
    """Counts of one split. Objects are those that training uses: all but crowd regions and dropped boxes."""

    split: str
    images: int
    objects: int
    crowd: int
    difficult: int
    empty_images: int
    objects_with_mask: int
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
    duplicates: tuple[tuple[str, ...], ...] = ()  # image files of the same content in more than one split
    untrained_classes: tuple[str, ...] = ()  # with objects in val or test, but none in train
    errors: tuple[str, ...] = ()  # what makes the splits unusable together
    warnings: tuple[str, ...] = field(default=())

    @property
    def fatal(self) -> bool:
        """Whether training or evaluation would fail: missing or broken images, or splits that do not match."""
        return bool(self.errors) or any(split.missing_files or split.broken_files for split in self.splits)

    @property
    def dropped(self) -> tuple[Problem, ...]:
        """The objects that training leaves out because their boxes are none."""
        return tuple(p for split in self.splits for p in split.problems if p.action == "dropped")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, numbers and strings, for a report file."""
        return {"fatal": self.fatal, **_plain(asdict(self))}


def check_data(
    root: str | os.PathLike[str], splits: Sequence[str] | None = None, verify_images: bool = True, progress: bool = True
) -> CheckReport:
    """Read all annotations of a dataset and, with ``verify_images``, every picture.

    Without ``verify_images`` files are only looked for; damaged ones and duplicates between splits go unnoticed.

    Raises:
        UserError: the annotations cannot be read at all, see :func:`directdet.data.dataset.load_dataset`.
    """
    names = list(splits) if splits else find_splits(root)
    if not names:
        raise UserError(f"{root}: no splits found")
    datasets = [load_dataset(root, name) for name in names]
    digests: dict[str, dict[str, set[str]]] = {}  # content -> split -> files
    reports = []
    console = Console(stderr=True)
    # A bar that vanishes leaves an empty line in a log file.
    with Progress(console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        for dataset in datasets:
            task = bar.add_task(f"images of {escape(dataset.split)}", total=len(dataset))
            missing, broken = [], []
            for record, kind, detail in _look_at_images(dataset, verify_images):
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


def print_report(report: CheckReport, console: Console | None = None, shown: int | None = _SHOWN) -> None:
    """Print the report as tables: splits, label map with class counts, `shown` problems of each kind (None: all)."""
    console = console or Console()
    console.print(_split_table(report))
    console.print(_class_table(report))
    for split in report.splits:
        _print_list(console, f"{split.split}: missing files", [item.message for item in split.missing_files], shown)
        _print_list(console, f"{split.split}: broken files", [item.message for item in split.broken_files], shown)
        lines = [
            f"{item.file}: annotation {item.annotation_id}: {item.message}: {item.action}" for item in split.problems
        ]
        _print_list(console, f"{split.split}: boxes clipped or objects dropped", lines, shown)
    _print_list(
        console, "the same picture in several splits", [" = ".join(files) for files in report.duplicates], shown
    )
    _print_list(console, "errors", report.errors, shown)
    _print_list(console, "worth knowing", report.warnings, shown)
    if report.fatal:
        console.print("[bold red]not usable:[/] put the errors and the missing or broken files right first")
    else:
        console.print("[bold green]usable[/]" + ("" if report.images_verified else " (pictures were not opened)"))


def _look_at_images(dataset: Dataset, verify: bool) -> Iterable[tuple[Record, str, str]]:
    """(record, "ok" | "missing" | "broken", content digest or message) for each image, in order."""
    # Threads suffice: reading, decoding and hashing leave Python's lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(_verify if verify else _look_for, dataset.records)
        for record, (kind, detail) in zip(dataset.records, found, strict=True):
            yield record, kind, detail


def _look_for(record: Record) -> tuple[str, str]:
    return ("ok", "") if record.path.is_file() else ("missing", f"{record.path}: image file not found")


def _verify(record: Record) -> tuple[str, str]:
    if not record.path.is_file():
        return _look_for(record)
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
            warnings.append(f"{report.split}: no object has a mask: only recipes without masks (faster_rcnn_...) fit")
        elif report.objects_with_mask < report.objects:
            warnings.append(
                f"{report.split}: {report.objects_with_mask} of {report.objects} objects have a mask; "
                "training with masks needs all of them"
            )
    if duplicates:
        warnings.append(f"{len(duplicates)} pictures are in several splits: scores on them are too good")
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
            warnings.append(f"classes without objects in train, but with some elsewhere: {', '.join(untrained)}")
        if unused:
            warnings.append(f"classes without any objects: {', '.join(unused)}")
    if len(set(first.classes)) < len(first.classes):
        warnings.append("several categories share one name")
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


def _split_table(report: CheckReport) -> Table:
    table = Table("", title=f"{escape(report.root)} ({report.layout})", title_justify="left")
    for split in report.splits:
        table.add_column(split.split, justify="right")
    rows = {
        "images": lambda split: split.images,
        "  without objects": lambda split: split.empty_images,
        "objects": lambda split: split.objects,
        "  with mask": lambda split: split.objects_with_mask,
        "  difficult": lambda split: split.difficult,
        "  small (area < 32²)": lambda split: split.sizes["small"],
        "  medium": lambda split: split.sizes["medium"],
        "  large (area >= 96²)": lambda split: split.sizes["large"],
        "  most in one image": lambda split: split.most_objects,
        "crowd regions": lambda split: split.crowd,
        "image width": lambda split: "{}..{}".format(*split.width_range),
        "image height": lambda split: "{}..{}".format(*split.height_range),
        "width / height": lambda split: "{:.2f}..{:.2f}".format(*split.aspect_range),
        "boxes clipped": lambda split: split.clipped_boxes,
        "objects dropped": lambda split: split.dropped_boxes,
        "missing files": lambda split: len(split.missing_files),
        "broken files": lambda split: len(split.broken_files) if report.images_verified else "not checked",
    }
    for name, value in rows.items():
        table.add_row(name, *(str(value(split)) for split in report.splits))
    return table


def _class_table(report: CheckReport) -> Table:
    table = Table("label", "id in file", "class", title="label map and objects of each class", title_justify="left")
    for split in report.splits:
        table.add_column(split.split, justify="right")
    for label, category, name in report.label_map:
        # Splits whose categories differ (an error of its own) may have fewer.
        counts = [str(split.class_counts[label]) if label < len(split.class_counts) else "-" for split in report.splits]
        table.add_row(str(label), str(category), escape(name), *counts)
    return table


def _print_list(console: Console, title: str, lines: Sequence[str], shown: int | None) -> None:
    if not lines:
        return
    console.print(f"[bold]{escape(title)}[/] ({len(lines)})")
    shown = len(lines) if shown is None else shown
    for line in lines[:shown]:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if len(lines) > shown:
        console.print(f"  ... and {len(lines) - shown} more; --report FILE lists all")


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
