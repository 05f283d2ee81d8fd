"""Result tables of the detector for real time: its settings on little data, the race, and networks on a GPU."""

import statistics
from typing import Any

from tables_cells import Row, Table, cell, cell_if_any, written


def setting_rows(content: Any) -> list[Row]:
    """Every trial in the file's order."""
    return list(content["rows"].values())


def race_rows(content: Any) -> list[Row]:
    """A row for each set, time and contestant: means over its seeds, the best AP first."""
    groups: dict[tuple[str, float, str], list[Row]] = {}
    for row in content["rows"].values():
        groups.setdefault((row["data"], row["minutes"], row["contestant"]), []).append(row)
    rows = []
    for (data, minutes, name), found in groups.items():
        aps = [row["AP"] for row in found]
        spread = f" +- {statistics.stdev(aps):.1f}" if len(aps) > 1 else ""
        times = [row["milliseconds"]["median_ms"] for row in found if row["milliseconds"]]
        rows.append(
            {
                "data": data,
                "minutes": f"{minutes:g}",
                "label": name,
                "mean": statistics.fmean(aps),
                "ap": f"{statistics.fmean(aps):.1f}{spread}",
                "ap50": statistics.fmean(row["AP50"] for row in found),
                "seconds": statistics.fmean(row["seconds"] for row in found),
                "canvas": " x ".join(map(str, found[0]["canvas"])),
                "ms": written(statistics.median(times), ".1f") if times else "",
                "seeds": len(found),
            }
        )
    return sorted(rows, key=lambda row: (row["data"], float(row["minutes"]), -row["mean"]))


def gpu_rows(content: Any, eager: Any) -> list[Row]:
    """Every cell of both files; torchvision's come from the second, which was another run on such a machine."""
    cells = {**content["rows"], **{name: row for name, row in eager["rows"].items() if "/torchvision/" in name}}
    rows = []
    for name, row in sorted(cells.items()):
        model, form, precision = name.split("/", 2)
        near = row.get("against_eager_fp32", {})
        matched = f"{near['matched']} of {near['expected']}" if near else ""
        rows.append({**row, "label": model, "form": form, "precision": precision, "found": matched})
    return rows


def deployed_rows(content: Any) -> list[Row]:
    """A row for each cell, the smallest canvas first, the cheapest of it first."""
    rows = []
    for name, row in content["rows"].items():
        who, side, _, precision, runtime = name.split("/")
        rows.append({**row, "label": who, "side": int(side), "runtime": runtime, "precision": precision})
    return sorted(rows, key=lambda row: (row["side"], row["median_ms"]))


def ablation_rows(content: Any) -> list[Row]:
    """A row for each part of the recipe, in the script's order: means over its seeds, and what it changes of those."""
    groups: dict[str, list[Row]] = {}
    for row in content["rows"].values():
        groups.setdefault(row["part"], []).append(row)
    base = {row["seed"]: row["AP"] for row in groups["recipe"]}
    rows = []
    for found in groups.values():
        means = {name: statistics.fmean(row[name] for row in found) for name in ("AP", "AP50", "AP75")}
        more = statistics.fmean(row["AP"] - base[row["seed"]] for row in found)
        rows.append({**means, "label": found[0]["label"], "more": more, "seeds": len(found)})
    return rows


def choice_rows(content: Any) -> list[Row]:
    """A row for each recipe to pick from."""
    return [
        {"label": name, "giga": row["multiply_adds"] / 1e9, "ms": row["median_ms"]}
        | {"rounds": " ".join(f"{value:.0f}" for value in row["rounds_ms"])}
        for name, row in content["rows"].items()
    ]


def large_rows(content: Any) -> list[Row]:
    """A row for each model and side of the tiles."""
    whole = "none: whole pictures"
    return [
        {**row, "tiles": whole if row["side"] is None else row["side"], "shape": " x ".join(map(str, row["canvas"]))}
        for row in content["rows"].values()
    ]


def large_file_rows(content: Any) -> list[Row]:
    """A row for each kind of file."""
    return list(content["rows"].values())


TABLES = {
    "large_files": Table(
        ("large_files",),
        large_file_rows,
        {
            "files": cell("label"),
            "MB on disk": cell("file_mb", ".0f"),
            "GB in memory, before": cell_if_any("before/gb", ".2f"),
            "GB in memory, now": cell("now/gb", ".2f"),
        },
    ),
    "choices": Table(
        ("choices",),
        choice_rows,
        {
            "recipe": cell("label"),
            "multiply-adds, G": cell("giga", ".1f"),
            "ms a picture": cell("ms", ".0f"),
            "ms of each round": cell("rounds"),
        },
    ),
    "large_pictures": Table(
        ("large_pictures",),
        large_rows,
        {
            "model": cell("model"),
            "canvas": cell("shape"),
            "side of the tiles": cell("tiles"),
            "runs of the network a picture": cell("runs", ".0f"),
            "box AP": cell("AP", ".1f"),
            "AP50": cell("AP50", ".1f"),
        },
    ),
    "multi_scale": Table(
        ("multi_scale",),
        lambda content: list(content["rows"].values()),
        {
            "model": cell("model"),
            "each picture": cell("look"),
            "box AP": cell("AP", "percent"),
            "AP50": cell("AP50", "percent"),
            "mask AP": cell("mask_ap", "percent"),
            "ms a picture": lambda row: f"{1000 * row['seconds']:.0f}",
        },
    ),
    "ablation": Table(
        ("ablation",),
        ablation_rows,
        {
            "what differs": cell("label"),
            "box AP": cell("AP", ".1f"),
            "difference": cell("more", "+.1f"),
            "AP50": cell("AP50", ".1f"),
            "AP75": cell("AP75", ".1f"),
            "seeds": cell("seeds"),
        },
    ),
    "deployed": Table(
        ("deployed",),
        deployed_rows,
        {
            "canvas": cell("side"),
            "model": cell("label"),
            "runtime": cell("runtime"),
            "precision": cell("precision"),
            "ms a picture": cell("median_ms", ".1f"),
            "95 %, ms": cell("p95_ms", ".1f"),
            "box AP": cell("AP", ".1f"),
            "AP50": cell("AP50", ".1f"),
        },
    ),
    "rtmdet_settings": Table(
        ("rtmdet_settings_h200",),
        setting_rows,
        {
            "what differs": cell("label"),
            "AP after pre-training": cell("pretrain_ap", ".1f"),
            "AP after fine-tuning": cell("ap", ".1f"),
        },
    ),
    "rtmdet_finetune": Table(
        ("rtmdet_finetune_cpu",), setting_rows, {"fine-tuning": cell("label"), "AP": cell("ap", ".1f")}
    ),
    "race": Table(
        ("race",),
        race_rows,
        {
            "data": cell("data"),
            "minutes": cell("minutes"),
            "contestant": cell("label"),
            "box AP": cell("ap"),
            "AP50": cell("ap50", ".1f"),
            "seconds": cell("seconds", ".0f"),
            "canvas": cell("canvas"),
            "ms a picture": cell("ms"),
            "seeds": cell("seeds"),
        },
    ),
    "speed_gpu": Table(
        ("speed_gpu", "speed_gpu_eager"),
        gpu_rows,
        {
            "detector": cell("label"),
            "form": cell("form"),
            "precision": cell("precision"),
            "device, ms": cell("device/median_ms", ".1f"),
            "end to end, ms": cell("end_to_end/median_ms", ".1f"),
            "kernels": cell_if_any("kernels"),
            "found as in eager fp32": cell("found"),
        },
    ),
}
