"""No file is replaced that an earlier run did not make from the same source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_infer_folder import Stop, content, save, stop_after
from videos import StandInCapture, frame, lines_of, write_video

from directdet.common.errors import UserError
from directdet.front import cli
from directdet.infer.predict.images import predict
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.own_files import RECORD, OwnFiles
from directdet.infer.predict.same import Origin
from directdet.infer.predict.video import Video
from directdet.infer.predict.videos import predict_video
from directdet.infer.runtimes.load import load


@pytest.fixture
def detector(artefact):
    return load(artefact, device="cpu", threads=1)


def test_another_video_of_the_user(artefact, tmp_path, capsys, monkeypatch):
    """From the command line, into the folder where both lie."""
    write_video(tmp_path / "clip.avi", 3)
    own = write_video(tmp_path / "clip.mp4", 5).read_bytes()
    monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    assert cli.main(["infer", str(artefact), "clip.avi", "--out", ".", "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "clip.mp4: would be overwritten, but it was not written by directdet" in said
    assert (tmp_path / "clip.mp4").read_bytes() == own and content(tmp_path) == before
    assert cli.main(["infer", str(artefact), "clip.avi", "--out", ".", "--device", "cpu", "--no-pictures"]) == 0
    assert (tmp_path / "clip.mp4").read_bytes() == own


@pytest.mark.parametrize("name", ["clip.mp4", "clip.part.jsonl", "clip.json", "clip.timing.json", "clip.part.mp4"])
def test_each_file_of_a_video(name, detector, tmp_path):
    source, out = write_video(tmp_path / "clip.avi", 3), tmp_path / "out"
    out.mkdir()
    (out / name).write_text("the user's")
    with pytest.raises(UserError, match=f"{name}: would be overwritten, but it was not written by directdet"):
        predict_video(detector, Video(source), out, PredictOptions(results="coco"), progress=False)
    assert content(out) == {name: b"the user's"}
    (out / name).unlink()
    (out / name).symlink_to(tmp_path / "nowhere")  # what is written through it would land elsewhere
    with pytest.raises(UserError, match="would be overwritten"):
        predict_video(detector, Video(source), out, PredictOptions(results="coco"), progress=False)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("results", ["coco", "jsonl"])
def test_the_same_video_again(results, detector, tmp_path):
    source, out = write_video(tmp_path / "clip.avi", 3), tmp_path / "out"
    options = PredictOptions(results=results)
    for count in (3, 2, 3):
        assert predict_video(detector, Video(source), out, options, limit=count, progress=False).n_frames == count
    write_video(out / "clip.mp4", 9)
    with pytest.raises(UserError, match=r"clip\.mp4: would be overwritten, but it was changed since directdet wrote"):
        predict_video(detector, Video(source), out, options, progress=False)


def test_a_video_run_that_was_killed_can_be_repeated(detector, tmp_path, monkeypatch):
    source, out = write_video(tmp_path / "clip.avi", 3), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(
            "directdet.infer.predict.video_io.writer.VideoWriter.finish", lambda _: (_ for _ in ()).throw(Stop())
        )
        predict_video(detector, Video(source), out, progress=False)
    assert sorted(content(out)) == ["clip.part.jsonl", "clip.part.mp4"]
    predict_video(detector, Video(source), out, progress=False)
    assert sorted(content(out)) == ["clip.jsonl", "clip.mp4", "clip.timing.json"]
    (out / "clip.part.mp4").write_text("the user's")  # ours is gone, so this one is not ours
    with pytest.raises(UserError, match=r"clip\.part\.mp4: would be overwritten, but it was changed"):
        predict_video(detector, Video(source), out, progress=False)


def test_two_videos_of_one_name(detector, tmp_path):
    first, out = write_video(tmp_path / "a" / "clip.avi", 3), tmp_path / "out"
    second = write_video(tmp_path / "b" / "clip.avi", 4)
    predict_video(detector, Video(first), out, progress=False)
    before = content(out)
    with pytest.raises(UserError, match=r"would be overwritten, but it is the result of .*a/clip\.avi; choose"):
        predict_video(detector, Video(second), out, progress=False)
    assert content(out) == before


def test_two_streams_into_one_folder(detector, tmp_path):
    for number, address in enumerate(("rtsp://host/one", "rtsp://host/two", "rtsp://host/one")):
        capture = StandInCapture([frame(0)] * (3 + number), count=3 + number)
        video = Video(address, open_capture=lambda _, capture=capture: capture)
        predict_video(detector, video, tmp_path, PredictOptions(pictures=False), progress=False)
    files = sorted(tmp_path.glob("stream-*.jsonl"))
    assert sorted(len(lines_of(path)) for path in files) == [4, 5]
    assert "host" not in (tmp_path / RECORD).read_text()  # an address may hold a password


def test_pictures_of_the_user(detector, tmp_path):
    source, other = save(tmp_path / "a", "1.png", "2.png"), save(tmp_path / "b", "0.png", "2.png")
    before = content(other)
    with pytest.raises(UserError, match=r"2\.png: would be overwritten, but it was not written by directdet"):
        predict(detector, source, other, progress=False)
    assert content(other) == before
    predict(detector, source, other, PredictOptions(pictures=False), progress=False)
    assert {name: data for name, data in content(other).items() if name != "detections.json"} == before
    with pytest.raises(UserError, match="would be overwritten"):  # still: that run wrote no pictures
        predict(detector, source, other, progress=False)


def test_the_same_pictures_again(detector, tmp_path):
    source, out = save(tmp_path / "a", "1.png", "2.png"), tmp_path / "out"
    predict(detector, source, out, progress=False)
    before = content(out)
    predict(detector, source, out, PredictOptions(score=0.95), progress=False)
    assert content(out) != before
    predict(detector, source, out, progress=False)
    assert content(out) == before
    shutil.copy(source / "1.png", out / "2.png")
    with pytest.raises(UserError, match=r"2\.png: would be overwritten, but it was changed"):
        predict(detector, source, out, progress=False)


def test_two_folders_of_pictures(detector, tmp_path):
    first, second, out = save(tmp_path / "a", "1.png"), save(tmp_path / "b", "2.png"), tmp_path / "out"
    predict(detector, first, out, progress=False)
    before = content(out)
    with pytest.raises(
        UserError, match=r"detections\.json: would be overwritten, but it is the result of .*/a; choose"
    ):
        predict(detector, second, out, progress=False)
    assert content(out) == before


def test_interrupted_pictures_are_resumed(detector, tmp_path):
    """Also those whose picture was written, but not yet their line."""
    source, out = save(tmp_path / "a", *(f"{number}.png" for number in range(5))), tmp_path / "out"
    with pytest.raises(UserError):
        predict(stop_after(detector, 3), source, out, progress=False)
    del detector.decode
    part = out / "detections.part.jsonl"
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:-1]))
    assert predict(detector, source, out, resume=True, progress=False).n_images == 5


X = Origin("x", None)


def test_a_record_cut_off_or_damaged(tmp_path):
    own = OwnFiles(tmp_path)
    own.written("a.png", X, b"content")
    (tmp_path / "a.png").write_bytes(b"content")
    own.claim([("a.png", lambda: X)])
    with (tmp_path / RECORD).open("ab") as stream:
        stream.write(b'[1]\n{"file": "a.png"}\n\xff\n{"file": "a.p')
    own.claim([("a.png", lambda: X)])
    (tmp_path / RECORD).unlink()
    with pytest.raises(UserError, match="not written by directdet"):
        own.claim([("a.png", lambda: X)])


def test_large_files_are_told_apart_by_both_ends_and_size(tmp_path):
    own, path = OwnFiles(tmp_path), Path(tmp_path / "a.mp4")
    whole = bytes(3 << 20)
    for changed in (b"x" + whole[1:], whole[:-1] + b"x", whole + b"x"):
        path.write_bytes(whole)
        own.written("a.mp4", X)
        own.claim([("a.mp4", lambda: X)])
        path.write_bytes(changed)
        with pytest.raises(UserError, match="was changed"):
            own.claim([("a.mp4", lambda: X)])
    assert all(json.loads(line)["source"] == "x" for line in (tmp_path / RECORD).read_text().splitlines())
