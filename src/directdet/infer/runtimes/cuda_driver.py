"""A small part of the CUDA driver API through ctypes: GPU detection, and memory for TensorRT.

The driver library (libcuda) is on every machine with a working NVIDIA GPU, so deployment needs neither torch nor the
CUDA toolkit. The project's continuous tests have no GPU: they use a stand-in library.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
import threading
from typing import Any

import numpy as np

from directdet.common.errors import UserError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class CudaDriver:
    """Calls into libcuda with errors turned into `UserError`; owns the primary context of one device.

    Args:
        device: index of the GPU.
        library: the loaded library, for tests.

    Raises:
        UserError: there is no driver, or no such GPU.
    """

    def __init__(self, device: int = 0, library: Any = None) -> None:
        self._cuda = library if library is not None else _load_library()
        self._context: ctypes.c_void_p | None = None
        self._threads = threading.local()  # whether the context is current in this thread
        self._call("cuInit", 0)
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if device >= count.value:
            raise UserError(f"cuda:{device}: this machine has {count.value} NVIDIA GPU(s); choose another device")
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), device)

    def _call(self, name: str, *arguments: Any) -> None:
        if self._context is not None and not getattr(self._threads, "ready", False):
            self._threads.ready = True
            self._call("cuCtxSetCurrent", self._context)  # contexts are per thread; a pipeline has several
        code = getattr(self._cuda, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            with contextlib.suppress(AttributeError):
                self._cuda.cuGetErrorString(code, ctypes.byref(text))
            raise UserError(f"CUDA driver: {name} failed with {code} ({(text.value or b'unknown error').decode()})")

    @property
    def compute_capability(self) -> str:
        """For example "8.9"."""
        values = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._device)
            values.append(str(value.value))
        return ".".join(values)

    @property
    def name(self) -> str:
        """The GPU's name."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode(errors="replace")

    @property
    def cuda_version(self) -> str:
        """Newest CUDA version that the driver supports, for example "13.0"."""
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def open(self) -> None:
        """Make the device's primary context, which torch and TensorRT share, current in every calling thread."""
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._threads.ready = True
        self._call("cuCtxSetCurrent", context)
        self._context = context

    def stream(self) -> int:
        """Handle of a new stream."""
        handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), 1)  # CU_STREAM_NON_BLOCKING
        return int(handle.value or 0)

    def synchronize(self, stream: int) -> None:
        """Wait until all work of the stream is done."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype) -> DeviceBuffer:
        """Device memory for an array of this shape, with a page-locked copy on the host."""
        return DeviceBuffer(self, shape, dtype)


class DeviceBuffer:
    """Memory on the GPU (`pointer`) and a page-locked array on the host (`host`) of the same size."""

    def __init__(self, driver: CudaDriver, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._driver = driver
        self.size = max(1, math.prod(shape)) * np.dtype(dtype).itemsize
        device, host = ctypes.c_uint64(), ctypes.c_void_p()
        driver._call("cuMemAlloc_v2", ctypes.byref(device), ctypes.c_size_t(self.size))
        driver._call("cuMemAllocHost_v2", ctypes.byref(host), ctypes.c_size_t(self.size))
        self.pointer, self._address = int(device.value), int(host.value or 0)
        memory = memoryview((ctypes.c_byte * self.size).from_address(self._address))
        self.host = np.frombuffer(memory, dtype=dtype, count=math.prod(shape)).reshape(shape)

    def upload(self, stream: int) -> None:
        """Queue the copy host -> device."""
        self._driver._call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(self.pointer),
            ctypes.c_void_p(self._address),
            ctypes.c_size_t(self.size),
            ctypes.c_void_p(stream),
        )

    def download(self, stream: int) -> None:
        """Queue the copy device -> host."""
        self._driver._call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(self._address),
            ctypes.c_uint64(self.pointer),
            ctypes.c_size_t(self.size),
            ctypes.c_void_p(stream),
        )

    def free(self) -> None:
        """Free both memories; the arrays must not be used any more."""
        self._driver._call("cuMemFree_v2", ctypes.c_uint64(self.pointer))
        self._driver._call("cuMemFreeHost", ctypes.c_void_p(self._address))


def _load_library() -> Any:
    """libcuda; UserError if there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        raise UserError("no NVIDIA driver on this machine (libcuda is missing), so no GPU can be used") from None


def find_gpu(device: int = 0) -> CudaDriver | None:
    """The driver for a GPU, or None without one."""
    try:
        return CudaDriver(device)
    except UserError:
        return None
