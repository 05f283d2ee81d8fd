"""RoI pooling in turn compared with all of it at once: time, and the memory that it takes, on a CPU.

Box RoIs of a 448x448 picture from maps of 256 channels, 7x7 bins, exported, in ONNX Runtime and OpenVINO, and PyTorch's
form, an EmbeddingBag. Both exported forms take turns in one process, on one thread; ratios are of neighbouring runs.
Memory is measured in a process of its own: how much the largest resident memory grows in the first run.

    taskset -c 0 python scripts/roi_pool.py
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from measure import in_process, parser, quantiles, write_results
from torch import Tensor, nn

from directdet.models.parts import roi_pool

COUNTS = (50, 300, 1000)
SIZE, CHANNELS, BINS, STRIDES = 448, 256, 7, [4, 8, 16, 32]
FORMS = {"onnxruntime": ("at once", "in turn"), "openvino": ("at once", "in turn"), "torch": ("bag",)}
NAMES = ("rois", "p2", "p3", "p4", "p5")
ALL = 2**62  # values gathered at a time: no limit


class Pool(nn.Module):
    """forward(rois [1, K, 4], maps) -> [K, C, 7, 7], in PyTorch's form or the exported one."""

    def __init__(self, portable: bool):
        super().__init__()
        self.portable = portable

    def forward(self, rois: Tensor, *maps: Tensor) -> Tensor:
        image = torch.zeros(rois.shape[1], dtype=torch.int64)
        return roi_pool.pool_rois(roi_pool.pyramid_rows(list(maps), STRIDES), rois[0], image, BINS, self.portable)


def make_inputs(count: int, tiny: bool) -> tuple[Tensor, ...]:
    """RoIs of sides from 6 to 330 pixels, and random maps."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(count, 2, generator=generator) * SIZE
    side = 6 * torch.exp(4 * torch.rand(count, 2, generator=generator))
    rois = torch.cat([(centre - side / 2).clamp(min=0), (centre + side / 2).clamp(max=SIZE)], 1)[None]
    channels = 8 if tiny else CHANNELS
    return rois, *(torch.randn(1, channels, SIZE // s, SIZE // s, generator=generator) for s in STRIDES)


def file_of(folder: Path, count: int, form: str) -> Path:
    """The exported graph of a form."""
    return folder / f"{count}_{form.replace(' ', '_')}.onnx"


def export(folder: Path, count: int, tiny: bool) -> None:
    """Both forms as ONNX."""
    inputs = make_inputs(count, tiny)
    for form in FORMS["onnxruntime"]:
        with mock.patch.object(roi_pool, "GATHERED", ALL if form == "at once" else roi_pool.GATHERED):
            torch.onnx.export(
                Pool(portable=True).eval(),
                inputs,
                str(file_of(folder, count, form)),
                dynamo=True,
                opset_version=18,
                input_names=list(NAMES),
                external_data=False,
                verbose=False,
            )


def runner(folder: Path, runtime: str, count: int, form: str, tiny: bool) -> Callable[[], object]:
    """What runs one form once."""
    inputs = make_inputs(count, tiny)
    feed = {name: value.numpy() for name, value in zip(NAMES, inputs, strict=True)}
    path = file_of(folder, count, form)
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, feed)
    if runtime == "openvino":
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
        compiled = openvino.compile_model(openvino.Core().read_model(path), "CPU", settings)
        request = compiled.create_infer_request()
        return lambda: request.infer(feed, share_inputs=True)
    pool = Pool(portable=False)

    def run() -> Tensor:
        with torch.inference_mode():
            return pool(*inputs)

    return run


def peak_mib() -> float:
    """Largest resident memory since it was last reset."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def time_forms(given: argparse.Namespace, runtime: str, count: int) -> dict:
    """Milliseconds of each form, and how many times as fast as the first the others are."""
    first, *others = FORMS[runtime]
    runs = {form: runner(given.folder, runtime, count, form, given.tiny) for form in FORMS[runtime]}
    times: dict[str, list[float]] = {form: [] for form in runs}
    for step in range(-2, given.runs):
        for form, run in runs.items():
            start = time.perf_counter()
            run()
            if step >= 0:
                times[form].append(1e3 * (time.perf_counter() - start))
    rows: dict[str, dict] = {form: quantiles(values) for form, values in times.items()}
    for form in others:
        rows[form]["speedup"] = statistics.median(a / b for a, b in zip(times[first], times[form], strict=True))
    return rows


def memory(given: argparse.Namespace, runtime: str, count: int, form: str) -> dict:
    """MiB that the first run takes."""
    run = runner(given.folder, runtime, count, form, given.tiny)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before = peak_mib()
    run()
    return {"mib": peak_mib() - before}


def in_cell(given: argparse.Namespace) -> dict:
    """What the process of one cell measures."""
    torch.set_num_threads(1)
    runtime, count, form = given.cell.split("/")
    return memory(given, runtime, int(count), form) if form else time_forms(given, runtime, int(count))


def main() -> None:
    made = parser(__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = made.parse_args()
    if given.cell:
        print(json.dumps(in_cell(given)))
        return
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        shared = ["--folder", folder, "--runs", str(given.runs), *(["--tiny"] if given.tiny else [])]
        for count in COUNTS[:1] if given.tiny else COUNTS:
            export(Path(folder), count, given.tiny)
            for runtime, (first, *_) in FORMS.items():
                taken: dict[str, float] = {}
                for form, row in in_process(__file__, f"{runtime}/{count}/", *shared).items():
                    taken[form] = in_process(__file__, f"{runtime}/{count}/{form}", *shared)["mib"]
                    row |= {"rois": count, "mib": taken[form], "share_of_memory": taken[form] / taken[first]}
                    rows[f"{runtime}, {count}, {form}"] = row
                    print(
                        f"{runtime:12s} {count:5d} RoIs {form:8s} {row['median_ms']:8.1f} ms   {taken[form]:6.0f} MiB "
                        f"({row['share_of_memory']:.2f})   {row.get('speedup', 1):.2f} times as fast",
                        flush=True,
                    )
    settings = {"size": SIZE, "channels": CHANNELS, "bins": BINS, "gathered": roi_pool.GATHERED, "threads": 1}
    print(write_results("roi_pool_cpu", settings, rows, given.results))


if __name__ == "__main__":
    main()
