"""Videos that are damaged, uneven, odd in size or not square: what can be read is, and what is lost is told."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from videos import StandInCapture, frame, lines_of, number_of, read_video, write_video

from directdet.front import cli
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.video import Video
from directdet.infer.predict.video_io.writer import VideoWriter
from directdet.infer.predict.videos import predict_video
from directdet.infer.runtimes.load import load


@pytest.fixture
def detector(artefact):
    return load(artefact, device="cpu", threads=1)


def times_of(path: Path) -> list[float]:
    """When each frame is shown, in seconds."""
    capture, times = cv2.VideoCapture(str(path)), []
    while capture.grab():
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    return times


def damaged(path: Path) -> Path:
    """The video with a fifth of its bytes, in the middle, gone; the index at the end is whole."""
    content = bytearray(path.read_bytes())
    start, end = len(content) * 2 // 5, len(content) * 3 // 5
    content[start:end] = np.random.default_rng(1).bytes(end - start)
    target = path.with_name(f"damaged{path.suffix}")
    target.write_bytes(content)
    return target


def noisy(path: Path, count: int) -> Path:
    """A video whose bytes are spread evenly over its frames, so that a fifth of them is a fifth of the frames."""
    codec = "XVID" if path.suffix == ".avi" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 20.0, (128, 96))
    for number in range(count):
        image = frame(number)
        image[:, :64] = np.random.default_rng(number).integers(0, 256, (96, 64, 3), np.uint8)
        writer.write(image)
    writer.release()
    return path


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi"])
def test_a_damaged_middle(name, artefact, tmp_path, capsys):
    """The end is reached, the lost frames are counted, and the exit code says so."""
    source = damaged(noisy(tmp_path / name, 200))
    assert cli.main(["infer", str(artefact), str(source), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    output = capsys.readouterr()
    lines = lines_of(tmp_path / "out" / "damaged.jsonl")
    lost = 200 - len(lines)
    assert 10 < lost < 80 and f"{lost} broken" in output.out and f"{len(lines)} could" in output.err
    if source.suffix == ".mp4":  # its index says when each frame is shown, whatever was lost before
        assert lines[-1]["frame"] == 199 and lines[-1]["time"] == pytest.approx(199 / 20)
        drawn = times_of(tmp_path / "out" / "damaged.mp4")
        assert drawn == pytest.approx([line["time"] for line in lines], abs=0.01)
    assert len(read_video(tmp_path / "out" / "damaged.mp4")) == len(lines)


def test_a_sound_video_is_not_called_damaged(artefact, tmp_path, capsys):
    source = write_video(tmp_path / "clip.mp4", 30)
    assert cli.main(["infer", str(artefact), str(source), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    output = capsys.readouterr()
    assert output.err == "" and "broken" not in output.out and "clip.mp4 (without sound)" in output.out


class Timed(StandInCapture):
    """A capture whose frames have time stamps, in seconds, and pixels of some shape."""

    def __init__(self, times, count=0, aspect=(1, 1), **options) -> None:
        super().__init__([frame(number) for number in range(len(times))], count=count or len(times), **options)
        self._times, self._aspect, self._place = times, aspect, -1

    def grab(self) -> bool:
        self._place += 1
        return super().grab()

    def get(self, what: int) -> float:
        if what == cv2.CAP_PROP_POS_MSEC:
            return 1000 * self._times[min(self._place, len(self._times) - 1)]
        aspect = {cv2.CAP_PROP_SAR_NUM: self._aspect[0], cv2.CAP_PROP_SAR_DEN: self._aspect[1]}
        return aspect[what] if what in aspect else super().get(what)


def run(detector, capture, tmp_path, monkeypatch, said=None):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    warn = (lambda line: None) if said is None else said.append
    video = Video("clip.mp4", warn=warn, open_capture=lambda _: capture)
    summary = predict_video(detector, video, tmp_path / "out", progress=False)
    return summary, [line["time"] for line in lines_of(tmp_path / "out" / "clip.jsonl")]


@pytest.mark.parametrize(
    "times",
    [
        [5.0, 5.05, 5.1, 5.15],  # does not begin at 0
        [0.0, 0.05, 0.1, 2.1, 2.15],  # a pause
        [0.0, 0.033, 0.067, 0.1, 0.171, 0.2, 0.9],  # a telephone
    ],
    ids=["late", "pause", "jitter"],
)
def test_times_are_the_files_own(times, detector, tmp_path, monkeypatch):
    _, found = run(detector, Timed(times), tmp_path, monkeypatch)
    expected = [time - times[0] for time in times]
    assert found == pytest.approx(expected, abs=1e-4)
    assert times_of(tmp_path / "out" / "clip.mp4") == pytest.approx(expected, abs=2e-3)
    assert [number_of(image) for image in read_video(tmp_path / "out" / "clip.mp4")] == list(range(len(times)))


@pytest.mark.parametrize("times", [[0.0] * 5, [0.0, 0.05, 0.05, float("nan"), -1.0]], ids=["none", "nonsense"])
def test_times_that_are_missing_follow_the_rate(times, detector, tmp_path, monkeypatch):
    _, found = run(detector, Timed(times), tmp_path, monkeypatch)
    assert found == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_a_count_that_is_an_estimate(detector, tmp_path, monkeypatch):
    """Length times average rate: more than there are frames, but the length is right."""
    said: list[str] = []
    summary, _ = run(detector, Timed([0.0, 0.05, 0.1, 1.1, 2.1, 3.1], count=80), tmp_path, monkeypatch, said)
    assert said == [] and summary.n_broken == 0
    summary, _ = run(detector, Timed([0.0, 0.05, 0.1], count=80), tmp_path, monkeypatch, said)
    assert len(said) == 1 and "ends after 0.2 s of 4.0 s: it was truncated, or only its sound goes on" in said[0]
    assert summary.n_broken == 0  # b"x" is no format that counts its frames


def test_many_bad_frames_in_a_row(detector, tmp_path, monkeypatch):
    capture = StandInCapture([frame(0), *["end"] * 400, frame(401), frame(402)], count=403)
    said: list[str] = []
    summary, times = run(detector, capture, tmp_path, monkeypatch, said)
    assert (summary.n_frames, summary.n_broken) == (3, 400) and times[1:] == pytest.approx([401 / 20, 402 / 20])
    assert len(said) == 1 and "damaged: 400 frames could not be read, 3 could" in said[0]


def test_pixels_that_are_not_square_are_told(detector, tmp_path, monkeypatch, capsys):
    run(detector, Timed([0.0, 0.05], aspect=(16, 11)), tmp_path, monkeypatch)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "its pixels are 1.455 times as wide as high" in said


@pytest.mark.parametrize("size", [(95, 127), (96, 127), (95, 128)], ids=str)
def test_odd_sizes_lose_nothing(size, detector, tmp_path, capsys):
    video = Video("rtsp://host/x", open_capture=lambda _: StandInCapture([frame(0, *size), frame(1, *size)], count=2))
    predict_video(detector, video, tmp_path, PredictOptions(), progress=False)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"frames are {size[1]}x{size[0]}, and the annotated video 128x96" in said
    drawn = read_video(tmp_path / f"{video.name}.mp4")
    assert [image.shape for image in drawn] == [(96, 128, 3)] * 2


def test_an_earlier_result_stays_until_the_next_is_complete(detector, tmp_path, monkeypatch):
    source, out = write_video(tmp_path / "clip.avi", 4), tmp_path / "out"
    predict_video(detector, Video(source), out, progress=False)
    before = (out / "clip.jsonl").read_bytes()
    seen = []
    write = VideoWriter.write

    def looking(self, image, time=None):
        seen.append((out / "clip.jsonl").read_bytes())
        write(self, image, time)

    monkeypatch.setattr(VideoWriter, "write", looking)
    predict_video(detector, Video(source), out, progress=False)
    assert seen == [before] * 4 and not list(out.glob("*part*"))
