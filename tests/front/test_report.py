"""The report page: whole, self-contained, and deaf to what its texts contain."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from directdet.infer.papers import table7
from directdet.report import Figure, Grid, Picture, Report, render

EVIL = "<script>alert('&\"')</script>"


def cell(runtime: str = "onnxruntime") -> dict:
    times = {"mean": 2.0, "median": 1.5, "p95": 4.0}
    return {
        "path": EVIL,
        "runtime": runtime,
        "precision": "fp32",
        "size": [96, 128],
        "batch": 1,
        "iterations": 30,
        "warmup": 5,
        "milliseconds": {name: times for name in ("prepare", "device", "postprocess", "end_to_end")},
        "fps_end_to_end": 512.25,
        "fps_device_only": 700.0,
        "metrics": {"bbox": {"AP": 0.4321, "AP50": 0.8}, "segm": None},
    }


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
        "benchmark": {"cells": [cell(), {"path": EVIL, "runtime": EVIL, "error": EVIL}], "paper": table7().to_dict()},
        "gallery": [Picture(EVIL, b"\xff\xd8one", b"\xff\xd8two")],
        "gallery_note": EVIL,
        "about": {EVIL: EVIL},
    }
    return Report(**content | changes)


class Reader(HTMLParser):
    """Checks that tags are balanced, and keeps tags, attributes and text."""

    VOID = ("meta", "img", "br", "path", "use")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_texts_are_escaped():
    page = render(report())
    assert "<script" not in page
    reader = read(page)
    assert "script" not in {tag for tag, _ in reader.seen}
    assert reader.text.count(EVIL) >= 10  # shown as they are


def test_nothing_is_loaded_from_elsewhere():
    page = render(report())
    for tag, attributes in read(page).seen:
        assert tag not in ("link", "iframe", "object", "script")
        for key in ("src", "href", "xlink:href"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#"))
    assert "@import" not in page
    assert set(re.findall(r"url\(([^)]*)", page)) <= {value for value in re.findall(r"url\((#[^)]*)", page)}


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
    failed = {"path": "a", "runtime": "b", "error": "it broke"}
    page = render(report(benchmark={"cells": [failed], "paper": table7().to_dict()}))
    assert "it broke" in read(page).text


def test_the_page_is_the_same_every_time():
    assert render(report()) == render(report())
