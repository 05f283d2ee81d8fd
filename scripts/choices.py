"""What the recipes to pick from cost: multiply-adds and milliseconds of a picture, for `directdet recipes`.

    python scripts/choices.py                             # writes results/choices.json
    python scripts/choices.py --recipes rtmdet_ins_nano   # these alone; the others' rows stay

Every recipe's network with 80 classes and random weights, exported to ONNX at 640x640, timed in ONNX Runtime from a
picture in memory to its detections; each in a process of its own, and they take turns.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from measure import ROOT, in_process, milliseconds, parser, write_results

from directdet.recipes.choices import CHOICES

SIDE, CLASSES, WARMUP = 640, 80, 3


def prepare(name: str, folder: Path) -> int:
    """The recipe's artefact below `folder`; returns the multiply-adds of its network."""
    import torch
    from speed_models import Layers, count_macs, layer_inputs, save_untrained

    from directdet.export.onnx_graph import fold
    from directdet.export.options import ExportOptions
    from directdet.export.run import export
    from directdet.infer.preprocess import Preprocess
    from directdet.models.build import build_model
    from directdet.models.two_stage.network import RCNN
    from directdet.recipes.by_name import get_recipe

    recipe, size = get_recipe(name), (SIDE, SIDE)
    torch.manual_seed(0)
    model = build_model({"detector": recipe.detector, "num_classes": CLASSES, **recipe.model}).eval()
    save_untrained(model, folder / f"{name}.pt", name, Preprocess(size))
    export(folder / f"{name}.pt", folder / name, ExportOptions(size=size))
    folded = fold(model, size)[0]
    layers = Layers(folded) if isinstance(model, RCNN) else folded  # a two-stage detector's heads need RoIs
    return count_macs(layers.eval(), layer_inputs(model, size))


def time_cell(artefact: Path, threads: int, runs: int) -> dict[str, float]:
    """Milliseconds from a picture in memory to its detections."""
    from directdet.infer.runtimes.load import load

    detector = load(artefact, "onnxruntime", device="cpu", threads=threads)
    picture = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    return milliseconds(lambda: detector(picture), runs, WARMUP)


def main() -> None:
    options = parser(__doc__)
    names = [one.recipe for one in CHOICES]
    options.add_argument("--recipes", nargs="+", default=names, choices=names, metavar="NAME", help="[default: all]")
    given = options.parse_args()
    if given.cell:
        print(json.dumps(time_cell(Path(given.cell), given.threads, given.runs)))
        return
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        macs = {name: prepare(name, Path(folder)) for name in given.recipes}
        for _ in range(given.rounds):
            for name in macs:
                words = ("--threads", str(given.threads), "--runs", str(given.runs))
                times.setdefault(name, []).append(in_process(__file__, str(Path(folder, name)), *words)["median_ms"])
                print(f"{name}: {times[name][-1]:.1f} ms", flush=True)
    rows = {
        name: {"multiply_adds": macs[name], "median_ms": statistics.median(found), "rounds_ms": found}
        for name, found in times.items()
    }
    path = (given.results or ROOT / "results") / "choices.json"
    if path.is_file():
        rows = {**json.loads(path.read_text(encoding="utf-8"))["rows"], **rows}
    rows = {name: rows[name] for name in names if name in rows}
    settings = {"size": [SIDE, SIDE], "classes": CLASSES, "threads": given.threads, "runs": given.runs}
    write_results("choices", {**settings, "rounds": given.rounds}, rows, given.results)


if __name__ == "__main__":
    main()
