"""Folders of any size: order, batches, resuming, memory."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_artefact import write_artefact

from directdet.common.errors import UserError
from directdet.front import cli
from directdet.infer.predict import sources
from directdet.infer.predict.images import PART_FILE, predict
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.own_files import RECORD
from directdet.infer.predict.sources import find_images
from directdet.infer.predict.stages import Item
from directdet.infer.runtimes.load import load


def save(folder: Path, *names: str, height: int = 24, width: int = 32) -> Path:
    """Small pictures of these names."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / name), image)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """All files but the record of those that are ours."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def detector(tmp_path):
    return load(write_artefact(tmp_path / "model", batch="batch"), device="cpu", threads=1)


class Stop(Exception):
    """What a test interrupts a run with."""


def stop_after(detector, count: int):
    """The detector, which fails at the image after `count`."""
    decode, seen = detector.decode, []

    def failing(*arguments):
        seen.append(1)
        if len(seen) > count:
            raise Stop
        return decode(*arguments)

    detector.decode = failing
    return detector


def test_order_does_not_depend_on_how_many_are_listed_at_once(tmp_path, monkeypatch):
    names = [f"{folder}{number}.png" for folder in ("", "a/", "a-b/", "a/b/") for number in range(11)]
    save(tmp_path, *names)
    expected = sorted(tmp_path.rglob("*.png"))
    for listed in (50_000, 1, 7, 44):
        monkeypatch.setattr(sources, "_LISTED", listed)
        images = find_images(f"{tmp_path}/**/*.png")
        assert list(images) == expected and len(images) == 44
        assert list(find_images(tmp_path)) == sorted(tmp_path.glob("*.png"))
    assert [images.name(path) for path in images] == [path.relative_to(tmp_path) for path in expected]


@pytest.mark.parametrize("batch,calls", [(None, [1] * 7), (3, [3, 3, 1]), (7, [7]), (8, [7])])
def test_batches(detector, tmp_path, batch, calls):
    source = save(tmp_path / "in", *(f"{number}.png" for number in range(7)))
    run, sizes = detector.run, []
    detector.run = lambda images: (sizes.append(len(images)), run(images))[1]
    predict(detector, source, tmp_path / "out", progress=False)
    sizes.clear()
    summary = predict(detector, source, tmp_path / f"out-{batch}", PredictOptions(batch=batch), progress=False)
    assert sizes == calls and summary.n_images == 7 and summary.pipeline.items == len(calls)
    assert content(tmp_path / f"out-{batch}") == content(tmp_path / "out")


def test_a_batch_that_the_model_does_not_take(artefact, tmp_path):
    source = save(tmp_path / "in", "a.png")
    with pytest.raises(UserError, match=r"batch: 2; .*artefact takes 1 at most"):
        predict(load(artefact, device="cpu"), source, tmp_path / "out", PredictOptions(batch=2))


def test_json_lines_with_a_broken_image(detector, tmp_path):
    source = save(tmp_path / "in", "a.png", "c.png")
    (source / "b.png").write_bytes(b"x")
    summary = predict(
        detector, source, tmp_path / "out", PredictOptions(results="jsonl", pictures=False, batch=4), progress=False
    )
    assert (summary.n_images, summary.n_skipped, summary.n_detections) == (2, 1, 4)
    assert list(content(tmp_path / "out")) == ["detections.jsonl"]
    lines = [json.loads(line) for line in summary.results_file.read_text().splitlines()]
    assert [(line["image_id"], Path(line["file_name"]).name) for line in lines] == [
        (1, "a.png"),
        (2, "b.png"),
        (3, "c.png"),
    ]
    assert "b.png" in lines[1]["error"] and "detections" not in lines[1]
    assert lines[2]["detections"][0]["image_id"] == 3 and (lines[2]["width"], lines[2]["height"]) == (32, 24)


@pytest.mark.parametrize("results", ["coco", "jsonl"])
@pytest.mark.parametrize("done", [1, 4, 5])
def test_resume_gives_what_one_run_gives(detector, tmp_path, results, done):
    source = save(tmp_path / "in", *(f"{number}.png" for number in range(7)))
    (source / "2.png").write_bytes(b"x")
    options = {"options": PredictOptions(results=results), "progress": False}
    predict(detector, source, tmp_path / "whole", **options)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="decode: failed at item"):
        predict(stop_after(detector, done), source, out, **options)
    del detector.decode
    part = (out / PART_FILE).read_bytes()
    assert not list(out.glob("detections.json*"))
    with (out / PART_FILE).open("ab") as stream:
        stream.write(b'{"image_id": 99, "fi')  # a process killed while it wrote
    with pytest.raises(UserError, match=rf"has processed {part.count(10) - 1} images; continue with --resume"):
        predict(detector, source, out, **options)
    summary = predict(detector, source, out, resume=True, **options)
    assert summary.n_resumed == part.count(10) - 1 and (summary.n_images, summary.n_skipped) == (6, 1)
    assert summary.n_detections == 12
    assert content(out) == content(tmp_path / "whole")


def test_stopped_when_only_the_results_file_was_missing(detector, tmp_path, monkeypatch):
    source = save(tmp_path / "in", "a.png", "b.png")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("directdet.infer.predict.journal.write_coco", lambda *_: (_ for _ in ()).throw(Stop()))
        predict(detector, source, tmp_path / "out", progress=False)
    summary = predict(detector, source, tmp_path / "out", resume=True, progress=False)
    assert (summary.n_images, summary.n_resumed) == (2, 2)
    assert len(json.loads(summary.results_file.read_text())["annotations"]) == 4


def test_resume_with_nothing_there_is_a_plain_run(detector, tmp_path):
    source = save(tmp_path / "in", "a.png")
    assert predict(detector, source, tmp_path / "out", resume=True, progress=False).n_resumed == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": -0.1}, "score: -0.1; give a number from 0 to 1"),
        ({"score": 1.5}, "score: 1.5; give a number from 0 to 1"),
        ({"score": float("nan")}, "score: nan; give a number from 0 to 1"),
        ({"batch": 0}, "batch: 0; give at least 1"),
        ({"classes": "dog"}, "classes: 'dog'; give a list of names"),
        ({"classes": []}, "classes: no names; give at least one, or None for all"),
        ({"results": "xml"}, "results: 'xml'; choose from coco, jsonl, dataset"),
    ],
)
def test_options_refuse_impossible_values(settings, message):
    with pytest.raises(UserError) as caught:
        PredictOptions(**settings)
    assert str(caught.value) == message


def test_resume_refuses_what_does_not_belong(detector, tmp_path):
    source = save(tmp_path / "in", *(f"{number}.png" for number in range(5)))
    with pytest.raises(UserError):
        predict(stop_after(detector, 3), source, tmp_path / "out", progress=False)
    del detector.decode
    with pytest.raises(UserError, match=r"started with score 0\.0, not 0\.5"):
        predict(detector, source, tmp_path / "out", PredictOptions(score=0.5), resume=True, progress=False)
    with pytest.raises(UserError, match=r"started with classes None, not \['dog'\]"):
        predict(detector, source, tmp_path / "out", PredictOptions(classes=["dog"]), resume=True, progress=False)
    save(source, "0a.png")
    with pytest.raises(UserError, match=r"the images have changed since .* \(.*1\.png is not at its place"):
        predict(detector, source, tmp_path / "out", resume=True, progress=False)
    assert (tmp_path / "out" / PART_FILE).is_file()


def test_nothing_is_left_of_a_run_that_did_nothing(detector, tmp_path):
    source = save(tmp_path / "in", "a.png")
    with pytest.raises(UserError):
        predict(stop_after(detector, 0), source, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_pictures_of_an_earlier_run_are_not_sources(detector, tmp_path):
    """A pattern that also takes in the output folder: the second run would replace what it reads."""
    save(tmp_path / "in", "a.png")
    predict(detector, f"{tmp_path}/in/**/*.png", tmp_path / "in" / "found", progress=False)
    with pytest.raises(UserError, match="overwrite"):
        predict(detector, f"{tmp_path}/in/**/*.png", tmp_path / "in" / "found", progress=False)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(UserError, match="overwrite"):
        predict(detector, tmp_path / "in", tmp_path / "link", progress=False)


def test_from_the_command_line(artefact, tmp_path, capsys):
    source = save(tmp_path / "in", "a.png", "b.png")
    arguments = ["infer", str(artefact), str(source), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*arguments, "--classes", "dog, person", "--format", "jsonl", "--batch", "1"]) == 0
    output = capsys.readouterr()
    kept, told = output.out.splitlines()
    assert kept == "scores of at least 0.3 are kept (the default); --score changes it"
    assert told.startswith("2 images, 4 detections, ") and told.endswith("detections.jsonl")
    assert output.err == ""


@pytest.mark.slow
def test_killed_and_resumed(artefact, tmp_path):
    """However it ends, every image that is in the results has its picture, and the next run takes it from there."""
    source = save(tmp_path / "in", *(f"{number:04d}.jpg" for number in range(600)))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "directdet", "infer", str(artefact), str(source), "--out", str(out)]
    command += ["--device", "cpu", "--threads", "1", "--resume"]
    resumed = 0
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (out / PART_FILE).is_file() or (out / PART_FILE).read_bytes().count(b"\n") < resumed + 20:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        resumed = (out / PART_FILE).read_bytes().count(b"\n") - 1
        assert 0 < resumed < 600
        assert len(list(out.glob("*.jpg"))) >= resumed
    assert process.returncode == 130
    assert errors.split("\n")[0] == f"{resumed} of 600 images are done; --resume continues with the rest"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and f"600 images ({resumed} of them done before)" in done.stdout
    found = json.loads((out / "detections.json").read_text())
    assert [image["id"] for image in found["images"]] == list(range(1, 601)) and len(found["annotations"]) == 1200
    assert len([path for path in os.listdir(out) if path.endswith(".jpg")]) == 600
    assert not (out / PART_FILE).exists()


def test_no_results_stay_in_memory(detector, tmp_path, monkeypatch):
    """When the last image is through, nothing of any is alive; what waits in between, the queues bound."""
    source = save(tmp_path / "in", *(f"{number}.png" for number in range(60)), height=8, width=8)
    alive = []

    def results() -> list[object]:
        kinds = (Item, dict)
        found = [value for value in gc.get_objects() if type(value) in kinds]
        return [value for value in found if type(value) is Item or isinstance(value.get("image_id"), int)]

    before = {id(value): value for value in results()}  # other tests'

    def look(*_: object) -> None:
        alive.extend(value for value in results() if id(value) not in before)

    monkeypatch.setattr("directdet.infer.predict.journal.write_coco", look)
    assert predict(detector, source, tmp_path / "out", PredictOptions(batch=2), progress=False).n_images == 60
    assert alive == []
    kept = Item(None, None, line={"image_id": 1, "detections": []})
    look()
    assert any(value is kept for value in alive) and any(value is kept.line for value in alive), "it would be seen"
