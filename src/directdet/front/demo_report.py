"""`report.html` of the demo: one self-contained page. A plain function of data; every text in it is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from directdet.benchmark.page_parts import failed, papers, ran_in, stage_bars, stage_table
from directdet.benchmark.result import BenchmarkResult
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
        verification, passed: the exported model compared with PyTorch, and whether they agree.
        verification_note: tolerances and images, in words.
        benchmark: speed and accuracy in every runtime.
        gallery: pictures; gallery_note: what is drawn in them.
        about: label -> text, at the end of the page: hardware, versions, command.
    """

    title: str
    intro: str
    figures: Sequence[Figure]
    phases: Grid
    log: Log
    verification: Grid
    passed: bool
    verification_note: str
    benchmark: BenchmarkResult
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


def _benchmark(result: BenchmarkResult) -> str:
    good = result.good
    headers = ("runtime", "box AP", "box AP50", "mask AP", "fps, end to end", "fps, device only")
    rows = [
        (
            ran_in(cell),
            ap(cell, "bbox", "AP"),
            ap(cell, "bbox", "AP50"),
            ap(cell, "segm", "AP"),
            f"{cell.fps_end_to_end:.1f}",
            f"{cell.fps_device_only:.1f}",
        )
        for cell in good
    ]
    names = [ran_in(cell) for cell in good]
    parts = [table(Grid(headers, rows)) if rows else "", failed(result.failed)]
    if good:
        parts += [stage_bars(good, names), stage_table(good, names)]
    return "".join(parts) + papers(result.papers, machine_words(result.about))
