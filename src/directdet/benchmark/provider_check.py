"""Whether a model runs on the device asked for: no benchmark may time a CPU that stepped in for a GPU."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.infer.predictor import Predictor
from directdet.infer.runtimes.cuda_driver import find_gpu

_ONNX_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# A GPU may leave the arithmetic of shapes to the CPU; these operators are the network itself.
_HEAVY = {"Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm"}


@dataclass(frozen=True)
class ProviderCheck:
    """What a model was asked to run on, and what it ran on.

    Attributes:
        asked: the device asked for.
        expected: the kind of device that means: "cpu", "cuda" or "gpu".
        provider, device: what the runtime says it runs on.
        nodes: ONNX Runtime: how many nodes each of its providers executed.
    """

    asked: str
    expected: str
    provider: str
    device: str
    nodes: dict[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; "nodes" only where they were counted."""
        return {name: value for name, value in asdict(self).items() if name != "nodes" or value is not None}


def check_provider(asked: str, detector: Predictor) -> ProviderCheck:
    """Compare the device asked for with what the runtime says it runs on.

    Args:
        asked: as `runtimes.load` takes it. "auto" asks ONNX Runtime and torch for the GPU where the machine has one.
        detector: loaded for that device.

    Raises:
        UserError: it runs on another device.
    """
    expected = _expected(asked, detector.runtime)
    provider, device = str(detector.info["provider"]), str(detector.info["device"])
    wanted_index = asked.partition(":")[2] or "0"
    same_index = expected != "cuda" or asked == "auto" or (device.partition(":")[2] or "0") == wanted_index
    if not same_index or not _runs_on(expected, detector.runtime, provider, device):
        remedy = "; ask for --device cpu if that is what you want" if asked == "auto" else ""
        raise UserError(
            f"device {asked}: {detector.runtime} runs on {provider} ({device}) and not on the "
            f"{'CPU' if expected == 'cpu' else 'GPU'}{remedy}"
        )
    return ProviderCheck(asked, expected, provider, device)


def _expected(asked: str, runtime: str) -> str:
    """The kind of device that has to run the model: "cpu", "cuda" or "gpu" (OpenVINO's)."""
    if runtime.startswith("tensorrt"):
        return "cuda"
    if asked != "auto":
        return asked.partition(":")[0]
    return "cuda" if runtime in ("onnxruntime", "torch") and find_gpu() is not None else "cpu"


def _runs_on(expected: str, runtime: str, provider: str, device: str) -> bool:
    kind = device.partition(":")[0]
    if runtime == "onnxruntime":
        return provider == _ONNX_PROVIDERS.get(expected) and kind == expected
    if runtime == "openvino":
        return provider.startswith(expected.upper()) and kind == expected
    return kind == expected


def onnx_nodes(model: Path, provider: str, device: str, images: np.ndarray) -> dict[str, int]:
    """How many nodes of an ONNX model each provider of ONNX Runtime executes, from its own profile of one run.

    Args:
        model: the file. provider, device: as in `Predictor.info`.
        images: an input batch.

    Raises:
        UserError: convolutions or matrix products run on another provider.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_profiling = True
    index = int(device.partition(":")[2] or 0)
    providers: list[Any] = [provider] if provider == _ONNX_PROVIDERS["cpu"] else [(provider, {"device_id": index})]
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(model), options, providers=providers)
        session.run(None, {session.get_inputs()[0].name: images})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    counts: Counter[str] = Counter()
    elsewhere: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            where = event["args"]["provider"]
            counts[where] += 1
            if where != provider and event["args"]["op_name"] in _HEAVY:
                elsewhere[event["args"]["op_name"]] += 1
    if elsewhere:
        shown = ", ".join(f"{number} {name}" for name, number in elsewhere.most_common())
        raise UserError(f"{model}: {shown} did not run on {provider}: the times would not be those of {provider}")
    return dict(counts)
