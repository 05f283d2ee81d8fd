"""`check-data --report FILE.html`: every finding is there with the pictures that show it, and its number is right."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from page_reader import loads_nothing, read

from directdet.common.errors import UserError
from directdet.data.check import examine_data
from directdet.data.checks.finding import Example
from directdet.data.checks.findings import all_findings
from directdet.data.dataset import load_dataset
from directdet.data.synthetic import make_synthetic
from directdet.front.cli import main
from directdet.pages import data as data_page
from directdet.pages.data import DataPage, render_data
from directdet.recipes.by_name import get_recipe
from directdet.train.objects import count_objects, usual_sides

NAMES = ["<script>alert(1)</script>", '[red]x[/red]" onerror="x', "\ud800 half", "\u202egnirts"]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Path:
    """A dataset with one fault of nearly every kind, and class names that a page must not obey."""
    root = make_synthetic(tmp_path_factory.mktemp("page") / "<b>faulty", 14, 5, seed=3)
    train, val = (sorted((root / f"{split}2017").iterdir()) for split in ("train", "val"))
    files = [root / "annotations" / f"instances_{split}2017.json" for split in ("train", "val")]
    content, held_out = (json.loads(file.read_text()) for file in files)
    entries = {entry["file_name"]: entry for entry in content["images"]}
    train[1].write_bytes(train[1].read_bytes()[:-9])
    train[2].unlink()
    cv2.imwrite(str(train[3]), np.zeros_like(cv2.imread(str(train[3]))))
    _take(train[8], val[1], held_out, 0.5)
    _take(train[9], val[2], held_out, 1)
    untouched = {entries[path.name]["id"] for path in (train[0], *train[4:])}
    objects = [one for one in content["annotations"] if not one["iscrowd"] and one["image_id"] in untouched]
    objects[0]["bbox"] = [-60, -30, 90, 70]
    objects[1]["bbox"] = [5, 5, 0, 20]
    objects[2]["bbox"] = [50, 50, -4, 0]
    objects[3]["bbox"] = [260, 220, 50, 60]
    objects[4]["bbox"] = [1e9, 5, 30, 30]
    objects[5]["segmentation"] = [[1, 2, 3, 4]]
    objects[6]["segmentation"] = [[10, 10, 60, 10, 60, 3e9, 10, 60]]
    objects[7]["area"] = -4
    objects[8]["area"] = 1e6
    objects[9]["segmentation"] = []
    content["annotations"] += [{**one, "id": 9000 + one["id"]} for one in objects[12:18]]
    content["annotations"].append({"id": 9999, "image_id": 424242, "category_id": 1, "bbox": [1, 2, 3, 4]})
    content["images"].append({**entries[train[12].name], "id": 7777})
    for entry, name in zip(content["categories"], NAMES, strict=True):
        entry["name"] = name
    held_out["categories"] = content["categories"]
    for file, one in zip(files, (content, held_out), strict=True):
        file.write_text(json.dumps(one))
    return root


@pytest.fixture(scope="module")
def examined(faulty):
    """Its report and its splits."""
    return examine_data(faulty, progress=False)


def _take(source: Path, target: Path, content: dict, factor: float) -> None:
    """Replace a picture by another one, and its entry, without objects."""
    image = cv2.imread(str(source))
    if factor == 1:
        shutil.copy(source, target)
    else:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(target), image)
    (entry,) = [one for one in content["images"] if one["file_name"] == target.name]
    entry["height"], entry["width"] = image.shape[:2]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != entry["id"]]


class Parts(HTMLParser):
    """The page by its headings: (heading, text, alts of its pictures)."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[list] = []
        self.heading = False

    def handle_starttag(self, tag, attrs):
        if tag in ("h2", "h3"):
            self.parts.append(["", "", []])
        self.heading = tag in ("h2", "h3") or (self.heading and tag == "span")
        if tag == "img" and self.parts:
            self.parts[-1][2].append(dict(attrs)["alt"])

    def handle_endtag(self, tag):
        self.heading &= tag not in ("h2", "h3")

    def handle_data(self, data):
        if self.parts:
            self.parts[-1][0 if self.heading else 1] += data


def parts_of(page: str) -> dict[str, tuple[str, list[str]]]:
    parser = Parts()
    parser.feed(page)
    found: dict[str, tuple[str, list[str]]] = {}
    for heading, text, alts in parser.parts:  # a class has another part among the maps, with charts
        found.setdefault(" ".join(heading.split()), (text, alts))
    return found


def test_every_finding_is_there_with_its_pictures(faulty, tmp_path, capsys):
    file = tmp_path / "page.html"
    assert main(["check-data", str(faulty), "--report", str(file)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {file}"
    page = file.read_text()
    reader = read(page)
    assert loads_nothing(page) and "Not usable: fix the errors" in reader.text
    parts = parts_of(page)
    report, datasets = examine_data(faulty, progress=False)
    findings = all_findings(report, datasets)
    kinds = {finding.kind for finding in findings}
    assert kinds >= {"error", "missing-file", "broken-file", "empty-box", "outside-box", "repeated", "listed-twice"}
    assert kinds >= {"dark-file", "near-duplicate", "duplicate", "clipped-box", "bad-polygon", "far-polygon"}
    assert kinds >= {"bad-area", "no-mask", "misfit-area", "warning"}
    headings = list(parts)
    for finding in findings:
        heading = f"{finding.worth} {finding.title}"
        text, alts = parts[heading]
        twice = 2 if finding.kind in ("near-duplicate", "duplicate") else 1
        assert len(alts) == twice * min(len(finding.examples), 8), finding.kind
        assert alts or finding.lines
        assert finding.text in text
        for example in finding.examples[:8]:
            assert any(example.record.path.name in alt for alt in alts)
            for place in example.objects[:5]:
                assert any(str(example.record.annotation_ids[place]) in alt for alt in alts)
        for line in finding.lines if not alts else ():
            assert line in text
    # The worst first.
    order = [heading.split()[0] for heading in headings if heading.split()[0] in ("error", "doubt", "warning")]
    assert order == sorted(order, key=["error", "doubt", "warning"].index)
    train = {heading.split(": ", 1)[-1]: alts for heading, (_, alts) in parts.items() if "train:" in heading}
    assert any("annotation 9999" in text for text, _ in parts.values())
    assert len(train["2 boxes without width or height"]) == len(train["2 boxes outside their image"]) == 2


def test_numbers_are_those_of_the_report(examined):
    report, datasets = examined
    counts: dict[str, int] = {}
    for finding in all_findings(report, datasets):
        counts[finding.kind] = counts.get(finding.kind, 0) + finding.count
        # Of an image that is listed twice, both entries are shown.
        assert len(finding.examples) <= finding.count * (2 if finding.kind == "listed-twice" else 1)
    problems = [problem.kind for split in report.splits for problem in split.problems]
    for kind in ("empty-box", "outside-box", "clipped-box", "bad-polygon", "far-polygon", "bad-area"):
        assert counts[kind] == problems.count(kind) > 0
    assert counts["empty-box"] + counts["outside-box"] == len(report.dropped)
    assert counts["missing-file"] == sum(len(split.missing_files) for split in report.splits) == 1
    assert counts["broken-file"] == sum(len(split.broken_files) for split in report.splits) == 1
    assert counts["error"] == len(report.errors) == 1
    assert counts["near-duplicate"] == len(report.near_duplicates) == 1
    assert counts["duplicate"] == len(report.duplicates) == 1
    assert counts["no-mask"] == sum(split.objects - split.objects_with_mask for split in report.splits)
    assert counts["misfit-area"] == sum(split.misfit_areas for split in report.splits)
    doubts = [finding for finding in all_findings(report, datasets) if finding.worth == "doubt"]
    assert sorted(doubt.text for doubt in doubts) == sorted(report.doubts)
    for finding in all_findings(report, datasets):
        for example in finding.examples:
            assert example.record.path.is_file()


def _check_bars(page, report):
    """Each class has its numbers, and bars that are their shares."""
    table = page[page.index('<table class="balance">') :].split("</table>")[0]
    cells = [(float(share), int(count)) for share, count in re.findall(r'--share:([\d.]+)%">(\d+)<', table)]
    counts = [count for pair in zip(*(split.class_counts for split in report.splits), strict=True) for count in pair]
    assert [count for _, count in cells] == counts
    most = [max(split.class_counts) for split in report.splits] * len(report.label_map)
    assert [share for share, _ in cells] == pytest.approx(
        [100 * count / high for count, high in zip(counts, most, strict=True)], abs=0.06
    )


def test_names_cannot_act_and_the_classes_have_bars(examined):
    page = render_data(DataPage(*examined, pictures=2))
    _check_bars(page, examined[0])
    assert "<script" not in page and "\u202e" not in page and "\ud800" not in page
    assert not [1 for _, attributes in read(page).seen if "onerror" in attributes]
    text = read(page).text
    assert all(name in text for name in ("<script>alert(1)</script>", "\\ud800 half", "\\u202egnirts", "<b>faulty"))
    page.encode()


def test_as_many_pictures_as_asked(examined):
    report, datasets = examined
    page = DataPage(report, datasets)
    several = [finding for finding in all_findings(report, datasets) if len(finding.examples) > 1]
    assert several
    for finding in several:
        counts = [
            data_page._finding(replace(page, pictures=number), finding).count("<figure>") for number in (0, 1, 99)
        ]
        assert counts == [0, 1, len(finding.examples)]


def test_a_sound_set(shapes):
    report, datasets = examine_data(shapes, progress=False)
    page = render_data(DataPage(report, datasets))
    parts = parts_of(page)
    assert "Usable." in read(page).text and report.warnings
    assert [heading for heading in parts if heading.split()[0] in ("error", "doubt", "warning")] == [
        f"warning {len(report.warnings)} warnings"
    ]
    assert all_findings(replace(report, warnings=()), datasets) == []
    assert len(parts["A sample"][1]) == 12
    for label, _, name in report.label_map:
        total = sum(split.class_counts[label] for split in report.splits)
        text, alts = next(part for heading, part in parts.items() if heading == f"{name} ({total})")
        assert len(alts) == min(5, total) and "annotation" in text
    sides = np.concatenate([record.boxes[:, 2:] - record.boxes[:, :2] for one in datasets for record in one.records
                            if not record.crowd.any()])  # fmt: skip
    smallest = parts["Smallest"][1][0]
    width, height = map(float, re.search(r"([\d.]+) x ([\d.]+)", smallest).groups())
    assert width * height <= sides.prod(axis=1).min() * 1.1 + 1
    # The same pictures are drawn at random each time.
    one, again, other = (data_page._sample(DataPage(report, datasets, seed=seed)) for seed in (0, 0, 1))
    assert one == again != other


def test_sets_in_which_nothing_can_be_shown(tmp_path, write_image_file):
    """No objects, and no picture that can be read: the page still says what it found."""
    content = {"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}], "annotations": [],
               "categories": [{"id": 1, "name": "a"}]}  # fmt: skip
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    for _ in range(2):
        report, datasets = examine_data(tmp_path, progress=False)
        parts = parts_of(render_data(DataPage(report, datasets)))
        assert "error 1 errors" in parts and "train: no objects" in parts["error 1 errors"][0]
        write_image_file()
    assert len(parts["A sample"][1]) == 1


def test_pictures_of_a_folder_of_nearly_the_same_name_keep_their_path(tmp_path):
    content = {"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}], "annotations": [],
               "categories": [{"id": 1, "name": "a"}]}  # fmt: skip
    for folder in ("set", "set_later"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.full((8, 8, 3), 90, np.uint8))
        (tmp_path / folder / "a.json").write_text(json.dumps(content))
    tables = [f'[[sets]]\nimages = "{place}"\nannotations = "a.json"\n' for place in (".", tmp_path / "set_later")]
    (tmp_path / "set" / "dataset.toml").write_text("".join(tables))
    report, datasets = examine_data(tmp_path / "set", progress=False)
    told = sorted(data_page._caption(DataPage(report, datasets), Example(one)) for one in datasets[0].records)
    assert told == [str(tmp_path / "set_later" / "a.png"), "a.png"]


@pytest.fixture
def write_image_file(tmp_path):
    def write():
        (tmp_path / "train2017").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "train2017" / "a.png"), np.full((8, 8, 3), 90, np.uint8))

    return write


def test_an_interrupted_page_leaves_the_old_one(shapes, tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    file.write_text("old")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(data_page, "_extremes", stop)
    assert main(["check-data", str(shapes), "--report", str(file)]) != 0
    assert file.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_picture_that_vanishes_is_told(examined, monkeypatch):
    report, datasets = examined

    def lost(example, _):
        raise UserError(f"{example.record.path}: image file not found")

    monkeypatch.setattr(data_page, "example_picture", lost)
    shown = [one for one in all_findings(report, datasets) if one.kind == "clipped-box"]
    text = data_page._finding(DataPage(report, datasets), shown[0])
    assert "cannot be shown" in text and "image file not found" in text


def test_what_a_recipe_sees(shapes, tmp_path, capsys):
    file, numbers = tmp_path / "a.html", tmp_path / "a.json"
    command = ["check-data", str(shapes), "--recipe", "demo", "--set", "pretrain.size=64,64", "--report"]
    assert main([*command, str(file)]) == main([*command, str(numbers)]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("pretrain (", "finetune ("))]
    phase = replace(get_recipe("demo").phase("pretrain"), size=(64, 64))
    train = load_dataset(shapes, "train")
    sides = usual_sides(phase, train)
    count = count_objects(phase, train)
    below = int((sides.min(axis=1) < 8).sum())
    assert len(sides) == count.objects and 0 < below < count.objects
    assert told[0].startswith("pretrain (direct, 64): of ") and f"{below} below 8," in told[0]
    first = json.loads(numbers.read_text())["training"][0]
    assert first["below"]["8"] == below and first["unseen"] == count.objects - count.seen
    text = read(file.read_text()).text
    assert "What demo sees" in text and f"{below} ({100 * below / count.objects:.1f} %)" in text


def test_wrong_uses(shapes, capsys):
    assert main(["check-data", str(shapes), "--recipe", "demo", "--augmented", "rtmdet_tiny"]) == 2
    assert "two recipes" in capsys.readouterr().err
    assert main(["check-data", str(shapes), "--recipe", "dmo"]) == 2
    assert "did you mean 'demo'" in capsys.readouterr().err


def test_it_needs_no_torch(shapes, tmp_path):
    code = (
        "import sys; from directdet.front.cli import main; "
        f"code = main(['check-data', {str(shapes)!r}, '--recipe', 'demo', '--report', {str(tmp_path / 'a.html')!r}]); "
        "print(code, 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "0 False"
