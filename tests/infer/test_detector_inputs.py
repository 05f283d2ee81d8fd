"""What a `Detector` takes for pictures, and what becomes of it: closed, pickled, in threads and processes."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from test_infer_exif import photo
from test_infer_tensorrt import BUILT, FakeCuda, fake_tensorrt
from tiny_artefact import write_artefact

from directdet import Detector
from directdet.common.errors import UserError
from directdet.infer.pictures import to_array
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes import cuda_driver

PICTURE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)  # BGR


def png(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), PICTURE)
    return path


FORMS = {
    "path": lambda path: path,
    "text": str,
    "open file": lambda path: path.open("rb"),
    "bytes in memory": lambda path: io.BytesIO(path.read_bytes()),
    "temporary file": lambda path: _spooled(path.read_bytes()),
    "PIL": Image.open,
    "PIL with transparency": lambda path: Image.open(path).convert("RGBA"),
    "array": lambda path: PICTURE,
    "not contiguous": lambda path: np.repeat(PICTURE, 2, axis=1)[:, ::2],
}


def _spooled(content: bytes):
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file


def to_bgr(picture, order="bgr"):
    return to_array(picture, Preprocess((64, 64)), order)


@pytest.fixture
def detector(tmp_path):
    """Its scores follow the mean of the normalised picture, to which a level of each channel adds another amount."""
    return Detector(write_artefact(tmp_path / "artefact", factor=0.001), device="cpu")


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "scores", "labels"))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_has_the_same_pixels(form, tmp_path, detector):
    path = png(tmp_path)
    np.testing.assert_array_equal(to_bgr(form(path)), PICTURE)
    assert same(detector(form(path)), detector(PICTURE))


def test_the_order_of_an_array_is_said_by_name(tmp_path):
    np.testing.assert_array_equal(to_bgr(np.ascontiguousarray(PICTURE[:, :, ::-1]), "rgb"), PICTURE)
    path = png(tmp_path)
    for own in (path, Image.open(path)):  # these say their own
        np.testing.assert_array_equal(to_bgr(own, "rgb"), PICTURE)
    with pytest.raises(UserError, match="order: 'rbg' is not one of bgr, rgb; did you mean"):
        to_bgr(PICTURE, "rbg")


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA"])
def test_other_modes_of_pil(mode):
    image = Image.fromarray(PICTURE).convert(mode)
    np.testing.assert_array_equal(to_bgr(image)[:, :, ::-1], np.asarray(image.convert("RGB")))


def test_a_photo_in_a_file_is_turned_and_one_of_pil_is_not(detector):
    content = photo("PNG", 6)
    with Image.open(io.BytesIO(content)) as opened:
        stored = np.asarray(opened.convert("RGB"))
        np.testing.assert_array_equal(to_bgr(opened)[:, :, ::-1], stored)
    turned = to_bgr(io.BytesIO(content))
    np.testing.assert_array_equal(turned[:, :, ::-1], np.rot90(stored, -1))
    assert detector(io.BytesIO(content)).image_size == turned.shape[:2]


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_lists_and_generators(tmp_path, batch):
    detector = Detector(write_artefact(tmp_path / "a", batch, factor=0.001, batches=(1, 3, 4)), device="cpu")
    path = png(tmp_path)
    pictures = [np.full((40 + number, 60, 3), 20 * number, np.uint8) for number in range(7)]
    alone = [detector(picture) for picture in pictures]
    mixed = [pictures[0], path, Image.fromarray(pictures[1][:, :, ::-1])]
    found = detector(mixed)
    assert isinstance(found, list) and all(map(same, found, [alone[0], detector(PICTURE), alone[1]]))
    assert detector([]) == [] and len(detector(tuple(pictures))) == 7

    taken = []

    def camera():
        for number, picture in enumerate(pictures):
            taken.append(number)
            yield picture

    stream = detector(camera())
    assert not taken  # nothing is read before it is asked for
    assert same(next(stream), alone[0])
    assert len(taken) == {1: 1, 2: 2, "batch": 3}[batch]  # as many as the network takes, not all
    assert all(map(same, stream, alone[1:])) and len(taken) == 7


def test_score_and_classes(detector):
    everything = detector(PICTURE)
    assert len(everything) == 2 and list(detector(PICTURE, classes=["dog"]).labels) == [2]
    assert len(detector(PICTURE, score=float(everything.scores[1]) + 1e-3)) == 1
    assert [len(found) for found in detector([PICTURE, PICTURE], classes=["traffic light"])] == [0, 0]
    assert [len(found) for found in detector(iter([PICTURE]), classes=["dog", "person"], score=0.5)] == [2]
    for wrong, text in (({"score": 2}, "score: 2; give a number"), ({"classes": ["dig"]}, "did you mean 'dog'")):
        with pytest.raises(UserError, match=text):
            detector(iter([PICTURE]), **wrong)  # at the call, not at the first picture


def test_what_cannot_be_read_is_told(tmp_path, detector):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    (tmp_path / "text.txt").write_text("hello")
    deep = Image.fromarray(np.zeros((4, 4), np.uint16))
    for wrong, text in (
        (tmp_path / "broken.jpg", r"broken\.jpg: image file is truncated"),
        (str(tmp_path / "none.jpg"), r"none\.jpg: image file not found"),
        (io.BytesIO(b""), "the file: image file is empty"),
        (deep, r"PIL in mode I;16: give its file"),
        (PICTURE.astype(np.float32), "float32"),
        (None, "None: cv2.imread returns it"),
        (3, "a int"),
    ):
        with pytest.raises(UserError, match=text):
            detector(wrong)
        with pytest.raises(UserError, match=text):
            detector([PICTURE, wrong])
    with (tmp_path / "text.txt").open() as file, pytest.raises(UserError, match=r"text\.txt: opened as text; open it"):
        detector(file)


def _threads() -> int:
    return int(re.search(r"Threads:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="counts threads in /proc")
def test_closing_ends_the_runtimes_threads(tmp_path):
    artefact = write_artefact(tmp_path / "artefact")
    Detector(artefact, device="cpu", threads=4).close()  # what the library keeps for ever exists from now on
    before = _threads()
    with Detector(artefact, device="cpu", threads=4) as detector:
        detector(PICTURE)
        assert _threads() == before + 3
    assert _threads() == before
    for call in (lambda: detector(PICTURE), lambda: detector([PICTURE]), lambda: list(detector(iter([PICTURE])))):
        with pytest.raises(UserError, match=r"artefact: this detector was closed; open it again"):
            call()
    assert detector.runtime == "onnxruntime" and detector.classes  # what it was can still be asked
    detector.close()


def test_closing_gives_the_gpus_memory_back(artefact, edit_meta, monkeypatch):
    """With a stand-in for CUDA and TensorRT: what is allocated is freed, and a call that comes later is refused."""
    cuda, shapes = FakeCuda(), {"batch": {"min": 1, "opt": 2, "max": 4}, "height": 96, "width": 128}
    edit_meta(artefact, kind="tensorrt-rtx", built_for=BUILT, shapes=shapes)
    monkeypatch.setattr(cuda_driver, "_load_library", lambda: cuda)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt(cuda))
    detector = Detector(artefact)
    backend = detector.backend
    detector(PICTURE)
    assert cuda.alive
    detector.close()
    assert not cuda.alive
    with pytest.raises(UserError, match="was closed"):
        backend.run(np.zeros((1, 3, 96, 128), np.float32))


def test_threads_share_one_and_may_give_it_any_form(tmp_path, detector):
    path = png(tmp_path)
    forms = list(FORMS.values()) * 8
    expected = detector(PICTURE)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda form: same(detector(form(path)), expected), forms))


def test_a_copy_opens_the_same_model(tmp_path, monkeypatch):
    write_artefact(tmp_path / "artefact", factor=0.001)
    monkeypatch.chdir(tmp_path)
    one = Detector("artefact", device="cpu", threads=2)
    monkeypatch.chdir(os.sep)  # a relative path would not be found from here
    other = pickle.loads(pickle.dumps(one))
    assert same(one(PICTURE), other(PICTURE)) and other.info["threads"] == 2 and other.backend is not one.backend


def test_processes(detector):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(detector, [PICTURE, PICTURE // 2])
    assert same(found[0], detector(PICTURE)) and same(found[1], detector(PICTURE // 2))


def test_pictures_of_other_sensors(tmp_path):
    """A model of one 16-bit channel takes files and arrays of just that, as they are, whatever `order` says."""
    deep = np.random.default_rng(1).integers(0, 65536, (20, 30), np.uint16)
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), deep)
    wanted = Preprocess((64, 64), mean=(30000.0,), std=(9000.0,), dtype="uint16")
    for given in (path, io.BytesIO(path.read_bytes()), deep[:, :, None]):
        np.testing.assert_array_equal(to_array(given, wanted, "rgb"), deep[:, :, None])
    cases = (
        (PICTURE, "takes pictures as uint16"),
        (deep, "adds the axis"),
        (Image.fromarray(PICTURE), "give its file"),
        (png(tmp_path), "3 channels of uint8"),
    )
    for given, says in cases:
        with pytest.raises(UserError, match=says):
            to_array(given, wanted)
