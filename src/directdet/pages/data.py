"""The page of `check-data --report FILE.html`: what is in a dataset, what is wrong in it, and what it looks like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from directdet.common.errors import UserError
from directdet.data.check_report import split_rows
from directdet.data.checks.finding import Example, Finding
from directdet.data.checks.findings import all_findings
from directdet.data.checks.objects import Objects, objects_of
from directdet.data.checks.report import CheckReport, SplitReport
from directdet.data.checks.seen import SIDES, Seen
from directdet.data.records import Dataset
from directdet.pages.annotated import annotated, example_picture, single_object
from directdet.pages.data_charts import centre_map, count_chart, seen_chart, size_map
from directdet.pages.page import (
    Figure,
    Grid,
    Picture,
    about,
    charts,
    document,
    folded,
    gallery,
    listed,
    safe,
    section,
    small_print,
    stills,
    table,
)

_SAMPLE = 12  # whole pictures, drawn at random
_OF_CLASS = 5  # objects of each class, drawn at random
_MOST_CLASSES = 100  # of which objects are shown
_EXTREMES = 10  # smallest and largest objects
_MAPS = 12  # classes with maps of their own, those with the most objects
_BADGES = {"error": "bad", "doubt": "", "warning": ""}


@dataclass(frozen=True, eq=False)
class DataPage:
    """Everything the page says.

    Attributes:
        report, datasets: of `examine_data`.
        about: how the page was made.
        recipe: the recipe whose sizes are asked for, "" for none.
        seen: how large objects are to each of its phases.
        pictures: how many are shown of each finding.
        seed: of what is drawn at random.
    """

    report: CheckReport
    datasets: Sequence[Dataset]
    about: dict[str, str] = field(default_factory=dict)
    recipe: str = ""
    seen: Sequence[Seen] = ()
    pictures: int = 8
    seed: int = 0


def render_data(page: DataPage) -> str:
    """The page as HTML text; it loads nothing from anywhere. Pictures are read one after the other, and scaled down."""
    report = page.report
    findings = all_findings(report, page.datasets)
    objects = objects_of(page.datasets)
    sections = [
        section("Splits", _splits(report)),
        section("Classes", _classes(report)),
        section("Faults", "".join(_finding(page, finding) for finding in findings) or small_print("None was found.")),
    ]
    if report.pixels:
        sections.append(section("What the pictures hold", listed(report.pixels, len(report.pixels))))
    sections.append(section("A sample", _sample(page)))
    if len(objects.label):
        sections += [
            section("Each class", _each_class(page, objects)),
            section("The smallest and the largest", _extremes(page, objects)),
            section("Where and how large", _maps(page, objects)),
        ]
    if page.seen:
        sections.append(section(f"What {page.recipe} sees", _seen(page)))
    sections.append(section("How this was made", about(page.about)))
    return document(Path(report.root).absolute().name, _verdict(report), _figures(report), sections)


def _verdict(report: CheckReport) -> str:
    dropped = len(report.dropped)
    if report.fatal:
        return "Not usable: fix the errors and the missing or broken files first."
    if dropped:
        return f"Training would leave out {dropped} objects, whose boxes are not valid: correct or remove them first."
    unopened = "" if report.images_verified else " (images were not opened)"
    if report.doubts:
        return f"Doubtful{unopened}: look at the doubts first."
    return f"Usable{unopened}."


def _figures(report: CheckReport) -> list[Figure]:
    splits = ", ".join(f"{split.split} {split.images}" for split in report.splits)
    files = sum(len(split.missing_files) + len(split.broken_files) for split in report.splits)
    errors = len(report.errors) + files + len(report.dropped)
    objects = sum(split.objects for split in report.splits)
    masks = sum(split.objects_with_mask for split in report.splits)
    return [
        Figure("Pictures", str(sum(split.images for split in report.splits)), splits),
        Figure("Objects", str(objects), f"{masks} with mask"),
        Figure("Classes", str(len(report.label_map)), report.layout),
        Figure("Errors", str(errors), "files, entries and boxes", "bad" if errors else "good"),
        Figure("Doubts", str(len(report.doubts)), f"{len(report.warnings)} warnings", "bad" if report.doubts else ""),
    ]


def _splits(report: CheckReport) -> str:
    rows = [(name.strip(), *values) for name, values in split_rows(report)]
    return table(Grid(("", *(split.split for split in report.splits)), rows))


def _classes(report: CheckReport) -> str:
    """The label map, and the number of objects of each class with a bar of it."""
    most = [max(split.class_counts, default=0) for split in report.splits]
    head = "".join(
        f"<th>{safe(name)}</th>" for name in ("class", *(s.split for s in report.splits), "label", "id in file")
    )
    body = ""
    for label, category, name in report.label_map:
        cells = "".join(_bar(split, label, highest) for split, highest in zip(report.splits, most, strict=True))
        body += f"<tr><td>{safe(name)}</td>{cells}<td>{label}</td><td>{category}</td></tr>"
    note = "Numbers of objects without crowd regions; the bars are shares of the most frequent class of the split."
    grid = f'<table class="balance"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{grid}</div>{small_print(note)}'


def _bar(split: SplitReport, label: int, highest: int) -> str:
    if label >= len(split.class_counts):  # splits with other categories, which is reported as an error
        return "<td>-</td>"
    count = split.class_counts[label]
    return f'<td style="--share:{100 * count / max(highest, 1):.1f}%">{count}</td>'


def _finding(page: DataPage, finding: Finding) -> str:
    badge = f'<span class="badge {_BADGES[finding.worth]}">{finding.worth}</span>'
    content = f"<h3>{badge} {safe(finding.title)}</h3>" + (small_print(finding.text) if finding.text else "")
    single: list[tuple[str, bytes]] = []
    pairs: list[Picture] = []
    failed: list[str] = []
    for example in finding.examples[: page.pictures]:
        caption = _caption(page, example)
        try:
            if example.like is None:
                single.append((caption, example_picture(example, _names(page))))
            else:
                both = annotated(example.record, _names(page)), annotated(example.like, _names(page))
                pairs.append(Picture(caption, *both))
        except UserError as error:
            failed.append(f"{caption}: cannot be shown: {error}")
    content += stills(single, wide=True) if single else ""
    content += gallery(pairs, "In the order of the caption.", ("the first", "the second")) if pairs else ""
    content += listed(failed) if failed else ""
    shown = len(single) + len(pairs)
    if not shown:
        return content + (listed(finding.lines) if finding.lines else "")
    if len(finding.lines) > shown:
        content += folded(f"All {len(finding.lines)} in words", listed(finding.lines, len(finding.lines)))
    elif len(finding.examples) > shown:
        content += small_print(f"The first {shown} pictures are shown.")
    return content


def _caption(page: DataPage, example: Example) -> str:
    """The picture's path, which objects are in question, and what about them."""
    path = str(example.record.path)
    if example.like is not None:
        return example.caption or path
    numbers = [str(example.record.annotation_ids[place]) for place in example.objects]
    which = ""
    if numbers and not example.caption:
        which = f"annotation{'s' if len(numbers) > 1 else ''} {', '.join(numbers[:5])}{', ...' if numbers[5:] else ''}"
    return ": ".join(part for part in (_short(page, path), which, example.caption) if part)


def _short(page: DataPage, path: str) -> str:
    """A path without the folder of the dataset, if it is in it."""
    inside = Path(path).is_relative_to(page.report.root)
    return str(Path(path).relative_to(page.report.root)) if inside else path


def _names(page: DataPage) -> list[str]:
    return [name for _, _, name in page.report.label_map]


def _sample(page: DataPage) -> str:
    ends = np.cumsum([len(dataset) for dataset in page.datasets])
    rng = np.random.default_rng(page.seed)
    pictures: list[tuple[str, bytes]] = []
    for chosen in rng.permutation(int(ends[-1]))[: 4 * _SAMPLE].tolist():
        split = int(np.searchsorted(ends, chosen, "right"))
        dataset = page.datasets[split]
        record = dataset.records[chosen - (int(ends[split]) - len(dataset))]
        try:
            jpeg = annotated(record, _names(page))
        except UserError:
            continue
        count = int((~record.crowd).sum())
        told = f"{dataset.split}: {_short(page, str(record.path))}: {count} object{'s' * (count != 1)}"
        pictures.append((told, jpeg))
        if len(pictures) == _SAMPLE:
            break
    if not pictures:
        return small_print("No picture can be read.")
    note = "Drawn at random, with their boxes and masks. A colour is a class; grey boxes are crowd regions."
    return small_print(note) + stills(pictures, wide=True)


def _each_class(page: DataPage, objects: Objects) -> str:
    rng = np.random.default_rng(page.seed)
    parts: list[str] = []
    for label, name in enumerate(_names(page)[:_MOST_CLASSES]):
        of_class = np.flatnonzero(objects.label == label)
        if not len(of_class):
            parts.append(f"<h3>{safe(name)}</h3>{small_print('No objects.')}")
            continue
        chosen = rng.permutation(of_class)[: 2 * _OF_CLASS]
        pictures = list(_crops(page, objects, chosen, _OF_CLASS))
        parts.append(f"<h3>{safe(name)} ({len(of_class)})</h3>{stills(pictures)}")
    more = len(page.report.label_map) - _MOST_CLASSES
    if more > 0:
        parts.append(small_print(f"The other {more} classes are not shown."))
    return small_print("Objects drawn at random, with their size in pixels.") + "".join(parts)


def _extremes(page: DataPage, objects: Objects) -> str:
    order = np.argsort(objects.sides.prod(axis=1), kind="stable")
    smallest = list(_crops(page, objects, order[: 2 * _EXTREMES], _EXTREMES, named=True))
    largest = list(_crops(page, objects, order[::-1][: 2 * _EXTREMES], _EXTREMES, named=True))
    return f"<h3>Smallest</h3>{stills(smallest)}<h3>Largest</h3>{stills(largest)}"


def _crops(
    page: DataPage, objects: Objects, chosen: np.ndarray, most: int, named: bool = False
) -> Iterator[tuple[str, bytes]]:
    """The first of the chosen objects that can be drawn, with their size, picture and annotation."""
    names, count = _names(page), 0
    for index in chosen.tolist():
        record = page.datasets[int(objects.split[index])].records[int(objects.record[index])]
        place, label = int(objects.place[index]), int(objects.label[index])
        try:
            jpeg = single_object(record, place)
        except UserError:
            continue
        width, height = objects.sides[index].tolist()
        name = f"{names[label] if label < len(names) else label}: " if named else ""
        told = f"{name}{_pixels(width)} x {_pixels(height)}: {_short(page, str(record.path))}: annotation "
        yield told + str(record.annotation_ids[place]), jpeg
        count += 1
        if count == most:
            return


def _pixels(side: float) -> str:
    return f"{side:.0f}" if side >= 10 else f"{side:.1f}".removesuffix(".0")


def _maps(page: DataPage, objects: Objects) -> str:
    drawn = [
        (centre_map(objects.box, objects.size), "Where in their pictures the centres of objects are."),
        (size_map(objects.sides), "Width and height; the dashed lines are COCO's limits, 32² and 96² pixels."),
        (count_chart(objects.per_picture), "Objects of a picture, without crowd regions."),
    ]
    names = _names(page)
    counts = np.bincount(objects.label, minlength=len(names))[: len(names)]
    parts = ""
    if np.count_nonzero(counts) > 1:
        for label in np.argsort(-counts, kind="stable")[:_MAPS].tolist():
            chosen = objects.label == label
            if not chosen.any():
                continue
            both = (
                (centre_map(objects.box[chosen], objects.size[chosen], small=True), "Centres."),
                (size_map(objects.sides[chosen], small=True), "Width and height."),
            )
            parts += f"<h3>{safe(names[label])} ({counts[label]})</h3>{charts(both)}"
        several = np.count_nonzero(counts) > _MAPS
        parts = folded(f"The {_MAPS} most frequent classes" if several else "Each class", parts)
    return charts(drawn) + small_print("The deeper the colour, the more objects, by the root of their number.") + parts


def _seen(page: DataPage) -> str:
    """How many objects are how small at the sizes of training."""
    rows: list[tuple[str, ...]] = [("objects of train", *(str(len(one.sides)) for one in page.seen))]
    for limit in SIDES:
        cells = (f"{one.below(limit)} ({100 * one.below(limit) / max(len(one.sides), 1):.1f} %)" for one in page.seen)
        rows.append((f"shorter side below {limit} pixel{'s' * (limit > 1)}", *cells))
    rows.append(("never a pixel wide and high: left out", *(str(one.unseen) for one in page.seen)))
    rows.append(("others left out as difficult", *(str(one.difficult) for one in page.seen)))
    medians = [f"{np.median(one.sides.min(axis=1)):.1f}" if len(one.sides) else "-" for one in page.seen]
    rows.append(("median of the shorter side", *medians))
    note = (
        "At the size that pictures are resized to, before random scales and crops. The finest stride of most detectors "
        "here is 8 pixels: objects that are much smaller are hard to learn, and a larger size helps."
    )
    drawn = [(one.phase, one.sides) for one in page.seen if len(one.sides)]
    caption = "How many objects have a shorter side of at most so many pixels."
    chart = charts([(seen_chart(drawn, SIDES), caption)]) if drawn else ""
    return small_print(note) + table(Grid(("", *(one.phase for one in page.seen)), rows)) + chart
