"""The annotated video and the JSON lines: what is written, and that a full disk is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from videos import frame, lines_of, number_of, read_video, write_video

from directdet.common.errors import UserError
from directdet.infer.predict import writers
from directdet.infer.predict.writers import VideoWriter


@pytest.mark.parametrize("size", [(96, 128), (97, 131), (16, 16)])
@pytest.mark.parametrize("rate", [10.0, 29.97, 60.0])
def test_writer(size, rate, tmp_path):
    """Counts, rate, order, and where a player may start are those of a file that OpenCV writes straight away."""
    writer = VideoWriter(tmp_path / "a.mp4", rate, size)
    for number in range(30):
        writer.write(frame(number, *size))
    assert not (tmp_path / "a.mp4").exists() and (tmp_path / "a.part.avi").exists()
    assert writer.finish() == tmp_path / "a.mp4"
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert [number_of(image) for image in read_video(tmp_path / "a.mp4")] == [number % 16 for number in range(30)]
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(rate, rel=1e-3)
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 30
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    starts, whole = [], []
    for number in range(30):
        packet = capture.read()[1].tobytes()
        starts += [number] if capture.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME) else []
        # A picture's kind is in the two bits after its start code; 0 is one that needs no other.
        whole += [number] if packet[packet.index(b"\0\0\1\xb6") + 4] >> 6 == 0 else []
    assert starts == whole and 0 in starts and len(starts) < 10


class LosingWriter:
    """An OpenCV writer that loses data without a word, as OpenCV's does on a full disk."""

    def __init__(self, writer, path: Path, loses: str) -> None:
        self._writer, self._path, self._loses, self._count = writer, path, loses, 0

    def __getattr__(self, name):
        return getattr(self._writer, name)

    def write(self, content) -> None:
        self._count += 1
        if self._loses != "a frame" or self._count != 20:
            self._writer.write(content)

    def release(self) -> None:
        self._writer.release()
        content = self._path.read_bytes()
        if self._loses == "its end":
            self._path.write_bytes(content[: len(content) // 2])
        elif self._loses == "everything":
            self._path.write_bytes(b"")
        elif self._loses == "a byte":
            place = content.index(b"mdat") + 2000
            self._path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])


@pytest.mark.parametrize("loses", ["a frame", "its end", "everything", "a byte"])
def test_success_is_what_can_be_read_back(loses, tmp_path, monkeypatch):
    """An earlier good video stays, and so do all frames of the new one."""
    earlier = write_video(tmp_path / "a.mp4", 5).read_bytes()
    open_writer = writers._open_writer

    def losing(path, *arguments):
        writer = open_writer(path, *arguments)
        return LosingWriter(writer, path, loses) if path.suffix == ".mp4" else writer

    monkeypatch.setattr(writers, "_open_writer", losing)
    writer = VideoWriter(tmp_path / "a.mp4", 10, (96, 128))
    for number in range(30):
        writer.write(frame(number))
    message = r"a\.mp4: cannot be written: \d+ of 30 frames can be read back; .* All of them are in .*a\.part\.avi"
    with pytest.raises(UserError, match=message) as caught:
        writer.finish()
    assert "\n" not in str(caught.value)
    assert (tmp_path / "a.mp4").read_bytes() == earlier
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.part.avi"]
    assert [number_of(image) for image in read_video(tmp_path / "a.part.avi")] == [number % 16 for number in range(30)]


def test_a_single_frame_is_read_back_too(tmp_path, monkeypatch):
    open_writer = writers._open_writer

    def losing(path, *arguments):
        writer = open_writer(path, *arguments)
        return LosingWriter(writer, path, "its end") if path.suffix == ".mp4" else writer

    monkeypatch.setattr(writers, "_open_writer", losing)
    writer = VideoWriter(tmp_path / "a.mp4", 10, (96, 128))
    writer.write(frame(7))
    with pytest.raises(UserError, match="0 of 1 frames can be read back"):
        writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["a.part.avi"]


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


def test_a_disk_that_is_full_is_noticed(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", 10, (96, 128))
    writer.write(frame(0))
    writer.frames += 1  # as if OpenCV had lost one without a word
    with pytest.raises(UserError, match=r"a\.part\.avi: contains 1 of 2 frames"):
        writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["a.part.avi"]
    if Path("/dev/full").exists():
        (tmp_path / "b.part.avi").symlink_to("/dev/full")
        writer = VideoWriter(tmp_path / "b.mp4", 10, (96, 128))
        with pytest.raises(UserError, match=r"b\.part\.avi: cannot be written: No space left"):
            for number in range(1000):
                writer.write(frame(number))
            writer.finish()
