"""Every detector of the project in every format and precision: does it export, and is the artefact the model?

Conditioned random weights (tests/twin.py says why) on small canvases, with the uint8 input and batches of one to three
images. Every cell is `directdet export` in its own process, verified in every runtime that is installed here; a cell
fails if a difference is beyond the tolerance of its precision. An engine that no GPU here can run is built, and the
graph it was built from is verified. results/export_matrix.json is written after every cell.

    python scripts/export_matrix.py                       # all cells, slim networks
    python scripts/export_matrix.py --full                # the published widths
    python scripts/export_matrix.py --table               # only print the table of the last results
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import ROOT, measured_on

from directdet.common.files import write_json_atomic

if TYPE_CHECKING:
    from torch import nn

    from directdet.models.two_stage.network import RCNN

sys.path.insert(0, str(ROOT / "tests"))
FORMATS = ("onnx", "openvino", "tensorrt-rtx")
PRECISIONS = ("fp32", "fp16")
BATCH = "1,2,3"
SIZE = (128, 160)
RESULTS = ROOT / "results" / "export_matrix.json"
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt-rtx", "numpy")
SLIM_HEADS = {"box_convs": 1, "box_features": 32, "mask_convs": 1, "mask_channels": 16}
FEW = {"test_pre_nms": 100, "test_proposals": 60, "candidates": 100, "detections": 30}


def rcnn(masks: bool, backbone: str = "resnet50", **settings: Any) -> Callable[[bool], RCNN]:
    def build(full: bool) -> RCNN:
        from twin import conditioned_model

        from directdet.models.two_stage.config import RCNNConfig

        width = {"swin_t": 32}.get(backbone, 16)
        slim: dict[str, Any] = {} if full else {"width": width, "fpn_channels": 32, **SLIM_HEADS, **FEW}
        return conditioned_model(RCNNConfig(8, backbone, masks=masks, **{**slim, **settings}), SIZE)

    return build


def cascade(full: bool) -> nn.Module:
    from twin_cascade import conditioned_cascade

    return conditioned_cascade(rcnn(True)(full), SIZE)


def retinanet(full: bool) -> nn.Module:
    from retina_twin import conditioned_model

    from directdet.models.retinanet.config import RetinaNetConfig

    few = {"width": 16, "fpn_channels": 32, "head_convs": 1, "candidates": 100, "detections": 30}
    slim: dict[str, Any] = {} if full else few
    return conditioned_model(RetinaNetConfig(8, **slim), SIZE)


def ssd(**settings: Any) -> Callable[[bool], nn.Module]:
    def build(full: bool) -> nn.Module:
        from ssd_twin import conditioned_model

        from directdet.models.ssd.config import SSDConfig

        width = {"dsod": 32}.get(str(settings.get("backbone")), 16)
        return conditioned_model(SSDConfig(8, **{**({} if full else {"width": width}), **settings}))

    return build


DETECTORS: dict[str, Callable[[bool], nn.Module]] = {
    "RetinaNet R50": retinanet,
    "Faster R-CNN R50": rcnn(False),
    "Mask R-CNN R50": rcnn(True),
    "Mask R-CNN Swin-T": rcnn(True, "swin_t"),
    "Cascade Mask R-CNN R50": cascade,
    "Faster R-CNN VGG-16": rcnn(False, "vgg16", pyramid=False, box_convs=0),
    "SSD300 VGG-16": ssd(),
    "SSD300 Root-ResNet-18": ssd(backbone="root_resnet18", extras="residual"),
    "SSD300 DSOD": ssd(backbone="dsod"),
}


def measure(cell: str, full: bool) -> dict:
    """One cell: the verdict, the largest differences of each runtime, the size of the artefact."""
    from directdet.common.errors import UserError
    from directdet.export.options import ExportOptions
    from directdet.export.run import export
    from directdet.infer.preprocess import Preprocess
    from directdet.models.build import describe_model
    from directdet.models.checkpoint import save_checkpoint

    name, kind, precision = cell.split("/")
    model = DETECTORS[name](full)
    is_ssd = hasattr(model, "priors")
    preprocess = Preprocess((300, 300), warp=True) if is_ssd else Preprocess(SIZE)
    config: Any = model.config
    content = {"model_config": describe_model(config), "model": model.state_dict(), "recipe": "matrix"}
    content |= {"classes": [f"class {i}" for i in range(8)], "category_ids": list(range(8)), "phase": "finetune"}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.pt"
        save_checkpoint(checkpoint, {**content, "preprocess": preprocess.to_dict()})
        try:
            result = export(checkpoint, Path(folder) / "artefact", ExportOptions(kind, precision, batch=BATCH))
        except (UserError, ImportError) as error:
            return {"passed": False, "error": " ".join(str(error).split())}
        size = sum(file.stat().st_size for file in result.artefact.iterdir())
    runtimes = {}
    for one in result.verification.runtimes:
        differences = {what: one.largest(what) for what in ("box", "score", "mask")}
        counted = sum(c.counted for c in one.comparisons)
        runtimes[one.runtime] = {"passed": one.passed, "counted": counted, "matched": one.matched, **differences}
    return {
        "passed": result.verification.passed,
        "runtimes": runtimes,
        "notes": list(result.verification.notes),
        "nodes": sum(result.graph.operators.values()),
        "kept_fp32": len(result.graph.kept_fp32),
        "artefact_mb": size / 1e6,
        "seconds": time.perf_counter() - start,
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def run_cell(cell: str, full: bool) -> dict:
    """`measure` in its own process; an error there is the cell's result."""
    command = [sys.executable, __file__, "--cell", cell, *(["--full"] if full else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"passed": False, "error": lines[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def table(cells: dict[str, dict]) -> str:
    """The matrix in Markdown: largest differences of box sides (pixels of the input) and scores in any runtime."""
    columns = list(dict.fromkeys(cell.partition("/")[2] for cell in cells))
    lines = ["| detector | " + " | ".join(column.replace("/", " ") for column in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name in dict.fromkeys(cell.partition("/")[0] for cell in cells):
        shown = [_shown(cells.get(f"{name}/{column}")) for column in columns]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _shown(result: dict | None) -> str:
    if result is None:
        return "-"
    if "error" in result:
        return f"no: {result['error'][:60]}"
    box, score = (max(one[key] for one in result["runtimes"].values()) for key in ("box", "score"))
    return f"{'yes' if result['passed'] else 'NO'}: {box:.0e} px, {score:.0e}"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--detectors", nargs="+", default=list(DETECTORS), choices=list(DETECTORS), metavar="NAME")
    options.add_argument("--formats", nargs="+", default=list(FORMATS))
    options.add_argument("--precisions", nargs="+", default=list(PRECISIONS))
    options.add_argument("--full", action="store_true", help="networks of the published widths, not slim ones")
    options.add_argument("--out", type=Path, default=RESULTS, help="JSON file to write")
    options.add_argument("--table", action="store_true", help="only print what is in that file")
    options.add_argument("--cell", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.cell:
        print(json.dumps(measure(given.cell, given.full)))
        return 0
    if given.table:
        print(table(json.loads(given.out.read_text(encoding="utf-8"))["cells"]))
        return 0
    content = {
        **measured_on(LIBRARIES),
        "settings": {"networks": "published" if given.full else "slim", "batch": BATCH, "size": list(SIZE)},
        "cells": {},
    }
    cells = [f"{name}/{kind}/{p}" for name in given.detectors for kind in given.formats for p in given.precisions]
    for number, cell in enumerate(cells, 1):
        print(f"[{number}/{len(cells)}] {cell}", end=" ", file=sys.stderr, flush=True)
        content["cells"][cell] = run_cell(cell, given.full)
        print(_shown(content["cells"][cell]), file=sys.stderr, flush=True)
        write_json_atomic(given.out, content)
    print(table(content["cells"]))
    return int(not all(result["passed"] for result in content["cells"].values()))


if __name__ == "__main__":
    sys.exit(main())
