"""What a picture costs once deployed, ours against another tool's export: from pixels to boxes, in every CPU runtime.

    python scripts/deployed.py --run RUN --data DATA --other BEST.pt --other-python PYTHON --work DIR

RUN is a trained run of ours, BEST.pt a model that Ultralytics trained (AGPL: installed by whoever runs this in another
environment, PYTHON; nothing of it is imported here). Both are exported at each size and run on DATA's val pictures:
letterbox, network, boxes in the picture's pixels, ours with its NMS inside the graph. Every cell has a process of its
own, and they take turns, so that what the machine does meanwhile hits all alike. The same pycocotools scores what was
found. Writes results/deployed.json.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure import in_process, parser, quantiles, write_results
from race import detections_of, figures

from directdet.data.records import Dataset
from directdet.infer.accuracy.evaluate import score_detections
from directdet.infer.predict.sources import read_for_detector
from directdet.train.data import load_splits

SIDES = (320, 448, 640)
OURS = (
    ("onnx", "fp32", "onnxruntime"),
    ("openvino", "fp32", "openvino"),
    ("openvino", "bf16", "openvino"),
    ("openvino", "int8", "openvino"),
)
THEIRS = (("fp32", "onnxruntime"), ("fp32", "openvino"), ("bf16", "openvino"))
LOWEST = 0.001  # score of the detections that are kept, as COCO's evaluation expects many
Boxes = list[tuple[int, float, np.ndarray]]  # label, score, corners


def our_artefact(given: Any, side: int, form: str, precision: str) -> Path:
    """Our run as an artefact of this size, made once; OpenVINO computes fp32's in bf16 where it is told to."""
    from directdet.export.options import ExportOptions
    from directdet.export.run import export

    precision = "fp32" if precision == "bf16" else precision
    out = given.work / f"ours-{side}-{form}-{precision}"
    if not (out / "meta.json").is_file():
        export(given.run, out, ExportOptions(form, precision, size=(side, side)), given.data, ap_images=0)
    return out


def their_graph(given: Any, side: int) -> Path:
    """Their model as an ONNX file of this size; made once."""
    out = given.work / f"theirs-{side}.onnx"
    if not out.is_file():
        weights = given.work / f"theirs-{side}.pt"
        shutil.copyfile(given.other, weights)
        options = f"format='onnx', imgsz={side}, simplify=False, nms=False"
        code = f"from ultralytics import YOLO; YOLO({str(weights)!r}).export({options})"
        subprocess.run([str(given.other_python), "-c", code], check=True, capture_output=True, cwd=given.work)
    return out


def our_detector(artefact: Path, precision: str, runtime: str, threads: int) -> Callable[[np.ndarray], Boxes]:
    from directdet.infer.runtimes.load import load

    predictor = load(artefact, runtime, "cpu", threads, "bf16" if precision == "bf16" else None)

    def detect(image: np.ndarray) -> Boxes:
        (found,) = predictor.detect_batch([image])
        return list(zip(found.labels.tolist(), found.scores.tolist(), found.boxes, strict=True))

    return detect


def their_detector(graph: Path, side: int, precision: str, runtime: str, threads: int) -> Callable[[np.ndarray], Boxes]:
    """Letterbox onto grey as that tool does it, network, rows (x0, y0, x1, y1, score, class) without NMS."""
    run = _session(graph, precision, runtime, threads)

    def detect(image: np.ndarray) -> Boxes:
        height, width = image.shape[:2]
        scale = side / max(height, width)
        size = round(width * scale), round(height * scale)
        left, top = (side - size[0]) // 2, (side - size[1]) // 2
        canvas = np.full((side, side, 3), 114, np.uint8)
        canvas[top : top + size[1], left : left + size[0]] = cv2.resize(image, size)
        batch = np.ascontiguousarray(canvas[None, :, :, ::-1].transpose(0, 3, 1, 2), np.float32) / 255
        rows = run(batch)[0]
        rows = rows[rows[:, 4] > LOWEST]
        corners = (rows[:, :4] - (left, top, left, top)) / scale
        corners = corners.clip(0, (width, height, width, height))
        return [(int(row[5]), float(row[4]), box) for row, box in zip(rows, corners, strict=True)]

    return detect


def _session(graph: Path, precision: str, runtime: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    if runtime == "openvino":
        import openvino

        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],  # unsaid, it is bf16 here
        }
        compiled = openvino.Core().compile_model(graph, "CPU", options)
        return lambda batch: compiled([batch])[0]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0])


def measure(given: Any) -> dict[str, Any]:
    """One cell: the median time of a picture, and the AP of what was found."""
    who, side, form, precision, runtime = given.cell.split("/")
    if who == "ours":
        artefact = our_artefact(given, int(side), form, precision)
        detect = our_detector(artefact, precision, runtime, given.threads)
    else:
        detect = their_detector(their_graph(given, int(side)), int(side), precision, runtime, given.threads)
    val = _val(given)
    images = [read_for_detector(record.path) for record in val.records]
    for image in images[:5]:
        detect(image)
    times, rows = [], []
    for record, image in zip(val.records, images, strict=True):
        start = time.perf_counter()
        found = detect(image)
        times.append(1e3 * (time.perf_counter() - start))
        rows += [(record.image_id, label, score, *map(float, box)) for label, score, box in found]
    row = figures(score_detections(detections_of(rows, val), val))
    return {"times": times, "AP": row["AP"], "AP50": row["AP50"]}


def _val(given: Any) -> Dataset:
    _, val = load_splits(given.data)
    if val is None:
        raise SystemExit(f"{given.data}: has no val split to run on")
    return val


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--run", type=Path, required=True, help="a trained run of ours")
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--other", type=Path, required=True, help="the other tool's best.pt")
    options.add_argument("--other-python", type=Path, required=True)
    options.add_argument("--work", type=Path, default=Path("runs/deployed"))
    options.add_argument("--sides", type=int, nargs="+", default=list(SIDES))
    given = options.parse_args()
    given.work = given.work.resolve()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.cell:
        print(json.dumps(measure(given)))
        return
    cells = [f"ours/{side}/{form}/{what}/{runtime}" for side in given.sides for form, what, runtime in OURS]
    cells += [f"theirs/{side}/onnx/{precision}/{runtime}" for side in given.sides for precision, runtime in THEIRS]
    for side in given.sides:
        their_graph(given, side)
        for form, precision, _ in OURS:
            our_artefact(given, side, form, precision)
    words = []
    for key in ("run", "data", "other", "other_python", "work", "threads"):
        words += [f"--{key.replace('_', '-')}", str(getattr(given, key))]
    found: dict[str, list[dict[str, Any]]] = {cell: [] for cell in cells}
    for turn in range(given.rounds):
        for cell in cells:
            found[cell].append(in_process(__file__, cell, *words))
            median = statistics.median(found[cell][-1]["times"])
            print(f"{turn + 1}/{given.rounds} {cell}: {median:.1f} ms, AP {found[cell][-1]['AP']:.1f}", flush=True)
    rows = {
        cell: {"label": cell, "AP": runs[0]["AP"], "AP50": runs[0]["AP50"]}
        | quantiles([one for run in runs for one in run["times"]])
        for cell, runs in found.items()
    }
    settings = {"threads": given.threads, "rounds": given.rounds, "pictures": len(_val(given).records)}
    path = write_results("deployed", {**settings, "data": given.data.name}, rows, given.results)
    print(f"{os.fspath(path)} written")


if __name__ == "__main__":
    main()
