"""Mask R-CNN R50-FPN at 448x448, 1000 proposals, on a CPU: exported artefact against torchvision's eager model.

Same weights, same settings, end to end: from a picture in memory to detections in its own pixels, masks at 28x28 on
both sides. Runtimes take turns, each in a process of its own; the ratios are of medians of the same round.

    python benchmarks/inference.py
    python benchmarks/inference.py --operators    # where ONNX Runtime's time goes, by operator
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from measure import ROOT, in_process, milliseconds, parser, write_results

sys.path.insert(0, str(ROOT / "tests"))
SIZE = (448, 448)
CELLS = ("torchvision eager", "directdet eager", "onnxruntime", "openvino")


def prepare(folder: Path) -> None:
    """A conditioned random model as a checkpoint and as an artefact."""
    from twin import conditioned_model

    from directdet.export.export import export
    from directdet.infer.preprocess import Preprocess
    from directdet.models.build import describe_model
    from directdet.models.checkpoint import save_checkpoint
    from directdet.models.rcnn import RCNNConfig

    model = conditioned_model(RCNNConfig(num_classes=80), SIZE)
    content = {"model_config": describe_model(model.config), "model": model.state_dict(), "recipe": "benchmark"}
    content |= {"classes": [f"class {i}" for i in range(80)], "category_ids": list(range(80))}
    save_checkpoint(folder / "model.pt", {**content, "preprocess": Preprocess(size=SIZE).to_dict()})
    result = export(folder / "model.pt", folder / "artefact")
    assert result.verification.passed, "the artefact is not the model: its speed would say nothing"


def picture() -> np.ndarray:
    """A 480x640 BGR picture of soft blobs."""
    from twin import smooth_images

    blobs = smooth_images(1, (480, 640), 11)[0] * 0.225 + 0.45
    return np.ascontiguousarray((blobs.permute(1, 2, 0).numpy() * 255).astype(np.uint8))


def cell(name: str, folder: Path, runs: int, threads: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    image = picture()
    if name == "torchvision eager":
        from twin import build_twin, twin_detections

        from directdet.infer.runtimes import load

        ours = load(folder / "model.pt", device="cpu")
        twin = build_twin(ours.backend.model)

        def run() -> object:
            batch, _ = ours.prepare([image])
            with torch.inference_mode():
                return twin_detections(twin, torch.from_numpy(batch))
    else:
        from directdet.infer.runtimes import load

        if name == "directdet eager":
            detector = load(folder / "model.pt", device="cpu")
        else:
            detector = load(folder / "artefact", runtime=name, device="cpu", threads=threads)

        def run() -> object:
            return detector(image)

    return milliseconds(run, runs, warmup=2)


def operator_shares(folder: Path, threads: int, runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds and share of ONNX Runtime's node time by operator, largest first."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    model = str(folder / "artefact" / "model.onnx")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)
    for _ in range(runs):
        session.run(None, {"images": images})
    spent: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"] / 1e3 / runs
    total = spent.total()
    return {name: {"ms": ms, "share": ms / total} for name, ms in spent.most_common(10)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--operators", action="store_true", help="only where ONNX Runtime's time goes")
    given = options.parse_args()
    if given.cell:
        print(json.dumps(cell(given.cell, given.folder, given.runs, given.threads)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary))
        if given.operators:
            rows = operator_shares(Path(temporary), given.threads, given.runs)
            for name, row in rows.items():
                print(f"{name:20s} {row['ms']:8.1f} ms   {row['share']:.1%}")
            print(write_results("inference_cpu_operators", {"size": SIZE, "threads": given.threads}, rows))
            return
        rounds = []
        for _ in range(given.rounds):
            shared = ("--folder", temporary, "--runs", str(given.runs), "--threads", str(given.threads))
            rounds.append({name: in_process(__file__, name, *shared) for name in CELLS})
    rows = {}
    for name in CELLS:
        ratios = [r["torchvision eager"]["median_ms"] / r[name]["median_ms"] for r in rounds]
        median = statistics.median(r[name]["median_ms"] for r in rounds)
        rows[name] = {"median_ms": median, "speedup": statistics.median(ratios), "speedups": ratios}
        print(f"{name:20s} {median:8.0f} ms   {rows[name]['speedup']:.2f}x  {[round(v, 2) for v in ratios]}")
    settings = {"size": SIZE, "proposals": 1000, "threads": given.threads, "runs": given.runs, "rounds": given.rounds}
    print(write_results("inference_cpu", settings, rows))


if __name__ == "__main__":
    main()
