"""Running an ONNX artefact with ONNX Runtime, on exactly the requested provider."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.infer.artefact import Artefact
from directdet.infer.network_input import check_input
from directdet.infer.runtimes.cuda_driver import find_gpu
from directdet.infer.runtimes.library import import_library

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_SILENT = 4  # ONNX Runtime's severity "fatal": failures are reported by our own one-line errors


class OnnxBackend:
    """An ONNX Runtime session; see `predictor.Backend`.

    Args:
        artefact: of kind "onnx".
        device: "auto", "cpu", "cuda" or "cuda:N". "auto" falls back to the CPU with a warning if ONNX Runtime cannot
            use the GPU; the others never fall back.
        threads: threads inside an operator (`intra_op_num_threads`); None leaves it to ONNX Runtime.
        precision: "fp32" (default; on a GPU this switches TF32 off) or "tf32" (GPU only).

    Raises:
        UserError: ONNX Runtime or the provider is missing, or the model does not load.
    """

    runtime = "onnxruntime"

    def __init__(
        self, artefact: Artefact, device: str = "auto", threads: int | None = None, precision: str | None = None
    ) -> None:
        onnxruntime = import_library("onnxruntime", "ONNX Runtime", "pip install onnxruntime")
        wanted = device
        if device == "auto":
            usable = _CUDA in onnxruntime.get_available_providers() and find_gpu() is not None
            device = "cuda" if usable else "cpu"
        try:
            self._session = _open(onnxruntime, artefact, device, threads, precision)
        except UserError as error:
            if wanted != "auto" or device == "cpu" or precision == "tf32":
                raise
            warnings.warn(f"{error}; running on the CPU instead", stacklevel=2)
            device = "cpu"
            self._session = _open(onnxruntime, artefact, device, threads, precision)
        self._input, self._file = artefact.input_name, artefact.model_file
        inputs = self._session.get_inputs()
        shape = [size if isinstance(size, int) else None for size in inputs[0].shape]
        found = [(value.name, value.type) for value in inputs]
        self.input = check_input(artefact, found, {"tensor(float)": "float32", "tensor(uint8)": "uint8"}, shape)
        self.info: dict[str, Any] = {
            "provider": self._session.get_providers()[0],
            "device": device,
            "precision": "tf32" if precision == "tf32" else artefact.meta["precision"],
            "threads": threads,
            "versions": {"onnxruntime": onnxruntime.__version__},
        }

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Run the graph on a batch. A session may be run by several threads: it keeps nothing of a call."""
        try:
            return self._session.run(None, {self._input: images})
        except Exception as error:  # as above: of a graph that loads, but fails on this input
            raise UserError(f"{self._file}: ONNX Runtime cannot run it: {_one_line(error)}; export again") from None


def _open(runtime: Any, artefact: Artefact, device: str, threads: int | None, precision: str | None) -> Any:
    """A session whose first provider is the one for `device`."""
    provider, settings = _provider(device, precision)
    if provider not in runtime.get_available_providers():
        raise UserError(f"device {device}: this ONNX Runtime has no {provider}; pip install onnxruntime-gpu")
    if provider == _CUDA:
        if find_gpu(settings["device_id"]) is None:
            raise UserError(f"device {device}: no such NVIDIA GPU on this machine; use device cpu")
        if hasattr(runtime, "preload_dlls"):
            runtime.preload_dlls()  # finds CUDA and cuDNN where pip put them
    options = runtime.SessionOptions()
    options.log_severity_level = _SILENT
    if threads is not None:
        options.intra_op_num_threads = threads
    # CUDA leaves shape computations to the CPU, so the CPU provider is listed second; the check below makes sure that
    # it does not run the whole model.
    providers = [(provider, settings)] if provider == _CPU else [(provider, settings), _CPU]
    try:
        session = runtime.InferenceSession(str(artefact.model_file), options, providers=providers)
    except Exception as error:  # ONNX Runtime raises its own unrelated exception classes
        raise UserError(
            f"{artefact.model_file}: ONNX Runtime cannot load it: {_one_line(error)}; it was {artefact.made_with}"
        ) from None
    running = session.get_providers()[0]
    if running != provider:
        raise UserError(
            f"device {device}: ONNX Runtime fell back from {provider} to {running}; its CUDA or cuDNN libraries are "
            "missing or have the wrong version"
        )
    return session


def _provider(device: str, precision: str | None) -> tuple[str, dict[str, Any]]:
    """Provider name and options for a device name."""
    if precision not in (None, "fp32", "tf32"):
        raise UserError(
            f"precision {precision}: ONNX Runtime takes fp32 or tf32; export the model in {precision} instead"
        )
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        if precision == "tf32":
            raise UserError("precision tf32: needs a GPU; use device cuda")
        return _CPU, {}
    if kind == "cuda" and (not index or index.isdecimal()):
        return _CUDA, {"device_id": int(index or 0), "use_tf32": int(precision == "tf32")}
    raise UserError(f"device {device!r}: ONNX Runtime runs on auto, cpu, cuda or cuda:N")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
