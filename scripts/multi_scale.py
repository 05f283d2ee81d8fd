"""What multi-scale testing gives: AP and time of a model at one scale, mirrored as well, and at two scales.

    python scripts/multi_scale.py NAME MODEL --data DATA      # adds to results/multi_scale.json

Scales are relative to the size that the model is made for.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from measure import ROOT, measured_on

from directdet.common.files import write_json_atomic
from directdet.data.dataset import load_dataset
from directdet.infer.accuracy.evaluate import detect, score_detections
from directdet.infer.runtimes.load import load
from directdet.infer.scaled import ScaledDetector

LOOKS = {
    "once": ((1.0,), False),
    "and mirrored": ((1.0,), True),
    "at 1 and 1.25, and mirrored": ((1.0, 1.25), True),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("name", help="of the model, in the table")
    options.add_argument("model", type=Path)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    given = options.parse_args()
    file = given.results / "multi_scale.json"
    rows = json.loads(file.read_text())["rows"] if file.is_file() else {}
    dataset = load_dataset(given.data, "val")
    detector = load(given.model, device="cpu")
    for look, (scales, flip) in LOOKS.items():
        looking, started = ScaledDetector(detector, scales, flip), time.perf_counter()
        found = detect(looking, dataset, dataset.records)
        seconds = time.perf_counter() - started
        metrics = score_detections(found, dataset)
        row = {"model": given.name, "look": look, "AP": metrics.bbox["AP"], "AP50": metrics.bbox["AP50"]}
        row |= {"mask_ap": metrics.segm and metrics.segm["AP"], "seconds": seconds / len(dataset.records)}
        print(row, flush=True)
        rows[f"{given.name}/{look}"] = row
    facts = {**measured_on(), "command": "python scripts/multi_scale.py NAME MODEL --data DATA"}
    write_json_atomic(file, {**facts, "rows": rows})


if __name__ == "__main__":
    main()
