"""Mask AP with masks pasted where they were predicted, against masks squeezed into their box as the picture cuts it.

    python scripts/mask_border.py "made shapes=RUN:DATA" "Penn-Fudan=RUN:DATA" ...    # writes results/mask_border.json
    python scripts/mask_border.py --table                                             # only prints it

The same weights and the same detections, on canvases of several shapes: the network's box may reach beyond the picture
into the padding, and `decode.to_detections` cuts it. The mask covers the box before the cut (`mask_boxes`); the old
way, which is made here again, pastes it into the box after it.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import ROOT, measured_on

from directdet.common.files import write_json_atomic
from directdet.data.dataset import load_dataset
from directdet.export.deployed import deployed_preprocess
from directdet.infer.accuracy.evaluate import detect, score_detections
from directdet.infer.detections import Detections
from directdet.infer.runtimes.load import find_model
from directdet.infer.runtimes.torch_runtime import TorchPredictor, load_torch
from directdet.models.checkpoint import load_checkpoint

RESULTS = ROOT / "results" / "mask_border.json"


def squeezed(found: Detections) -> Detections:
    """The masks pasted into the boxes that end with the picture."""
    return replace(found, mask_boxes=found.boxes)


def row(checkpoint: Path, data: Path, split: str, size: tuple[int, int]) -> dict[str, Any]:
    """Both APs of a checkpoint on one canvas."""
    own = load_torch(checkpoint, device="cpu")
    preprocess = deployed_preprocess(own.preprocess, size)
    model = TorchPredictor(own.backend, preprocess, own.classes, own.category_ids, str(checkpoint))
    dataset = load_dataset(data, split)
    found = detect(model, dataset, dataset.records)
    after = score_detections(found, dataset)
    before = score_detections([(image, squeezed(one)) for image, one in found], dataset)
    assert before.segm is not None and after.segm is not None
    assert before.bbox == after.bbox
    cut = sum(int((one.mask_boxes != one.boxes).any(1).sum()) for _, one in found if one.mask_boxes is not None)
    return {
        "split": split,
        "images": len(dataset.records),
        "canvas": list(size),
        "steps": load_checkpoint(checkpoint)["step"],
        "detections": sum(len(one) for _, one in found),
        "cut": cut,
        "box_ap": after.bbox["AP"],
        "mask_ap_squeezed": before.segm["AP"],
        "mask_ap": after.segm["AP"],
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| dataset, canvas | images | detections, of them cut | mask AP squeezed | mask AP as predicted |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, found in rows.items():
        aps = (f"{100 * found[key]:.2f}" for key in ("mask_ap_squeezed", "mask_ap"))
        lines.append(f"| {name} | {found['images']} | {found['detections']}, {found['cut']} | {' | '.join(aps)} |")
    return "\n".join(lines)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("sets", nargs="*", metavar="NAME=CHECKPOINT:DATA")
    options.add_argument("--split", default="val")
    options.add_argument("--sizes", nargs="+", default=["192,192", "192,320"], metavar="H,W")
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--table", action="store_true", help="measure nothing")
    given = options.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    if given.out.is_file():
        rows = json.loads(given.out.read_text(encoding="utf-8"))["rows"]
    for one in [] if given.table else given.sets:
        name, _, places = one.partition("=")
        checkpoint, _, data = places.partition(":")
        for size in given.sizes:
            height, width = map(int, size.split(","))
            rows[f"{name}, {height}x{width}"] = row(find_model(checkpoint)[1], Path(data), given.split, (height, width))
        facts = measured_on()
        facts["command"] = "python scripts/mask_border.py NAME=CHECKPOINT:DATA"
        write_json_atomic(given.out, {**facts, "rows": rows})
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
