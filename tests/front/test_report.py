"""The report page: whole, self-contained, and deaf to what its texts contain."""

from __future__ import annotations

import pytest
from page_reader import loads_nothing, read

from directdet.benchmark.published_speed import beside
from directdet.front.demo_report import Report, render
from directdet.pages.page import Figure, Grid, Picture
from directdet.recipes.published import table7

EVIL = "<script>alert('&\"')</script>"


def cell(runtime: str = "onnxruntime") -> dict:
    times = {"mean": 2.0, "median": 1.5, "p95": 4.0, "p99": 5.0}
    return {
        "path": EVIL,
        "runtime": runtime,
        "precision": "fp32",
        "size": [96, 128],
        "batch": 1,
        "compiled": False,
        "iterations": 30,
        "warmup": 5,
        "milliseconds": {name: times for name in ("prepare", "device", "postprocess", "end_to_end")},
        "fps_end_to_end": 512.25,
        "fps_device_only": 700.0,
        "metrics": {"bbox": {"AP": 0.4321, "AP50": 0.8}, "segm": None},
    }


ABOUT = {"hardware": {"cpu": EVIL, "cores_usable": 2, "gpu": None}}


def benchmark(cells: list[dict]) -> dict:
    return {"cells": cells, "about": ABOUT, "papers": [beside(table7(), [])]}


def report(**changes) -> Report:
    steps = [{"kind": "step", "step": step, "loss": 5 / step} for step in (1, 2, 3)]
    log = {"pretrain": [*steps, {"kind": "eval", "step": 3, "bbox": {"AP": 0.2, "AP50": 0.5}}], "finetune": steps}
    content = {
        "title": EVIL,
        "intro": EVIL,
        "figures": [Figure(EVIL, EVIL, EVIL, "good")],
        "phases": Grid((EVIL, "pretrain"), [(EVIL, 3)]),
        "log": log,
        "verification": Grid(("image", "result"), [(EVIL, "PASS")]),
        "passed": True,
        "verification_note": EVIL,
        "benchmark": benchmark([cell(), {"path": EVIL, "runtime": EVIL, "compiled": False, "batch": 1, "error": EVIL}]),
        "gallery": [Picture(EVIL, b"\xff\xd8one", b"\xff\xd8two")],
        "gallery_note": EVIL,
        "about": {EVIL: EVIL},
    }
    return Report(**content | changes)


def test_texts_are_escaped():
    page = render(report())
    assert "<script" not in page
    reader = read(page)
    assert "script" not in {tag for tag, _ in reader.seen}
    assert reader.text.count(EVIL) >= 10  # shown as they are


def test_nothing_is_loaded_from_elsewhere():
    assert loads_nothing(render(report()))


def test_figures_are_there():
    reader = read(render(report()))
    for text in ("512.2", "43.2", "80.0", "not comparable", "0.424", "PASS", "running median", "ms per batch"):
        assert text in reader.text
    images = [attributes for tag, attributes in reader.seen if tag == "img"]
    assert len(images) == 2 and all(image["alt"] for image in images)


@pytest.mark.parametrize("changes", [{"log": {}}, {"gallery": []}, {"passed": False}, {"about": {}}])
def test_parts_may_be_missing(changes):
    page = render(report(**changes))
    assert ("FAIL" in page) == (changes.get("passed") is False)


def test_no_cell_may_have_run():
    failed = {"path": "a", "runtime": "b", "compiled": False, "batch": 1, "error": "it broke"}
    page = render(report(benchmark=benchmark([failed])))
    assert "it broke" in read(page).text


def test_the_page_is_the_same_every_time():
    assert render(report()) == render(report())
