"""What each part of RTMDet's recipe gives on little data: the same run with one part changed, a row each.

    python scripts/ablation.py --data DATA                               # what is missing, then results/ablation.json
    python scripts/ablation.py --data DATA --rows recipe ema --seeds 0 1   # only these; several may run at a time

All rows have the same number of steps and, but for the one with a single phase, the same sizes; that one has the same
number of pixels. Each row has a process and a core of its own. A row that is done is kept, so that the same command
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import ROOT, measured_on, run_once, train_once

from directdet.common.files import write_json_atomic

RECIPE = "rtmdet_nano"
PRETRAIN, FINETUNE = 40, 8  # epochs, at 224 and at 320
ONE_PHASE = round(PRETRAIN * (224 / 320) ** 2 + FINETUNE)
COMMON = ("precision=bf16", f"pretrain.epochs={PRETRAIN}", f"finetune.epochs={FINETUNE}")


@dataclass(frozen=True)
class Part:
    """A row: what differs, in words and as settings; `phase`: only this one."""

    words: str
    settings: tuple[str, ...] = ()
    phase: str | None = None


ROWS = {
    "recipe": Part("the recipe: two phases, BN fixed in the second, scale jitter of 0.5 to 2.0"),
    "live": Part("BN live in fine-tuning, too", ("finetune.norm=live",)),
    "precise": Part("BN's statistics estimated anew before they are fixed", ("finetune.precise_bn=120",)),
    "one_phase": Part(
        "one phase at 320, of as many pixels", ("pretrain.size=320,320", f"pretrain.epochs={ONE_PHASE}"), "pretrain"
    ),
    "ema": Part("no moving average of the weights", ("ema=none",)),
    "mosaic": Part("mosaic on every picture of pre-training", ("pretrain.mosaic=1.0",)),
    "jitter": Part("no scale jitter", ("scale=1.0,1.0",)),
    "narrow": Part("scale jitter of 0.8 to 1.2, as in direct pre-training", ("scale=0.8,1.2",)),
    "colour": Part("no change of colours", ("colour=none",)),
    "fp32": Part("all of the arithmetic in fp32, not bf16", ("precision=fp32",)),
}


def train_row(given: argparse.Namespace) -> None:
    """One row, in this process; prints its figures as JSON."""
    part, seed = ROWS[given.rows[0]], given.seeds[0]
    out = given.work / f"{given.rows[0]}-{seed}"
    metrics, seconds = train_once(RECIPE, given.data, out, (*COMMON, *part.settings), seed, part.phase)
    figures = {name: 100 * metrics.bbox[name] for name in ("AP", "AP50", "AP75")}
    write_json_atomic(given.work / f"{out.name}.json", {**figures, "seconds": seconds})


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--work", type=Path, default=Path("runs/ablation"), help="folder of the runs")
    options.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    options.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        train_row(given)
        return
    given.work.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for name in given.rows:
            words = ["--one", "--data", given.data, "--rows", name, "--seeds", seed, "--work", given.work]
            run_once(__file__, f"{name}-{seed}", given.work, *words)
    rows: dict[str, Any] = {}
    for name, part in ROWS.items():
        for file in sorted(given.work.glob(f"{name}-*.json")):
            seed = int(file.stem.rpartition("-")[2])
            about = {"part": name, "label": part.words, "seed": seed, "settings": list(part.settings)}
            rows[f"{name}/seed {seed}"] = about | json.loads(file.read_text("utf-8"))
    facts = {**measured_on(), "command": f"python scripts/ablation.py --data {given.data.name}"}
    settings = {"recipe": RECIPE, "data": given.data.name, "common": list(COMMON)}
    write_json_atomic(given.results / "ablation.json", {**facts, "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
