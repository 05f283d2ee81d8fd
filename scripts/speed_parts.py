"""What speed.py compares its cells with: their layers alone, a large matrix product, and the time of each operator."""

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np


def layers_alone(path: Path, runtime: str, precision: str, threads: int) -> Callable[[], object]:
    """Runs a network cut at its raw maps, as `speed_models.write_layers` writes it."""
    return _onnx_layers(path, threads) if runtime == "onnxruntime" else _openvino_layers(path, threads, precision)


def median_difference(whole: Callable[[], object], part: Callable[[], object], runs: int, warmup: int) -> float:
    """Milliseconds that `whole` takes beyond `part`, which take turns: other work on the machine slows both."""
    differences = []
    for step in range(-warmup, runs):
        start = time.perf_counter()
        whole()
        between = time.perf_counter()
        part()
        end = time.perf_counter()
        if step >= 0:
            differences.append(1e3 * (2 * between - start - end))
    return statistics.median(differences)


def _feed(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _onnx_layers(path: Path, threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = _feed({value.name: value.shape for value in session.get_inputs()})
    return lambda: session.run(None, feed)


def _openvino_layers(path: Path, threads: int, precision: str) -> Callable[[], object]:
    import openvino

    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(openvino.Core().read_model(path), "CPU", settings)
    request = compiled.create_infer_request()
    feed = _feed({value.any_name: list(value.shape) for value in compiled.inputs})
    return lambda: request.infer(feed, share_inputs=True)


def roofline(threads: int, side: int) -> dict[str, float]:
    """Billions of multiply-accumulates a second of one large matrix product, the best of ten, by precision."""
    import torch

    torch.set_num_threads(threads)
    numbers = torch.randint(-9, 9, (side, side), generator=torch.Generator().manual_seed(0))
    products = {
        "fp32": (torch.mm, numbers.float()),
        "bf16": (torch.mm, numbers.bfloat16()),
        # torch has no other int8 product on a CPU.
        "int8": (torch._int_mm, numbers.to(torch.int8)),  # pyright: ignore[reportPrivateImportUsage]
    }
    found = {}
    for name, (product, matrix) in products.items():
        best = float("inf")
        for _ in range(10):
            start = time.perf_counter()
            product(matrix, matrix)
            best = min(best, time.perf_counter() - start)
        found[name] = side**3 / best / 1e9
    return found


def operator_shares(path: Path, threads: int, runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds and share of ONNX Runtime's node time by operator, largest first."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(path.parent / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
    feed = {
        value.name: np.random.default_rng(0).uniform(0, 2, value.shape).astype(kinds[value.type])
        for value in session.get_inputs()
    }
    for _ in range(runs):
        session.run(None, feed)
    spent: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"] / 1e3 / runs
    total = spent.total()
    return {name: {"ms": ms, "share": ms / total} for name, ms in spent.most_common(10)}
