"""Everything that check-data found, the worst first, each with the pictures that show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from directdet.data.checks.doubts import misfit_examples, misfit_text, mostly_misfit
from directdet.data.checks.finding import MOST_EXAMPLES, Doubt, Example, Finding, Worth
from directdet.data.checks.report import CheckReport, SplitReport
from directdet.data.plausible import problem_examples, too_small_examples
from directdet.data.records import Dataset, Record

# Kinds of problems with an object -> what they are, of several.
_PROBLEMS = {
    "empty-box": "boxes without width or height",
    "outside-box": "boxes outside their image",
    "clipped-box": "boxes that extend beyond their image",
    "bad-polygon": "masks without a polygon of three points",
    "far-polygon": "masks with a corner far outside their image",
    "bad-area": "areas that are not positive",
}
_DROPPED = "Training leaves these objects out: correct or remove them."
_ACTIONS = {
    "empty-box": _DROPPED,
    "outside-box": _DROPPED,
    "clipped-box": "They are clipped to it.",
    "bad-polygon": "The mask is left out, the box kept.",
    "far-polygon": "What lies there is cut off.",
    "bad-area": "That of the box is taken.",
}
_MISFIT = "areas that do not fit their box"
# Kinds of doubts -> what they are about.
_DOUBTS = {
    "leaving": "boxes that leave their image",
    "scaled": "boxes that are hardly in pixels",
    "centres": "boxes whose corner may be a centre",
    "listed-twice": "images that are listed more than once",
    "repeated": "objects that are there twice",
    "turned-file": "images with a note of rotation",
    "dark-file": "images that are nearly black",
    "near-duplicate": "images that look like one of another split",
    "misfit-area": _MISFIT,
}
_ORDER: tuple[Worth, ...] = ("error", "doubt", "warning")


def all_findings(report: CheckReport, datasets: Sequence[Dataset]) -> list[Finding]:
    """The findings of a report about these splits: errors, doubts, warnings, and of each kind the most first.

    The number of each is that of the report.
    """
    found: list[Finding] = []
    if report.errors:
        title = f"{len(report.errors)} errors"
        text = "Training and evaluation cannot use the dataset as it is."
        found.append(Finding("error", "error", title, text, len(report.errors), lines=report.errors))
    by_split = {dataset.split: dataset for dataset in datasets}
    for split, doubts in zip(report.splits, report.shown_doubts, strict=True):
        dataset = by_split[split.split]
        found += _files(split)
        if tiny := too_small_examples(dataset):
            title, text = f"{split.split}: {split.objects} boxes smaller than a pixel", "None is larger."
            found.append(Finding("tiny-box", "error", title, text, split.objects, tiny))
        found += _problems(dataset, split)
        found += [_of_doubt(doubt, split.split, datasets, report) for doubt in doubts]
        if split.misfit_areas and not mostly_misfit(split):
            title, examples = f"{split.split}: {split.misfit_areas} {_MISFIT}", misfit_examples(dataset)
            text = misfit_text(split)
            found.append(Finding("misfit-area", "warning", title, text, split.misfit_areas, examples))
        found += _without_mask(dataset, split)
    if report.duplicates:
        title, text = f"{len(report.duplicates)} images in several splits", "Results on them will be too good."
        lines = tuple(" = ".join(files) for files in report.duplicates)
        examples = _side_by_side(datasets, ((files[-1], files[0]) for files in report.duplicates[:MOST_EXAMPLES]))
        found.append(Finding("duplicate", "warning", title, text, len(report.duplicates), examples, lines))
    if report.warnings:
        title = f"{len(report.warnings)} warnings"
        found.append(Finding("warning", "warning", title, "", len(report.warnings), lines=report.warnings))
    return sorted(found, key=lambda one: (_ORDER.index(one.worth), one.kind == "warning", -one.count))


def _files(split: SplitReport) -> list[Finding]:
    found: list[Finding] = []
    for kind, files, text in (
        ("missing-file", split.missing_files, "image files that are missing"),
        ("broken-file", split.broken_files, "image files that cannot be used"),
    ):
        if files:
            lines = tuple(item.message for item in files)
            found.append(Finding(kind, "error", f"{split.split}: {len(files)} {text}", "", len(files), lines=lines))
    return found


def _problems(dataset: Dataset, split: SplitReport) -> list[Finding]:
    found: list[Finding] = []
    for kind, count in Counter(problem.kind for problem in split.problems).items():
        worth: Worth = "error" if kind in ("empty-box", "outside-box") else "warning"
        title = f"{split.split}: {count} {_PROBLEMS[kind]}"
        lines = tuple(
            f"{item.file}: annotation {item.annotation_id}: {item.message}: {item.action}"
            for item in split.problems
            if item.kind == kind
        )
        examples = problem_examples(dataset, lambda problem, kind=kind: problem.kind == kind)
        found.append(Finding(kind, worth, title, _ACTIONS[kind], count, examples, lines))
    return found


def _of_doubt(doubt: Doubt, split: str, datasets: Sequence[Dataset], report: CheckReport) -> Finding:
    examples = doubt.examples
    if doubt.kind == "near-duplicate":
        files = {str(example.record.path) for example in examples}
        pairs = [one for one in report.near_duplicates if one.file in files]
        examples = _side_by_side(datasets, ((one.file, one.like) for one in pairs))
    title = f"{split}: {doubt.count} {_DOUBTS[doubt.kind]}"
    return Finding(doubt.kind, "doubt", title, doubt.text, doubt.count, examples)


def _without_mask(dataset: Dataset, split: SplitReport) -> list[Finding]:
    """Objects without a mask where others have one."""
    if not 0 < split.objects_with_mask < split.objects:
        return []
    examples: list[Example] = []
    for record in dataset.records:
        bare = [place for place, mask in enumerate(record.segmentations) if mask is None and not record.crowd[place]]
        if bare:
            numbers = ", ".join(str(record.annotation_ids[place]) for place in bare[:3])
            more = ", ..." if len(bare) > 3 else ""
            examples.append(Example(record, tuple(bare), caption=f"annotation {numbers}{more}: no mask"))
        if len(examples) == MOST_EXAMPLES:
            break
    count = split.objects - split.objects_with_mask
    title = f"{split.split}: {count} objects without a mask"
    text = f"The other {split.objects_with_mask} have one; training with masks needs all of them."
    return [Finding("no-mask", "warning", title, text, count, tuple(examples))]


def _side_by_side(datasets: Sequence[Dataset], pairs: Iterable[tuple[str, str]]) -> tuple[Example, ...]:
    """Pairs of files as examples."""
    wanted = list(pairs)
    files = {file for pair in wanted for file in pair}
    found: dict[str, Record] = {}
    for dataset in datasets:
        found |= {str(record.path): record for record in dataset.records if str(record.path) in files}
    return tuple(
        Example(found[file], caption=f"{file} = {like}", like=found[like])
        for file, like in wanted
        if file in found and like in found
    )
