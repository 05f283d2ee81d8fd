"""Videos, cameras and streams: reading, writing, and what goes wrong with them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_artefact import write_artefact
from videos import StandInCapture, frame, lines_of, number_of, read_video, write_video

from directdet.common.errors import UserError
from directdet.front import cli
from directdet.infer.predict import show
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.sources import source_kind
from directdet.infer.predict.video import TRIES, Video
from directdet.infer.predict.videos import predict_video
from directdet.infer.runtimes.load import load


@pytest.fixture
def detector(artefact):
    return load(artefact, device="cpu", threads=1)


@pytest.mark.parametrize(
    "source,kind",
    [
        ("0", "camera"),
        ("/dev/video7", "camera"),
        ("rtsp://host/x", "stream"),
        ("http://host/clip.mp4", "stream"),
        ("clip.mp4", "video"),
        ("nowhere.MOV", "video"),
        ("folder", "images"),
        ("7", "images"),
        ("shots/*.png", "images"),
        ("a.png", "images"),
    ],
)
def test_source_kind(source, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    (tmp_path / "7").mkdir()
    assert source_kind(source) == kind


def test_a_file_frame_by_frame(detector, tmp_path):
    source = write_video(tmp_path / "clip.mp4", 37)
    video = Video(source)
    assert (video.name, video.live, video.rate, video.count) == ("clip", False, 20.0, 37)
    summary = predict_video(detector, video, tmp_path / "out", progress=False)
    assert (summary.n_frames, summary.n_detections, summary.n_dropped, summary.n_broken) == (37, 74, 0, 0)
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        "clip.jsonl",
        "clip.mp4",
        "clip.timing.json",
    ]
    drawn = read_video(tmp_path / "out" / "clip.mp4")
    assert [number_of(image) for image in drawn] == [number % 16 for number in range(37)]
    assert cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4")).get(cv2.CAP_PROP_FPS) == 20.0
    assert np.ptp(drawn[0].astype(int)) > 50, "nothing was drawn"
    lines = lines_of(tmp_path / "out" / "clip.jsonl")
    assert [line["frame"] for line in lines] == list(range(37))
    assert lines[36]["time"] == pytest.approx(36 / 20) and (lines[0]["width"], lines[0]["height"]) == (128, 96)
    best = lines[5]["detections"][0]
    assert (best["image_id"], best["category_id"], best["name"]) == (5, 1, "person")
    assert best["bbox"] == [10, 20, 50, 70] and best["segmentation"]["size"] == [96, 128]
    timing = json.loads((tmp_path / "out" / "clip.timing.json").read_text())
    assert timing["frames"] == 37 and set(timing["stages"]) == {"read", "prepare", "device", "decode", "draw", "write"}
    assert set(timing["end_to_end"]) == {"mean_ms", "p50_ms", "p95_ms", "p99_ms"} and timing["fps"] > 0


def test_coco_classes_score_and_no_pictures(detector, tmp_path):
    source = write_video(tmp_path / "clip.avi", 5)
    options = PredictOptions(results="coco", classes=["dog"], pictures=False)
    summary = predict_video(detector, Video(source), tmp_path / "out", options, progress=False, limit=3)
    assert summary.n_detections == 3
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["clip.json", "clip.timing.json"]
    content = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert [image["id"] for image in content["images"]] == [0, 1, 2] and len(content["categories"]) == 3
    assert {entry["category_id"] for entry in content["annotations"]} == {18}
    strict = PredictOptions(score=0.95)
    assert predict_video(detector, Video(source), tmp_path / "out", strict, progress=False).n_detections == 0
    with pytest.raises(UserError, match="no class 'dgo'; did you mean 'dog'"):
        predict_video(detector, Video(source), tmp_path / "out", PredictOptions(classes=["dgo"]))


@pytest.mark.parametrize("batch", [1, 4])
def test_batches_change_nothing(batch, tmp_path):
    detector = load(write_artefact(tmp_path / "model", batch="batch"), device="cpu", threads=1)
    source = write_video(tmp_path / "clip.mp4", 10)
    summary = predict_video(detector, Video(source), tmp_path / "out", PredictOptions(batch=batch), progress=False)
    assert summary.n_frames == 10 and summary.pipeline.items == -(-10 // batch)
    assert [number_of(image) for image in read_video(tmp_path / "out" / "clip.mp4")] == list(range(10))


def test_the_source_is_not_overwritten(detector, tmp_path):
    source = write_video(tmp_path / "clip.mp4", 3)
    before = source.read_bytes()
    with pytest.raises(UserError, match="overwrite the source video"):
        predict_video(detector, Video(source), tmp_path, progress=False)
    assert source.read_bytes() == before


def stand_in(*captures: StandInCapture, source: str = "clip.mp4", **options) -> Video:
    """A `Video` whose captures come from the list."""
    supply = iter(captures)
    return Video(source, open_capture=lambda _: next(supply), **options)


def test_broken_frames_are_skipped_and_counted(detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    script = [frame(0), None, frame(2), "end", frame(4), None, frame(6)]
    video = stand_in(StandInCapture(script, count=7))
    summary = predict_video(detector, video, tmp_path / "out", progress=False)
    assert (summary.n_frames, summary.n_broken) == (4, 3)
    assert [line["frame"] for line in lines_of(tmp_path / "out" / "clip.jsonl")] == [0, 2, 4, 6]
    assert [number_of(image) for image in read_video(tmp_path / "out" / "clip.mp4")] == [0, 2, 4, 6]


def test_another_size_on_the_way(detector, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    video = stand_in(StandInCapture([frame(0), frame(1), frame(2, 60, 60), frame(3, 60, 60), frame(4)], count=5))
    summary = predict_video(detector, video, tmp_path / "out", progress=False)
    assert summary.n_frames == 5
    drawn = read_video(tmp_path / "out" / "clip.mp4")
    assert {image.shape for image in drawn} == {(96, 128, 3)} and len(drawn) == 5
    assert drawn[2][:, :8].max() < 20, "a square picture has black at both sides"
    assert [(line["width"], line["height"]) for line in lines_of(tmp_path / "out" / "clip.jsonl")][1:3] == [
        (128, 96),
        (60, 60),
    ]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "from frame 2 on, frames are 60x60" in lines[0] and "frame 4" in lines[1]


@pytest.mark.parametrize("told,rate", [(0, 25), (float("nan"), 25), (90_000, 25), (600, 25), (12.5, 12.5)])
def test_rates_that_streams_tell(told, rate):
    video = stand_in(StandInCapture([frame(0)], rate=told, count=-1), source="rtsp://host/x")
    assert (video.rate, video.count, video.live, video.name) == (rate, 0, True, "stream-393bb1d9")
    assert not stand_in(StandInCapture([frame(0)], count=10), source="http://host/clip.mp4").live
    assert stand_in(StandInCapture([frame(0)], count=1 << 30), source="http://host/clip.avi").live


def test_a_lost_stream_comes_back():
    waits, said = [], []
    captures = [
        StandInCapture([frame(0), frame(1), "end"]),
        StandInCapture([], opens=False),
        StandInCapture(["end"]),
        StandInCapture([frame(2), frame(3)]),
    ]
    never = [StandInCapture([], opens=False) for _ in range(TRIES)]
    video = stand_in(*captures, *never, source="rtsp://host/x", warn=said.append, wait=waits.append)
    got = []
    with pytest.raises(UserError, match=rf"rtsp://host/x: connection lost, and not restored after {TRIES} attempts"):
        for picture in video.frames():
            got.append((picture.number, number_of(picture.image)))
    assert got == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert video.live and video.reconnects == 1
    assert waits == [0.5, 1, 2] + [0.5 * 2**attempt for attempt in range(TRIES)]
    assert said[0] == f"rtsp://host/x: connection lost; reopening in 0.5 s (attempt 1 of {TRIES})" and said[3].endswith(
        "reconnected"
    )
    assert all(capture.released for capture in captures)


def test_a_stream_lost_for_good_leaves_whole_files(detector, tmp_path):
    captures = [StandInCapture([frame(0)]), *(StandInCapture([], opens=False) for _ in range(TRIES))]
    video = stand_in(*captures, source="rtsp://host/x", wait=lambda seconds: None)
    with pytest.raises(UserError, match="not restored after"):
        predict_video(detector, video, tmp_path / "out", progress=False)
    assert len(read_video(tmp_path / "out" / f"{video.name}.mp4")) == 1
    assert len(lines_of(tmp_path / "out" / f"{video.name}.jsonl")) == 1
    assert not list((tmp_path / "out").glob("*part*"))


def test_live_video_keeps_the_clocks_time(detector, tmp_path, monkeypatch):
    """A source of 10 frames a second of which few are taken: each stands in the video until the next one's time."""
    times = [0.0, 0.31, 0.52, 5.0, 5.1]
    video = stand_in(StandInCapture([frame(0)], rate=10), source="0")
    monkeypatch.setattr(
        video,
        "frames",
        lambda: iter([type("F", (), {"number": n, "time": t, "image": frame(n)}) for n, t in enumerate(times)]),
    )
    monkeypatch.setattr(video, "live", False)  # so that none is dropped here
    from directdet.infer.predict.video_io.output import VideoOutput

    written = []
    monkeypatch.setattr(VideoOutput, "_repeats", _recorded(VideoOutput._repeats, written))
    predict_video(detector, video, tmp_path / "out", progress=False)
    assert written == [1, 3, 2, 10, 1]
    assert len(read_video(tmp_path / "out" / "camera-0.mp4")) == 17


def _recorded(repeats, written):
    def record(self, picture, frames):
        self._video.live = True
        written.append(repeats(self, picture, frames))
        return written[-1]

    return record


def test_what_cannot_be_opened_has_one_line(capsys, artefact, tmp_path):
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "empty.avi").write_bytes(b"")
    whole = write_video(tmp_path / "whole.mp4", 30).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its index was at the end
    for source, text in (
        ("97", "camera 97: no such camera"),
        (tmp_path / "nowhere.mp4", "not found"),
        (tmp_path / "noise.mp4", "not a readable video"),
        (tmp_path / "empty.avi", "not a readable video"),
        (tmp_path / "cut.mp4", "truncated before its index"),
        ("rtsp://127.0.0.1:9/x", "the stream cannot be opened"),
    ):
        code = cli.main(["infer", str(artefact), str(source), "--out", str(tmp_path / "out")])
        output = capsys.readouterr()
        lines = output.err.splitlines()
        assert code == 1 and not output.out and len(lines) == 1 and text in lines[0], lines
        assert str(source) in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_truncated_video_gives_its_frames_and_one_line(capsys, artefact, tmp_path):
    whole = write_video(tmp_path / "whole.avi", 120).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 6 // 10])
    code = cli.main(["infer", str(artefact), str(tmp_path / "cut.avi"), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().err.splitlines()
    count = len(read_video(tmp_path / "cut.avi"))
    assert code == 1 and 0 < count < 120
    assert len(lines) == 1 and f"it claims 120 frames, {count} could be read" in lines[0]
    assert len(read_video(tmp_path / "out" / "cut.mp4")) == count == len(lines_of(tmp_path / "out" / "cut.jsonl"))


def test_options_that_do_not_fit(capsys, artefact, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    video = str(write_video(tmp_path / "clip.mp4", 2))
    cv2.imwrite(str(tmp_path / "a.png"), frame(0))
    picture, out = str(tmp_path / "a.png"), str(tmp_path / "out")
    for arguments, code, text in (
        ((video,), 2, "give --out DIR"),
        ((video, "--out", out, "--resume"), 2, "--resume is for images"),
        ((picture, "--out", out, "--frames", "3"), 2, "--frames is for videos"),
        ((picture, "--show"), 2, "--show is for videos"),
        ((video, "--out", out, "--batch", "2"), 1, "takes 1 at most"),
        ((video, "--out", out, "--classes", "persn"), 2, "did you mean 'person'"),
    ):
        assert cli.main(["infer", str(artefact), *arguments]) == code, arguments
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and text in lines[0], lines
    if sys.platform.startswith("linux"):
        assert cli.main(["infer", str(artefact), video, "--show"]) == 1
        assert "there is no display here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_window_until_q_is_pressed(detector, tmp_path, monkeypatch):
    """With a stand-in for the display: frames come in order, in the main thread, and q ends the run."""
    shown = []

    def imshow(title, image):
        assert threading.current_thread() is threading.main_thread() and title == "clip"
        shown.append(number_of(image))

    monkeypatch.setattr(show, "require_display", lambda: None)
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", imshow)
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q") if len(shown) == 5 else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: shown.append("closed"))
    source = write_video(tmp_path / "clip.mp4", 30)
    summary = predict_video(detector, Video(source), None, show=True, progress=False)
    assert shown == [0, 1, 2, 3, 4, "closed"] and summary.n_frames == 5 and summary.files == []
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["clip.mp4"]


def test_the_timing_script_runs(tmp_path):
    """With the pipeline of "another checkout", which is this one, and two copies of the video in common batches."""
    root = Path(__file__).parents[2]
    artefact = write_artefact(tmp_path / "model", batch="batch")
    source = write_video(tmp_path / "clip.mp4", 12)
    command = [sys.executable, str(root / "scripts" / "video.py"), str(artefact), str(source), "--threads", "1"]
    command += ["--rounds", "1", "--results", str(tmp_path), "--before", str(root), "--streams", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "video_clip_cpu.json").read_text())["rows"]
    names = {"device_alone", "one_after_another", "pipelined", "pipelined_opencv", "before", "device_batch", "together"}
    assert set(kept) == names and kept["device_alone"]["share"] == kept["device_batch"]["share"] == 1
    assert all(row["fps"] > 0 and row["cpu_ms"] > 0 and len(row["shares"]) == 1 for row in kept.values())
    assert done.stdout.splitlines()[-1] == str(tmp_path / "video_clip_cpu.json")
