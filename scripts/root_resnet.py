"""Frames per second of ScratchDet's Table 2: SSD300 on ten first layers of ResNet-18, as ratios to the first row.

Ten networks with random weights, 20 classes, 300x300, batch 1, network and post-processing: in PyTorch and exported in
ONNX Runtime, each cell in its own process, all taking turns. The paper's ratios are those of its P40.

    python scripts/root_resnet.py
"""

import statistics
import sys
import tempfile
from pathlib import Path

from measure import in_process, milliseconds, parser, write_results

from directdet.recipes.published import SpeedRow, scratchdet_table2
from directdet.recipes.scratchdet import TABLE2_BACKBONES

CELLS = [f"{runtime}:{name}" for name in TABLE2_BACKBONES for runtime in ("torch", "onnxruntime")]


def measure(cell: str, threads: int, runs: int) -> dict[str, float]:
    """One cell: milliseconds of an image."""
    import numpy as np
    import torch

    from directdet.models.build import build_model, deploy_model

    torch.set_num_threads(threads)
    runtime, name = cell.split(":")
    torch.manual_seed(0)
    model = build_model({"detector": "ssd", "num_classes": 20, "backbone": name, "extras": "residual"}).eval()
    image = torch.randn(1, 3, 300, 300, generator=torch.Generator().manual_seed(0))
    if runtime == "torch":
        deployed = deploy_model(model.to(memory_format=torch.channels_last), (300, 300))
        with torch.no_grad():
            return milliseconds(lambda: deployed(image), runs, 3)
    import onnxruntime

    from directdet.export.onnx_graph import write_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(model, (300, 300), 1, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"images": np.ascontiguousarray(image.numpy())}
    return milliseconds(lambda: session.run(None, feed), runs, 3)


def main() -> None:
    arguments = parser((__doc__ or "").partition("\n")[0]).parse_args()
    if arguments.cell:
        import json

        print(json.dumps(measure(arguments.cell, arguments.threads, arguments.runs)))
        return
    passed = ("--threads", str(arguments.threads), "--runs", str(arguments.runs))
    times: dict[str, list[float]] = {cell: [] for cell in CELLS}
    for number in range(arguments.rounds):
        for cell in CELLS:
            times[cell].append(in_process(__file__, cell, *passed)["median_ms"])
            print(f"round {number + 1}: {cell:32s} {times[cell][-1]:8.1f} ms", file=sys.stderr)
    rows = {}
    paper = [(row.method, row.fps) for row in scratchdet_table2().rows if isinstance(row, SpeedRow) and row.fps]
    for name, (method, fps) in zip(TABLE2_BACKBONES, paper, strict=True):
        rows[name] = {"first_layer": method, "paper_fps": fps, "paper_ratio": fps / paper[0][1]}
        for runtime in ("torch", "onnxruntime"):
            own, first = times[f"{runtime}:{name}"], times[f"{runtime}:{TABLE2_BACKBONES[0]}"]
            ratio = statistics.median(b / a for a, b in zip(own, first, strict=True))
            rows[name] |= {f"{runtime}_ms": statistics.median(own), f"{runtime}_ratio": ratio}
        print(
            f"{method:38s} paper {rows[name]['paper_ratio']:.2f}   torch {rows[name]['torch_ratio']:.2f}   "
            f"ONNX Runtime {rows[name]['onnxruntime_ratio']:.2f}   ({1e3 / rows[name]['onnxruntime_ms']:.1f} fps)"
        )
    settings = {"threads": arguments.threads, "runs": arguments.runs, "rounds": arguments.rounds, "times_ms": times}
    print(write_results("root_resnet", settings, rows))


if __name__ == "__main__":
    main()
