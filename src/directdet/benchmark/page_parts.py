"""Parts of a page that show a benchmark: stages as bars and figures, the papers' tables, what failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from directdet.benchmark.tables import STAGE_NAMES, paper_rows
from directdet.infer.runtimes.names import TITLES
from directdet.pages.page import Grid, row, small_print, table

_QUANTILES = ("mean", "median", "p95", "p99")


def ran_in(cell: dict[str, Any]) -> str:
    """What a cell of a benchmark ran in, in words."""
    size = "x".join(str(edge) for edge in cell["size"])
    batch = f"{cell['batch']} images of " if cell["batch"] > 1 else ""
    compiled = " compiled" if cell["compiled"] else ""
    return f"{TITLES.get(cell['runtime'], cell['runtime'])}{compiled}, {cell['precision']}, {batch}{size}"


def failed(cells: Iterable[dict[str, Any]]) -> str:
    """A line for each cell that failed."""
    return "".join(
        f'<p class="bad">{escape(cell["path"])} in {escape(cell["runtime"])}{" compiled" if cell["compiled"] else ""}, '
        f"batch {cell['batch']}, failed: {escape(cell['error'])}</p>"
        for cell in cells
        if "error" in cell
    )


def stage_bars(cells: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Mean milliseconds of the three stages, as bars on one scale. A name for each cell."""
    longest = max(cell["milliseconds"]["end_to_end"]["mean"] for cell in cells)
    bars = []
    for cell, name in zip(cells, names, strict=True):
        parts = "".join(
            f'<i class="{stage}" style="width:{100 * cell["milliseconds"][stage]["mean"] / longest:.2f}%"></i>'
            for stage in STAGE_NAMES
            if stage != "end_to_end"
        )
        total = f"{cell['milliseconds']['end_to_end']['mean']:.1f} ms"
        bars.append(f'<div class="bar"><span>{escape(name)}<b>{total}</b></span><div>{parts}</div></div>')
    legend = "".join(
        f'<li><i class="{stage}"></i>{escape(STAGE_NAMES[stage])}</li>'
        for stage in ("prepare", "device", "postprocess")
    )
    return f'<div class="bars">{"".join(bars)}<ul class="legend">{legend}</ul></div>'


def stage_table(cells: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Mean and quantiles of every stage; one group of rows per cell."""
    bodies = []
    for cell, name in zip(cells, names, strict=True):
        rows = "".join(
            row((stage_name, *(f"{cell['milliseconds'][stage][value]:.2f}" for value in _QUANTILES)))
            for stage, stage_name in STAGE_NAMES.items()
        )
        title = f"{name}: {cell['iterations']} batches of {cell['batch']} after {cell['warmup']}"
        bodies.append(f'<tbody><tr><th colspan="5" scope="rowgroup">{escape(title)}</th></tr>{rows}</tbody>')
    head = row(("ms per batch", *_QUANTILES), "th")
    return f'<div class="scroll"><table><thead>{head}</thead>{"".join(bodies)}</table></div>'


def papers(tables: Iterable[dict[str, Any]], here: str) -> str:
    """The papers' tables with what was timed here beside their rows, marked as no comparison.

    Args:
        tables: of `beside.beside`.
        here: the hardware of this machine.
    """
    return "".join(_paper(paper, here) for paper in tables)


def _paper(paper: dict[str, Any], here: str) -> str:
    ours = any(entry["ours"] for entry in paper["rows"])
    lines = [
        f"{paper['source']}: {paper['title']}; AP is {paper['metric']}.",
        f"Theirs: {paper['hardware']}; stages in a frame rate: {paper['included']}.",
        f"Here: {here}." if ours else "None of the models timed here was trained by a recipe of this table.",
        f"Ratios are to the row {paper['reference']!r}, each within its own column; only they can be set side by side.",
    ]
    names, rows = paper_rows(paper)
    badge = '<span class="badge">not comparable</span>'
    return f"<h3>{escape(paper['source'].rpartition(', ')[2])}, {escape(_short(paper['source']))} {badge}</h3>" + (
        small_print(" ".join(lines)) + table(Grid(names, rows))
    )


def _short(source: str) -> str:
    return "ScratchDet" if source.startswith("ScratchDet") else "direct pre-training"


def machine_facts(about: dict[str, Any], cells: Iterable[dict[str, Any]]) -> dict[str, str]:
    """What it was measured on, for the foot of a page: hardware and the versions of everything that ran."""
    machine, versions = about["hardware"], dict(about["versions"])
    for cell in cells:
        versions.update(cell.get("versions") or {})
    return {
        "processor": f"{machine['cpu']}, {machine['cores_usable']} of {machine['cores']} cores usable",
        "memory": f"{machine['memory_gib']} GiB" if machine["memory_gib"] else "not known",
        "GPU": ", ".join(f"{value}" for value in machine["gpu"].values()) if machine["gpu"] else "none",
        "system": machine["system"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
