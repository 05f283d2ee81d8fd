"""Every page in a real browser, on a desk and on a phone, in light and in dark colours."""

from __future__ import annotations

import pytest
from browser import browser, look
from made_cells import cell, failed, result
from test_evaluation_report import detections, evaluation, rendered
from test_report import report
from tiny_artefact import write_artefact

from directdet.benchmark.report import render as benchmark_page
from directdet.data.check import examine_data
from directdet.data.dataset import load_dataset
from directdet.data.synthetic import make_synthetic
from directdet.front.demo_report import render as demo_page
from directdet.infer.runtimes.load import load
from directdet.pages.data import DataPage, render_data
from directdet.pages.evaluation import EvaluationPage
from directdet.serve.form import form_page

PROGRAM = browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="needs Chromium on the PATH, or DIRECTDET_BROWSER"),
]
LONG = "a-name-of-a-class-without-any-space-in-it-that-is-longer-than-a-phone-is-wide-0123456789"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages by name; their data has a class of a name that does not fit a phone."""
    folder = tmp_path_factory.mktemp("pages")
    root = make_synthetic(folder / "data", 8, 6, (64, 80))
    for split in ("train", "val"):
        file = root / "annotations" / f"instances_{split}2017.json"
        file.write_text(file.read_text().replace('"name": "disk"', f'"name": "{LONG}"'))
    dataset = load_dataset(root, "val")
    assert LONG in dataset.classes
    evaluated = EvaluationPage("An evaluation", LONG, evaluation(dataset, detections(dataset)), {"model": LONG})
    return {
        "evaluation": rendered(evaluated),
        "data": render_data(DataPage(*examine_data(root, progress=False), pictures=4)),
        "demo": demo_page(report()),
        "benchmark": benchmark_page(result(cell(512.25, ap=0.4321), failed()), [], "No pictures."),
        "server": form_page(load(write_artefact(folder / LONG), device="cpu"), 0.3),
    }


@pytest.mark.parametrize("name", ["evaluation", "data", "demo", "benchmark", "server"])
def test_it_fits_and_can_be_read(pages, name, tmp_path):
    for width in (1280, 400):
        for dark in (False, True):
            seen = look(PROGRAM, pages[name], tmp_path / f"{width}{dark}", width, dark)
            assert seen.dark is dark and seen.texts > 100
            assert seen.wide == [] and seen.scroll <= width, (width, seen.wide, seen.scroll)
            assert seen.faint == [], (width, dark, seen.faint)


def test_what_is_wide_or_faint_is_found(tmp_path):
    page = "<!doctype html><style>p {{ color: {} }}</style><p>read me<div style='width: 600px'>wide</div>"
    bad, good = (look(PROGRAM, page.format(color), tmp_path / color, 400, False) for color in ("#999", "#222"))
    assert bad.scroll >= 600 and "DIV" in bad.wide[0] and bad.faint == ["2.85: read me"] and good.faint == []
