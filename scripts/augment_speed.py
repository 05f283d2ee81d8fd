"""Pictures per second and core that the loader reads, augments and pads: RTMDet's heavy set against its light one.

Both make 448x448 pictures by scale jitter (0.1 to 2.0), HSV colours and flips; the heavy set adds mosaic to every
picture and mixup to half of them. They take turns, one epoch each, in one process on one core; seconds are of the
processor. A worker among several reads every so many batches, so the pictures that it has kept serve it less.

    python scripts/augment_speed.py                                # 640x480 JPEGs, drawn for this
    python scripts/augment_speed.py --data DATA --workers 4
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
from measure import parser

from directdet.data.dataset import load_dataset
from directdet.data.records import Dataset
from directdet.data.synthetic import make_synthetic
from directdet.recipes.recipe import Phase
from directdet.train.data import make_phase_loader

LIGHT = Phase("finetune", "direct", (448, 448), scale=(0.1, 2.0), colour="hsv", batch_size=8, workers=0)
HEAVY = replace(LIGHT, mosaic=1.0, mixup=0.5)


def pictures_per_second(phase: Phase, data: Dataset, masks: bool, workers: int, epoch: int) -> float:
    """Of one worker's batches of an epoch."""
    loader = make_phase_loader(phase, data, masks, 0, False)
    started, read = time.process_time(), 0
    for batch in range(epoch % workers, loader.batches_per_epoch, workers):
        loader.set_epoch(epoch, batch)
        read += len(next(iter(loader))[0])
    return read / (time.process_time() - started)


def main() -> None:
    """Print the pictures per second of both sets, and their ratio."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, help="a dataset  [default: 64 drawn pictures of 640x480]")
    arguments.add_argument("--workers", type=int, default=1, help="among how many workers this one is")
    given = arguments.parse_args()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        drawn = given.data is None
        data = load_dataset(make_synthetic(folder, 64, 1, size=(480, 640)) if drawn else given.data, "train")
        for masks in (False, True) if data.has_masks else (False,):
            rates: dict[str, list[float]] = {"light": [], "heavy": []}
            for turn in range(given.rounds + 1):  # the first one warms up
                for name, phase in (("light", LIGHT), ("heavy", HEAVY)):
                    rates[name].append(pictures_per_second(phase, data, masks, given.workers, turn))
            light, heavy = (statistics.median(rates[name][1:]) for name in ("light", "heavy"))
            what = f"{len(data)} pictures, {'with' if masks else 'without'} masks, one of {given.workers} workers"
            print(f"{what}: light {light:.0f}/s, heavy {heavy:.0f}/s, ratio {heavy / light:.2f}")


if __name__ == "__main__":
    main()
