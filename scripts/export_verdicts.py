"""Verdicts of `directdet export` over sound and damaged artefacts: no sound one may fail, no damaged one pass.

    python scripts/export_verdicts.py                     # what is missing, then results/export_verdicts.json
    python scripts/export_verdicts.py --networks ssd      # only of these detectors; several may run at a time
    python scripts/export_verdicts.py --table             # only gather and print what has been measured

Sound: small detectors, trained for a minute on made pictures, in every format and precision that a CPU runs, on several
canvases. Damaged: the same artefacts with a fault put into the graph (see export_faults.py) after the export. Each cell
is kept in the work folder, so that a run goes on where it stopped. The exit code is 1 if a rate is not 0.
"""

import argparse
import functools
import hashlib
import json
import pickle
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from export_faults import FAULTS, Damage
from measure import ROOT, measured_on
from small_networks import SIDE, SMALL, made_data, trained

from directdet.common.files import write_json_atomic
from directdet.data.dataset import load_dataset
from directdet.export import deployed
from directdet.export.artefact import write_meta
from directdet.export.deployed import deployed_preprocess
from directdet.export.openvino_model import write_openvino
from directdet.export.options import ExportOptions
from directdet.export.run import export
from directdet.export.verification.side_by_side import with_ap
from directdet.export.verification.verify import (
    TOLERANCES,
    SameCanvas,
    Verification,
    expect,
    network_of,
    verification_pictures,
    verify,
)
from directdet.infer.accuracy.ap_difference import average_precisions
from directdet.infer.accuracy.evaluate import detect
from directdet.infer.runtimes.load import load
from directdet.infer.runtimes.torch_runtime import TorchPredictor, load_torch
from directdet.models.checkpoint import load_checkpoint

RESULTS = ROOT / "results" / "export_verdicts.json"
LIBRARIES = ("torch", "onnx", "onnxruntime-gpu", "openvino", "nncf", "numpy")
KINDS = (
    ("onnx", "fp32"),
    ("openvino", "fp32"),
    ("onnx", "fp16"),
    ("openvino", "fp16"),
    ("openvino", "bf16"),
    ("onnx", "int8"),
    ("openvino", "int8"),
)
OBLONG = (SIDE * 3 // 4, SIDE * 5 // 4)
PICTURES, AP_PICTURES = 8, 24
# Damaged in lower precisions, too; what the faults of fp32 do is partly as small as the rounding itself.
LOWER = ("channels", "mean_and_std", "classes", "half_lost", "masks_transposed", "shifted", "nms", "scores")


def cells(names: list[str], seeds: list[int]) -> list[str]:
    """STATE/NETWORK/SEED/FORMAT/PRECISION/CANVAS or FAULT of every cell of these networks."""
    made = []
    for name in names:
        sizes = ["own"] if name == "ssd" else ["own", "x".join(map(str, OBLONG))]
        made += [f"sound/{name}/{seed}/{k}/{p}/own" for seed in seeds for k, p in KINDS]
        faults = [fault for fault, damage in FAULTS.items() if damage.fits(SMALL[name])]
        made += [f"damaged/{name}/{seeds[0]}/onnx/fp32/{fault}" for fault in faults]
        for kind, precision in (("onnx", "fp16"), ("openvino", "bf16"), ("openvino", "int8")):
            made += [f"damaged/{name}/{seeds[0]}/{kind}/{precision}/{fault}" for fault in faults if fault in LOWER]
        made += [f"sound/{name}/{seed}/{k}/{p}/{size}" for size in sizes[1:] for seed in seeds for k, p in KINDS]
    return made


def same_graph_once(work: Path) -> None:
    """Let exports that write the same graph write it once: it takes most of the time of an export."""
    module: Any = deployed
    write = module.write_onnx

    def cached(model: Any, size: Any, batch: Any, path: Path, canvas: Any, precision: str, samples: Any = None) -> Any:
        weights = float(sum(value.double().abs().sum() for value in model.state_dict().values()))
        key = hashlib.sha256(f"{weights:.6f}-{size}-{batch}-{canvas}-{precision}".encode()).hexdigest()[:16]
        file, facts = work / f"{key}.onnx", work / f"{key}.pickle"
        if not facts.is_file():
            found = write(model, size, batch, file, canvas, precision, samples)
            facts.write_bytes(pickle.dumps(found))
        shutil.copyfile(file, path)
        return pickle.loads(facts.read_bytes())

    module.write_onnx = cached


def summary(one: Verification) -> dict[str, Any]:
    """What a cell keeps of a verification."""
    kept = (
        "passed",
        "failed",
        "reasons",
        "runtime",
        "matched",
        "mask_iou",
        "shift",
        "score_shift",
        "count",
        "ap",
        "reference_ap",
        "ap_spread",
    )
    found = one.to_dict()
    sums = {key: sum(getattr(c, key) for c in one.comparisons) for key in ("expected", "counted", "undecided")}
    largest = {what: one.largest(what) for what in ("box", "score", "mask")}
    return {**{key: found[key] for key in kept}, **sums, **largest}


class Bench:
    """One trained network: its checkpoint, the data, and what PyTorch finds, computed once for each artefact kind."""

    def __init__(self, name: str, seed: int, work: Path) -> None:
        self.work, self.name, self.seed = work, name, seed
        self.checkpoint = trained(name, seed, work)
        self.data = made_data(work / "data")
        self.val = load_dataset(self.data, "val")

    def folder(self, kind: str, precision: str, size: str) -> Path:
        return self.work / "artefacts" / f"{self.name}-{self.seed}-{kind}-{precision}-{size}"

    def sound(self, kind: str, precision: str, size: str) -> list[dict[str, Any]]:
        """The verdict of an export as it is."""
        canvas = None if size == "own" else (int(size.split("x")[0]), int(size.split("x")[1]))
        options = ExportOptions(kind, precision, size=canvas)
        out = self.folder(kind, precision, size)
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        result = export(self.checkpoint, out, options, self.data, ap_images=AP_PICTURES)
        return [summary(one) for one in result.verification.runtimes]

    @functools.cached_property
    def reference(self) -> TorchPredictor:
        own = load_torch(self.checkpoint, device="cpu")
        preprocess = deployed_preprocess(own.preprocess, None)
        return TorchPredictor.from_model(network_of(own), preprocess, own.classes, own.category_ids)

    @functools.cache  # noqa: B019
    def expected(self, precision: str) -> tuple[Any, ...]:
        """PyTorch's side: pictures, expectations, its AP and what it found on the AP's pictures."""
        candidate = load(self.folder("onnx", "fp32", "own"), runtime="onnxruntime", device="cpu")
        pictures = verification_pictures(self.val, self.reference.preprocess, PICTURES)
        records = self.val.records[:AP_PICTURES]
        found = detect(SameCanvas(self.reference, candidate), self.val, records)
        expectations = expect(self.reference, candidate, pictures, TOLERANCES[precision])
        return pictures, expectations, average_precisions(found, self.val, records), found

    def damaged(self, kind: str, precision: str, fault: str) -> list[dict[str, Any]]:
        """The verdict of an artefact with a fault in its ONNX graph, from which OpenVINO's is converted."""
        source = self.folder("onnx", precision if precision != "bf16" else "fp32", "own")
        out = self.work / "artefacts" / f"damaged-{self.name}-{precision}-{fault}"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(source, out)
        model = onnx.load(str(out / "model.onnx"))
        state = load_checkpoint(self.checkpoint)["model"]
        FAULTS[fault].apply(Damage(model, state, network_of(self.reference).config))
        onnx.save(model, str(out / "model.onnx"))
        meta = json.loads((out / "meta.json").read_text(encoding="utf-8"))
        runtime = {"onnx": "onnxruntime", "openvino": "openvino"}[kind]
        if kind == "openvino":
            write_openvino(out / "model.onnx", out / "model.xml")
            write_meta(out, meta, "openvino", "model.xml", "model.bin")
        else:
            write_meta(out, meta, "onnx", "model.onnx")
        candidate = load(out, runtime, "cpu", precision="bf16" if precision == "bf16" else None)
        pictures, expectations, own, found = self.expected(precision)
        records = self.val.records[:AP_PICTURES]
        one = verify(self.reference, candidate, pictures, precision, expectations)
        one = with_ap(one, own, found, detect(candidate, self.val, records), self.val, records)
        shutil.rmtree(out, ignore_errors=True)
        return [summary(one)]


def measure(cell: str, bench: Callable[[str, int], Bench]) -> dict[str, Any]:
    state, name, seed, kind, precision, what = cell.split("/")
    start = time.process_time()
    one = bench(name, int(seed))
    runtimes = one.sound(kind, precision, what) if state == "sound" else one.damaged(kind, precision, what)
    passed = all(found["passed"] for found in runtimes)
    return {"cell": cell, "passed": passed, "runtimes": runtimes, "cpu_seconds": time.process_time() - start}


def gather(work: Path) -> dict[str, Any]:
    """All measured cells, and the rates."""
    kept = sorted(
        (json.loads(path.read_text("utf-8")) for path in (work / "cells").glob("*.json")), key=lambda c: c["cell"]
    )
    rates = {}
    for state, wrong in (("sound", False), ("damaged", True)):
        chosen = [cell for cell in kept if cell["cell"].startswith(f"{state}/")]
        rates[state] = {
            "exports": len(chosen),
            "verdicts": sum(len(cell["runtimes"]) for cell in chosen),
            "wrong": sum(one["passed"] is wrong for cell in chosen for one in cell["runtimes"]),
            "wrong_cells": [cell["cell"] for cell in chosen if any(one["passed"] is wrong for one in cell["runtimes"])],
        }
    return {"rates": rates, "cells": {cell.pop("cell"): cell for cell in kept}}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--networks", nargs="+", default=list(SMALL), choices=list(SMALL), metavar="NAME")
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--states", nargs="+", default=["sound", "damaged"], choices=["sound", "damaged"])
    options.add_argument("--work", type=Path, default=Path("runs/export_verdicts"), help="folder for what is made")
    options.add_argument("--out", type=Path, default=RESULTS, help="JSON file to write")
    options.add_argument("--table", action="store_true", help="measure nothing")
    given = options.parse_args()
    torch.set_num_threads(1)
    (given.work / "cells").mkdir(parents=True, exist_ok=True)
    same_graph_once(given.work / "cells")
    bench = functools.cache(lambda name, seed: Bench(name, seed, given.work))
    for cell in [] if given.table else cells(given.networks, given.seeds):
        file = given.work / "cells" / f"{cell.replace('/', '_')}.json"
        if cell.split("/")[0] not in given.states or file.is_file():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = measure(cell, bench)
        write_json_atomic(file, found)
        reasons = [reason for one in found["runtimes"] for reason in one["failed"]]
        print(f"{'PASS' if found['passed'] else 'FAIL'} {cell} {', '.join(reasons)}", flush=True)
    content = gather(given.work)
    facts = {**measured_on(LIBRARIES), "command": "python scripts/export_verdicts.py"}  # however it was shared out
    write_json_atomic(given.out, {**facts, **content})
    for state, rate in content["rates"].items():
        word = "FAIL" if state == "sound" else "PASS"
        print(f"{state}: {rate['exports']} exports, {rate['verdicts']} verdicts, {rate['wrong']} of them {word}")
        print(*(f"  {cell}" for cell in rate["wrong_cells"]), sep="\n")
    return int(any(rate["wrong"] for rate in content["rates"].values()))


if __name__ == "__main__":
    sys.exit(main())
