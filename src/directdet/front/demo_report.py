"""`report.html`: one self-contained page about a run. A plain function of data; every text in it is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from directdet.benchmark.page_parts import failed, papers, ran_in, stage_bars, stage_table
from directdet.benchmark.tables import ap, machine_words
from directdet.pages.curves import Log, ap_chart, loss_chart
from directdet.pages.page import Figure, Grid, Picture, about, charts, document, gallery, section, table


@dataclass(frozen=True)
class Report:
    """Everything the page says.

    Attributes:
        figures: the headline figures.
        phases: one row per phase of the training.
        log: rows of each phase's log.jsonl.
        verification, passed: the exported model against PyTorch, and how it ended.
        verification_note: tolerances and images, in words.
        benchmark: `BenchmarkResult.to_dict()`.
        gallery: pictures, with `gallery_note` saying what is drawn.
        about: label -> text, at the foot: hardware, versions, command.
    """

    title: str
    intro: str
    figures: Sequence[Figure]
    phases: Grid
    log: Log
    verification: Grid
    passed: bool
    verification_note: str
    benchmark: dict[str, Any]
    gallery: Sequence[Picture]
    gallery_note: str
    about: dict[str, str] = field(default_factory=dict)


def render(report: Report) -> str:
    """The page as HTML text; it loads nothing from anywhere."""
    curves = (
        (loss_chart(report.log), "Loss of every logged step, and its running median."),
        (ap_chart(report.log), "COCO AP on the val split."),
    )
    sections = (
        section("Learning", charts(curves) + table(report.phases)),
        section("Exported", _verification(report)),
        section("Speed and accuracy", _benchmark(report.benchmark)),
        section("Validation images", gallery(report.gallery, report.gallery_note)),
        section("How this was made", about(report.about)),
    )
    return document(report.title, report.intro, report.figures, sections)


def _verification(report: Report) -> str:
    word, state = ("PASS", "good") if report.passed else ("FAIL", "bad")
    badge = f'<p><strong class="badge {state}">{word}</strong> {escape(report.verification_note)}</p>'
    return badge + table(report.verification)


def _benchmark(content: dict[str, Any]) -> str:
    good = [cell for cell in content["cells"] if "error" not in cell]
    headers = ("runtime", "box AP", "box AP50", "mask AP", "fps, end to end", "fps, device only")
    rows = [
        (
            ran_in(cell),
            *(ap(cell, kind, metric) for kind, metric in (("bbox", "AP"), ("bbox", "AP50"), ("segm", "AP"))),
            *(f"{cell[name]:.1f}" for name in ("fps_end_to_end", "fps_device_only")),
        )
        for cell in good
    ]
    names = [ran_in(cell) for cell in good]
    parts = [table(Grid(headers, rows)) if rows else "", failed(content["cells"])]
    if good:
        parts += [stage_bars(good, names), stage_table(good, names)]
    return "".join(parts) + papers(content["papers"], machine_words(content["about"]))
