"""What tiles give on large pictures: the AP of a model on whole pictures, and in tiles of several sides.

    python scripts/large_pictures.py --data DATA MODEL...      # writes results/large_pictures.json

The large pictures are made of DATA's val pictures, three by three beside each other, so that a trained model's objects
are there at their own size, and at a third of it where the whole picture is scaled to the canvas.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from measure import ROOT, measured_on

from directdet.common.files import write_json_atomic
from directdet.data.dataset import load_dataset
from directdet.data.pixels.tiles import OVERLAP, tiles
from directdet.data.records import Dataset, Record, detector_image
from directdet.infer.accuracy.evaluate import evaluate
from directdet.infer.runtimes.load import load
from directdet.infer.tiled import in_tiles

ACROSS = 3  # pictures beside each other
BACKGROUND = 124  # grey level where a picture is smaller than its place


def make_large(data: Path, folder: Path) -> Dataset:
    """The val pictures of `data`, ACROSS x ACROSS to a picture in `folder`, with their boxes."""
    dataset, large = load_dataset(data, "val"), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(dataset.records) // ACROSS**2):
        group = dataset.records[number * ACROSS**2 :][: ACROSS**2]
        height, width = max(one.height for one in group), max(one.width for one in group)
        canvas = np.full((ACROSS * height, ACROSS * width, 3), BACKGROUND, np.uint8)
        boxes = []
        for place, record in enumerate(group):
            y, x = place // ACROSS * height, place % ACROSS * width
            canvas[y : y + record.height, x : x + record.width] = detector_image(record)
            boxes.append(record.boxes + np.array([x, y, x, y], np.float32))
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), canvas)
        labels, crowd, difficult = (
            np.concatenate([getattr(one, name) for one in group]) for name in ("labels", "crowd", "difficult")
        )
        about = number + 1, path, canvas.shape[1], canvas.shape[0], np.concatenate(boxes)
        large.append(Record(*about, labels, crowd, difficult, (None,) * len(labels), tuple(range(len(labels)))))
    return replace(dataset, records=tuple(large))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--sides", type=int, nargs="+", default=[320, 448, 640], help="of the tiles")
    options.add_argument("--work", type=Path, default=Path("runs/large_pictures"), help="folder of the large pictures")
    options.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    given = options.parse_args()
    dataset, rows = make_large(given.data, given.work), {}
    sizes = [[record.height, record.width] for record in dataset.records]
    for model in given.models:
        detector = load(model, device="cpu")
        for side in (None, *given.sides):
            metrics = evaluate(in_tiles(detector, side, None), dataset, progress=False)
            row = {
                "model": str(detector.meta.get("recipe")),
                "canvas": list(detector.preprocess.size),
                "side": side,
                "AP": 100 * metrics.bbox["AP"],
                "AP50": 100 * metrics.bbox["AP50"],
                "runs": statistics.fmean(1 if side is None else 1 + len(tiles(h, w, side)) for h, w in sizes),
            }
            print(row, flush=True)
            rows[f"{row['model']}/{side or 'whole'}"] = row
    settings = {"data": given.data.name, "pictures": sizes, "overlap": OVERLAP}
    facts = {**measured_on(), "command": f"python scripts/large_pictures.py --data {given.data.name} MODEL..."}
    write_json_atomic(given.results / "large_pictures.json", {**facts, "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
