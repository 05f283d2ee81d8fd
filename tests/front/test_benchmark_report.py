"""The benchmark's page and the papers' tables beside it: whole, escaped, with the right ratios."""

from __future__ import annotations

import builtins
import io
import re

import numpy as np
import pytest
from page_reader import loads_nothing, read
from rich.console import Console

from directdet.benchmark import report as benchmark_report
from directdet.benchmark.cell import STAGES, summary
from directdet.benchmark.published_speed import beside
from directdet.benchmark.report import render
from directdet.benchmark.run import BenchmarkResult
from directdet.pages.page import Picture
from directdet.recipes.published import scratchdet_table2, speed_tables, table7

EVIL = "<script>alert('&\"')</script>"
SCALES = {"prepare": 0.1, "device": 1.0, "postprocess": 0.05, "end_to_end": 1.15}


def cell(fps: float = 20.0, recipe: str | None = None, ap: float | None = 0.4, **changes) -> dict:
    times = 1000 / fps * np.linspace(0.9, 1.1, 21)
    samples = {stage: (times * SCALES[stage] / SCALES["end_to_end"]).tolist() for stage in STAGES}
    values = {
        "path": EVIL,
        "runtime": "onnxruntime",
        "compiled": False,
        "recipe": recipe,
        "provider": "CPUExecutionProvider",
        "provider_check": {"asked": "cpu", "provider": "CPUExecutionProvider", "nodes": {"CPUExecutionProvider": 7}},
        "precision": "fp32",
        "threads": 2,
        "size": [96, 128],
        "batch": 1,
        "iterations": 21,
        "warmup": 5,
        "model_bytes": 3 << 20,
        "memory_mib": {"peak_rss": 321.5, "before_loading": 45.0, "gpu": None},
        "milliseconds": {stage: summary(np.array(values)) for stage, values in samples.items()},
        "samples_ms": samples,
        "fps_end_to_end": fps,
        "fps_device_only": 1.2 * fps,
        "detections_per_image": 2.0,
        "image_sizes": {"median": [96, 128], "largest": [96, 128]},
        "metrics": None if ap is None else {"bbox": {"AP": ap, "AP50": 0.8}, "segm": None, "n_images": 9},
        "versions": {"onnxruntime": EVIL},
    }
    return values | changes


def result(*cells: dict) -> BenchmarkResult:
    machine = {"cpu": EVIL, "cores": 4, "cores_usable": 2, "gpu": None, "memory_gib": None, "system": EVIL}
    about = {
        "date": "today",
        "command": EVIL,
        "hardware": machine,
        "versions": {"python": "3"},
        "dataset": {"root": EVIL, "split": EVIL, "images": 3},
        "quick": False,
    }
    good = [one for one in cells if "error" not in one]
    return BenchmarkResult(list(cells), about, [beside(table, good) for table in speed_tables()])


def failed() -> dict:
    return {"path": EVIL, "runtime": "openvino", "compiled": False, "batch": 4, "error": EVIL}


def test_the_page_is_whole_and_escaped():
    page = render(result(cell(), cell(40), failed()), [Picture(EVIL, b"\xff\xd8one", b"\xff\xd8two")], EVIL)
    assert "<script" not in page and loads_nothing(page)
    reader = read(page)
    assert reader.text.count(EVIL) > 8
    for text in ("40.0", "2.00", "321.5", "not comparable", "0.424", "59.5", "p99", "batch 4", "7 nodes on CPU"):
        assert text in reader.text, text
    assert page == render(result(cell(), cell(40), failed()), [Picture(EVIL, b"\xff\xd8one", b"\xff\xd8two")], EVIL)


def test_charts_show_every_cell():
    page = render(result(cell(), cell(40), cell(10, ap=None)), [], "")
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 1 + 3  # AP against latency, and a spread for each cell
    numbers = re.findall(r"<text[^>]*>\s*(\d+)\s*</text>", charts[0])
    assert {"1", "2"} <= set(numbers) and "box AP (%)" in charts[0]
    assert all(name in charts[1] for name in ("decode + preprocess", "postprocess", "milliseconds per batch"))
    assert "#01" not in page and "#02" not in page  # the page's own colours


def test_without_ap_or_matplotlib_the_page_says_so(monkeypatch):
    page = render(result(cell(ap=None)), [], "")
    assert "no AP was measured" in read(page).text and len(re.findall("<svg", page)) == 1
    monkeypatch.setattr(benchmark_report, "_can_draw", lambda: False)
    whole = builtins.__import__

    def no_matplotlib(name, *arguments, **options):
        assert not name.startswith("matplotlib")
        return whole(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    page = render(result(cell()), [], "")
    assert "matplotlib is not installed" in read(page).text and "<svg" not in page


def test_ours_stand_beside_the_row_of_their_recipe_as_ratios():
    gn, direct = "mask_rcnn_r50_fpn_scratch_gn_6x", "mask_rcnn_r50_fpn_p3x_1x"
    cells = [cell(30, direct), cell(20, gn), cell(90, direct, runtime="openvino"), cell(99, "demo")]
    table = beside(table7(), cells)
    rows = {row["method"]: row for row in table["rows"]}
    assert table["reference"] == "Scratch (GN)" and not table["comparable"]  # the first row that was timed
    assert rows["Direct"]["ratio"] == pytest.approx(8.6 / 7.6) and rows["Scratch (GN)"]["ratio"] == 1
    ours, lone = rows["Direct"]["ours"]
    assert ours["ratio_end_to_end"] == ours["ratio_device_only"] == pytest.approx(1.5)
    assert lone["fps_end_to_end"] == 90 and lone["ratio_end_to_end"] is None  # no GN in OpenVINO to compare with
    assert rows["ImageNet"]["ours"] == [] and "recipe" in rows["ImageNet"]
    untouched = beside(scratchdet_table2(), cells)
    assert untouched["rows"][3]["ratio"] == pytest.approx(54.5 / 59.5)
    assert all(row["ours"] == [] for row in untouched["rows"])
    shown = io.StringIO()
    Console(file=shown, width=200).print(result(*cells).render())
    assert "not comparable" in shown.getvalue() and "1080Ti" in shown.getvalue()
    assert "Tesla P40" not in shown.getvalue()  # of that table nothing was timed
    text = read(render(result(*cells), [], "")).text
    assert "1.50" in text and "1.13" in text and "None of the models timed here" in text
