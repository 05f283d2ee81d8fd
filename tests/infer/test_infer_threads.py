"""One detector used by several threads at the same time: every picture gets its own detections, in each runtime."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from test_infer_tensorrt import BUILT, FakeContext, FakeCuda, fake_tensorrt
from test_infer_torch import CONFIG
from tiny_artefact import write_artefact

from directdet.infer.detections import Detections
from directdet.infer.predictor import Predictor
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes import cuda_driver
from directdet.infer.runtimes.load import load
from directdet.infer.runtimes.torch_runtime import TorchPredictor
from directdet.models.build import build_model

PICTURES = [np.full((24, 32, 3), number, np.uint8) for number in range(200)]


@pytest.fixture(autouse=True)
def frequent_switches():
    """Let Python change threads a thousand times as often as usual, which makes a race show in a short test."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 1000)
    yield
    sys.setswitchinterval(before)


def check(detector: Predictor, pictures: list[np.ndarray], threads: int) -> None:
    """The results of several threads are those of one, and no two pictures have the same."""
    alone = [detector(picture) for picture in pictures]
    assert len({tuple(found.scores) for found in alone}) == len(pictures)
    start = threading.Barrier(threads)

    def work(number: int) -> list[Detections]:
        start.wait(timeout=60)
        return [detector(picture) for picture in pictures[number::threads]]

    with ThreadPoolExecutor(threads) as pool:
        together = list(pool.map(work, range(threads)))
    wrong = [
        number
        for number, expected in enumerate(alone)
        if not same(expected, together[number % threads][number // threads])
    ]
    assert not wrong, f"{len(wrong)} of {len(pictures)} pictures got another result"


def same(one: Detections, other: Detections) -> bool:
    fields = ("boxes", "scores", "labels", "masks")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in fields)


@pytest.mark.parametrize("threads", [4, 8])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_exported_graph(tmp_path, runtime, threads):
    pytest.importorskip(runtime)
    artefact = write_artefact(tmp_path / "artefact", factor=0.01)
    check(load(artefact, runtime=runtime, device="cpu", threads=1), PICTURES, threads)


class SlowContext(FakeContext):
    """An engine that takes a moment, as a real one does."""

    def execute_async_v3(self, stream):
        time.sleep(0.0005)
        return super().execute_async_v3(stream)


@pytest.mark.parametrize("threads", [4, 8])
def test_engine(artefact, edit_meta, monkeypatch, threads):
    """TensorRT with a stand-in: batches of changing size, so that the buffers are replaced all the time, too."""
    cuda = FakeCuda()
    library = fake_tensorrt(cuda, context=SlowContext)
    monkeypatch.setattr(cuda_driver, "_load_library", lambda: cuda)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    shapes = {"batch": {"min": 1, "opt": 2, "max": 4}, "height": 96, "width": 128}
    edit_meta(artefact, kind="tensorrt-rtx", built_for=BUILT, shapes=shapes)
    detector = load(artefact)

    def work(number: int) -> list[float]:
        values = []
        for value in range(number, len(PICTURES), threads):
            batch = np.full((1 + value % 3, 3, 96, 128), value, np.float32)
            values.append(detector.run(batch)[2].mean().item())
        return values

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(work, range(threads)))
    assert found == [list(range(number, len(PICTURES), threads)) for number in range(threads)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("threads", [4, 8])
def test_torch(threads, training):
    """Also a model in training, which every call switches to evaluation and back, on canvases of many sizes."""
    torch.manual_seed(0)
    model = build_model(CONFIG).train(training)
    detector = TorchPredictor.from_model(model, Preprocess((64, 64), fixed=False), "abc", (1, 2, 3))
    rng = np.random.default_rng(0)
    sizes = [(40, 40 + 20 * (number % 5)) for number in range(200)]
    check(detector, [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes], threads)
    assert all(module.training == training for module in model.modules())


def test_ctrl_c_reaches_python_after_a_model_was_dropped_in_another_thread(artefact):
    """In a process of its own: OpenVINO's plugin, dropped there, would take the main thread's signal stack with it."""
    code = f"""
import signal, threading
from directdet import Detector
held = [Detector({str(artefact)!r}, runtime="openvino")]
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("handled")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "handled\n", (done.returncode, done.stderr)
