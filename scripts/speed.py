"""How fast artefacts run on a CPU, compared with torchvision's eager detectors of the same weights and settings.

SSD300 on VGG-16, RetinaNet R50 and Mask R-CNN R50 at 448x448, batch 1, a picture of 640x480 in memory to detections in
its own pixels (masks stay at 28x28 on both sides). Every cell runs in its own process; all take turns, round by round,
and ratios are of medians of the same round. For every cell:

- milliseconds of preprocessing, of the device (network and the post-processing in its graph) and end to end;
- the share of post-processing: the time of the artefact beyond that of the same network cut at its raw maps, taking
  turns in one process, in the same runtime and precision (for Mask R-CNN the heads get pooled RoIs, so RoI pooling
  counts as post-processing). int8 is charged the milliseconds that post-processing takes in fp32;
- the share of the speed that a large matrix product of that precision reaches on the same threads.

    python scripts/speed.py
    python scripts/speed.py --only ssd300 --checkpoint ssd300=RUN --data DATA   # trained: int8, and the AP of each
    python scripts/speed.py --artefact ssd300/openvino/int8=ARTEFACT            # an artefact that exists already
    python scripts/speed.py --operators                                         # where ONNX Runtime's time goes
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from measure import in_process, parser, quantiles, write_results
from speed_parts import layers_alone, median_difference, operator_shares, roofline

if TYPE_CHECKING:
    from directdet.infer.predictor import Predictor

WARMUP = 3
BASE = "torchvision"


@dataclass(frozen=True)
class Cell:
    """What is timed: a detector in a runtime and precision; for Mask R-CNN the number of proposals (None: its 1000)."""

    model: str
    runtime: str
    precision: str = "fp32"
    proposals: int | None = None

    @property
    def name(self) -> str:
        proposals = f"/{self.proposals}" if self.proposals else ""
        return f"{self.model}/{self.runtime}/{self.precision}{proposals}"

    @property
    def variant(self) -> str:
        """Name of the files of its network."""
        return f"{self.model}_{self.proposals}" if self.proposals else self.model


def cells() -> list[Cell]:
    """Every cell, each detector's torchvision first."""
    found = []
    for model in ("ssd300", "retinanet", "mask_rcnn"):
        found += [Cell(model, BASE), Cell(model, "torch"), Cell(model, "onnxruntime"), Cell(model, "openvino")]
        if model == "mask_rcnn":
            found += [Cell(model, "openvino", precision, 300) for precision in ("fp32", "bf16")]
        else:
            found += [
                Cell(model, "openvino", "bf16"),
                Cell(model, "onnxruntime", "int8"),
                Cell(model, "openvino", "int8"),
            ]
    return found


def prepare(folder: Path, chosen: list[Cell], given: argparse.Namespace) -> dict[str, int]:
    """Checkpoints, artefacts and cut graphs of all chosen cells; multiply-accumulate operations of each network."""
    import speed_models

    from directdet.export.options import ExportOptions
    from directdet.export.run import export
    from directdet.export.verification.verify import network_of
    from directdet.infer.runtimes.load import find_model
    from directdet.infer.runtimes.torch_runtime import load_torch

    trained, ready, macs = dict(given.checkpoint), dict(given.artefact), {}
    for model in dict.fromkeys(cell.model for cell in chosen):
        speed_models.save_random(model, folder / f"{model}_random.pt", given.tiny)
        source = find_model(trained[model])[1] if model in trained else folder / f"{model}_random.pt"
        speed_models.save_with(source, folder / f"{model}.pt")
    for cell in chosen:
        checkpoint = folder / f"{cell.variant}.pt"
        if not checkpoint.exists() and cell.proposals:
            speed_models.save_with(folder / f"{cell.model}.pt", checkpoint, test_proposals=cell.proposals)
        size = speed_models.SUBJECTS[cell.model].size
        if cell.variant not in macs:
            network = network_of(load_torch(checkpoint, device="cpu"))
            layers = folder / f"{cell.variant}_layers.onnx"
            macs[cell.variant] = speed_models.write_layers(network, size, layers, mask_slots(checkpoint))
        artefact = artefact_of(folder, cell)
        if cell.runtime in (BASE, "torch") or cell.name in ready or artefact.exists():
            continue
        settings = ExportOptions(size=size)
        if cell.precision == "int8":
            settings = ExportOptions("onnx" if cell.runtime == "onnxruntime" else "openvino", "int8", size=size)
        result = export(checkpoint, artefact, settings, data=given.data if cell.model in trained else None)
        if cell.precision != "int8" and not result.verification.passed:
            raise SystemExit(f"{cell.name}: the artefact is not the model: its speed would mean nothing")
    return macs


def mask_slots(checkpoint: Path) -> int:
    """How many detections of the picture a graph computes masks of: as many as there are, AT_A_TIME in a turn."""
    from directdet.infer.runtimes.load import load
    from directdet.models.parts.masks import AT_A_TIME

    detector = load(checkpoint, device="cpu")
    found = int(detector.run(detector.prepare([picture()])[0])[0][0, 0])
    return max(1, -(-found // AT_A_TIME)) * AT_A_TIME


def artefact_of(folder: Path, cell: Cell) -> Path:
    """fp32 and bf16 run the same file, in both runtimes; the precision is the runtime's setting."""
    return folder / (f"{cell.variant}_int8_{cell.runtime}" if cell.precision == "int8" else f"{cell.variant}_onnx")


def picture() -> np.ndarray:
    """A 480x640 BGR picture of soft blobs."""
    import speed_models  # noqa: F401  # makes the twins importable
    from twin import smooth_images

    blobs = smooth_images(1, (480, 640), 11)[0] * 0.225 + 0.45
    return np.ascontiguousarray((blobs.permute(1, 2, 0).numpy() * 255).astype(np.uint8))


def detector_of(cell: Cell, folder: Path, threads: int, artefact: Path | None) -> Predictor:
    """The detector of a cell; for torchvision's the one that prepares its pictures."""
    from directdet.infer.runtimes.load import load

    if cell.runtime in (BASE, "torch"):
        random = "_random" if cell.runtime == BASE else ""
        return load(folder / f"{cell.variant}{random}.pt", device="cpu", threads=threads)
    asked = cell.precision if cell.precision in ("fp32", "bf16") else None
    return load(artefact or artefact_of(folder, cell), cell.runtime, device="cpu", threads=threads, precision=asked)


def time_cell(cell: Cell, folder: Path, given: argparse.Namespace, artefact: Path | None) -> dict:
    """Milliseconds of each stage of one cell."""
    import cv2
    import torch

    torch.set_num_threads(given.threads)
    cv2.setNumThreads(given.threads)
    image, detector = picture(), detector_of(cell, folder, given.threads, artefact)
    run: Callable[[np.ndarray], Any] = detector.run
    if cell.runtime == BASE:
        import speed_models

        from directdet.export.verification.verify import network_of

        run = speed_models.torchvision_run(network_of(detector))
    times: dict[str, list[float]] = {"prepare": [], "device": [], "end_to_end": []}
    for step in range(-WARMUP, given.runs):
        start = time.perf_counter()
        batch, placements = detector.prepare([image])
        prepared = time.perf_counter()
        raw = run(batch)
        returned = time.perf_counter()
        if cell.runtime != BASE:  # torchvision's are boxes already
            detector.decode(raw, 0, placements[0])
        end = time.perf_counter()
        if step >= 0:
            for name, seconds in zip(times, (prepared - start, returned - prepared, end - start), strict=True):
                times[name].append(1e3 * seconds)
    found = {name: quantiles(values) for name, values in times.items()}
    return {**found, "runs_in": detector.info if cell.runtime != BASE else {"precision": "fp32"}}


def time_postprocessing(cell: Cell, folder: Path, given: argparse.Namespace, artefact: Path | None) -> dict:
    """Milliseconds that the artefact of a cell takes beyond its layers alone."""
    detector = detector_of(cell, folder, given.threads, artefact)
    batch, _ = detector.prepare([picture()])
    layers = layers_alone(folder / f"{cell.variant}_layers.onnx", cell.runtime, cell.precision, given.threads)
    return {"ms": median_difference(lambda: detector.run(batch), layers, given.runs, WARMUP)}


def accuracy(cell: Cell, folder: Path, given: argparse.Namespace, artefact: Path | None) -> dict:
    """Box and mask AP of a cell on the val split."""
    from directdet.data.dataset import load_dataset
    from directdet.infer.accuracy.evaluate import evaluate

    metrics = evaluate(detector_of(cell, folder, given.threads, artefact), load_dataset(given.data, "val"), False)
    return {"AP_box": metrics.bbox["AP"], "AP_mask": metrics.segm and metrics.segm["AP"], "images": metrics.n_images}


def summarise(
    chosen: list[Cell], rounds: list[dict], peak: Mapping[str, float], macs: dict[str, int]
) -> dict[str, dict]:
    """Each cell's figures: medians over the rounds, ratios within them."""
    rows = {}
    for cell in chosen:
        times = [r[cell.name] for r in rounds]
        row = {
            f"{stage}_ms": statistics.median(t[stage]["median_ms"] for t in times)
            for stage in ("prepare", "device", "end_to_end")
        }
        row |= {"runs_in": times[0]["runs_in"], "gmacs": macs[cell.variant] / 1e9}
        for stage in ("device", "end_to_end"):
            ratios = [
                r[Cell(cell.model, BASE).name][stage]["median_ms"] / r[cell.name][stage]["median_ms"] for r in rounds
            ]
            row |= {f"speedup_{stage}": statistics.median(ratios), f"speedups_{stage}": ratios}
        reached = row["gmacs"] / (row["device_ms"] / 1e3)
        row["share_of_matrix_product"] = reached / peak[cell.precision]
        row["share_of_postprocessing"] = _postprocessing(cell, rounds)
        rows[cell.name] = row
    return rows


def _postprocessing(cell: Cell, rounds: list[dict]) -> float | None:
    """Share of a cell's device time that is not in its layers; None where that was not timed."""
    plain = Cell(cell.model, cell.runtime, "fp32", cell.proposals) if cell.precision == "int8" else cell
    if f"{plain.name}#post" not in rounds[0]:
        return None
    shares = [r[f"{plain.name}#post"]["ms"] / r[cell.name]["device"]["median_ms"] for r in rounds]
    return statistics.median(shares)


def _pair(text: str) -> tuple[str, Path]:
    name, found, path = text.partition("=")
    if not found or not Path(path).exists():
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=PATH of something that exists")
    return name, Path(path)


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument(
        "--only", action="append", metavar="NAME", help="only cells whose name begins with it; again for more"
    )
    made.add_argument(
        "--checkpoint", type=_pair, action="append", default=[], metavar="MODEL=RUN", help="a trained one"
    )
    made.add_argument(
        "--artefact", type=_pair, action="append", default=[], metavar="CELL=ARTEFACT", help="take this one"
    )
    made.add_argument("--data", type=Path, help="with --checkpoint: calibrates int8; its val split gives the AP")
    made.add_argument("--operators", action="store_true", help="show only where ONNX Runtime's time goes")
    made.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return made


def in_cell(given: argparse.Namespace) -> dict:
    """What the process of one cell measures."""
    name, _, what = given.cell.partition("#")
    if name == "roofline":
        return roofline(given.threads, 256 if given.tiny else 2048)
    cell = next(cell for cell in cells() if cell.name == name)
    measured = {"": time_cell, "post": time_postprocessing, "ap": accuracy}[what]
    return measured(cell, given.folder, given, dict(given.artefact).get(name))


def choose(given: argparse.Namespace) -> list[Cell]:
    """The cells to time; int8 needs an artefact, or a trained network and pictures to calibrate on."""
    found, artefacts, trained = [], dict(given.artefact), dict(given.checkpoint)
    for cell in cells():
        wanted = not given.only or any(cell.name.startswith(name) for name in given.only)
        if (
            wanted
            and cell.precision == "int8"
            and cell.name not in artefacts
            and not (cell.model in trained and given.data)
        ):
            print(f"{cell.name}: left out: needs --artefact, or --checkpoint and --data")
            continue
        if wanted or (cell.runtime == BASE and any(name.startswith(cell.model) for name in given.only)):
            found.append(cell)
    if not found:
        raise SystemExit(f"--only: no such cell; there are {', '.join(cell.name for cell in cells())}")
    return found


def main() -> None:
    given = options().parse_args()
    if given.cell:
        print(json.dumps(in_cell(given)))
        return
    chosen = choose(given)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        macs = prepare(folder, chosen, given)
        if given.operators:
            shares = {
                model: operator_shares(folder / f"{model}_onnx" / "model.onnx", given.threads, given.runs)
                for model in dict.fromkeys(cell.model for cell in chosen if cell.runtime == "onnxruntime")
            }
            for model, rows in shares.items():
                for name, row in rows.items():
                    print(f"{model:12s} {name:20s} {row['ms']:8.1f} ms   {row['share']:.1%}")
            print(write_results("speed_cpu_operators", {"threads": given.threads}, shares, given.results))
            return
        shared = ["--folder", temporary, "--runs", str(given.runs), "--threads", str(given.threads)]
        shared += ["--tiny"] if given.tiny else []
        shared += [part for name, path in given.artefact for part in ("--artefact", f"{name}={path}")]
        rounds: list[dict] = []
        peak: dict[str, float] = {}
        for number in range(given.rounds):
            times = {}
            for cell in chosen:
                times[cell.name] = in_process(__file__, cell.name, *shared)
                if cell.runtime in ("onnxruntime", "openvino") and cell.precision != "int8":
                    times[f"{cell.name}#post"] = in_process(__file__, f"{cell.name}#post", *shared)
                shown = times[cell.name]["end_to_end"]["median_ms"]
                print(f"round {number + 1}: {cell.name:32s} {shown:8.1f} ms end to end", flush=True)
            rounds.append(times)
            reached = in_process(__file__, "roofline", *shared)
            peak = {name: max(speed, peak.get(name, 0.0)) for name, speed in reached.items()}
        rows = summarise(chosen, rounds, peak, macs)
        for cell in chosen:
            if given.data and cell.model in dict(given.checkpoint) and cell.runtime != BASE:
                rows[cell.name]["ap"] = in_process(__file__, f"{cell.name}#ap", *shared, "--data", str(given.data))
    report(rows)
    settings = {name: getattr(given, name) for name in ("threads", "runs", "rounds", "tiny")}
    settings |= {
        "matrix_product_gmacs": peak,
        "checkpoints": {name: str(path) for name, path in given.checkpoint},
    }
    settings["torchvision_weights"] = "random, also where another cell's network is trained; its layers are the same"
    print(write_results("speed_cpu", settings, rows, given.results))


def report(rows: dict[str, dict]) -> None:
    """The figures as a table."""
    print(f"{'':32s} end to end   speed-up   device   speed-up   prepare   post   of product     AP")
    for name, row in rows.items():
        post, ap = row["share_of_postprocessing"], row.get("ap")
        shares = "-" if post is None else f"{post:.1%}", "-" if ap is None else f"{100 * ap['AP_box']:.1f}"
        print(
            f"{name:32s} {row['end_to_end_ms']:7.1f} ms {row['speedup_end_to_end']:9.2f}x {row['device_ms']:7.1f} "
            f"{row['speedup_device']:9.2f}x {row['prepare_ms']:7.2f} {shares[0]:>8s} "
            f"{row['share_of_matrix_product']:9.1%} {shares[1]:>8s}"
        )


if __name__ == "__main__":
    main()
