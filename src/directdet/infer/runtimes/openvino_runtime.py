"""Running an ONNX or OpenVINO artefact with OpenVINO, in exactly the requested precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from directdet.common.cores import usable_cores
from directdet.common.errors import UserError
from directdet.infer.artefact import Artefact
from directdet.infer.network_input import check_input
from directdet.infer.runtimes.library import import_library
from directdet.infer.runtimes.openvino_core import openvino_core

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_DEVICES = {"auto": "CPU", "cpu": "CPU", "gpu": "GPU"}


class OpenVinoBackend:
    """A compiled OpenVINO model; see `predictor.Backend`.

    Args:
        artefact: of kind "onnx" or "openvino".
        device: "auto" and "cpu" mean the CPU, "gpu" an Intel GPU.
        threads: CPU threads; None leaves it to OpenVINO.
        precision: "fp32" (default), "bf16" or "fp16". By default OpenVINO silently computes in bf16 on processors that
            support it, so the precision is always set explicitly, and read back.
        in_flight: calls at the same time. For more than one, OpenVINO splits `threads`, or the cores that may be used,
            into streams of its choice.

    Raises:
        UserError: OpenVINO or the device is missing, or the model does not compile.
    """

    runtime = "openvino"

    def __init__(
        self,
        artefact: Artefact,
        device: str = "auto",
        threads: int | None = None,
        precision: str | None = None,
        in_flight: int = 1,
    ) -> None:
        openvino = import_library("openvino", "OpenVINO", "pip install openvino")
        if device not in _DEVICES:
            raise UserError(f"device {device!r}: OpenVINO runs on {', '.join(_DEVICES)}")
        if precision is not None and precision not in _PRECISIONS:
            raise UserError(f"precision {precision!r}: OpenVINO takes {', '.join(_PRECISIONS)}")
        hint = _PRECISIONS[precision or "fp32"]
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if in_flight > 1:
            settings |= {"PERFORMANCE_HINT": "THROUGHPUT", "PERFORMANCE_HINT_NUM_REQUESTS": in_flight}
            threads = threads or usable_cores()  # all of the machine's, where it may use fewer, would get in their way
        if threads is not None and _DEVICES[device] == "CPU":
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino_core()
            compiled = core.compile_model(core.read_model(artefact.model_file), _DEVICES[device], settings)
        except Exception as error:  # OpenVINO raises RuntimeError and its own classes
            raise UserError(
                f"{artefact.model_file}: OpenVINO cannot compile it for {_DEVICES[device]}: "
                f"{' '.join(str(error).split())[:300]}; it was {artefact.made_with}"
            ) from None
        running = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if running != hint:
            raise UserError(f"precision {precision or 'fp32'}: OpenVINO uses {running} on this device instead")
        shape = [size.get_length() if size.is_static else None for size in compiled.inputs[0].partial_shape]
        # A tensor has several names if a no-op node after it was removed.
        own = artefact.input_name
        found = [
            (own if own in value.names else value.any_name, value.element_type.get_type_name())
            for value in compiled.inputs
        ]
        self.input = check_input(artefact, found, {"f32": "float32", "u8": "uint8"}, shape)
        self._compiled, self._file = compiled, artefact.model_file
        self._idle: list[Any] = []  # requests that no thread uses; a request has its own inputs and outputs
        self._outputs = compiled.outputs
        exported = artefact.meta["precision"]
        self.info: dict[str, Any] = {
            "provider": ",".join(compiled.get_property("EXECUTION_DEVICES")),
            "device": _DEVICES[device].lower(),
            # A graph exported in a lower precision keeps it; the hint can only lower it further.
            "precision": exported if hint == "f32" else precision,
            "threads": threads,
            "versions": {"openvino": openvino.__version__.split("-")[0]},
        }

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Run the graph on a batch; the outputs are copied from the request's buffers."""
        try:
            request = self._idle.pop()  # pop and append are atomic, so no two threads have the same request
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            results = request.infer({0: images}, share_inputs=True)
            return [np.array(results[output]) for output in self._outputs]
        except RuntimeError as error:  # of a graph that compiles, but fails on this input
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{self._file}: OpenVINO cannot run it: {reason}; export again") from None
        finally:
            self._idle.append(request)
