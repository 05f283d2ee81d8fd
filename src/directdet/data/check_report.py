"""The report of check-data, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from directdet.common.terminal import TITLE, plain, terminal
from directdet.data.checks.report import CheckReport, SplitReport

_SHOWN = 10  # lines printed of each kind of problem; the report file has all


def print_report(report: CheckReport, console: Console | None = None, shown: int | None = _SHOWN) -> None:
    """Print tables of the splits and of the classes, and `shown` problems of each kind (None: all)."""
    console = console or terminal()
    console.print(_split_table(report))
    console.print(_class_table(report))
    for split in report.splits:
        _print_list(console, f"{split.split}: missing files", [item.message for item in split.missing_files], shown)
        _print_list(console, f"{split.split}: broken files", [item.message for item in split.broken_files], shown)
        lines = [
            f"{item.file}: annotation {item.annotation_id}: {item.message}: {item.action}" for item in split.problems
        ]
        _print_list(console, f"{split.split}: annotations put right or dropped", lines, shown)
    for line in report.pixels:
        console.print(plain(line), highlight=False, soft_wrap=True)
    _print_list(console, "the same image in several splits", [" = ".join(files) for files in report.duplicates], shown)
    alike = [f"{one.file} = {one.like}" for one in report.near_duplicates]
    _print_list(console, "nearly the same image in several splits", alike, shown)
    _print_list(console, "errors", report.errors, shown)
    _print_list(console, "doubts", report.doubts, shown)
    _print_list(console, "warnings", report.warnings, shown)
    if report.fatal:
        console.print(Text("not usable:", "bold red"), "fix the errors and the missing or broken files first")
        return
    unopened = "" if report.images_verified else " (images were not opened)"
    if report.doubts:
        console.print(Text.assemble(("doubtful", "bold yellow"), unopened, ": look at the doubts first"))
    else:
        console.print(Text.assemble(("usable", "bold green"), unopened))


def split_rows(report: CheckReport) -> list[tuple[str, list[str]]]:
    """What is told of the splits: a name, indented where it is a part of the one above, and a value for each split."""
    rows: dict[str, Callable[[SplitReport], object]] = {
        "images": lambda split: split.images,
        "  without objects": lambda split: split.empty_images,
        "objects": lambda split: split.objects,
        "  with mask": lambda split: split.objects_with_mask,
        "  difficult": lambda split: split.difficult,
        "  with score below 1": lambda split: split.scored,
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
        "unreadable entries": lambda split: split.unreadable_entries,
    }
    return [(name, [str(value(split)) for split in report.splits]) for name, value in rows.items()]


def _split_table(report: CheckReport) -> Table:
    table = Table("", title=plain(f"{report.root} ({report.layout})", TITLE), title_justify="left")
    for split in report.splits:
        table.add_column(split.split, justify="right")
    for name, values in split_rows(report):
        table.add_row(name, *values)
    return table


def _class_table(report: CheckReport) -> Table:
    table = Table("label", "id in file", "class", title="label map and objects of each class", title_justify="left")
    for split in report.splits:
        table.add_column(split.split, justify="right")
    for label, category, name in report.label_map:
        # Splits with other categories (reported as an error) may have fewer.
        counts = [str(split.class_counts[label]) if label < len(split.class_counts) else "-" for split in report.splits]
        table.add_row(str(label), str(category), plain(name), *counts)
    return table


def _print_list(console: Console, title: str, lines: Sequence[str], shown: int | None) -> None:
    if not lines:
        return
    console.print(Text(title, "bold"), f"({len(lines)})")
    shown = len(lines) if shown is None else shown
    for line in lines[:shown]:
        console.print(plain(f"  {line}"), highlight=False, soft_wrap=True)
    if len(lines) > shown:
        console.print(f"  ... and {len(lines) - shown} more; --report FILE lists all")
