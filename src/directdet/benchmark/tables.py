"""A benchmark's results as tables for the terminal and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from directdet.benchmark.cell import STAGES, TIMES, Cell, Failure
from directdet.benchmark.provider_check import ProviderCheck
from directdet.benchmark.published_speed import SpeedComparison, TimedHere, runtime_words, setting
from directdet.benchmark.result import About, BenchmarkResult, short
from directdet.common.terminal import TITLE, plain
from directdet.recipes.table_rows import beside_ours

STAGE_NAMES = {
    "prepare": "decode + preprocess",
    "device": "device",
    "postprocess": "postprocess",
    "end_to_end": "end to end",
}


def tables(result: BenchmarkResult) -> Group:
    """Speed and accuracy, memory, stages, and those of the papers' tables of which a row was timed.

    Empty if every cell failed; `BenchmarkResult.failures` says why.
    """
    if not result.good:
        return Group()
    parts = [_summary_table(result), _memory_table(result.good), _stage_table(result.good)]
    parts += [plain("\n".join(beside_ours(recipe))) for recipe in result.published]
    for paper in result.papers:
        if paper.has_ours:
            table = paper.table
            note = f"{table.title}; {table.hardware}; stages included: {table.included}"
            parts += [Text(f"not comparable: {table.source}\n{note}"), _paper_table(paper)]
    return Group(*parts)


def machine_words(about: About) -> str:
    """Processor, cores and GPU in one line."""
    machine = about.hardware
    gpu = machine["gpu"]["name"] if machine["gpu"] else "no GPU"
    return f"{machine['cpu']}, {machine['cores_usable']} cores, {gpu}"


def ratios(cells: Sequence[Cell]) -> list[float]:
    """Frames per second, end to end, of each cell to the first one's."""
    return [cell.fps_end_to_end / cells[0].fps_end_to_end for cell in cells]


def _summary_table(result: BenchmarkResult) -> Table:
    """Frame rates and accuracy, one row per cell."""
    quick = " (quick run: not to be quoted)" if result.about.quick else ""
    table = Table(title=plain(machine_words(result.about) + quick, TITLE), title_justify="left")
    for name in ("model", "setting"):  # the device is in the next table: this one has to fit into 80 columns
        table.add_column(name, overflow="fold")
    for name in ("fps\nend to\nend", "to the\nfirst", "fps\ndevice\nonly", "AP\nbox", "AP\nmask", "found\nan\nimage"):
        table.add_column(name, justify="right")
    several = any(cell.throughput for cell in result.good)
    if several:
        table.add_column("fps\n(in\nflight)", justify="right")
    to_first = iter(ratios(result.good))
    for cell in result.cells:
        if isinstance(cell, Failure):
            table.add_row(plain(short(cell.request.path)), runtime_words(cell.request), "failed", style="red")
            continue
        table.add_row(
            plain(short(cell.path)),
            setting(cell),
            f"{cell.fps_end_to_end:.1f}",
            f"{next(to_first):.2f}",
            f"{cell.fps_device_only:.1f}",
            ap(cell, "bbox", "AP"),
            ap(cell, "segm", "AP"),
            f"{cell.detections_per_image:.1f}",
            *([in_flight(cell)] if several else []),
        )
    return table


def in_flight(cell: Cell) -> str:
    """Images per second with several batches in flight, and how many; "-" where it was not measured."""
    return "-" if cell.throughput is None else f"{cell.throughput.fps:.1f} ({cell.throughput.in_flight})"


def _memory_table(cells: Sequence[Cell]) -> Table:
    """Size of the model, memory, and what it ran on."""
    table = Table(title="size and memory (MiB), and where it ran", title_justify="left")
    for name in ("model", "setting"):
        table.add_column(name, overflow="fold")
    for name in ("on disk", "peak memory", "before loading", "GPU"):
        table.add_column(name, justify="right")
    table.add_column("checked: device asked for -> what ran", overflow="fold")
    for cell in cells:
        shown = ("-" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in sizes(cell))
        table.add_row(plain(short(cell.path)), setting(cell), *shown, provider_words(cell.provider_check))
    return table


def sizes(cell: Cell) -> tuple[float | None, ...]:
    """MiB of a cell: its model on disk, peak memory, memory before loading, GPU."""
    memory = cell.memory_mib
    return cell.model_bytes / 2**20, memory.peak_rss, memory.before_loading, memory.gpu


def provider_words(check: ProviderCheck) -> str:
    """What was asked for and what ran, in words."""
    nodes = check.nodes or {}
    counted = ", ".join(f"{number} nodes on {name.removesuffix('ExecutionProvider')}" for name, number in nodes.items())
    ran = check.provider.removesuffix("ExecutionProvider")
    return f"{check.asked} -> {ran}" + (f" ({counted})" if counted else "")


def _stage_table(cells: Sequence[Cell]) -> Table:
    """Milliseconds per batch, four rows per cell."""
    caption = "device: copy, network, copy; postprocess: boxes and masks in image pixels"
    table = Table(title="milliseconds per batch", title_justify="left", caption=caption, caption_justify="left")
    for name in ("model", "setting", "stage"):
        table.add_column(name, no_wrap=name == "stage", overflow="fold")
    for name in TIMES:
        table.add_column(name, justify="right")
    for cell in cells:
        for stage in STAGES:
            first = (plain(short(cell.path)), setting(cell)) if stage == STAGES[0] else ("", "")
            numbers = (f"{value:.2f}" for value in cell.milliseconds[stage].in_order())
            table.add_row(*first, STAGE_NAMES[stage], *numbers, end_section=stage == STAGES[-1])
    return table


def paper_rows(paper: SpeedComparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows of a paper's table with what was timed here next to it; "-" where there is nothing."""
    columns = [("train s/iter", "train_s_per_iter"), ("data s", "data_s"), ("AP", "ap")]
    columns = [
        (title, name) for title, name in columns if any(getattr(one.row, name) is not None for one in paper.rows)
    ]
    names = ("method", *(title for title, _ in columns), "fps", "ratio")
    if paper.has_ours:
        names = (*names, "here: setting", "fps, end to end", "ratio", "fps, device only", "ratio")
    rows: list[tuple[str, ...]] = []
    for one in paper.rows:
        theirs = (one.row.method, *(_number(getattr(one.row, name)) for _, name in columns), _number(one.row.fps))
        theirs = (*theirs, f"{one.ratio:.2f}")
        if not paper.has_ours:
            rows.append(theirs)
            continue
        for index, mine in enumerate(one.ours or (None,)):
            here = ("-",) * 5 if mine is None else (mine.setting, *_frame_rates(mine))
            rows.append((*(theirs if index == 0 else ("",) * len(theirs)), *here))
    return names, rows


def _frame_rates(mine: TimedHere) -> tuple[str, ...]:
    pairs = ((mine.fps_end_to_end, mine.ratio_end_to_end), (mine.fps_device_only, mine.ratio_device_only))
    return tuple(text for fps, ratio in pairs for text in (f"{fps:.1f}", "-" if ratio is None else f"{ratio:.2f}"))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _paper_table(paper: SpeedComparison) -> Table:
    """The paper's figures; ratios are to one row, each within its own table."""
    table = Table(caption=f"ratio: to {paper.reference}", caption_justify="left")
    names, rows = paper_rows(paper)
    for name in names:
        table.add_column(name, justify="left" if name in ("method", "here: setting") else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def ap(cell: Cell, kind: Literal["bbox", "segm"], metric: str) -> str:
    """A number of `Metrics` in per cent; "-" where it was not measured or the dataset has no such objects."""
    if cell.metrics is None:
        return "-"
    values = cell.metrics.bbox if kind == "bbox" else cell.metrics.segm
    return "-" if not values or values[metric] < 0 else f"{100 * values[metric]:.1f}"


def to_csv(result: BenchmarkResult) -> str:
    """One line per cell, then the papers' rows, marked as not comparable."""
    names = ["source", "comparable", "model", "recipe", "runtime", "compiled", "provider", "precision"]
    names += ["height", "width", "batch", "threads"]
    names += [f"{stage}_{value}_ms" for stage in STAGES for value in TIMES]
    names += [
        "fps_end_to_end",
        "fps_device_only",
        "fps_throughput",
        "in_flight",
        "fps_paper",
        "ratio",
        "detections_per_image",
        "AP_box",
        "AP_mask",
        "AP_images",
    ]
    names += ["model_bytes", "peak_rss_mib", "before_loading_mib", "gpu_mib", "device_asked", "hardware", "error"]
    stream = io.StringIO()
    table = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    table.writeheader()

    def write(row: dict[str, Any]) -> None:
        table.writerow({name: _cell_text(value) for name, value in row.items()})

    here = {"source": "measured", "comparable": "yes", "hardware": machine_words(result.about)}
    to_first = iter(ratios(result.good))
    for cell in result.cells:
        if isinstance(cell, Failure):
            asked = cell.request
            row = {"model": asked.path, "runtime": asked.runtime, "compiled": asked.compiled, "batch": asked.batch}
            write({**here, **row, "error": cell.error})
        else:
            write({**here, **_csv_row(cell), "ratio": round(next(to_first), 4)})
    for paper in result.papers:
        about_it = {"source": paper.table.source, "comparable": "not comparable", "hardware": paper.table.hardware}
        for one in paper.rows:
            own = {"model": one.row.method, "recipe": one.row.recipe, "fps_paper": one.row.fps}
            write({**about_it, **own, "ratio": round(one.ratio, 4)})
    return stream.getvalue()


def _cell_text(value: Any) -> Any:
    """The value; a text that a spreadsheet would compute begins with an apostrophe, as they mark text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _csv_row(cell: Cell) -> dict[str, Any]:
    names = ("runtime", "compiled", "batch", "recipe", "provider", "precision", "threads", "detections_per_image")
    row: dict[str, Any] = {"model": cell.path, **{name: getattr(cell, name) for name in names}}
    row |= {"height": cell.size[0], "width": cell.size[1], "model_bytes": cell.model_bytes}
    row |= {"fps_end_to_end": round(cell.fps_end_to_end, 3), "fps_device_only": round(cell.fps_device_only, 3)}
    if cell.throughput is not None:
        row |= {"fps_throughput": round(cell.throughput.fps, 3), "in_flight": cell.throughput.in_flight}
    memory = {f"{name}_mib": value for name, value in asdict(cell.memory_mib).items()}
    row |= {name: "" if value is None else round(value, 1) for name, value in memory.items()}
    row["device_asked"] = cell.provider_check.asked
    for stage in STAGES:
        row |= {f"{stage}_{name}_ms": round(value, 3) for name, value in asdict(cell.milliseconds[stage]).items()}
    if cell.metrics is not None:
        row |= {"AP_box": cell.metrics.bbox["AP"], "AP_images": cell.metrics.n_images}
        row |= {"AP_mask": cell.metrics.segm["AP"]} if cell.metrics.segm else {}
    return row
