"""Several videos, cameras and streams through one network: common batches, own queues, own results."""

from __future__ import annotations

import json
import threading
import time

import pytest
from tiny_artefact import write_artefact
from videos import StandInCapture, frame, lines_of, number_of, read_video, write_video

from directdet.common.errors import UserError
from directdet.front import cli
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.video import TRIES, Video
from directdet.infer.predict.video_io.together import Together
from directdet.infer.predict.video_io.writer import VideoWriter
from directdet.infer.predict.videos import predict_video, predict_videos
from directdet.infer.predictor import Predictor
from directdet.infer.runtimes.load import load


@pytest.fixture
def detector(tmp_path):
    """One that takes any number of pictures."""
    return load(write_artefact(tmp_path / "model", batch="batch"), device="cpu", threads=1)


@pytest.fixture
def calls(monkeypatch):
    """How many pictures each call of the network had."""
    counts: list[int] = []
    run = Predictor.run

    def counting(self, batch):
        counts.append(len(batch))
        time.sleep(0.01)  # the readers are faster
        return run(self, batch)

    monkeypatch.setattr(Predictor, "run", counting)
    return counts


def test_results_are_those_of_each_video_alone(detector, tmp_path, calls):
    lengths = {"a": 12, "b": 5, "c": 9}
    sources = [write_video(tmp_path / f"{name}.mp4", count) for name, count in lengths.items()]
    for source in sources:
        predict_video(detector, Video(source), tmp_path / "alone", progress=False)
    calls.clear()
    summaries = predict_videos(detector, [Video(source) for source in sources], tmp_path / "out", progress=False)
    assert [summary.n_frames for summary in summaries] == [12, 5, 9] and {each.batch for each in summaries} == {3}
    for source, count in zip(sources, lengths.values(), strict=True):
        stem = source.stem
        assert lines_of(tmp_path / "out" / f"{stem}.jsonl") == lines_of(tmp_path / "alone" / f"{stem}.jsonl")
        drawn = read_video(tmp_path / "out" / f"{stem}.mp4")
        assert [number_of(image) for image in drawn] == [number % 16 for number in range(count)]
        timing = json.loads((tmp_path / "out" / f"{stem}.timing.json").read_text())
        assert (timing["frames"], timing["streams"], timing["batch"]) == (count, 3, 3)
    assert sum(calls) == 26 and max(calls) == 3 and len(calls) < 15


@pytest.mark.parametrize("batch,most", [(None, 4), (2, 2)])
def test_one_call_of_the_network_per_batch(batch, most, detector, tmp_path, calls):
    sources = [write_video(tmp_path / f"{number}.avi", 10) for number in range(4)]
    options = PredictOptions(pictures=False, batch=batch)
    predict_videos(detector, [Video(source) for source in sources], tmp_path / "out", options, progress=False)
    assert sum(calls) == 40 and max(calls) == most and calls.count(most) >= 0.7 * 40 / most


def test_a_network_of_one_picture_takes_turns(artefact, tmp_path, calls):
    sources = [write_video(tmp_path / f"{number}.avi", 10) for number in range(2)]
    detector = load(artefact, device="cpu", threads=1)
    summaries = predict_videos(detector, [Video(source) for source in sources], None, progress=False)
    assert [summary.n_frames for summary in summaries] == [10, 10] and calls == [1] * 20


def test_of_other_sizes_and_limited(detector, tmp_path, calls):
    sources = [write_video(tmp_path / "a.avi", 10), write_video(tmp_path / "b.avi", 10, size=(64, 160))]
    videos = [Video(source) for source in sources]
    summaries = predict_videos(detector, videos, tmp_path / "out", limit=4, progress=False)
    assert [summary.n_frames for summary in summaries] == [4, 4]
    assert [image.shape for image in read_video(tmp_path / "out" / "b.mp4")] == [(64, 160, 3)] * 4


class Camera(StandInCapture):
    """A camera that gives a frame a millisecond until it is lost."""

    def __init__(self, count: int) -> None:
        super().__init__([])
        self._left, self._number = count, -1

    def grab(self) -> bool:
        time.sleep(0.001)
        self._number += 1
        self._now = frame(self._number)
        return self._number < self._left


def camera(number: int, count: int) -> Video:
    captures = iter([Camera(count), *(StandInCapture([], opens=False) for _ in range(TRIES))])
    return Video(str(number), open_capture=lambda _: next(captures), wait=lambda seconds: None)


def test_live_sources_drop_frames_and_one_that_is_lost_ends_alone(detector, tmp_path, calls):
    """Each loses its own frames; the network is slower than the cameras."""
    videos = [camera(0, 10), camera(1, 100)]
    summaries = predict_videos(detector, videos, tmp_path / "out", progress=False)
    for summary, count in zip(summaries, (10, 100), strict=True):
        assert summary.n_frames + summary.n_dropped == count and summary.n_dropped > 0
        assert isinstance(summary.failure, UserError) and "connection lost" in str(summary.failure)
    assert summaries[1].n_frames > summaries[0].n_frames
    numbers = [line["frame"] for line in lines_of(tmp_path / "out" / "camera-1.jsonl")]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 99 and len(numbers) == summaries[1].n_frames


def test_a_limit_stops_live_sources(detector, tmp_path, calls):
    before = threading.active_count()
    videos = [camera(0, 100_000), camera(1, 100_000)]
    summaries = predict_videos(detector, videos, tmp_path / "out", limit=5, progress=False)
    assert [summary.n_frames for summary in summaries] == [5, 5]
    assert [summary.failure for summary in summaries] == [None, None] and threading.active_count() == before


def test_a_file_does_not_wait_for_another(detector):
    """Nor for a camera that hangs."""
    go_on = threading.Event()

    class Hanging(StandInCapture):
        def grab(self) -> bool:
            go_on.wait()
            return False

    hanging = iter([Hanging([]), *(StandInCapture([], opens=False) for _ in range(TRIES))])
    videos = [
        Video("0", open_capture=lambda _: next(hanging), wait=lambda seconds: None),
        Video("rtsp://host/x", open_capture=lambda _: StandInCapture([frame(n) for n in range(6)], count=6)),
    ]
    together = Together(videos, detector, 2, None)
    got = []
    for batch in together.batches():
        got += [(item.stream, item.source.number) for item in batch.items]
        if len(got) == 6:
            go_on.set()
    assert got == [(1, number) for number in range(6)] and set(together.failures) == {0}


def test_on_the_command_line(tmp_path, capsys):
    artefact = write_artefact(tmp_path / "model", batch="batch")
    sources = [str(write_video(tmp_path / f"{name}.mp4", 8)) for name in "ab"]
    out = tmp_path / "out"
    assert cli.main(["infer", str(artefact), *sources, "--out", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"{sources[0]}: 8 frames, 16 detections" in said and "2 videos, 16 frames, " in said
    assert sorted(path.name for path in out.glob("[!.]*")) == sorted(
        f"{name}.{ending}" for name in "ab" for ending in ("jsonl", "mp4", "timing.json")
    )
    whole = write_video(tmp_path / "whole.avi", 120).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 6 // 10])
    arguments = ["infer", str(artefact), sources[0], str(tmp_path / "cut.avi"), "--out", str(out), "--device", "cpu"]
    assert cli.main(arguments) == 1
    assert "it claims 120 frames" in capsys.readouterr().err


def test_sources_that_do_not_go_together(artefact, tmp_path, capsys):
    one = write_video(tmp_path / "clip.mp4", 2)
    other = write_video(tmp_path / "more" / "clip.avi", 2)
    (tmp_path / "photos").mkdir()
    for sources, code, text in (
        ((one, tmp_path / "photos"), 2, "2 sources: only videos, cameras and streams are taken together"),
        ((one, other), 1, "its results would be called clip, like those of"),
        ((one, tmp_path / "nowhere.mp4"), 1, "nowhere.mp4: not found"),
    ):
        assert cli.main(["infer", str(artefact), *map(str, sources), "--out", str(tmp_path / "out")]) == code
        lines = capsys.readouterr().err.splitlines()
        assert text in lines[-1], lines
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_a_video_that_cannot_be_finished_leaves_the_others_whole(detector, tmp_path, monkeypatch):
    sources = [write_video(tmp_path / f"{name}.mp4", 4) for name in "abc"]
    finish = VideoWriter.finish

    def failing(self):
        if self.path.stem == "b":
            raise UserError(f"{self.part}: 3 of 4 frames can be read back")
        return finish(self)

    monkeypatch.setattr(VideoWriter, "finish", failing)
    out = tmp_path / "out"
    summaries = predict_videos(detector, [Video(source) for source in sources], out, progress=False)
    assert [str(one.failure) for one in summaries] == [
        "None",
        f"{out / 'b.part.mp4'}: 3 of 4 frames can be read back",
        "None",
    ]
    assert [len(one.files) for one in summaries] == [3, 0, 3]
    assert all(len(read_video(out / f"{name}.mp4")) == len(lines_of(out / f"{name}.jsonl")) == 4 for name in "ac")
    assert (out / "b.part.mp4").is_file() and len(lines_of(out / "b.part.jsonl")) == 4
    with pytest.raises(UserError, match="3 of 4 frames"):
        predict_video(detector, Video(sources[1]), tmp_path / "alone", progress=False)
