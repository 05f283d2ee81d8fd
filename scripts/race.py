"""A race from random weights: who finds most after the same time on the same core, and what a picture then costs.

Every contestant learns the same train split on one core for the same time, in a process of its own, one after the
other. The same evaluator (pycocotools) scores what each finds on the same val pictures. Then each network is timed in
ONNX Runtime, alone. Results are kept after each run; the same command continues.

    python scripts/race.py --data DATA --minutes 10 --seeds 0 1 2
    python scripts/race.py --data DATA --contestants rtmdet_tiny ultralytics/yolo26n --other-python .race/bin/python
    python scripts/race.py --report

Names are recipes of ours, "torchvision/ssdlite", or "ultralytics/NAME", which needs a Python where you installed that
tool (AGPL; see race_others.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import ROOT, measured_on, milliseconds
from tables_realtime import race_rows

from directdet.common.files import write_json_atomic
from directdet.data.records import Dataset, Record
from directdet.infer.accuracy.evaluate import Metrics, score_detections
from directdet.infer.detections import Detections
from directdet.recipes.recipe import Phase
from directdet.train.data import load_splits

OURS = ("mask_rcnn_r18_slim", "retinanet_r18_slim")
CONTESTANTS = (*OURS, "torchvision/ssdlite", "ultralytics/yolo26n")
SIDE = 320  # pixels of the others' canvas
THREADS = 2  # of the timed network


def task_of(train: Dataset, val: Dataset, given: argparse.Namespace, seed: int, out: Path) -> dict[str, Any]:
    """What race_others.py needs to know, as plain values."""

    def plain(record: Record) -> dict[str, Any]:
        used = ~(record.crowd | record.difficult)
        return {
            "image_id": record.image_id,
            "path": str(record.path.resolve()),
            "width": record.width,
            "height": record.height,
            "boxes": record.boxes[used].tolist(),
            "labels": record.labels[used].tolist(),
        }

    return {
        "classes": list(train.classes),
        "train": [plain(record) for record in train.records],
        "val": [plain(record) for record in val.records],
        "seconds": 60 * given.minutes,
        "seed": seed,
        "side": SIDE,
        "device": given.device,
        "out": str(out),
        "result": str(out / "result.json"),
    }


def others(name: str, task: dict[str, Any], given: argparse.Namespace, val: Dataset) -> dict[str, Any]:
    """A contestant of another tool, in its own process."""
    tool, _, network = name.partition("/")
    path = Path(task["out"]) / "task.json"
    write_json_atomic(path, task)
    python = given.other_python if tool == "ultralytics" and given.other_python else sys.executable
    command = [str(python), str(Path(__file__).with_name("race_others.py")), tool, network, str(path)]
    with (path.parent / "log.txt").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False, preexec_fn=one_core(given))
    if done.returncode:
        raise SystemExit(f"{name}: failed; see {path.parent / 'log.txt'}")
    result = json.loads(Path(task["result"]).read_text(encoding="utf-8"))
    metrics = score_detections(detections_of(result.pop("found"), val), val)
    onnx = result.pop("onnx")
    return {**result, **figures(metrics), "graph": onnx}


def one_core(given: argparse.Namespace) -> Any:
    """Run in the child before its program: one core, the last, and one thread in every library."""
    threads = str(given.cores)

    def limit() -> None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = threads
        if given.device == "cpu":
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-given.cores :])

    return limit


def detections_of(found: Sequence[Sequence[float]], val: Dataset) -> list[tuple[int, Detections]]:
    """Rows (image id, label, score, x0, y0, x1, y1) as detections of each picture, the best 100."""
    by_image: dict[int, list[Sequence[float]]] = {record.image_id: [] for record in val.records}
    for row in found:
        by_image[int(row[0])].append(row)
    result = []
    for record in val.records:
        rows = sorted(by_image[record.image_id], key=lambda row: -row[2])[:100]
        table = np.array(rows, np.float64).reshape(-1, 7)
        one = Detections(table[:, 3:], table[:, 2], table[:, 1], None, (record.height, record.width))
        result.append((record.image_id, one))
    return result


def figures(metrics: Metrics) -> dict[str, Any]:
    """AP in percent."""
    row = {"AP": 100 * metrics.bbox["AP"], "AP50": 100 * metrics.bbox["AP50"], "AP75": 100 * metrics.bbox["AP75"]}
    return {**row, "mask_AP": 100 * metrics.segm["AP"] if metrics.segm else None}


def ours(name: str, given: argparse.Namespace, seed: int, out: Path) -> dict[str, Any]:
    """A recipe of ours in its own process; see `run_recipe`."""
    command = [sys.executable, __file__, "--recipe", name, "--seeds", str(seed), "--out", str(out)]
    command += ["--data", str(given.data), "--minutes", str(given.minutes), "--device", given.device]
    command += [part for setting in given.set for part in ("--set", setting)]
    with (out / "log.txt").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False, preexec_fn=one_core(given))
    if done.returncode:
        raise SystemExit(f"{name}: failed; see {out / 'log.txt'}")
    return json.loads((out / "result.json").read_text(encoding="utf-8"))


def run_recipe(given: argparse.Namespace) -> None:
    """Train a recipe, its phases shortened or lengthened to fill the time, evaluate it and export it."""
    import torch

    from directdet.export.options import ExportOptions
    from directdet.export.run import export
    from directdet.infer.accuracy.evaluate import evaluate
    from directdet.infer.runtimes.load import load
    from directdet.recipes.by_name import get_recipe
    from directdet.recipes.derived import images_per_step, passes_per_epoch
    from directdet.recipes.settings import apply_settings
    from directdet.reproduce.budget import seconds_of_steps
    from directdet.train.objects import fitted
    from directdet.train.run import train

    began = time.perf_counter()
    recipe = apply_settings(get_recipe(given.recipe), list(given.set))
    train_set, val = load_splits(given.data)
    assert val is not None
    recipe, _ = fitted(recipe, train_set)
    needed = evaluating = 0.0
    for phase in recipe.phases:
        pace = seconds_of_steps(recipe, phase, train_set, val, torch.device(given.device))
        evaluating = pace.evaluation  # only the last phase is evaluated
        per_epoch = len(train_set) * passes_per_epoch(phase) / images_per_step(phase, 1)
        needed += (phase.iterations or phase.epochs * per_epoch) * pace.step
    share = (60 * given.minutes - (time.perf_counter() - began) - evaluating) / needed
    for phase in recipe.phases:
        last = phase is recipe.phases[-1]
        recipe = recipe.with_phase(phase.name, **scaled(phase, share), eval_every=10**6 if last else 0)
    train(recipe, given.data, given.out / "run", device=given.device, seed=given.seeds[0])
    seconds = time.perf_counter() - began
    metrics = evaluate(load(given.out / "run", device=given.device), val, progress=False)
    artefact = export(given.out / "run", given.out / "onnx", ExportOptions(input="float32")).artefact
    size = json.loads((artefact / "meta.json").read_text(encoding="utf-8"))["preprocess"]["size"]
    row = {"seconds": seconds, **figures(metrics), "canvas": size, "graph": str(artefact / "model.onnx")}
    row["phases"] = {phase.name: phase.iterations or phase.epochs for phase in recipe.phases}
    row["version"] = f"torch {torch.__version__}"
    write_json_atomic(given.out / "result.json", row)


def scaled(phase: Phase, share: float) -> dict[str, int]:
    """A phase's length times `share`; its drops of the learning rate stay in proportion."""
    length = "iterations" if phase.iterations else "epochs"
    return {length: max(1, round(getattr(phase, length) * share))}


def time_graph(path: str | None, runs: int = 50) -> dict[str, float] | None:
    """Milliseconds of one picture of noise through a graph in ONNX Runtime."""
    if path is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    shape = [side if isinstance(side, int) else 1 for side in given.shape]
    picture = np.random.default_rng(0).random(shape).astype(np.float32)
    return milliseconds(lambda: session.run(None, {given.name: picture}), runs, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cores", type=int, default=1, help="of each contestant in training  [default: 1]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of our recipes")
    parser.add_argument("--other-python", type=Path, metavar="PYTHON", help="that has Ultralytics")
    parser.add_argument(
        "--out", type=Path, default=Path("race"), metavar="DIR", help="what is trained  [default: race]"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument("--report", action="store_true", help="only print the table")
    parser.add_argument("--time", action="store_true", help="only time every graph again, on a quiet machine")
    parser.add_argument("--recipe", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.recipe:
        run_recipe(given)
        return
    path = given.results / "race.json"
    rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else {}
    if given.time:
        for row in rows.values():
            row["milliseconds"] = time_graph(row["graph"])
        write(path, rows, given)
    elif not given.report:
        if given.data is None:
            parser.error("--data")
        race(given, rows, path)
    report(rows)


def race(given: argparse.Namespace, rows: dict[str, Any], path: Path) -> None:
    """Run what is not in `rows` yet."""
    train_set, val = load_splits(given.data)
    if val is None:
        raise SystemExit(f"{given.data}: has no val split to score on")
    for seed in given.seeds:
        for name in given.contestants:
            changed = [] if "/" in name else [one for one in given.set if not one.startswith("precision=")]
            label = ", ".join([name, *changed])
            key = f"{given.data.name}/{given.minutes:g} min/{label}/seed {seed}"
            if key in rows:
                continue
            out = (given.out / key.replace("/", "_").replace(" ", "_")).resolve()
            out.mkdir(parents=True, exist_ok=True)
            if "/" in name:
                row = others(name, task_of(train_set, val, given, seed, out), given, val)
            else:
                row = ours(name, given, seed, out)
            row["milliseconds"] = time_graph(row["graph"])
            row |= {"data": given.data.name, "minutes": given.minutes, "contestant": label, "seed": seed}
            row["images"] = [len(train_set), len(val)]
            row["settings"] = [] if "/" in name else given.set
            rows[key] = row
            write(path, rows, given)
            print(f"{key}: AP {row['AP']:.1f} after {row['seconds']:.0f} s", flush=True)


def write(path: Path, rows: dict[str, Any], given: argparse.Namespace) -> None:
    """Keep all rows, with the machine they were measured on."""
    write_json_atomic(path, {**measured_on(), "settings": {"cores": given.cores, "threads": THREADS}, "rows": rows})


def report(rows: dict[str, Any]) -> None:
    """A line for each contestant: mean and spread over its seeds."""
    for row in race_rows({"rows": rows}):
        raced = f"{row['data']:17s} {row['minutes']:>3s} min  {row['label']:22s}"
        found = f"AP {row['ap']:>12s}  AP50 {row['ap50']:5.1f}"
        print(f"{raced}  {found}  {row['canvas']:>9s} {row['ms']:>6s} ms  {row['seeds']} seeds")


if __name__ == "__main__":
    main()
