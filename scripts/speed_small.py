"""What exporting a small detector gives on a CPU, and how much of its time is post-processing, on real pictures.

    python scripts/speed_small.py --run demo RUN DATA --run rtmdet_nano RUN DATA

Each detector in PyTorch, ONNX Runtime and OpenVINO, fp32, a thread each; the network with its post-processing, without
preparing the picture. All take turns on the first val pictures, and processor time is counted, so that other work on
the machine slows all of them alike. With masks, every one also computes the masks of all slots, as all did before masks
followed the detections, and, as `export --score 0.3` has it, those of detections with such a score alone.
Post-processing is what an artefact takes beyond its layers alone (`speed_models.Layers`), which get as many pooled
boxes as it computes masks.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from measure import parser, write_results
from speed_models import write_layers
from speed_parts import layers_alone

from directdet.data.dataset import load_dataset
from directdet.export.deployed import deployed_preprocess
from directdet.export.onnx_graph import write_onnx
from directdet.export.verification.verify import network_of
from directdet.infer.predict.sources import read_for_detector
from directdet.infer.runtimes.load import find_model
from directdet.infer.runtimes.torch_runtime import load_torch
from directdet.models.build import deploy_model
from directdet.models.parts import masks
from directdet.models.parts.network import Network

# A batch: normalised, as PyTorch takes it, and as pixels, as an artefact does.
Batch = tuple[np.ndarray, np.ndarray]
Run = Callable[[Batch], Any]
RUNTIMES = ("onnxruntime", "openvino")
SCORE = 0.3
FORMS = ("", ", all", ", sure")  # as it is exported; with the masks of all slots; with SCORE


def graph_run(path: Path, runtime: str) -> Run:
    """Runs a graph with the input "images", uint8 pixels, on one thread."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda batch: session.run(None, {"images": batch[1]})
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    request = openvino.compile_model(openvino.Core().read_model(path), "CPU", settings).create_infer_request()
    return lambda batch: request.infer({0: batch[1]}, share_inputs=True)


@contextlib.contextmanager
def all_slots() -> Iterator[None]:
    """Eager masks of all slots, as on a GPU."""
    with mock.patch.object(masks, "can_look", lambda values: False):
        yield


@contextlib.contextmanager
def only_sure(model: Network) -> Iterator[None]:
    """The network with SCORE as its threshold."""
    config = model.config
    model.config = replace(config, score_threshold=SCORE)
    try:
        yield
    finally:
        model.config = config


def measure(run: Path, data: Path, count: int, rounds: int, folder: Path) -> dict[str, dict]:
    """A row for PyTorch and each runtime: milliseconds and, of all in turns, ratios to PyTorch and shares."""
    trained = load_torch(find_model(run)[1], device="cpu")
    preprocess, model = deployed_preprocess(trained.preprocess, None), network_of(trained)
    records = load_dataset(data, "val").records[:count]
    pictures = [read_for_detector(record.path, record.pixels) for record in records]
    batches = [(preprocess(one)[0][None], preprocess.letterbox(one)[0][None]) for one in pictures]
    eager, has_masks = deploy_model(model, preprocess.size).eval(), model.config.masks

    def torch_run(batch: Batch) -> Any:
        with torch.inference_mode():
            return eager(torch.from_numpy(batch[0]))

    runs, found, slots = {}, {}, {}
    for form in FORMS if has_masks else FORMS[:1]:
        around = {"": contextlib.nullcontext, ", all": all_slots, ", sure": lambda: only_sure(model)}[form]

        def torch_form(batch: Batch, around: Callable[[], AbstractContextManager] = around) -> Any:
            with around():
                return torch_run(batch)

        runs[f"torch{form}"] = torch_form
        found[form] = [int(torch_form(batch)[0]) for batch in batches]
        room, step = model.config.detections, masks.AT_A_TIME
        blocks = max(1, -(-round(statistics.median(found[form])) // step))
        slots[form] = 0 if not has_masks else room if form == ", all" else min(room, blocks * step)
        graph, layers = (folder / f"{form.lstrip(', ')}{kind}.onnx" for kind in ("graph", "layers"))
        with around():
            if not graph.exists():
                write_onnx(model, preprocess.size, 1, graph, preprocess, loops=form != ", all")
            if not layers.exists():
                write_layers(model, preprocess.size, layers, None if form == ", all" else slots[form])
        for name in RUNTIMES:
            alone = layers_alone(layers, name, "fp32", 1)
            runs[name + form] = graph_run(graph, name)
            runs[f"{name}{form}, layers"] = lambda batch, alone=alone: alone()
    take_turns(runs, batches, 1)  # warm-up
    times = take_turns(runs, batches, rounds)
    rows = {}
    for form in found:
        for runtime in ("torch", *RUNTIMES):
            name = runtime + form
            row: dict[str, Any] = {"ms": times[name], "to_torch": times[f"torch{form}"] / times[name]}
            row["to_torch_all"] = times["torch, all"] / times[name] if has_masks else row["to_torch"]
            if runtime != "torch":
                row["postprocessing"] = 1 - times[f"{name}, layers"] / times[name]
            rows[name] = row | {"detections": found[form], "mask_slots": slots[form]}
    return rows


def milliseconds(run: Run, batches: list[Batch]) -> float:
    """Processor time of one pass over the batches."""
    start = time.process_time()
    for batch in batches:
        run(batch)
    return 1e3 * (time.process_time() - start) / len(batches)


def take_turns(runs: dict[str, Run], batches: list[Batch], rounds: int) -> dict[str, float]:
    """Median milliseconds a picture of each, all in turns, round by round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(milliseconds(run, batches))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    made = parser(__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--run", nargs=3, action="append", required=True, metavar=("NAME", "RUN", "DATA"))
    made.add_argument("--pictures", type=int, default=8, help="of the val split")
    made.add_argument("--graphs", type=Path, metavar="DIR", help="keep the graphs there, and take those that are there")
    given = made.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name, run, data in given.run:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (given.graphs or Path(temporary)) / name
            folder.mkdir(parents=True, exist_ok=True)
            found = measure(Path(run), Path(data), given.pictures, given.rounds, folder)
        for runtime, row in found.items():
            rows[f"{name}/{runtime}"] = row
            print(f"{name}/{runtime}: {row}", flush=True)
    settings = {"threads": 1, "pictures": given.pictures, "rounds": given.rounds}
    print(write_results("speed_small_cpu", settings, rows, given.results))


if __name__ == "__main__":
    main()
