"""The doubts about a split: its annotations, its image files, and pictures that it shares with another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from directdet.data.checks.finding import MOST_EXAMPLES, Doubt, Example
from directdet.data.checks.near_duplicates import NearDuplicate
from directdet.data.checks.report import SplitReport
from directdet.data.plausible import doubts_about, misfit_areas
from directdet.data.records import Dataset


def split_doubts(dataset: Dataset, report: SplitReport, alike: Sequence[NearDuplicate]) -> list[Doubt]:
    """What speaks against a split, the same each time; ``alike`` are the near-duplicates of all splits.

    The pictures of other splits are not known here: examples of near-duplicates have none beside them.
    """
    doubts = [*doubts_about(dataset), *_file_doubts(dataset, report), *_alike_doubts(dataset, report, alike)]
    if mostly_misfit(report):
        doubts.append(Doubt("misfit-area", misfit_text(report), report.misfit_areas, misfit_examples(dataset)))
    return doubts


def mostly_misfit(report: SplitReport) -> bool:
    """Whether the areas of most objects do not fit their boxes."""
    return 2 * report.misfit_areas > report.objects


def misfit_text(report: SplitReport) -> str:
    """That areas do not fit their boxes, in one line."""
    return (
        f"{report.split}: the area of {report.misfit_areas} of {report.objects} objects does not fit their box; AP of "
        "small, medium and large objects goes by it: correct or remove the areas"
    )


def misfit_examples(dataset: Dataset) -> tuple[Example, ...]:
    """The first pictures with such objects."""
    examples: list[Example] = []
    for record in dataset.records:
        wrong = misfit_areas(record.areas, record.boxes[:, 2:] - record.boxes[:, :2]) & ~record.crowd
        if wrong.any():
            places = tuple(np.flatnonzero(wrong).tolist())
            told = ", ".join(f"{record.areas[place]:g}" for place in places[:3]) + (", ..." if len(places) > 3 else "")
            examples.append(Example(record, places, caption=f"area {told}"))
        if len(examples) == MOST_EXAMPLES:
            break
    return tuple(examples)


def examples_of(dataset: Dataset, files: Iterable[str], captions: Iterable[str] = ()) -> tuple[Example, ...]:
    """The first of these files of a split, with their captions."""
    wanted = list(files)[:MOST_EXAMPLES]
    said = dict(zip(wanted, captions, strict=False))
    chosen = set(wanted)
    found = {str(record.path): record for record in dataset.records if str(record.path) in chosen}
    return tuple(Example(found[file], caption=said.get(file, "")) for file in wanted if file in found)


def _file_doubts(dataset: Dataset, report: SplitReport) -> list[Doubt]:
    doubts: list[Doubt] = []
    if report.turned_files:
        text = (
            f"{report.split}: {len(report.turned_files)} of {report.images} images have an EXIF note of rotation or "
            f"mirroring (the first: {report.turned_files[0]}), which is ignored here; if the boxes were drawn as a "
            "viewer shows them, save the images turned, without the note"
        )
        examples = examples_of(dataset, report.turned_files)
        doubts.append(Doubt("turned-file", text, len(report.turned_files), examples))
    if report.dark_files:
        text = (
            f"{report.split}: {len(report.dark_files)} of {report.images} images are black or nearly black (the first: "
            f"{report.dark_files[0]}); 16 bits are divided by 256, so scale images of 10 or 12 bits up to all 16"
        )
        doubts.append(Doubt("dark-file", text, len(report.dark_files), examples_of(dataset, report.dark_files)))
    return doubts


def _alike_doubts(dataset: Dataset, report: SplitReport, alike: Sequence[NearDuplicate]) -> list[Doubt]:
    here = [one for one in alike if one.split == report.split]
    if not here:
        return []
    text = (
        f"{report.split}: {len(here)} of {report.images} images look like one of another split (the first: "
        f"{here[0].file} = {here[0].like}), so results on them will be too good; keep such images in one split"
    )
    return [Doubt("near-duplicate", text, len(here), examples_of(dataset, (one.file for one in here)))]
