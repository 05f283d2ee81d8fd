"""Parts of a page that show a benchmark: stages as bars and figures, the papers' tables, failed cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from directdet.benchmark.cell import TIMES, Cell, Failure
from directdet.benchmark.published_speed import SpeedComparison
from directdet.benchmark.result import About
from directdet.benchmark.tables import STAGE_NAMES, paper_rows
from directdet.infer.runtimes.names import TITLES
from directdet.pages.page import Grid, row, small_print, table
from directdet.recipes.table_rows import PublishedResult


def ran_in(cell: Cell) -> str:
    """What a cell ran in, in words."""
    size = "x".join(str(edge) for edge in cell.size)
    batch = f"{cell.batch} images of " if cell.batch > 1 else ""
    compiled = " compiled" if cell.compiled else ""
    return f"{TITLES.get(cell.runtime, cell.runtime)}{compiled}, {cell.precision}, {batch}{size}"


def failed(failures: Iterable[Failure]) -> str:
    """A line for each cell that failed."""
    lines = []
    for failure in failures:
        asked = failure.request
        what = f"{asked.path} in {asked.runtime}{' compiled' if asked.compiled else ''}, batch {asked.batch}"
        lines.append(f'<p class="bad">{escape(what)}, failed: {escape(failure.error)}</p>')
    return "".join(lines)


def stage_bars(cells: Sequence[Cell], names: Sequence[str]) -> str:
    """Mean milliseconds of the three stages as bars on one scale. names: one for each cell."""
    longest = max(cell.milliseconds["end_to_end"].mean for cell in cells)
    bars = []
    for cell, name in zip(cells, names, strict=True):
        parts = "".join(
            f'<i class="{stage}" style="width:{100 * cell.milliseconds[stage].mean / longest:.2f}%"></i>'
            for stage in STAGE_NAMES
            if stage != "end_to_end"
        )
        total = f"{cell.milliseconds['end_to_end'].mean:.1f} ms"
        bars.append(f'<div class="bar"><span>{escape(name)}<b>{total}</b></span><div>{parts}</div></div>')
    legend = "".join(
        f'<li><i class="{stage}"></i>{escape(STAGE_NAMES[stage])}</li>'
        for stage in ("prepare", "device", "postprocess")
    )
    return f'<div class="bars">{"".join(bars)}<ul class="legend">{legend}</ul></div>'


def stage_table(cells: Sequence[Cell], names: Sequence[str]) -> str:
    """Mean and quantiles of every stage; one group of rows per cell. names: one for each cell."""
    bodies = []
    for cell, name in zip(cells, names, strict=True):
        rows = "".join(
            row((stage_name, *(f"{value:.2f}" for value in cell.milliseconds[stage].in_order())))
            for stage, stage_name in STAGE_NAMES.items()
        )
        title = f"{name}: {cell.iterations} batches of {cell.batch} after {cell.warmup}"
        bodies.append(f'<tbody><tr><th colspan="5" scope="rowgroup">{escape(title)}</th></tr>{rows}</tbody>')
    head = row(("ms per batch", *TIMES), "th")
    return f'<div class="scroll"><table><thead>{head}</thead>{"".join(bodies)}</table></div>'


def accuracy(published: Mapping[str, Sequence[PublishedResult]]) -> str:
    """What the papers report for the recipes of the models, which was reached on their data and not measured here."""
    if not published:
        return small_print("The papers report no accuracy for the recipes of these models.")
    headers = ("recipe of a model", "paper", "row", "in the paper, on its data", "its measure")
    rows = [(name, one.place, one.row, one.result, one.metric) for name, found in published.items() for one in found]
    return table(Grid(headers, rows))


def papers(comparisons: Iterable[SpeedComparison], here: str) -> str:
    """The papers' tables with what was timed here next to their rows, marked as not comparable.

    Args:
        comparisons: `BenchmarkResult.papers`.
        here: the hardware of this machine in words.
    """
    return "".join(_paper(paper, here) for paper in comparisons)


def _paper(paper: SpeedComparison, here: str) -> str:
    printed = paper.table
    lines = [
        f"{printed.source}: {printed.title}; AP is {printed.metric}.",
        f"Theirs: {printed.hardware}; stages in a frame rate: {printed.included}.",
        f"Here: {here}." if paper.has_ours else "None of the models timed here has a network of this table.",
        f"Ratios are to the row {paper.reference!r}, each within its own column; only ratios can be compared.",
    ]
    names, rows = paper_rows(paper)
    badge = '<span class="badge">not comparable</span>'
    return f"<h3>{escape(printed.source.rpartition(', ')[2])}, {escape(_short(printed.source))} {badge}</h3>" + (
        small_print(" ".join(lines)) + table(Grid(names, rows))
    )


def _short(source: str) -> str:
    return "ScratchDet" if source.startswith("ScratchDet") else "direct pre-training"


def machine_facts(about: About, cells: Iterable[Cell]) -> dict[str, str]:
    """What it was measured on, for the end of a page: hardware and the versions of everything that ran."""
    machine, versions = about.hardware, dict(about.versions)
    for cell in cells:
        versions.update(cell.versions)
    return {
        "processor": f"{machine['cpu']}, {machine['cores_usable']} of {machine['cores']} cores usable",
        "memory": f"{machine['memory_gib']} GiB" if machine["memory_gib"] else "not known",
        "GPU": ", ".join(f"{value}" for value in machine["gpu"].values()) if machine["gpu"] else "none",
        "system": machine["system"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
