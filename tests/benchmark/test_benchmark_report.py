"""The benchmark's page and the papers' tables beside it: whole, escaped, with the right ratios."""

from __future__ import annotations

import builtins
import csv
import io
import re
from dataclasses import asdict, replace

import pytest
from made_cells import EVIL, cell, failed, result
from page_reader import loads_nothing, read
from rich.console import Console

from directdet.benchmark import report as benchmark_report
from directdet.benchmark.cell import Request
from directdet.benchmark.published_speed import compare_with
from directdet.benchmark.report import render
from directdet.benchmark.result import BenchmarkResult
from directdet.benchmark.tables import _cell_text, tables, to_csv
from directdet.models.configs import make_config
from directdet.pages.page import Picture
from directdet.recipes.by_name import get_recipe
from directdet.recipes.published import direct_table1, direct_table7, scratchdet_table2


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


def test_ours_are_next_to_the_row_of_their_recipe_as_ratios():
    gn, direct = "mask_rcnn_r50_fpn_scratch_gn_6x", "mask_rcnn_r50_fpn_p3x_1x"
    cells = [cell(30, direct), cell(20, gn), cell(90, direct, runtime="openvino"), cell(99, "demo")]
    table = compare_with(direct_table7(), cells).to_dict()
    rows = {row["method"]: row for row in table["rows"]}
    assert table["reference"] == "Scratch (GN)" and not table["comparable"]  # the first row that was timed
    assert rows["Direct"]["ratio"] == pytest.approx(8.6 / 7.6) and rows["Scratch (GN)"]["ratio"] == 1
    ours, lone = rows["Direct"]["ours"]
    assert ours["ratio_end_to_end"] == ours["ratio_device_only"] == pytest.approx(1.5)
    assert lone["fps_end_to_end"] == 90 and lone["ratio_end_to_end"] is None  # no GN in OpenVINO to compare with
    assert rows["ImageNet"]["ours"] == [] and "recipe" in rows["ImageNet"]
    untouched = compare_with(scratchdet_table2(), cells).to_dict()
    assert untouched["rows"][3]["ratio"] == pytest.approx(54.5 / 59.5)
    assert all(row["ours"] == [] for row in untouched["rows"])
    shown = io.StringIO()
    Console(file=shown, width=200).print(tables(result(*cells)))
    assert "not comparable" in shown.getvalue() and "1080Ti" in shown.getvalue()
    assert "Tesla P40" not in shown.getvalue()  # of that table nothing was timed
    text = read(render(result(*cells), [], "")).text
    assert "1.50" in text and "1.13" in text and "None of the models timed here has a network of this table" in text


def network(recipe: str, **changes: object) -> dict:
    """What a cell has of the network of a recipe, which may have been trained by another."""
    chosen = get_recipe(recipe)
    config = make_config(chosen.detector, 3, {**chosen.model, **changes})
    return {"detector": chosen.detector, **asdict(config)}


def timed_rows(table, *cells) -> list[str]:
    return [row.row.method for row in compare_with(table, cells).rows if row.ours]


def test_ours_are_next_to_the_rows_of_their_network_whatever_the_recipe():
    same = ["ImageNet", "Scratch (SyncBN)", "Direct"]
    plain = cell(30, "mask_rcnn_r50_fpn", network=network("mask_rcnn_r50_fpn"))
    assert timed_rows(direct_table7(), plain) == same
    assert timed_rows(direct_table7(), cell(30, None, network=network("mask_rcnn_r50_fpn_p2x_2x"))) == same
    gn = cell(20, "my_own", network=network("mask_rcnn_r50_fpn_scratch_gn_6x"))
    assert timed_rows(direct_table7(), gn) == ["Scratch (GN)"]
    rows = {row.row.method: row for row in compare_with(direct_table7(), [plain, gn]).rows}
    (direct,), (normed,) = rows["Direct"].ours, rows["Scratch (GN)"].ours
    assert (direct.ratio_end_to_end, normed.ratio_end_to_end) == pytest.approx((1, 20 / 30))  # reference: ImageNet
    # Another head, backbone, number of proposals or detector is another network, also under a row's name.
    name = "mask_rcnn_r50_fpn_p3x_1x"
    for other in ({"box_convs": 0}, {"backbone": "resnet18"}, {"test_proposals": 300}, {"masks": False}):
        assert timed_rows(direct_table7(), cell(9, name, network=network(name, **other))) == [], other
    assert timed_rows(direct_table7(), cell(9, name, network=network("retinanet_r50_fpn"))) == []
    assert timed_rows(direct_table7(), cell(9, name, network=network("mask_rcnn_r50_fpn_imagenet_1x"))) == []
    # Thresholds and what only training uses make no difference; nor does batch normalisation in a head.
    assert timed_rows(direct_table7(), cell(9, network=network(name, nms=0.6, roi_samples=64))) == same
    (root,) = timed_rows(scratchdet_table2(), cell(9, network=network("ssd300_root_resnet18", head_norm=False)))
    assert root == "stride 1, three 3x3 (Root-ResNet-18)"


def test_the_papers_accuracy_is_beside_ours_and_says_where_it_is_from():
    made = result(cell(30, "ssd300_root_resnet34"), cell(20, "mask_rcnn_r50_fpn_p3x_1x"), cell(10, "demo"), cell(9))
    content = made.to_dict()["in_the_papers"]
    assert list(content) == ["ssd300_root_resnet34", "mask_rcnn_r50_fpn_p3x_1x"]
    (root,) = content["ssd300_root_resnet34"]
    assert (root["place"], root["result"], root["metric"]) == ("ScratchDet, section 4", "mAP 80.4", "VOC 2007 test mAP")
    direct = {one["place"]: (one["result"], one["metric"]) for one in content["mask_rcnn_r50_fpn_p3x_1x"]}
    wanted = ("box 41.5, mask 37.0; 1.52 days", "COCO val2017 AP")
    assert direct["Direct pre-training, Table 3"] == wanted
    shown = io.StringIO()
    Console(file=shown, width=200).print(tables(made))
    page = read(render(made, [], "")).text
    for text in ("80.4", "VOC 2007 test mAP", "box 41.5, mask 37.0", "Direct pre-training, Table 3"):
        assert text in shown.getvalue() and text in page, text
    assert "In the papers, on their data, not measured here (recipe ssd300_root_resnet34):" in shown.getvalue()
    assert "report no accuracy" in read(render(result(cell(9, "demo")), [], "")).text
    assert BenchmarkResult.from_dict(made.to_dict()).to_dict()["in_the_papers"] == content


def test_a_table_without_frame_rates_is_refused():
    with pytest.raises(ValueError, match="prints no frame rate"):
        compare_with(direct_table1(), [])


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1"])
def test_a_spreadsheet_computes_no_name(name):
    """Negative numbers stay numbers."""
    assert _cell_text(name) == f"'{name}"
    row = next(
        csv.DictReader(io.StringIO(to_csv(result(replace(failed(), request=Request(name, "-", None, False, 1))))))
    )
    assert row["model"] == f"'{name}"
    assert _cell_text(-1.5) == -1.5 and _cell_text("runs/a=b") == "runs/a=b" and _cell_text(None) is None
