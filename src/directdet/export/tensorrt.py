"""TensorRT and TensorRT-RTX engines from an ONNX file.

Both libraries have the same interface, so the same code serves both. TensorRT builds on the GPU of this machine;
TensorRT-RTX builds ahead of time for named compute capabilities, without a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from directdet.common.errors import UsageProblem, UserError
from directdet.common.files import write_bytes_atomic
from directdet.infer.runtimes.library import import_library
from directdet.infer.runtimes.names import MODULES

ENGINES = ("tensorrt", "tensorrt-rtx")  # the formats that are built here


@dataclass(frozen=True)
class EngineFacts:
    """What an engine was built with and for."""

    library: str
    version: str
    compute_capabilities: tuple[str, ...]
    layers: int

    def built_for(self) -> dict[str, Any]:
        capabilities = list(self.compute_capabilities)
        return {"library": self.library, "version": self.version, "compute_capability": capabilities}


def build_engine(
    kind: str,
    onnx_path: Path,
    engine_path: Path,
    capabilities: Sequence[str] = (),
    batch: tuple[int, int, int] = (1, 1, 1),
) -> EngineFacts:
    """Build an engine of `kind` ("tensorrt" or "tensorrt-rtx") from `onnx_path`, strongly typed.

    Args:
        capabilities: such as "8.9", for TensorRT-RTX, which puts code for all of them into one file; TensorRT builds
            for the GPU of this machine.
        batch: fewest, usual and most images of a run: the range of the engine where the graph's batch is open.

    Raises:
        UserError: the library is missing, there is no GPU where one is needed, or the parser or builder fails.
    """
    trt = _import(kind)
    messages: list[str] = []
    logger = _logger(trt, messages)
    try:
        builder = trt.Builder(logger)
    except Exception as error:  # the binding raises TypeError or RuntimeError, by version, where there is no GPU
        raise UserError(f"{kind}: the builder does not start ({_last(messages) or error}); it needs a GPU") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise UserError(f"{kind} cannot read {onnx_path}: {parser.get_error(0)}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 has to mean fp32; TF32 keeps 10 bits of each factor
    if kind == "tensorrt-rtx":
        _set_capabilities(trt, config, capabilities)
    else:
        capabilities = (_capability_here(),)
    _set_profile(builder, network, config, batch)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UserError(f"{kind} could not build the engine: {_last(messages) or 'no reason given'}")
    write_bytes_atomic(engine_path, engine)
    return EngineFacts(MODULES[kind], trt.__version__, tuple(capabilities), network.num_layers)


def _set_capabilities(trt: Any, config: Any, capabilities: Sequence[str]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for number, capability in enumerate(capabilities):
        name = f"SM{capability.replace('.', '')}"
        if not hasattr(trt.ComputeCapability, name):
            known = sorted(m for m in trt.ComputeCapability.__members__ if m.startswith("SM"))
            raise UsageProblem(
                f"--compute-capability {capability}: tensorrt-rtx {trt.__version__} knows {', '.join(known)}"
            )
        config.set_compute_capability(getattr(trt.ComputeCapability, name), number)


def _set_profile(builder: Any, network: Any, config: Any, batch: tuple[int, int, int]) -> None:
    """One optimisation profile with the three batch sizes, if the graph's batch is open."""
    tensor = network.get_input(0)
    rest = tuple(tensor.shape)[1:]
    if tensor.shape[0] > 0:
        return
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, *((size, *rest) for size in batch))
    config.add_optimization_profile(profile)


def _import(kind: str) -> Any:
    return import_library(MODULES[kind], kind, f"install directdet[{kind}]")


def _logger(trt: Any, messages: list[str]) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                messages.append(message)

    return Logger()


def _last(messages: list[str]) -> str:
    return " ".join(messages[-1].split())[:300] if messages else ""


def _capability_here() -> str:
    import torch

    if not torch.cuda.is_available():
        raise UserError("tensorrt builds on the GPU it will run on, and there is none here; use --format tensorrt-rtx")
    return ".".join(map(str, torch.cuda.get_device_capability()))
