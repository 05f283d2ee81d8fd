"""Running an engine with TensorRT or TensorRT-RTX.

The project's continuous tests have no GPU: they cover the checks before an engine is opened, and the memory handling
with a stand-in driver. TensorRT is imported when an engine is opened.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.infer.artefact import LAYOUTS, Artefact
from directdet.infer.decode import OUTPUT_NAMES
from directdet.infer.network_input import check_input
from directdet.infer.runtimes.cuda_driver import CudaDriver, DeviceBuffer
from directdet.infer.runtimes.library import import_library
from directdet.infer.runtimes.names import MODULES


class TensorRTBackend:
    """A deserialised engine with its buffers; see `predictor.Backend`.

    Args:
        artefact: of kind "tensorrt" or "tensorrt-rtx".
        device: "auto", "cuda" or "cuda:N".
        threads: ignored; an engine has no CPU threads.
        precision: must be None or the precision the engine was built in.

    Raises:
        UserError: there is no GPU or library, or the engine was built for another GPU or library version.
    """

    def __init__(
        self, artefact: Artefact, device: str = "auto", threads: int | None = None, precision: str | None = None
    ) -> None:
        self.runtime = artefact.kind
        if precision not in (None, artefact.meta["precision"]):
            raise UserError(
                f"{artefact.folder}: precision {precision}: this engine was built in {artefact.meta['precision']}; "
                "build another with `directdet export`"
            )
        try:
            self._driver = CudaDriver(_index(device))
        except UserError as error:
            raise UserError(f"{artefact.folder}: a {artefact.kind} engine needs an NVIDIA GPU: {error}") from None
        library = self._import()
        check_built_for(artefact, self._driver.compute_capability, MODULES[self.runtime], library.__version__)
        self._driver.open()
        self._logger = library.Logger(library.Logger.ERROR)
        self._runtime = library.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(artefact.model_file.read_bytes())
        if self._engine is None:
            raise UserError(f"{artefact.model_file}: {library.__name__} cannot open this engine; export again")
        self._context: Any = self._engine.create_execution_context()
        self._stream = self._driver.stream()
        self._input = artefact.input_name
        self._outputs = _output_names(self._engine, library, artefact)
        self._types = {name: library.nptype(self._engine.get_tensor_dtype(name)) for name in self._outputs}
        shape = [size if size > 0 else None for size in self._engine.get_tensor_shape(self._input)]
        kind = np.dtype(library.nptype(self._engine.get_tensor_dtype(self._input))).name
        self.input = check_input(artefact, [(self._input, kind)], {name: name for name in LAYOUTS}, shape)
        self._lock = threading.Lock()  # the context, its stream and the buffers serve one call at a time
        self._buffers: dict[str, DeviceBuffer] = {}
        self._shape: tuple[int, ...] | None = None
        self.info: dict[str, Any] = {
            "provider": f"{library.__name__} on {self._driver.name}",
            "device": f"cuda:{_index(device)}",
            "precision": artefact.meta["precision"],
            "threads": None,
            "versions": {library.__name__: library.__version__, "cuda driver": self._driver.cuda_version},
        }

    def _import(self) -> Any:
        name = MODULES[self.runtime]
        return import_library(name, name, f"pip install directdet[{self.runtime}]")

    def _resize(self, shape: tuple[int, ...]) -> None:
        """Allocate buffers for inputs of this shape, which are kept until the shape changes."""
        if not self._context.set_input_shape(self._input, shape):
            raise UserError(f"the engine does not take an input of shape {list(shape)}; export it with a larger batch")
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers, self._shape = {}, None  # if an allocation fails, nothing that was freed is used again
        self._buffers = {self._input: self._driver.buffer(shape, np.dtype(self.input.dtype))}
        for name in self._outputs:
            output_shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
            self._buffers[name] = self._driver.buffer(output_shape, np.dtype(self._types[name]))
        for name, buffer in self._buffers.items():
            self._context.set_tensor_address(name, buffer.pointer)
        self._shape = shape

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Run the engine on a batch and wait for the outputs."""
        with self._lock:
            if self._context is None:
                raise UserError("this detector was closed; open it again with Detector(path)")
            return self._run(images)

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        if images.shape != self._shape:
            self._resize(images.shape)
        self._buffers[self._input].host[...] = images
        self._buffers[self._input].upload(self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise UserError("the engine failed to run; the error printed above comes from TensorRT")
        for name in self._outputs:
            self._buffers[name].download(self._stream)
        self._driver.synchronize(self._stream)
        return [self._buffers[name].host.copy() for name in self._outputs]

    def close(self) -> None:
        """Give the GPU's memory back, once a call that is running has ended."""
        with self._lock:
            for buffer in self._buffers.values():
                buffer.free()
            self._buffers, self._shape = {}, None
            self._context = self._engine = self._runtime = None


def check_built_for(artefact: Artefact, capability: str, library: str, version: str) -> None:
    """Check that the engine was built for this machine; engines are not portable.

    Raises:
        UserError: it was built for another GPU generation or library version, e.g.
            "built for SM89 with tensorrt_rtx 1.7.1; here ...".
    """
    built = artefact.meta.get("built_for")
    if not isinstance(built, dict):
        raise UserError(f"{artefact.folder}: meta.json: built_for is missing; rebuild with `directdet export`")
    wanted = built.get("compute_capability")
    capabilities = [str(value) for value in (wanted if isinstance(wanted, list) else [wanted])]
    built_version = str(built.get("version"))
    if capability in capabilities and built_version == version and built.get("library") == library:
        return
    sm = " or ".join(f"SM{value.replace('.', '')}" for value in capabilities)
    raise UserError(
        f"{artefact.folder}: built for {sm} with {built.get('library')} {built_version}; here SM"
        f"{capability.replace('.', '')} with {library} {version}: rebuild with `directdet export` on this machine"
    )


def _index(device: str) -> int:
    kind, _, index = device.partition(":")
    if device != "auto" and (kind != "cuda" or (index and not index.isdecimal())):
        raise UserError(f"device {device!r}: TensorRT runs on auto, cuda or cuda:N")
    return int(index or 0)


def _output_names(engine: Any, library: Any, artefact: Artefact) -> list[str]:
    """Names of the engine's outputs in the order num, boxes, scores, labels[, masks]."""
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    outputs = [name for name in names if engine.get_tensor_mode(name) == library.TensorIOMode.OUTPUT]
    ordered = [name for name in OUTPUT_NAMES if name in outputs]
    if sorted(ordered) != sorted(outputs):
        raise UserError(f"{artefact.model_file}: outputs {outputs}, expected {list(OUTPUT_NAMES)}; export again")
    return ordered
