"""The page about a detector on a dataset: AP, score threshold, errors, calibration, worst pictures, doubtful labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from directdet.common.files import write_json_atomic, write_text_atomic
from directdet.data.dataset import Dataset
from directdet.infer.accuracy.analysis import Analysis, Case, analyse
from directdet.infer.accuracy.evaluate import Evaluation, Metrics
from directdet.pages.cases import single, worst_pictures
from directdet.pages.curves import Log, ap_chart, loss_chart, rate_chart
from directdet.pages.evaluation_charts import MOST_LINES, calibration_chart, iou_chart, precision_chart, score_chart
from directdet.pages.page import (
    Figure,
    Grid,
    about,
    charts,
    document,
    folded,
    gallery,
    section,
    small_print,
    stills,
    table,
)

_MATRIX = 20  # classes up to which the whole confusion matrix is shown, and the table of classes is not folded
_CONFUSIONS = 20  # else so many of its largest entries
_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


@dataclass(frozen=True, eq=False)
class EvaluationPage:
    """Everything the page says; `log` adds the curves of a run, `comparison` a paragraph about another model."""

    title: str
    intro: str
    evaluation: Evaluation
    about: dict[str, str] = field(default_factory=dict)
    log: Log = field(default_factory=dict)
    comparison: str = ""


def write_evaluation(page: EvaluationPage, folder: Path, facts: dict[str, Any]) -> Path:
    """Write FOLDER/report.html and FOLDER/report.json, which begins with `facts`; returns the page's path.

    Raises:
        UserError: a picture cannot be read, or a file cannot be written.
    """
    one = page.evaluation
    analysis = analyse(one.found, one.dataset, one.records)
    content = {**facts, **one.metrics.to_dict(), **analysis.to_dict(one.dataset, one.records)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / "report.json", content)
    return write_text_atomic(folder / "report.html", render(page, analysis))


def render(page: EvaluationPage, analysis: Analysis) -> str:
    """The page as HTML text; it loads nothing from anywhere."""
    one = page.evaluation
    metrics, dataset = one.metrics, one.dataset
    sections = [section("Compared", f"<p>{escape(page.comparison)}</p>")] if page.comparison else []
    if page.log:
        sections.append(section("Learning", _learning(page.log)))
    sections += [
        section("Accuracy", _accuracy(metrics, analysis)),
        section("Score threshold", _threshold(analysis)),
        section("Errors", _errors(analysis) + _confusion(analysis, dataset)),
        section("Calibration", _calibration(analysis)),
    ]
    if analysis.worst:
        sections.append(section("Worst pictures", _worst(page, analysis)))
    sections.append(section("Likely label errors", _doubts(page, analysis)))
    sections.append(section("How this was made", about(page.about)))
    return document(page.title, page.intro, _figures(metrics, analysis), sections)


def _figures(metrics: Metrics, analysis: Analysis) -> list[Figure]:
    figures = [Figure("Box AP", _percent(metrics.bbox["AP"]), f"AP50 {_percent(metrics.bbox['AP50'])}")]
    if metrics.segm is not None:
        figures.append(Figure("Mask AP", _percent(metrics.segm["AP"]), f"AP50 {_percent(metrics.segm['AP50'])}"))
    best = analysis.overall.best
    if best is None:
        figures.append(Figure("Score threshold", "-", "nothing is found at any"))
    else:
        curve = analysis.overall
        told = f"precision {_percent(curve.precision[best])}, recall {_percent(curve.recall[best])}"
        figures.append(Figure("Suggested threshold", f"{analysis.threshold:.3f}", told))
        figures.append(Figure("F1 there", _percent(curve.f1[best]), "at IoU 0.5"))
    objects = int(analysis.matches.object_counts.sum())
    figures.append(Figure("Pictures", str(metrics.n_images), f"{objects} objects that count"))
    return figures


def _learning(log: Log) -> str:
    drawn = (
        (loss_chart(log), "Loss of every logged step, and its running median."),
        (rate_chart(log), "Learning rate."),
        (ap_chart(log), "COCO AP on the val split."),
    )
    return charts(drawn)


def _accuracy(metrics: Metrics, analysis: Analysis) -> str:
    kinds = [("box", metrics.bbox), ("mask", metrics.segm)]
    rows = [(name, *(_percent(values[metric]) for metric in _NUMBERS)) for name, values in kinds if values is not None]
    counts = analysis.matches.counts(len(metrics.classes))
    classes = []
    for label, name in enumerate(metrics.classes):
        curve = analysis.per_class[label]
        best = ("-", "-") if curve.best is None else (f"{curve.threshold:.3f}", _percent(curve.f1[curve.best]))
        sizes = map(_percent, metrics.per_class_sizes[label])
        ap = _percent(metrics.per_class[label]), _percent(metrics.per_class_50[label])
        classes.append((name, counts[label], *ap, *sizes, *best))
    faint = ", each class faintly" if len(metrics.classes) <= MOST_LINES else ""
    drawn = (
        (iou_chart(metrics.by_iou), "Box AP by the IoU that a match needs."),
        (precision_chart(analysis), f"Precision by recall at IoU 0.5: mean of the classes{faint}."),
    )
    headers = ("class", "objects", "AP", "AP50", "small", "medium", "large", "best score", "F1 there")
    per_class = Grid(headers, classes)
    return (
        table(Grid(("%", *_NUMBERS), rows))
        + charts(drawn)
        + (table(per_class) if len(classes) <= _MATRIX else folded(f"All {len(classes)} classes", table(per_class)))
        + small_print(
            "Small, medium and large are COCO's: AP of objects below 32 x 32 pixels, below 96 x 96, and above. A dash: "
            "there are no such objects. The best score is the threshold with the highest F1 of the class alone."
        )
    )


def _threshold(analysis: Analysis) -> str:
    if not analysis.suggested:
        note = f"Nothing is found at any score, so none is suggested; below, {analysis.threshold:g} is used."
    else:
        note = (
            f"Of all detections together, F1 is highest at scores of at least {analysis.threshold:.3f} (the dashed "
            "line). A lower threshold finds more and is wrong more often; which is worse depends on the use."
        )
    own = analysis.class_scores
    if own is not None:
        before, after = (" and ".join(map(_percent, values)) for values in (own.common_f1, own.f1))
        note += (
            f" A threshold for each class {'is better' if own.help else 'does not help'}: fitted on each half of the "
            f"pictures, F1 on the other half is {before} % with one for all, {after} % with one for each class."
        )
    caption = "F1, precision and recall by score threshold, all classes together, at IoU 0.5."
    return small_print(note) + charts([(score_chart(analysis), caption)])


def _errors(analysis: Analysis) -> str:
    words = {
        "localisation": "right class, IoU 0.1 to 0.5",
        "class": "another class, IoU 0.5 or more",
        "both": "another class, IoU 0.1 to 0.5",
        "duplicate": "found already by a higher score",
        "background": "nothing there, IoU below 0.1",
        "missed": "objects with none of these on them",
    }
    rows = []
    for one in analysis.errors:
        costs = "-" if one.costs is None else f"{100 * one.costs:.1f}"
        rows.append((f"{one.name}: {words[one.name]}", one.count, costs))
    note = (
        f"The kinds of TIDE (arXiv 2008.08115). The number counts detections with a score of at least "
        f"{analysis.threshold:.3f}, and missed objects. The last column is what AP50 would gain, in points, if all "
        "errors of that kind, at any score, were mended and nothing else."
    )
    return table(Grid(("kind", "number", "AP50 to gain"), rows)) + small_print(note)


def _confusion(analysis: Analysis, dataset: Dataset) -> str:
    names, matrix = (*dataset.classes, "nothing"), analysis.confusion
    title = "<h3>What is taken for what</h3>"
    if len(dataset.classes) > _MATRIX:
        off = [(int(value), row, column) for (row, column), value in _cells(matrix) if row != column and value]
        off.sort(key=lambda one: -one[0])
        rows = [(names[row], names[column], value) for value, row, column in off[:_CONFUSIONS]]
        note = f"The {len(rows)} most frequent confusions above the threshold, of {len(off)}; report.json has them all."
        return title + table(Grid(("labelled", "detected as", "number"), rows)) + small_print(note)
    most = [max(int(row.sum()), 1) for row in matrix]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = ""
    for row, name in enumerate(names):
        cells = ""
        for column in range(len(names)):
            value = int(matrix[row, column])
            tint = "good" if row == column else "wrong"
            share = round(100 * value / most[row])
            cells += f'<td class="{tint}" style="--share:{share}%">{value or ""}</td>'
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    note = (
        "Rows are the labels, columns what was detected above the threshold; numbers of objects, shaded by their share "
        "of the row. Bottom row: detections where nothing is labelled; last column: objects that nothing found."
    )
    grid = f'<table class="matrix"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'{title}<div class="scroll">{grid}</div>{small_print(note)}'


def _cells(matrix: Any) -> list[tuple[tuple[int, int], int]]:
    return [((row, column), value) for row, values in enumerate(matrix.tolist()) for column, value in enumerate(values)]


def _calibration(analysis: Analysis) -> str:
    if analysis.calibration_error is None:
        return small_print("There are no detections.")
    rows = [
        (f"{one.low:.1f} to {one.low + 0.1:.1f}", one.detections, f"{one.mean_score:.3f}", _percent(one.right))
        for one in analysis.bins
    ]
    drawn = [(calibration_chart(analysis), "Share of right detections by score; dashed: scores are probabilities.")]
    note = (
        f"On average a score is {100 * analysis.calibration_error:.1f} points away from how often such detections are "
        "right at IoU 0.5 (the expected calibration error)."
    )
    return small_print(note) + charts(drawn) + table(Grid(("score", "detections", "mean score", "right (%)"), rows))


def _worst(page: EvaluationPage, analysis: Analysis) -> str:
    note = (
        f"The pictures with the most errors at scores of at least {analysis.threshold:.3f}, cut to where these are. "
        "Left the truth: green found, red not; right the detections: green right, orange wrong, with the kind. At "
        "most five boxes are named; grey does not count."
    )
    one = page.evaluation
    return gallery(worst_pictures(analysis, one.dataset.classes, one.records), note)


def _doubts(page: EvaluationPage, analysis: Analysis) -> str:
    groups: tuple[tuple[str, Sequence[Case], str], ...] = (
        ("Detected, not labelled", analysis.unlabelled, "Confident detections with no label near them."),
        ("Labelled as another class", analysis.other_class, "Confident detections on an object of another class."),
        ("Labelled, never found", analysis.unfound, "Labels that no detection of any class and score comes near."),
    )
    one, parts = page.evaluation, []
    for title, cases, note in groups:
        if cases:
            pictures = [single(case, one.dataset.classes, one.records) for case in cases]
            parts.append(f"<h3>{escape(title)}</h3>{small_print(note)}{stills(pictures)}")
    return "".join(parts) or small_print("None: no confident detection contradicts a label, and all labels were found.")


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"
