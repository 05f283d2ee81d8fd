"""The report page: whole, self-contained, and deaf to what its texts contain."""

from __future__ import annotations

import pytest
from made_cells import EVIL, cell, failed, result
from page_reader import loads_nothing, read

from directdet.front.demo_report import Report, render
from directdet.pages.page import Figure, Grid, Picture


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
        "benchmark": result(cell(512.25, ap=0.4321), failed()),
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
    page = render(report(benchmark=result(failed("it broke"))))
    assert "it broke" in read(page).text


def test_the_page_is_the_same_every_time():
    assert render(report()) == render(report())
