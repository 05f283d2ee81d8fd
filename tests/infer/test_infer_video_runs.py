"""Videos in processes that are stopped and killed, the real ones, and a stream over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from test_infer_video_io import sound_of, with_sound
from videos import frame, lines_of, number_of, read_video, write_video

from directdet.infer.predict.video import Video
from directdet.infer.predict.videos import predict_video
from directdet.infer.runtimes.load import load


@pytest.fixture
def detector(artefact):
    return load(artefact, device="cpu", threads=1)


# Started with a model that takes its time, so that the signal finds it at work.
_SLOW = """
import sys, time
from directdet.front import cli
from directdet.infer.predictor import Predictor
run = Predictor.run
def slow(self, batch):
    time.sleep(0.005)
    return run(self, batch)
Predictor.run = slow
sys.exit(cli.main(sys.argv[1:]))
"""


def start_and_wait(artefact: Path, source: Path, out: Path, lines: int, *more: str) -> subprocess.Popen:
    """`directdet infer` in a process of its own, once it has written so many lines."""
    arguments = ["infer", str(artefact), str(source), "--out", str(out), "--device", "cpu", "--threads", "1", *more]
    process = subprocess.Popen([sys.executable, "-c", _SLOW, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    file = out / f"{source.stem}.part.jsonl"
    while not file.is_file() or file.read_bytes().count(b"\n") < lines:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_video_that_plays(number, artefact, tmp_path):
    source = write_video(tmp_path / "clip.mp4", 5000)
    process = start_and_wait(artefact, source, tmp_path / "out", 30)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    lines = lines_of(tmp_path / "out" / "clip.jsonl")
    assert process.returncode == 130 and 30 <= len(lines) < 5000
    assert [line for line in errors.splitlines() if line] == [f"stopped after {len(lines)} frames", "stopped"]
    assert [number_of(image) for image in read_video(tmp_path / "out" / "clip.mp4")] == [
        line["frame"] % 16 for line in lines
    ]
    assert not list((tmp_path / "out").glob("*part*"))


@pytest.mark.slow
def test_a_killed_run_leaves_a_video_that_opens(artefact, tmp_path):
    source = write_video(tmp_path / "clip.mp4", 5000, size=(192, 256))
    process = start_and_wait(artefact, source, tmp_path / "out", 40)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    drawn = read_video(tmp_path / "out" / "clip.part.mp4")
    lines = (tmp_path / "out" / "clip.part.jsonl").read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["frame"] for line in lines if line.endswith(b"\n")] == list(range(len(lines)))
    assert len(lines) - 2 <= len(drawn) <= len(lines) + 1
    assert [number_of(image) for image in drawn] == [number % 16 for number in range(len(drawn))]


@pytest.mark.slow
def test_a_killed_run_leaves_its_sound_too(artefact, tmp_path):
    """With two videos at once; the frames are H.264."""
    sources = [with_sound(tmp_path / f"{name}.mp4", 30) for name in ("one", "two")]
    process = start_and_wait(artefact, sources[0], tmp_path / "out", 60, str(sources[1]), "--keep-audio")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    for name in ("one", "two"):
        lines = (tmp_path / "out" / f"{name}.part.jsonl").read_bytes().count(b"\n")
        with av.open(str(tmp_path / "out" / f"{name}.part.mp4")) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            numbers = [number_of(image.to_ndarray(format="bgr24")) for image in container.decode(video=0)]
        assert lines - 4 <= len(numbers) <= lines + 1 and numbers == [n % 16 for n in range(len(numbers))]
        assert sound_of(tmp_path / "out" / f"{name}.part.mp4")[-1][0] > (lines - 6) / 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bottle-detection", "one-by-one-person-detection"])
def test_real_videos(name, detector, real_data, tmp_path):
    source = real_data / "videos" / f"{name}.mp4"
    if not source.is_file():
        pytest.skip(f"no video at {source}")
    summary = predict_video(detector, Video(source), tmp_path, limit=60, progress=False)
    drawn = read_video(tmp_path / f"{name}.mp4")
    capture = cv2.VideoCapture(str(source))
    assert summary.n_frames == len(drawn) == 60
    for image in drawn:  # under boxes and tints it is the same picture: corners that nothing is drawn into
        good, original = capture.read()
        assert good and image.shape == original.shape
        assert np.abs(image[:40, -150:].astype(int) - original[:40, -150:]).mean() < 6


class _Camera(BaseHTTPRequestHandler):
    """A network camera: JPEG pictures one after the other, until `pictures` have been sent over this connection."""

    pictures = 40

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        self.server.connections += 1
        for number in range(self.pictures):
            content = cv2.imencode(".jpg", frame(number))[1].tobytes()
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + content + b"\r\n")
            except OSError:
                return
            time.sleep(0.005)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_a_real_stream(detector, tmp_path):
    """Over HTTP on this machine, cut off again and again by the server; it comes back each time."""
    server = HTTPServer(("127.0.0.1", 0), _Camera)
    server.connections = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    said = []
    try:
        video = Video(f"http://127.0.0.1:{server.server_port}/camera.mjpg", said.append, wait=lambda seconds: None)
        summary = predict_video(detector, video, tmp_path / "out", limit=60, progress=False)
    finally:
        server.shutdown()
        server.server_close()
    assert video.live and summary.n_frames == 60 and summary.n_reconnects >= 1 and server.connections >= 2
    assert any("connection lost; reopening" in line for line in said)
    numbers = [line["frame"] for line in lines_of(tmp_path / "out" / f"{video.name}.jsonl")]
    assert numbers == sorted(set(numbers)) and len(numbers) == 60
    assert read_video(tmp_path / "out" / f"{video.name}.mp4")
