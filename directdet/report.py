"""`report.html`: one self-contained page about a run. A plain function of data; every text in it is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from .curves import Log, ap_chart, loss_chart
from .report_style import CSS

_STAGES = {
    "prepare": "decode + preprocess",
    "device": "device",
    "postprocess": "postprocess",
    "end_to_end": "end to end",
}


@dataclass(frozen=True)
class Grid:
    """A table: headers, and rows of values that are shown with str. The first column is text, the others figures."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Picture:
    """One image of the gallery: JPEG bytes of the ground truth and of what was found."""

    name: str
    truth: bytes
    found: bytes


@dataclass(frozen=True)
class Figure:
    """One headline figure; `state` is "good", "bad" or "" for neither."""

    label: str
    value: str
    detail: str = ""
    state: str = ""


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
    sections = [
        _section("Learning", _training(report)),
        _section("Exported", _verification(report)),
        _section("Speed and accuracy", _benchmark(report.benchmark)),
        _section("Validation images", _gallery(report)),
        _section("How this was made", _about(report.about)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(report.title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(report.title)}</h1><p>{escape(report.intro)}</p>{_figures(report.figures)}</header>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _figures(figures: Iterable[Figure]) -> str:
    cells = (
        f'<div class="figure {escape(item.state)}"><dt>{escape(item.label)}</dt><dd>{escape(item.value)}</dd>'
        f"<span>{escape(item.detail)}</span></div>"
        for item in figures
    )
    return f'<dl class="figures">{"".join(cells)}</dl>'


def _training(report: Report) -> str:
    charts = (
        (loss_chart(report.log), "Loss of every logged step, and its running median."),
        (ap_chart(report.log), "COCO AP on the val split."),
    )
    figures = "".join(f"<figure>{chart}<figcaption>{escape(text)}</figcaption></figure>" for chart, text in charts)
    return f'<div class="charts">{figures}</div>{table(report.phases)}'


def _verification(report: Report) -> str:
    word, state = ("PASS", "good") if report.passed else ("FAIL", "bad")
    badge = f'<p><strong class="badge {state}">{word}</strong> {escape(report.verification_note)}</p>'
    return badge + table(report.verification)


def _benchmark(content: dict[str, Any]) -> str:
    good = [cell for cell in content["cells"] if "error" not in cell]
    rows = [
        (
            _runtime(cell),
            _ap(cell, "bbox", "AP"),
            _ap(cell, "bbox", "AP50"),
            _ap(cell, "segm", "AP"),
            f"{cell['fps_end_to_end']:.1f}",
            f"{cell['fps_device_only']:.1f}",
        )
        for cell in good
    ]
    headers = ("runtime", "box AP", "box AP50", "mask AP", "fps, end to end", "fps, device only")
    parts = [table(Grid(headers, rows)) if rows else ""]
    parts += [
        f'<p class="bad">{escape(cell["path"])} in {escape(cell["runtime"])} failed: {escape(cell["error"])}</p>'
        for cell in content["cells"]
        if "error" in cell
    ]
    if good:
        parts += [_stage_bars(good), _stage_table(good)]
    return "".join(parts) + _paper(content["paper"])


def _runtime(cell: dict[str, Any]) -> str:
    names = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}
    size = "x".join(str(edge) for edge in cell["size"])
    return f"{names.get(cell['runtime'], cell['runtime'])}, {cell['precision']}, {size}"


def _ap(cell: dict[str, Any], kind: str, metric: str) -> str:
    values = (cell["metrics"] or {}).get(kind)
    return "-" if not values or values[metric] < 0 else f"{100 * values[metric]:.1f}"


def _stage_bars(cells: Sequence[dict[str, Any]]) -> str:
    """Mean milliseconds of the three stages, as bars on one scale."""
    longest = max(cell["milliseconds"]["end_to_end"]["mean"] for cell in cells)
    bars = []
    for cell in cells:
        parts = "".join(
            f'<i class="{stage}" style="width:{100 * cell["milliseconds"][stage]["mean"] / longest:.2f}%"></i>'
            for stage in ("prepare", "device", "postprocess")
        )
        total = f"{cell['milliseconds']['end_to_end']['mean']:.1f} ms"
        bars.append(f'<div class="bar"><span>{escape(_runtime(cell))}<b>{total}</b></span><div>{parts}</div></div>')
    legend = "".join(
        f'<li><i class="{stage}"></i>{escape(_STAGES[stage])}</li>' for stage in ("prepare", "device", "postprocess")
    )
    return f'<div class="bars">{"".join(bars)}<ul class="legend">{legend}</ul></div>'


def _stage_table(cells: Sequence[dict[str, Any]]) -> str:
    """Mean, median and 95th percentile of every stage; one group of rows per runtime."""
    bodies = []
    for cell in cells:
        rows = "".join(
            _row((name, *(f"{cell['milliseconds'][stage][value]:.2f}" for value in ("mean", "median", "p95"))))
            for stage, name in _STAGES.items()
        )
        title = f"{_runtime(cell)}: {cell['iterations']} batches of {cell['batch']} after {cell['warmup']}"
        bodies.append(f'<tbody><tr><th colspan="4" scope="rowgroup">{escape(title)}</th></tr>{rows}</tbody>')
    head = _row(("ms per batch", "mean", "median", "p95"), "th")
    return f'<div class="scroll"><table><thead>{head}</thead>{"".join(bodies)}</table></div>'


def _paper(paper: dict[str, Any]) -> str:
    """The paper's own figures, marked as no comparison."""
    rows = [
        (
            row["method"],
            *("-" if row[key] is None else f"{row[key]:g}" for key in ("train_s_per_iter", "fps", "data_s")),
        )
        for row in paper["rows"]
    ]
    note = f"{paper['title']}; {paper['hardware']}; stages included: {paper['included']}."
    return (
        f'<h3>The paper&#8217;s own figures <span class="badge">not comparable</span></h3>'
        f'<p class="note">{escape(paper["source"])}: {escape(note)}</p>'
        + table(Grid(("method", "training s / iteration", "fps", "data s"), rows))
    )


def _gallery(report: Report) -> str:
    items = "".join(
        f"<figure><div>{_image(item.truth, f'{item.name}, ground truth')}"
        f"{_image(item.found, f'{item.name}, detections')}</div><figcaption>{escape(item.name)}</figcaption></figure>"
        for item in report.gallery
    )
    return f'<p class="note">{escape(report.gallery_note)}</p><div class="gallery">{items}</div>'


def _image(jpeg: bytes, name: str) -> str:
    return f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode("ascii")}">'


def _about(about: dict[str, str]) -> str:
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in about.items())
    return f'<dl class="about">{rows}</dl>'


def table(grid: Grid) -> str:
    """A table that scrolls sideways by itself where the screen is narrow."""
    body = "".join(_row(row) for row in grid.rows)
    return f'<div class="scroll"><table><thead>{_row(grid.headers, "th")}</thead><tbody>{body}</tbody></table></div>'


def _row(values: Iterable[Any], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{_cell(value)}</{tag}>" for value in values) + "</tr>"


def _cell(value: Any) -> str:
    text = escape(str(value))
    state = {"PASS": "good", "FAIL": "bad"}.get(text)
    return f'<strong class="{state}">{text}</strong>' if state else text
