"""scripts/tables.py: docs/results.md and the README's table say what results/*.json say, and nothing else."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
MARKED = "# directdet\n\n<!-- results: begin -->\n<!-- results: end -->\n\nMore.\n"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import tables

    return tables


@pytest.fixture
def copy(tmp_path):
    """A copy of what the script reads and writes, with a README that has a place for the table."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    (tmp_path / "docs").mkdir()
    for name in ("results.md", "results.md.in"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs" / name)
    (tmp_path / "README.md").write_text(MARKED)
    return tmp_path


def change(path: Path, *keys: str | int, to: object) -> None:
    """Write another value into a JSON file."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    assert inner[keys[-1]] != to
    inner[keys[-1]] = to
    path.write_text(json.dumps(content))


def test_the_repository_s_pages_are_up_to_date():
    command = [sys.executable, str(SCRIPTS / "tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("file", "keys", "value", "shown"),
    [
        ("ssd_slim_cpu", ("rows", "bn", "bbox", "AP"), 0.55, "55.0"),
        ("export_matrix", ("cells", "SSD300 DSOD/onnx/fp32", "runtimes", "onnxruntime", "box"), 3.0, "3e+00 px"),
        ("penn_fudan_h200", ("rows", "mask_rcnn_r50", "mask_ap"), 0.123, "12.3"),
        ("demo_cpu", ("cells", 1, "metrics", "bbox", "AP50"), 0.777, "77.7"),
        ("network_sizes", ("rows", "retinanet_r50_fpn", "here"), "1.23 M", "1.23 M"),
        ("root_resnet", ("hardware", "cpu"), "abacus", "abacus"),
    ],
)
def test_a_changed_figure_fails_the_check_and_writing_shows_it(tables, copy, capsys, file, keys, value, shown):
    assert tables.main([], root=copy) == 0 and tables.main(["--check"], root=copy) == 0
    change(copy / "results" / f"{file}.json", *keys, to=value)
    assert tables.main(["--check"], root=copy) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    page, number = lines[0].split(":")[:2]
    there = (copy / page).read_text().split("\n")[int(number) - 1]
    assert shown not in there and repr(there) in lines[0] and shown in lines[0]
    assert tables.main([], root=copy) == 0 and tables.main(["--check"], root=copy) == 0
    assert shown in (copy / page).read_text().split("\n")[int(number) - 1]


def test_a_figure_changed_by_hand_fails_the_check(tables, copy, capsys):
    page = copy / "docs" / "results.md"
    lines = page.read_text().split("\n")
    number = next(number for number, line in enumerate(lines) if line.startswith("| no BN | 4.75"))
    page.write_text("\n".join([*lines[:number], lines[number].replace("4.75", "4.57"), *lines[number + 1 :]]))
    assert tables.main(["--check"], root=copy) == 1
    assert capsys.readouterr().err.startswith(f"docs/results.md:{number + 1}: ")


@pytest.mark.parametrize("change", [lambda text: text + "\n", lambda text: text[:-1], lambda text: ""])
def test_a_page_that_is_longer_shorter_or_missing_fails_the_check(tables, copy, capsys, change):
    page = copy / "docs" / "results.md"
    page.write_text(change(page.read_text()))
    assert tables.main(["--check"], root=copy) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_readme_s_table_is_written_between_its_markers_and_checked(tables, copy, capsys):
    readme = copy / "README.md"
    assert tables.main(["--check"], root=copy) == 1 and capsys.readouterr().err.startswith("README.md:4: ")
    assert tables.main([], root=copy) == 0 and tables.main(["--check"], root=copy) == 0
    assert tables.main(["--headline"], root=copy) == 0
    table = capsys.readouterr().out
    assert readme.read_text() == MARKED.replace("begin -->\n", f"begin -->\n{table}")
    assert table.count("\n") == 7 and "| 49.7 | 92.9 | 41.4 |" in table and "| 48.7 | 94.2 | 36.9 |" in table
    readme.write_text(readme.read_text().replace("| 48.7 |", "| 49.8 |"))
    assert tables.main(["--check"], root=copy) == 1 and capsys.readouterr().err.startswith("README.md:9: ")
    readme.write_text("no markers\n")
    assert tables.main(["--check"], root=copy) == 0 and readme.read_text() == "no markers\n"


def test_every_file_of_results_is_shown(tables, copy, capsys):
    (copy / "results" / "another.json").write_text("{}")
    assert tables.main(["--check"], root=copy) == 1
    assert capsys.readouterr().err.startswith("results/another.json: no table or text shows it")


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_file_says_where_its_figures_come_from(path):
    content = json.loads(path.read_text())
    about = content.get("about", content)
    if "source" in about:  # there is no file of the run
        assert about["source"] == "figures first published in README of 0.1" and about["note"]
    else:
        assert about["date"] and about["hardware"]["cpu"] and about["versions"]


def test_every_table_and_figure_is_used(tables):
    template = (ROOT / "docs" / "results.md.in").read_text()
    unused = [name for name in tables.TABLES if f"{{{{ table: {name} }}}}" not in template]
    assert unused == ["headline"]  # the README's
    assert [name for name in tables.FIGURES if f"{{{{ figure: {name} }}}}" not in template] == []


def test_no_table_is_typed_by_hand(tables):
    """In the template there is one, of recipes' names; no figure of it was measured."""
    lines = (ROOT / "docs" / "results.md.in").read_text().split("\n")
    typed = [number for number, line in enumerate(lines) if line.startswith("|")]
    assert lines[typed[0]] == "| table | recipes | run here |"
    assert typed == list(range(typed[0], typed[0] + len(typed)))


def test_no_row_is_left_out_unseen(tables, copy, capsys):
    change(copy / "results" / "ssd_slim_cpu.json", "rows", to={"bn": {}, "none": {}, "third": {}})
    assert tables.main([], root=copy) == 1
    assert "'third' is in the file or in the table, not in both" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("placeholder", "message"),
    [
        ("{{ table: nothing }}", "there is no table of that name, but headline, "),
        ("{{ figure: nothing }}", "there is no figure of that name, but "),
        ("{{ measured: nothing }}", "results/nothing.json: there is no such file"),
        ("{{ value: demo_cpu/cells/7/metrics | percent }}", "cells/7/metrics: there is no '7'"),
        ("{{ value: demo_cpu/cells | percent }}", "cannot be written as 'percent'"),
        ("{{ tables: headline }}", "write one of table, measured, value, figure before the colon"),
    ],
)
def test_a_placeholder_that_means_nothing_is_one_line(tables, copy, capsys, placeholder, message):
    with (copy / "docs" / "results.md.in").open("a") as template:
        template.write(placeholder)
    assert tables.main([], root=copy) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"docs/results.md.in: {placeholder}: ") and message in error and error.count("\n") == 1


def test_a_missing_figure_is_told_not_left_empty(tables, copy, capsys):
    path = copy / "results" / "memory_plan.json"
    content = json.loads(path.read_text())
    del content["plan"]["settings"][0]["flops"]
    path.write_text(json.dumps(content))
    assert tables.main([], root=copy) == 1
    assert "results/memory_plan.json: there is no 'flops'" in capsys.readouterr().err


def test_pictures_are_where_the_page_says():
    page = (ROOT / "docs" / "results.md").read_text()
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
    assert pictures and all((ROOT / "docs" / name).is_file() for name in pictures)
