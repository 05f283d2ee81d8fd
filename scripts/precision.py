"""What bf16 costs in training: AP of the same runs in fp32 and in bf16, with several seeds.

    python scripts/precision.py --data PENN_FUDAN                       # what is missing, then results/precision.json
    python scripts/precision.py --data PENN_FUDAN --models rtmdet_nano --seeds 0 1    # only these; several at a time

Each run has a process and a thread of its own. A run that is done is kept, so that the same command goes on where it
stopped. The processor has to compute in bf16.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from measure import ROOT, measured_on, run_once, train_once

from directdet.common.files import write_json_atomic
from directdet.data.synthetic import make_synthetic
from directdet.reproduce.claims import paired_t

PRECISIONS = ("fp32", "bf16")
SHAPES = (200, 100)  # pictures to train on and to measure AP on


@dataclass(frozen=True)
class Model:
    """What is trained on what."""

    recipe: str
    data: str
    settings: tuple[str, ...] = ()


MODELS = {
    "rtmdet_ins_nano": Model("demo", "shapes"),
    "mask_rcnn_r18_slim": Model(
        "mask_rcnn_r18_slim",
        "shapes",
        ("pretrain.size=128,128", "pretrain.epochs=16", "finetune.size=192,192", "finetune.epochs=5"),
    ),
    "retinanet_r18_slim": Model(
        "retinanet_r18_slim",
        "shapes",
        ("pretrain.size=128,128", "pretrain.epochs=30", "finetune.size=192,192", "finetune.epochs=8"),
    ),
    "rtmdet_nano": Model(
        "rtmdet_nano", "penn-fudan", ("pretrain.epochs=30", "finetune.epochs=6", "scale=0.8,1.2")
    ),
}  # fmt: skip


def train(given: argparse.Namespace, name: str, precision: str, seed: int) -> None:
    """One run, in this process; its figures are written beside it."""
    model, out = MODELS[name], given.work / f"{name}-{precision}-{seed}"
    data = given.data if model.data == "penn-fudan" else given.work / "shapes"
    settings = (f"precision={precision}", "workers=0", "eval_every=1000", *model.settings)
    metrics, _ = train_once(model.recipe, data, out, settings, seed)
    figures = {"box_ap": metrics.bbox["AP"], "mask_ap": metrics.segm and metrics.segm["AP"]}
    write_json_atomic(given.work / f"{out.name}.json", figures)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="Penn-Fudan")
    options.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="NAME")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--work", type=Path, default=Path("runs/precision"), help="folder of the runs")
    options.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    options.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        name, precision, seed = given.one
        train(given, name, precision, int(seed))
        return
    given.work.mkdir(parents=True, exist_ok=True)
    if not (given.work / "shapes").exists():
        make_synthetic(given.work / "shapes", *SHAPES)
    for seed in given.seeds:
        for name in given.models:
            for precision in PRECISIONS:
                words = ["--data", given.data, "--work", given.work, "--one", name, precision, seed]
                run_once(__file__, f"{name}-{precision}-{seed}", given.work, *words)
    runs = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(given.work.glob("*-*-*.json"))}
    facts = {**measured_on(), "command": "python scripts/precision.py --data PENN_FUDAN"}
    settings = {"models": {name: [model.recipe, *model.settings] for name, model in MODELS.items()}}
    write_json_atomic(
        given.results / "precision.json", {**facts, "settings": settings, "rows": compared(runs), "runs": runs}
    )


def compared(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A row for each model, and for its masks; and one for the box AP of all runs."""
    rows, differences = {}, []
    for name, model in MODELS.items():
        seeds = sorted(int(run.rpartition("-")[2]) for run in runs if run.startswith(f"{name}-bf16-"))
        seeds = [seed for seed in seeds if f"{name}-fp32-{seed}" in runs]
        for kind in ("box_ap", "mask_ap"):
            found = {p: [runs[f"{name}-{p}-{seed}"][kind] for seed in seeds] for p in PRECISIONS}
            if len(seeds) > 1 and None not in found["fp32"]:
                apart = [low - high for high, low in zip(*found.values(), strict=True)]
                means = {precision: fmean(values) for precision, values in found.items()}
                rows[f"{name}/{kind}"] = {**means, **_difference(apart), "data": model.data}
                differences += apart if kind == "box_ap" else []
    return rows | ({"all/box_ap": _difference(differences)} if differences else {})


def _difference(found: list[float]) -> dict[str, float]:
    """Mean of the differences of pairs, and half its 95 % interval."""
    return {"difference": fmean(found), "reach": paired_t(found)[0], "pairs": len(found)}


if __name__ == "__main__":
    main()
