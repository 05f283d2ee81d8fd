"""`report.html` of a benchmark: one self-contained page; the papers' figures appear as ratios in their own tables."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from directdet.benchmark.cell import Cell
from directdet.benchmark.page_parts import accuracy, failed, machine_facts, papers, ran_in, stage_bars, stage_table
from directdet.benchmark.result import BenchmarkResult, short
from directdet.benchmark.tables import ap, in_flight, machine_words, provider_words, ratios, sizes
from directdet.common.errors import UserError
from directdet.common.files import write_text_atomic
from directdet.data.dataset import Dataset
from directdet.infer.runtimes.load import load
from directdet.pages.gallery import make_gallery
from directdet.pages.page import Figure, Grid, Picture, about, charts, document, gallery, section, small_print, table

REPORT_FILE = "report.html"
_PICTURES, _SCORE = 6, 0.5  # of the gallery: how many, and the lowest score of a detection that is drawn


def write_report(result: BenchmarkResult, dataset: Dataset, out: str | Path, device: str = "auto") -> Path:
    """Write OUT/report.html about a benchmark with at least one measured cell, whose model draws the gallery."""
    cell = result.good[0]
    try:
        detector = load(cell.path, cell.runtime, device, cell.threads, cell.asked_precision)
        pictures = make_gallery(detector, dataset, _PICTURES, _SCORE)
        explained = (
            f"Left the ground truth, right what {short(cell.path)} finds in {ran_in(cell)} with a score of at least "
            f"{_SCORE:g}. The first images of the split, not chosen; crowd regions are left out."
        )
    except UserError as error:
        pictures, explained = [], f"No pictures: {error}"
    return write_text_atomic(Path(out) / REPORT_FILE, render(result, pictures, explained))


def render(result: BenchmarkResult, pictures: Sequence[Picture], explained: str) -> str:
    """The page as HTML text. `explained` says what the pictures show."""
    good, facts = result.good, result.about
    names, data = _names(good), facts.dataset
    models = len({cell.path for cell in good})
    intro = (
        f"{models} model{'s' if models > 1 else ''} on real images of {short(data.root)}, {data.split} "
        f"({data.images} images), each measured in its own process and timed from the file to boxes and masks in the "
        "picture's own pixels. The AP is of the same files in the same runtimes."
    )
    if facts.quick:
        intro += " A quick run: not to be quoted."
    sections = (
        section("Speed and accuracy", _speed(good, names) + failed(result.failed)),
        section("Where the time goes", _stages(good, names)),
        section("Size, memory, and where it ran", _memory(good, names)),
        section("Next to the papers", accuracy(result.published) + papers(result.papers, machine_words(facts))),
        section("Validation images", gallery(pictures, explained)),
        section("How this was made", about(_facts(result))),
    )
    return document("directdet: benchmark", intro, _figures(good), sections)


def _names(cells: Sequence[Cell]) -> list[str]:
    """A number and words for every cell, with the model's name where there are several."""
    several = len({cell.path for cell in cells}) > 1
    models = (f"{short(cell.path)}, " if several else "" for cell in cells)
    return [
        f"{number}. {model}{ran_in(cell)}" for number, (model, cell) in enumerate(zip(models, cells, strict=True), 1)
    ]


def _figures(cells: Sequence[Cell]) -> list[Figure]:
    """The fastest cell, the most accurate one, and the one that needs the least memory."""
    fastest = max(cells, key=lambda cell: cell.fps_end_to_end)
    times = fastest.milliseconds["end_to_end"]
    figures = [
        Figure("Images a second, end to end", f"{fastest.fps_end_to_end:.1f}", f"the fastest: {ran_in(fastest)}"),
        Figure("Its 95th percentile", f"{times.p95:.1f} ms", f"median {times.median:.1f} ms, p99 {times.p99:.1f}"),
    ]
    scored = [(cell.metrics, cell) for cell in cells if cell.metrics is not None]
    if scored:
        metrics, best = max(scored, key=lambda pair: pair[0].bbox["AP"])
        detail = f"the best, on {metrics.n_images} images: {ran_in(best)}"
        figures.append(Figure("Box AP", ap(best, "bbox", "AP"), detail))
    known = [(peak, cell) for cell in cells if (peak := cell.memory_mib.peak_rss) is not None]
    if known:
        peak, leanest = min(known, key=lambda pair: pair[0])
        figures.append(Figure("Peak memory", f"{peak:.0f} MiB", f"the least: {ran_in(leanest)}"))
    return figures


def _speed(cells: Sequence[Cell], names: Sequence[str]) -> str:
    headers = ["model and runtime", "box AP", "mask AP", "fps, end to end", "ratio", "fps, device only", "p95 ms"]
    rows = [
        [
            name,
            ap(cell, "bbox", "AP"),
            ap(cell, "segm", "AP"),
            f"{cell.fps_end_to_end:.1f}",
            f"{ratio:.2f}",
            f"{cell.fps_device_only:.1f}",
            f"{cell.milliseconds['end_to_end'].p95:.1f}",
        ]
        for name, cell, ratio in zip(names, cells, ratios(cells), strict=True)
    ]
    if any(cell.throughput for cell in cells):
        headers.append("fps, in flight")
        rows = [[*row, in_flight(cell)] for row, cell in zip(rows, cells, strict=True)]
    parts = [table(Grid(headers, rows)), small_print("Ratio: frames a second, end to end, to those of the first row.")]
    if not _can_draw():
        return "".join(parts) + small_print("No charts: matplotlib is not installed here.")
    from directdet.benchmark.charts import ap_latency_chart

    chart = ap_latency_chart(cells)
    if chart is None:
        return "".join(parts) + small_print("No chart of AP against latency: no AP was measured.")
    text = "Box AP against latency: the median end to end, with a line to the 95th percentile. Numbers as above."
    return "".join(parts) + charts([(chart, text)])


def _stages(cells: Sequence[Cell], names: Sequence[str]) -> str:
    drawn = ""
    if _can_draw():
        from directdet.benchmark.charts import spread_chart, spread_limits

        limits = spread_limits(cells)
        drawn = small_print(
            "Above, the mean of every stage. Below, the spread over single batches: boxes hold the middle half and the "
            "median, whiskers reach from the 5th to the 95th percentile, a dot marks the slowest; one axis for all."
        ) + charts((spread_chart(cell, limits), name) for cell, name in zip(cells, names, strict=True))
    return stage_bars(cells, names) + drawn + stage_table(cells, names)


def _memory(cells: Sequence[Cell], names: Sequence[str]) -> str:
    headers = (
        "model and runtime",
        "on disk, MiB",
        "peak memory, MiB",
        "before loading, MiB",
        "GPU, MiB",
        "asked for, and what ran",
    )
    rows = []
    for name, cell in zip(names, cells, strict=True):
        shown = ("-" if value is None else f"{value:.1f}" for value in sizes(cell))
        rows.append((name, *shown, provider_words(cell.provider_check)))
    explained = (
        "In MiB. Peak memory is the resident memory of the measuring process, including Python and the libraries, "
        "before the AP was measured; that before loading is without the runtime and the model. GPU: what all processes "
        "hold on it more than before loading. A model that does not run on the device asked for has failed and is in "
        "no table."
    )
    return table(Grid(headers, rows)) + small_print(explained)


def _facts(result: BenchmarkResult) -> dict[str, str]:
    facts, first = result.about, result.good[0]
    median, largest = _size(first, "median"), _size(first, "largest")
    return {
        "command": facts.command,
        "date": facts.date,
        **machine_facts(facts, result.good),
        "threads": "left to the runtimes" if first.threads is None else str(first.threads),
        "images": f"median {median}, largest {largest} pixels (height x width)",
    }


def _size(cell: Cell, which: Literal["median", "largest"]) -> str:
    edges = cell.image_sizes.median if which == "median" else cell.image_sizes.largest
    return "x".join(str(edge) for edge in edges)


def _can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None
