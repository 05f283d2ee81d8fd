"""What check-data found, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from directdet.data.checks.finding import Doubt
from directdet.data.checks.near_duplicates import NearDuplicate
from directdet.data.records import Problem


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
    scored: int  # with a score below 1, by which their losses are weighed
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
    turned_files: tuple[str, ...]  # with an EXIF note of rotation or mirroring, which is ignored
    dark_files: tuple[str, ...]  # nearly black after reading
    problems: tuple[Problem, ...]
    unreadable_entries: int  # of the annotation file


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check_data` found. ``label_map`` lists (label, id in the file, name)."""

    root: str
    layout: str
    images_verified: bool
    label_map: tuple[tuple[int, int, str], ...]
    splits: tuple[SplitReport, ...]
    duplicates: tuple[tuple[str, ...], ...] = ()  # image files with the same content in more than one split
    near_duplicates: tuple[NearDuplicate, ...] = ()  # pictures that look like one of an earlier split
    pixels: tuple[str, ...] = ()  # about pictures that are not 8-bit RGB, and what dataset.toml should say
    untrained_classes: tuple[str, ...] = ()  # with objects in val or test, but none in train
    errors: tuple[str, ...] = ()  # reasons why the dataset cannot be used, the worst first
    doubts: tuple[str, ...] = ()  # reasons why its annotations can hardly be meant as they stand
    warnings: tuple[str, ...] = field(default=())
    # The doubts about each split with the pictures that show them, which are not in the report file.
    shown_doubts: tuple[tuple[Doubt, ...], ...] = field(default=(), repr=False, compare=False)

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
        content = asdict(replace(self, shown_doubts=()))
        del content["shown_doubts"]
        return {"fatal": self.fatal, **_plain(content)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
