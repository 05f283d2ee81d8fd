"""A benchmark's results as tables for the terminal and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from directdet.benchmark.cell import QUANTILES, STAGES
from directdet.benchmark.published_speed import runtime_words, setting

STAGE_NAMES = {
    "prepare": "decode + preprocess",
    "device": "device",
    "postprocess": "postprocess",
    "end_to_end": "end to end",
}
_VALUES = ("mean", *QUANTILES)

Cell = dict[str, Any]


def tables(cells: Sequence[Cell], about: dict[str, Any], papers: Sequence[dict[str, Any]]) -> Group:
    """Speed and accuracy, memory, stages, and those of the papers' tables of which a row was timed."""
    good = [cell for cell in cells if "error" not in cell]
    parts = [_summary_table(cells, about), _memory_table(good), _stage_table(good)]
    for paper in papers:
        if any(row["ours"] for row in paper["rows"]):
            note = f"{paper['title']}; {paper['hardware']}; stages included: {paper['included']}"
            parts += [Text(f"not comparable: {paper['source']}\n{note}"), _paper_table(paper)]
    return Group(*parts)


def machine_words(about: dict[str, Any]) -> str:
    """Processor, cores and GPU in one line."""
    machine = about["hardware"]
    gpu = machine["gpu"]["name"] if machine["gpu"] else "no GPU"
    return f"{machine['cpu']}, {machine['cores_usable']} cores, {gpu}"


def short(path: str) -> str:
    """The last two parts of a path."""
    return "/".join(Path(path).parts[-2:])


def ratios(cells: Sequence[Cell]) -> list[float]:
    """Frames per second, end to end, of each cell to the first one's."""
    return [cell["fps_end_to_end"] / cells[0]["fps_end_to_end"] for cell in cells]


def _summary_table(cells: Sequence[Cell], about: dict[str, Any]) -> Table:
    """Frame rates and accuracy, one row per cell."""
    quick = " (quick run: not to be quoted)" if about["quick"] else ""
    table = Table(title=machine_words(about) + quick, title_justify="left")
    for name in ("model", "setting"):  # where it ran stands in the next table: 80 columns have to hold this one
        table.add_column(name, overflow="fold")
    for name in ("fps\nend to\nend", "to the\nfirst", "fps\ndevice\nonly", "AP\nbox", "AP\nmask", "found\nan\nimage"):
        table.add_column(name, justify="right")
    to_first = iter(ratios([cell for cell in cells if "error" not in cell]))
    for cell in cells:
        if "error" in cell:
            table.add_row(short(cell["path"]), runtime_words(cell), "failed", style="red")
            continue
        table.add_row(
            short(cell["path"]),
            setting(cell),
            f"{cell['fps_end_to_end']:.1f}",
            f"{next(to_first):.2f}",
            f"{cell['fps_device_only']:.1f}",
            ap(cell, "bbox", "AP"),
            ap(cell, "segm", "AP"),
            f"{cell['detections_per_image']:.1f}",
        )
    return table


def _memory_table(cells: Sequence[Cell]) -> Table:
    """Size of the model, memory, and where it ran."""
    table = Table(title="size and memory (MiB), and where it ran", title_justify="left")
    for name in ("model", "setting"):
        table.add_column(name, overflow="fold")
    for name in ("on disk", "peak memory", "before loading", "GPU"):
        table.add_column(name, justify="right")
    table.add_column("checked: device asked for -> what ran", overflow="fold")
    for cell in cells:
        memory = cell["memory_mib"]
        figures = (cell["model_bytes"] / 2**20, *(memory[name] for name in ("peak_rss", "before_loading", "gpu")))
        shown = ("-" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in figures)
        table.add_row(short(cell["path"]), setting(cell), *shown, provider_words(cell["provider_check"]))
    return table


def provider_words(check: dict[str, Any]) -> str:
    """What was asked for and what ran, in words."""
    nodes = check.get("nodes") or {}
    counted = ", ".join(f"{number} nodes on {name.removesuffix('ExecutionProvider')}" for name, number in nodes.items())
    ran = check["provider"].removesuffix("ExecutionProvider")
    return f"{check['asked']} -> {ran}" + (f" ({counted})" if counted else "")


def _stage_table(cells: Sequence[Cell]) -> Table:
    """Milliseconds per batch, four rows per cell."""
    caption = "device: copy, network, copy; postprocess: boxes and masks in image pixels"
    table = Table(title="milliseconds per batch", title_justify="left", caption=caption, caption_justify="left")
    for name in ("model", "setting", "stage"):
        table.add_column(name, no_wrap=name == "stage", overflow="fold")
    for name in _VALUES:
        table.add_column(name, justify="right")
    for cell in cells:
        for stage in STAGES:
            values = cell["milliseconds"][stage]
            first = (short(cell["path"]), setting(cell)) if stage == STAGES[0] else ("", "")
            numbers = (f"{values[name]:.2f}" for name in _VALUES)
            table.add_row(*first, STAGE_NAMES[stage], *numbers, end_section=stage == STAGES[-1])
    return table


def paper_rows(paper: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows of a paper's table with what was timed here beside it; "-" where there is nothing."""
    columns = [("train s/iter", "train_s_per_iter"), ("data s", "data_s"), ("AP", "ap")]
    columns = [(title, name) for title, name in columns if any(row[name] is not None for row in paper["rows"])]
    names = ("method", *(title for title, _ in columns), "fps", "ratio")
    ours = any(row["ours"] for row in paper["rows"])
    if ours:
        names = (*names, "here: setting", "fps, end to end", "ratio", "fps, device only", "ratio")
    rows: list[tuple[str, ...]] = []
    for row in paper["rows"]:
        theirs = (row["method"], *(_number(row[name]) for _, name in columns), _number(row["fps"]))
        theirs = (*theirs, f"{row['ratio']:.2f}")
        if not ours:
            rows.append(theirs)
            continue
        for index, mine in enumerate(row["ours"] or [None]):
            here = ("-",) * 5 if mine is None else (mine["setting"], *_frame_rates(mine))
            rows.append((*(theirs if index == 0 else ("",) * len(theirs)), *here))
    return names, rows


def _frame_rates(mine: dict[str, Any]) -> tuple[str, ...]:
    values = []
    for name in ("end_to_end", "device_only"):
        ratio = mine[f"ratio_{name}"]
        values += [f"{mine[f'fps_{name}']:.1f}", "-" if ratio is None else f"{ratio:.2f}"]
    return tuple(values)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _paper_table(paper: dict[str, Any]) -> Table:
    """The paper's figures; ratios are to one row, each within its own table."""
    table = Table(caption=f"ratio: to {paper['reference']}", caption_justify="left")
    names, rows = paper_rows(paper)
    for name in names:
        table.add_column(name, justify="left" if name in ("method", "here: setting") else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def ap(cell: Cell, kind: str, metric: str) -> str:
    """A number of `Metrics` in per cent; "-" where it was not measured or there is nothing to measure."""
    values = (cell["metrics"] or {}).get(kind)
    return "-" if not values or values[metric] < 0 else f"{100 * values[metric]:.1f}"


def to_csv(cells: Sequence[Cell], about: dict[str, Any], papers: Sequence[dict[str, Any]]) -> str:
    """One line per cell, then the papers' rows, marked as not comparable."""
    names = ["source", "comparable", "model", "recipe", "runtime", "compiled", "provider", "precision"]
    names += ["height", "width", "batch", "threads"]
    names += [f"{stage}_{value}_ms" for stage in STAGES for value in _VALUES]
    names += [
        "fps_end_to_end",
        "fps_device_only",
        "fps_paper",
        "ratio",
        "detections_per_image",
        "AP_box",
        "AP_mask",
        "AP_images",
    ]
    names += ["model_bytes", "peak_rss_mib", "before_loading_mib", "gpu_mib", "device_asked", "hardware", "error"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    here = {"source": "measured", "comparable": "yes", "hardware": machine_words(about)}
    to_first = iter(ratios([cell for cell in cells if "error" not in cell]))
    for cell in cells:
        ratio = {} if "error" in cell else {"ratio": round(next(to_first), 4)}
        writer.writerow(here | _csv_row(cell) | ratio)
    for paper in papers:
        about_it = {"source": paper["source"], "comparable": "not comparable", "hardware": paper["hardware"]}
        for row in paper["rows"]:
            own = {"model": row["method"], "recipe": row["recipe"], "fps_paper": row["fps"]}
            writer.writerow({**about_it, **own, "ratio": round(row["ratio"], 4)})
    return stream.getvalue()


def _csv_row(cell: Cell) -> dict[str, Any]:
    row = {"model": cell["path"]} | {name: cell[name] for name in ("runtime", "compiled", "batch")}
    if "error" in cell:
        return row | {"error": cell["error"]}
    row |= {name: cell[name] for name in ("recipe", "provider", "precision", "threads", "detections_per_image")}
    row |= {"height": cell["size"][0], "width": cell["size"][1], "model_bytes": cell["model_bytes"]}
    row |= {name: round(cell[name], 3) for name in ("fps_end_to_end", "fps_device_only")}
    memory = {f"{name}_mib": value for name, value in cell["memory_mib"].items()}
    row |= {name: "" if value is None else round(value, 1) for name, value in memory.items()}
    row["device_asked"] = cell["provider_check"]["asked"]
    for stage in STAGES:
        row |= {f"{stage}_{name}_ms": round(value, 3) for name, value in cell["milliseconds"][stage].items()}
    metrics = cell["metrics"]
    if metrics:
        row |= {"AP_box": metrics["bbox"]["AP"], "AP_images": metrics["n_images"]}
        row |= {"AP_mask": metrics["segm"]["AP"]} if metrics["segm"] else {}
    return row
