"""Reading videos through PyAV and through OpenCV: the same frames, times and turns; sound, and decoders in hardware."""

from __future__ import annotations

import json
import math
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from videos import frame, number_of, read_video, write_video

from directdet.front import cli
from directdet.infer.predict.video import Video
from directdet.infer.predict.video_io import capture
from directdet.infer.predict.video_io.writer import VideoWriter


def read_with(library: str, path: Path, monkeypatch) -> tuple[Video, list[tuple[int, float]], list[np.ndarray]]:
    """The video, its frames' numbers and times, and the frames."""
    with monkeypatch.context() as patch:
        patch.setattr(capture, "has_pyav", lambda: library == "PyAV")
        video = Video(path)
        assert isinstance(video._capture, capture.AvCapture) == (library == "PyAV")
        frames = list(video.frames())
    return video, [(each.number, each.time) for each in frames], [each.image for each in frames]


def turned(path: Path, degrees: int) -> Path:
    """The file with a note that a viewer should turn it clockwise, as telephones write it."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    cos, sin = (round(value(math.radians(degrees))) for value in (math.cos, math.sin))
    for number, value in enumerate((cos, sin, 0, -sin, cos, 0)):
        content[place + 4 * number : place + 4 * number + 4] = (value << 16).to_bytes(4, "big", signed=True)
    target = path.with_name(f"turned-{degrees}{path.suffix}")
    target.write_bytes(content)
    return target


def uneven(path: Path) -> Path:
    """H.264 at times of a telephone's."""
    video = VideoWriter(path, 30, (96, 128))
    for number, time in enumerate((0.0, 0.033, 0.067, 0.1, 0.171, 0.2, 0.9)):
        video.write(frame(number), time)
    return video.finish()


@pytest.mark.parametrize("kind", ["mpeg4.mp4", "mpeg4.avi", "uneven.mp4", "turned 90", "turned 180", "turned 270"])
def test_both_libraries_read_the_same(kind, tmp_path, monkeypatch):
    path = uneven(tmp_path / kind) if kind == "uneven.mp4" else None
    if kind.startswith("turned"):
        path = turned(write_video(tmp_path / "clip.mp4", 9), int(kind.split()[1]))
    path = path or write_video(tmp_path / kind, 9)
    one, places, images = read_with("PyAV", path, monkeypatch)
    other, expected, wanted = read_with("OpenCV", path, monkeypatch)
    assert len(images) == (7 if kind == "uneven.mp4" else 9)
    assert (one.count, one.rate, one.pixel_aspect) == (other.count, pytest.approx(other.rate), other.pixel_aspect)
    assert [number for number, _ in places] == [number for number, _ in expected]
    assert [time for _, time in places] == pytest.approx([time for _, time in expected], abs=1e-4)
    assert all(np.array_equal(a, b) for a, b in zip(images, wanted, strict=True))
    if kind.startswith("turned"):
        upright = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}
        back = [cv2.rotate(image, upright[int(kind.split()[1])]) for image in images]
        assert [number_of(image) for image in back] == list(range(9))


def test_real_videos_are_read_the_same(real_data, monkeypatch):
    path = real_data / "videos" / "bottle-detection.mp4"
    if not path.is_file():
        pytest.skip(f"no video at {path}")
    sums = []
    for library in ("PyAV", "OpenCV"):
        monkeypatch.setattr(capture, "has_pyav", lambda library=library: library == "PyAV")
        sums.append([(each.number, round(each.time, 3), int(each.image.sum())) for each in Video(path).frames()])
    assert sums[0] == sums[1] and len(sums[0]) > 1000


def test_a_name_that_is_not_utf8(tmp_path, monkeypatch):
    path = Path(os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9.mp4"))
    write_video(tmp_path / "clip.mp4", 5).rename(path)
    for library in ("PyAV", "OpenCV"):
        video, _, images = read_with(library, path, monkeypatch)
        assert video.name == "caf%E9" and [number_of(image) for image in images] == list(range(5))


@pytest.mark.skipif(capture.any_decoder() is not None, reason="this machine has a decoder in hardware")
def test_a_decoder_in_hardware_is_never_required(artefact, tmp_path, capsys):
    source = write_video(tmp_path / "clip.mp4", 5)
    arguments = ["infer", str(artefact), str(source), "--out", str(tmp_path / "out"), "--device", "cpu", "--hw-decode"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{source}: decoded by cpu: there is no decoder in hardware for it, or no PyAV"]
    assert len(read_video(tmp_path / "out" / "clip.mp4")) == 5
    assert json.loads((tmp_path / "out" / "clip.timing.json").read_text())["decoder"] == "cpu"


def test_a_decoder_that_does_not_take_the_codec_is_not_named(tmp_path, monkeypatch):
    """FFmpeg then decodes on the CPU without a word; DRM has no decoder of H.264 that PyAV could be given."""
    from av.codec.hwaccel import hwdevices_available

    if "drm" not in hwdevices_available():
        pytest.skip("this PyAV knows no DRM")
    monkeypatch.setattr(capture, "any_decoder", lambda: "drm")
    video = Video(write_video(tmp_path / "clip.mp4", 5), hardware=True)
    assert video.decoder == "cpu" and len(list(video.frames())) == 5


def with_sound(path: Path, seconds: float, codec: str = "aac") -> Path:
    """A video of 20 frames a second with a tone, which begins with the third frame's time."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=20)
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        sound = container.add_stream(codec, rate=48000, layout="mono")
        for number in range(round(20 * seconds)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame(number), format="bgr24")))
        for block in range(round(48000 * seconds) // 1024):
            wave = np.sin(np.arange(block * 1024, block * 1024 + 1024) / 20, dtype=np.float32)[None]
            part = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            part.sample_rate, part.pts, part.time_base = 48000, block * 1024 + 4800, Fraction(1, 48000)
            container.mux(sound.encode(part))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    return path


def sound_of(path: Path) -> list[tuple[float, bytes]]:
    """The packets of the first sound track, each with its time."""
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        return [(float(each.pts * each.time_base), bytes(each)) for each in container.demux(track) if each.size]


@pytest.mark.parametrize("frames", [60, 20])
def test_sound_is_kept_when_asked(frames, artefact, tmp_path, capsys):
    """Packet for packet, at its times, and no longer than the pictures."""
    source, out = with_sound(tmp_path / "clip.mp4", 3), tmp_path / "out"
    arguments = ["infer", str(artefact), str(source), "--out", str(out), "--device", "cpu", "--frames", str(frames)]
    assert cli.main([*arguments, "--keep-audio"]) == 0
    assert f"written: {out / 'clip.mp4'}\n" in capsys.readouterr().out.replace("\n\n", "\n")
    wanted = [(time, content) for time, content in sound_of(source) if 0 <= time < frames / 20]
    found = sound_of(out / "clip.mp4")
    assert [content for _, content in found] == [content for _, content in wanted] and len(wanted) > frames
    assert [time for time, _ in found] == pytest.approx([time for time, _ in wanted], abs=1e-3)
    assert [number_of(image) for image in read_video(out / "clip.mp4")] == [number % 16 for number in range(frames)]


def test_sound_that_cannot_be_kept_is_told(artefact, tmp_path, capsys, monkeypatch):
    source, out = write_video(tmp_path / "clip.mp4", 5), tmp_path / "out"
    arguments = ["infer", str(artefact), str(source), "--out", str(out), "--device", "cpu", "--keep-audio"]
    assert cli.main(arguments) == 0
    output = capsys.readouterr()
    assert output.err.splitlines() == [f"{source}: its sound cannot be kept: it has none"]
    assert "clip.mp4 (without sound)" in output.out
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert cli.main(arguments) == 1
    assert 'pip install "directdet[video]"' in capsys.readouterr().err


def test_without_pyav_uneven_times_are_told(artefact, tmp_path, capsys, monkeypatch):
    source = uneven(tmp_path / "clip.mp4")
    monkeypatch.setattr(capture, "has_pyav", lambda: False)
    assert cli.main(["infer", str(artefact), str(source), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "do not follow each other evenly" in said[0] and "directdet[video]" in said[0]
    assert [number_of(image) for image in read_video(tmp_path / "out" / "clip.mp4")] == list(range(7))
