"""The annotated video and the JSON lines: what is written, and that a full disk is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from videos import frame, lines_of, number_of, read_video, write_video

from directdet.common.errors import UserError
from directdet.infer.predict.video_io import capture, writer
from directdet.infer.predict.video_io.writer import VideoWriter


@pytest.fixture(params=["PyAV", "OpenCV"])
def library(request, monkeypatch):
    """What writes."""
    monkeypatch.setattr(capture, "has_pyav", lambda: request.param == "PyAV")
    return request.param


def packets_of(path: Path) -> tuple[av.VideoStream, list[av.Packet]]:
    with av.open(str(path)) as container:
        return container.streams.video[0], [packet for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("size", [(96, 128), (97, 131), (16, 16)])
@pytest.mark.parametrize("rate", [10.0, 29.97, 60.0])
def test_writer(size, rate, library, tmp_path):
    """Counts, rate, order, and where a player may start."""
    video = VideoWriter(tmp_path / "a.mp4", rate, size)
    for number in range(30):
        video.write(frame(number, *size))
    assert [path.name for path in tmp_path.iterdir()] == ["a.part.mp4"]
    assert video.finish() == tmp_path / "a.mp4"
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert [number_of(image) for image in read_video(tmp_path / "a.mp4")] == [number % 16 for number in range(30)]
    reader = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(rate, rel=1e-3)
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 30
    with av.open(str(tmp_path / "a.mp4")) as container:
        whole = [number for number, image in enumerate(container.decode(video=0)) if image.pict_type == 1]
    _, packets = packets_of(tmp_path / "a.mp4")
    starts = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    assert starts == whole and 0 in starts and len(starts) < 10


def test_a_browser_can_play_it(tmp_path):
    """H.264 of 8 bits and 4:2:0, and at the end an ordinary file, whose index a player finds and seeks in."""
    video = VideoWriter(tmp_path / "a.mp4", 25, (96, 128))
    for number in range(30):
        video.write(frame(number))
    video.finish()
    with av.open(str(tmp_path / "a.mp4")) as container:
        track = container.streams.video[0]
        context = track.codec_context
        assert (context.name, context.pix_fmt, track.frames) == ("h264", "yuv420p", 30)
        assert container.duration == pytest.approx(30 / 25 * 1e6, rel=0.01)
    content, at, boxes = (tmp_path / "a.mp4").read_bytes(), 0, []
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        boxes.append(content[at + 4 : at + 8])
        at += length
    assert boxes[0] == b"ftyp" and boxes.count(b"moov") == 1 and b"moof" not in boxes


def test_colours_are_kept(library, tmp_path):
    """Patches of every colour are read back as they were drawn, by a reader that goes by what the file says."""
    patches = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    image = np.kron(patches, np.ones((16, 16, 1), np.uint8))
    video = VideoWriter(tmp_path / "a.mp4", 25, image.shape[:2])
    for _ in range(5):
        video.write(image)
    video.finish()
    middles = read_video(tmp_path / "a.mp4")[4][8::16, 8::16]
    assert np.abs(middles.astype(int) - patches).max() < 12


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_times_are_exact(codec, tmp_path, monkeypatch):
    """Also where PyAV was built without an encoder of H.264."""
    monkeypatch.setattr(writer, "_ENCODERS", {codec: writer._ENCODERS[codec]})
    times = [0.0, 0.04, 0.1, 0.1, 2.5, 1001 / 30000 * 90]
    video = VideoWriter(tmp_path / "a.mp4", 25, (96, 128))
    for number, time in enumerate(times):
        video.write(frame(number), time)
    video.finish()
    track, packets = packets_of(tmp_path / "a.mp4")
    found = [float(packet.pts * track.time_base) for packet in packets]
    assert found[:3] + found[4:] == pytest.approx(times[:3] + times[4:], abs=1e-6) and 0.1 < found[3] < 0.101
    assert [number_of(image) for image in read_video(tmp_path / "a.mp4")] == list(range(6))


def damaging(monkeypatch, library: str, loses: str) -> None:
    """From now on a video loses data without a word, as OpenCV's does on a full disk."""
    kind = writer._AvEncoder if library == "PyAV" else writer._CvEncoder
    write, close, count = kind.write, kind.close, 0

    def losing(self, image, time):
        nonlocal count
        count += 1
        if loses != "a frame" or count != 20:
            write(self, image, time)

    def closing(self, path):
        close(self)
        content = path.read_bytes()
        path.write_bytes({"a frame": content, "its end": content[: len(content) // 2], "everything": b""}[loses])

    monkeypatch.setattr(kind, "write", losing)
    monkeypatch.setattr(kind, "close", lambda self: closing(self, next(video.part for video in writing)))
    writing: list[VideoWriter] = []
    begin = VideoWriter.__init__

    def remembering(self, *arguments, **options):
        begin(self, *arguments, **options)
        writing.append(self)

    monkeypatch.setattr(VideoWriter, "__init__", remembering)


@pytest.mark.parametrize("loses", ["a frame", "its end", "everything"])
def test_success_is_what_can_be_read_back(loses, library, tmp_path, monkeypatch):
    """An earlier good video stays, and so does what there is of the new one."""
    earlier = write_video(tmp_path / "a.mp4", 5).read_bytes()
    damaging(monkeypatch, library, loses)
    video = VideoWriter(tmp_path / "a.mp4", 10, (96, 128))
    for number in range(30):
        video.write(frame(number))
    message = r"a\.part\.mp4: \d+ of 30 frames can be read back; is the disk full\? The file is kept"
    with pytest.raises(UserError, match=message) as caught:
        video.finish()
    assert "\n" not in str(caught.value)
    assert (tmp_path / "a.mp4").read_bytes() == earlier
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.part.mp4"]


def test_a_single_frame_is_read_back_too(library, tmp_path, monkeypatch):
    damaging(monkeypatch, library, "its end")
    video = VideoWriter(tmp_path / "a.mp4", 10, (96, 128))
    video.write(frame(7))
    with pytest.raises(UserError, match="0 of 1 frames can be read back"):
        video.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["a.part.mp4"]


def test_lines_on_a_full_disk_end_with_a_whole_one(tmp_path):
    """A limit of the file size stands in for the disk: the system writes what fits, then refuses."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from directdet.common.errors import UserError\n"
        "from directdet.infer.predict.writers import LinesWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "lines = LinesWriter(Path(sys.argv[1]))\n"
        "try:\n"
        "    [lines.write({'frame': number}) for number in range(20)]\n"
        "except UserError as error:\n"
        "    print(error)\n"
        "lines.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.jsonl")], capture_output=True, text=True)
    assert done.stdout == f"{tmp_path}/a.jsonl: cannot be written: File too large\n" and done.stderr == ""
    assert lines_of(tmp_path / "a.jsonl") == [{"frame": number} for number in range(7)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_disk_that_is_full_is_noticed(library, tmp_path):
    (tmp_path / "b.part.mp4").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"b\.part\.mp4: ") as caught:
        video = VideoWriter(tmp_path / "b.mp4", 10, (96, 128))
        for number in range(1000):
            video.write(frame(number))
        video.finish()
    assert "\n" not in str(caught.value) and not (tmp_path / "b.mp4").exists()
    assert library == "OpenCV" or "cannot be written: No space left" in str(caught.value)
