"""Results that others can score: a dataset's own ids, and the same AP; and what counts as the same as before."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_deploy_cases import write_annotations
from test_infer_folder import content, save, stop_after
from tiny_artefact import write_artefact, write_dataset
from videos import lines_of, write_video

from directdet.common.errors import UserError
from directdet.data.dataset import load_dataset
from directdet.data.formats.write.convert import convert
from directdet.front import cli
from directdet.infer.accuracy.evaluate import evaluate
from directdet.infer.predict.images import predict
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.video import Video
from directdet.infer.predict.videos import predict_video
from directdet.infer.runtimes.load import load


@pytest.fixture
def detector(artefact):
    return load(artefact, device="cpu", threads=1)


@pytest.fixture
def data(tmp_path) -> Path:
    """COCO's layout: image ids 993, 986, 979, category ids 51, 60, 68; the model's are 1, 10, 18."""
    write_annotations(tmp_path / "data", write_dataset(tmp_path))
    return tmp_path / "data"


def ap(truth: Path, results: Path, kind: str = "bbox") -> float:
    """AP by pycocotools alone, from the files."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(str(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.parametrize("how", ["folder", "split"])
def test_the_ap_of_eval(how, artefact, data, tmp_path, capsys):
    source = [data / "val2017"] if how == "folder" else [data, "--split", "val"]
    command = ["infer", artefact, *source, "--out", tmp_path / "out", "--score", 0, "--device", "cpu"]
    assert cli.main(list(map(str, command))) == 0
    assert "the results have the image and category ids of" in capsys.readouterr().err
    results, truth = tmp_path / "out" / "detections.json", data / "annotations" / "instances_val2017.json"
    found = json.loads(results.read_text())
    assert isinstance(found, list) and {one["image_id"] for one in found} == {993, 986, 979}
    assert {one["category_id"] for one in found} == {51, 68}
    expected = evaluate(load(artefact, device="cpu"), load_dataset(data, "val"), progress=False)
    assert ap(truth, results) == expected.bbox["AP"] > 0.5
    assert expected.segm is not None and ap(truth, results, "segm") == expected.segm["AP"]


def test_pictures_in_tars_are_those_of_files_also_when_it_goes_on(detector, data, tmp_path):
    convert(data, "shards", tmp_path / "shards")
    predict(detector, data, tmp_path / "files", split="val", progress=False)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="decode: failed at item"):
        predict(stop_after(detector, 2), tmp_path / "shards", out, split="val", progress=False)
    del detector.decode
    summary = predict(detector, tmp_path / "shards", out, split="val", resume=True, progress=False)
    assert summary.n_resumed > 0 and summary.n_images == 3
    for again in (False, True):  # over its own results
        if again:
            predict(detector, tmp_path / "shards", out, split="val", progress=False)
        found = {Path(name).name: text for name, text in content(out).items()}
        assert found == {Path(name).name: text for name, text in content(tmp_path / "files").items()}


def test_eval_writes_the_same(artefact, data, tmp_path):
    command = ["eval", artefact, "--data", data, "--split", "val", "--device", "cpu", "--results", tmp_path / "r.json"]
    assert cli.main(list(map(str, command))) == 0
    detector = load(artefact, device="cpu")
    summary = predict(detector, data, tmp_path / "out", PredictOptions(pictures=False), split="val", progress=False)

    def in_order(path: Path) -> list[dict]:
        return sorted(json.loads(path.read_text()), key=lambda one: (one["image_id"], -one["score"]))

    assert in_order(tmp_path / "r.json") == in_order(summary.results_file)


def test_low_scores_that_ap_needs(artefact, data, tmp_path, capsys):
    command = ["infer", artefact, data / "val2017", "--out", tmp_path / "out", "--device", "cpu"]
    assert cli.main(list(map(str, command))) == 0
    assert "scores below 0.3 are left out: for AP, detect with --score 0" in capsys.readouterr().err


def test_pictures_that_are_not_all_the_datasets(detector, data, tmp_path, capsys):
    save(data / "val2017", "extra.png")
    predict(detector, data / "val2017", tmp_path / "out", progress=False)
    assert "1 of 4 pictures are not in" in capsys.readouterr().err
    assert isinstance(json.loads((tmp_path / "out" / "detections.json").read_text()), dict)


def test_a_model_of_other_classes(data, tmp_path, capsys):
    other = load(write_artefact(tmp_path / "other", classes=("a", "b", "c")), device="cpu")
    predict(other, data / "val2017", tmp_path / "out", progress=False)
    assert "which has other classes: the results do not have its ids" in capsys.readouterr().err
    with pytest.raises(UserError, match="its 3 classes are not the 3"):
        predict(other, data, tmp_path / "out2", split="val", progress=False)


def interrupted(detector, source: Path, out: Path, options: PredictOptions | None = None) -> None:
    """A run that ended after three images."""
    with pytest.raises(UserError):
        predict(stop_after(detector, 3), source, out, options, progress=False)
    del detector.decode


def test_resumed_from_another_place(detector, tmp_path):
    """The folder was moved, and the model too: nothing has changed."""
    source = save(tmp_path / "a", *(f"{number}.png" for number in range(5)))
    interrupted(detector, source, tmp_path / "out")
    source = source.rename(tmp_path / "b")
    moved = shutil.copytree(detector.source, tmp_path / "moved model")
    summary = predict(load(moved, device="cpu"), source, tmp_path / "out", resume=True, progress=False)
    assert (summary.n_resumed, summary.n_images) == (3, 5)
    images = json.loads(summary.results_file.read_text())["images"]
    assert {Path(image["file_name"]).parent for image in images} == {source}


def test_not_resumed_where_a_picture_has_changed(detector, tmp_path):
    source, plain = save(tmp_path / "a", *(f"{number}.png" for number in range(5))), PredictOptions(pictures=False)
    interrupted(detector, source, tmp_path / "out", plain)
    shutil.copy(source / "4.png", source / "1.png")  # the same name, another picture
    with pytest.raises(UserError, match=r"have changed since .*1\.png is not the same any more"):
        predict(detector, source, tmp_path / "out", plain, resume=True, progress=False)


def test_not_resumed_with_another_model_at_the_same_path(artefact, detector, tmp_path):
    source = save(tmp_path / "a", *(f"{number}.png" for number in range(5)))
    interrupted(detector, source, tmp_path / "out")
    write_artefact(artefact, factor=0.1)
    with pytest.raises(UserError, match="was started with another model, or another version of it"):
        predict(load(artefact, device="cpu"), source, tmp_path / "out", resume=True, progress=False)


def test_lines_hold_nothing_of_the_journal(detector, tmp_path):
    source = save(tmp_path / "a", "1.png")
    summary = predict(detector, source, tmp_path / "out", PredictOptions(results="jsonl"), progress=False)
    assert set(lines_of(summary.results_file)[0]) == {"image_id", "file_name", "width", "height", "detections"}


def test_results_of_a_file_that_has_changed_are_kept(detector, tmp_path):
    """Two recordings under one name, one after the other: the first one's results are not replaced."""
    source, out = write_video(tmp_path / "clip.avi", 3), tmp_path / "out"
    predict_video(detector, Video(source), out, progress=False)
    moved = shutil.copy(source, tmp_path / "elsewhere.avi")
    before = content(out)
    write_video(source, 4)
    with pytest.raises(UserError, match=r"is the result of .*clip\.avi as it was before"):
        predict_video(detector, Video(source), out, progress=False)
    assert content(out) == before
    shutil.move(moved, source)  # the first again
    assert predict_video(detector, Video(source), out, progress=False).n_frames == 3


def test_a_folder_of_the_same_pictures_elsewhere(detector, tmp_path):
    source, out = save(tmp_path / "a", "1.png", "2.png"), tmp_path / "out"
    predict(detector, source, out, progress=False)
    before = content(out)
    again = source.rename(tmp_path / "b")
    predict(detector, again, out, progress=False)
    assert {name for name, data in content(out).items() if data != before[name]} == {"detections.json"}  # file_name


def test_what_is_left_out_is_told(artefact, tmp_path, capsys):
    source = save(tmp_path / "in", "a.png", "sub/b.png", ".hidden.png")
    for name in ("c.heic", "d.txt", "e.txt"):
        (source / name).write_text("x")
    command = ["infer", str(artefact), str(source), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(command) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "left out: 1 subfolder" in said and "/**/*' takes them in" in said
    assert "3 files with other endings (2 .txt, 1 .heic), 1 hidden picture" in said
    command[2] = f"{source}/**/*"
    assert cli.main([*command[:4], str(tmp_path / "out2"), *command[5:]]) == 0
    assert len(json.loads((tmp_path / "out2" / "detections.json").read_text())["images"]) == 2
