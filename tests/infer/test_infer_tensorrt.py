"""What can be checked of the TensorRT runtime without a GPU: messages, and memory handling with a stand-in driver."""

from __future__ import annotations

import ctypes
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from directdet.common.errors import UserError
from directdet.infer.artefact import read_artefact
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes import cuda_driver, tensorrt_runtime
from directdet.infer.runtimes.cuda_driver import CudaDriver, find_gpu
from directdet.infer.runtimes.load import load

BUILT = {"compute_capability": "8.9", "library": "tensorrt_rtx", "version": "1.7.1.116"}


class FakeCuda:
    """libcuda as far as it is used: "device memory" is host memory, copies happen at once."""

    def __init__(self, capability=(8, 9), devices=1):
        self.capability, self.devices, self.alive = capability, devices, {}
        self.log: list[str] = []

    def __getattr__(self, name):
        if name.startswith("cu"):
            return lambda *arguments: self.log.append(name) or 0
        raise AttributeError(name)

    def cuDeviceGetCount(self, count):
        count._obj.value = self.devices
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.capability[attribute - 75]
        return 0

    def cuDeviceGetName(self, text, size, device):
        text.value = b"Pretend GPU"
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = 13020
        return 0

    def cuStreamCreate(self, handle, flags):
        handle._obj.value = 77
        return 0

    def cuGetErrorString(self, code, text):
        text._obj.value = b"out of memory"
        return 0

    def _allocate(self, pointer, size):
        memory = ctypes.create_string_buffer(size.value)
        self.alive[ctypes.addressof(memory)] = memory
        pointer._obj.value = ctypes.addressof(memory)
        return 0

    cuMemAlloc_v2 = cuMemAllocHost_v2 = _allocate

    def _free(self, pointer):
        del self.alive[pointer.value]
        return 0

    cuMemFree_v2 = cuMemFreeHost = _free

    def _copy(self, target, source, size, stream):
        assert stream.value == 77
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    cuMemcpyHtoDAsync_v2 = cuMemcpyDtoHAsync_v2 = _copy


class FakeContext:
    """An engine of dynamic batch: returns constants and the mean of each image as the first score."""

    def __init__(self, cuda, dtype):
        self.cuda, self.shape, self.addresses, self.dtype = cuda, None, {}, dtype

    def set_input_shape(self, name, shape):
        self.shape = shape
        return shape[0] <= 8

    def get_tensor_shape(self, name):
        rest = {"num": (1,), "boxes": (2, 4), "scores": (2,), "labels": (2,)}[name]
        return (self.shape[0], *rest)

    def set_tensor_address(self, name, pointer):
        self.addresses[name] = pointer

    def _view(self, name, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_byte * size).from_address(self.addresses[name]), dtype).reshape(shape)

    def execute_async_v3(self, stream):
        images = self._view("images", self.shape, self.dtype)
        for name, value in (("num", 2), ("boxes", 8), ("labels", 1)):
            dtype = np.float32 if name == "boxes" else np.int32
            self._view(name, self.get_tensor_shape(name), dtype)[...] = value
        self._view("scores", self.get_tensor_shape("scores"), np.float32)[...] = images.mean((1, 2, 3))[:, None]
        return stream == 77


def fake_tensorrt(cuda, opens=True, dtype=np.float32, context=FakeContext):
    """The module, as far as it is used."""
    names = ["images", "boxes", "num", "labels", "scores"]
    engine = SimpleNamespace(
        num_io_tensors=5,
        get_tensor_name=lambda number: names[number],
        get_tensor_mode=lambda name: "in" if name == "images" else "out",
        get_tensor_dtype=lambda name: (
            dtype if name == "images" else np.int32 if name in ("num", "labels") else np.float32
        ),
        get_tensor_shape=lambda name: (-1, 3, 96, 128) if dtype == np.float32 else (-1, 96, 128, 3),
        create_execution_context=lambda: context(cuda, dtype),
    )
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda content: engine if opens else None)
    logger = lambda level: None  # noqa: E731
    logger.ERROR = 1
    return SimpleNamespace(
        __name__="tensorrt_rtx",
        __version__="1.7.1.116",
        Logger=logger,
        Runtime=lambda logger: runtime,
        TensorIOMode=SimpleNamespace(OUTPUT="out"),
        nptype=lambda dtype: dtype,
    )


@pytest.fixture
def engine(artefact, edit_meta):
    """An artefact that claims to hold an engine."""
    shapes = {"batch": {"min": 1, "opt": 2, "max": 4}, "height": 96, "width": 128}
    edit_meta(artefact, kind="tensorrt-rtx", built_for=BUILT, shapes=shapes)
    return artefact


def test_without_a_gpu_it_says_so_in_one_line(engine):
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match="needs an NVIDIA GPU: no NVIDIA driver") as caught:
        load(engine)
    assert "\n" not in str(caught.value)


def test_built_for_another_machine(engine, edit_meta):
    check = tensorrt_runtime.check_built_for
    check(read_artefact(engine), "8.9", "tensorrt_rtx", "1.7.1.116")
    with pytest.raises(UserError, match=r"built for SM89 with tensorrt_rtx 1\.7\.1\.116; here SM75 with .*: rebuild"):
        check(read_artefact(engine), "7.5", "tensorrt_rtx", "1.7.1.116")
    with pytest.raises(UserError, match=r"here SM89 with tensorrt_rtx 1\.8\.0"):
        check(read_artefact(engine), "8.9", "tensorrt_rtx", "1.8.0")
    edit_meta(engine, built_for={**BUILT, "compute_capability": ["8.9", "12.0"]})
    check(read_artefact(engine), "12.0", "tensorrt_rtx", "1.7.1.116")
    edit_meta(engine, built_for=None)
    with pytest.raises(UserError, match="built_for is missing"):
        check(read_artefact(engine), "8.9", "tensorrt_rtx", "1.7.1.116")


def test_device_names(engine):
    with pytest.raises(UserError, match="TensorRT runs on auto, cuda"):
        load(engine, device="cpu")
    with pytest.raises(UserError, match="built in fp32"):
        load(engine, precision="fp16")


def test_runs_with_a_stand_in(engine, monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(cuda_driver, "_load_library", lambda: cuda)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt(cuda))
    detector = load(engine)
    assert detector.info["provider"] == "tensorrt_rtx on Pretend GPU"
    assert detector.info["versions"] == {"tensorrt_rtx": "1.7.1.116", "cuda driver": "13.2"}
    images = np.stack([np.full((3, 96, 128), value, np.float32) for value in (0.25, 0.5)])
    first = detector.run(images)
    assert first[2].tolist() == [[0.25, 0.25], [0.5, 0.5]] and first[0].tolist() == [[2], [2]]
    alive = len(cuda.alive)
    second = detector.run(images[1:])  # another shape: new buffers, the old ones freed
    assert second[2].tolist() == [[0.5, 0.5]] and len(cuda.alive) == alive
    assert first[2].tolist() == [[0.25, 0.25], [0.5, 0.5]]  # results are copies
    with pytest.raises(UserError, match="batches of up to 4, got 5"):
        detector.run(np.zeros((5, 3, 96, 128), np.float32))
    with pytest.raises(UserError, match="larger batch"):
        detector.backend.run(np.zeros((9, 3, 96, 128), np.float32))


def test_uint8_goes_to_the_device_as_it_is(engine, edit_meta, monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(cuda_driver, "_load_library", lambda: cuda)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt(cuda, dtype=np.uint8))
    with pytest.raises(UserError, match=r"inputs 'images' uint8; meta\.json says 'images' float32"):
        load(engine)
    about = {"name": "images", "shape": [None, 96, 128, 3], "dtype": "uint8", "layout": "NHWC"}
    edit_meta(engine, input=about, preprocess_checksum=Preprocess((96, 128)).checksum("uint8"))
    detector = load(engine)
    raw = detector.run(np.stack([np.full((96, 128, 3), value, np.uint8) for value in (7, 250)]))
    assert raw[2].tolist() == [[7, 7], [250, 250]]


def test_engine_that_does_not_open(engine, monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(cuda_driver, "_load_library", lambda: cuda)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt(cuda, opens=False))
    with pytest.raises(UserError, match="cannot open this engine"):
        load(engine)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UserError, match=r"pip install directdet\[tensorrt-rtx\]"):
        load(engine)


def test_driver_errors_are_named():
    cuda = FakeCuda()
    cuda.cuStreamCreate = lambda *arguments: 2
    with pytest.raises(UserError, match="cuStreamCreate failed with 2 \\(out of memory\\)"):
        CudaDriver(library=cuda).stream()
    with pytest.raises(UserError, match="has 1 NVIDIA GPU"):
        CudaDriver(3, library=cuda)


def test_each_thread_gets_the_context():
    """A pipeline runs the network in a thread of its own, where no context is current until somebody sees to it."""
    cuda = FakeCuda()
    driver = CudaDriver(0, cuda)
    driver.open()
    stream = driver.stream()
    buffer = driver.buffer((2, 3), np.dtype(np.float32))
    assert cuda.log.count("cuCtxSetCurrent") == 1
    for count in (2, 3):
        thread = threading.Thread(target=lambda: [buffer.upload(stream), buffer.download(stream)])
        thread.start()
        thread.join()
        assert cuda.log.count("cuCtxSetCurrent") == count
    buffer.free()
    assert cuda.log.count("cuCtxSetCurrent") == 3
