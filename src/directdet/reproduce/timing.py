"""`directdet reproduce direct/table7`: seconds per iteration of fine-tuning and frames per second, by normalisation.

The four variants take turns, so that a machine that is slow for a while is slow for all of them; ratios are medians
over the rounds.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.progress import track
from rich.table import Table

from directdet.common.errors import UserError
from directdet.common.files import require_writable, write_json_atomic
from directdet.data.records import Dataset
from directdet.infer.accuracy.evaluate import detect
from directdet.infer.machine import hardware, versions
from directdet.infer.runtimes.torch_runtime import TorchPredictor
from directdet.models.build import build_model
from directdet.recipes.published import direct_table7
from directdet.recipes.recipe import Phase
from directdet.reproduce.scales import Scale, choose_scale
from directdet.reproduce.tables.direct import finetune, pretrain, scratch
from directdet.train.data import load_splits
from directdet.train.loop import Trainer
from directdet.train.prepare import apply_norm
from directdet.train.run import choose_device
from directdet.train.step import total

CAUTION = "The ratios compare the rows with each other; the seconds are those of this machine and this scale."
FPS_IMAGES = 20


def variants(scale: Scale) -> dict[str, tuple[Phase, dict[str, Any]]]:
    """The rows of Table 7: the phase that is timed, and changes to the network's settings."""
    return {
        "ImageNet": (finetune(scale, norm="affine"), {}),
        "Scratch (GN)": (scratch(scale), {"norm": "gn"}),
        "Scratch (SyncBN)": (scratch(scale, "sync"), {}),
        "Direct": (finetune(scale), {}),
    }


def time_table7(
    data: str | Path, out: str | Path, scale: str | None = None, device: str = "auto", rounds: int = 5, steps: int = 4
) -> dict[str, Any]:
    """Time every variant on the dataset in `data`; writes OUT/results.json and returns its content.

    A single process has no other to synchronise with: its SyncBN row times live batch normalisation, and says so.

    Args:
        scale: a key of SCALES; None is "medium" on a GPU and "small" on a CPU.
        device: as in train.run.train.
        rounds: how often every variant is timed.
        steps: iterations of a round.

    Raises:
        UserError: the dataset cannot be used. UsageProblem: an unknown scale.
    """
    place = choose_device(device)
    chosen = choose_scale(scale, place.type == "cuda")
    require_writable(Path(out), folder=True)
    train_set, val = load_splits(data)
    if val is None:
        raise UserError(f"{data}: has no val split to measure frame rates on; add one")
    rows: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            name: _trainer(phase, {**chosen.models["rcnn"], **model}, train_set, place, Path(folder))
            for name, (phase, model) in variants(chosen).items()
        }
        for number in track(range(rounds + 1), description="timing"):
            for name, trainer in trainers.items():
                found = _round(trainer, val, steps)
                if number:  # the first round warms up
                    for key, value in found.items():
                        rows.setdefault(name, {}).setdefault(key, []).append(value)
        data_seconds = _data_seconds(chosen, train_set, steps * rounds, Path(folder), place, chosen.models["rcnn"])
    result = {
        "experiment": "direct/table7",
        "caution": CAUTION,
        "scale": chosen.name,
        "rows": [_summary(name, rows) for name in rows],
        "data_seconds": data_seconds,
        "paper": direct_table7().to_dict(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": {**versions(), "torch": torch.__version__},
    }
    Path(out).mkdir(parents=True, exist_ok=True)
    write_json_atomic(Path(out) / "results.json", result)
    return result


def _trainer(phase: Phase, model: dict[str, Any], dataset: Dataset, device: torch.device, folder: Path) -> Trainer:
    settings = {**model, "masks": dataset.has_masks}
    torch.manual_seed(0)
    network = build_model({"detector": "rcnn", "num_classes": len(dataset.classes), **settings})
    apply_norm(network, phase, trained=False, known=False)
    return Trainer(network.to(device), replace(phase, workers=0), dataset, None, folder, "table7", 0)


def timed_steps(trainer: Trainer, count: int) -> list[tuple[float, float]]:
    """(seconds to read a batch, seconds of the step) of `count` training steps; fewer if a pass over the data ends."""
    trainer.model.train()
    batches, found = iter(trainer.loader), []
    for _ in range(count):
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        read = time.perf_counter()
        losses, _ = trainer.step([batch])
        float(total(losses.values()))  # waits for the device
        found.append((read - started, time.perf_counter() - read))
    return found


def _round(trainer: Trainer, val: Dataset, steps: int) -> dict[str, float]:
    """Mean seconds of an iteration without reading its data, and frames per second with preprocessing."""
    trainer.loader.set_epoch(0)
    seconds = [step for _, step in timed_steps(trainer, steps)]
    train = trainer.train
    detector = TorchPredictor.from_model(
        trainer.model, trainer.preprocess, train.classes, train.category_ids, trainer.device
    )
    records = val.records[:FPS_IMAGES]
    started = time.perf_counter()
    detect(detector, replace(val, classes=train.classes), records)
    return {"seconds": statistics.mean(seconds), "fps": len(records) / (time.perf_counter() - started)}


def _data_seconds(
    scale: Scale, dataset: Dataset, batches: int, folder: Path, device: torch.device, model: dict[str, Any]
) -> dict[str, float]:
    """Seconds to read, resize and pad the images of one iteration, for each phase of direct pre-training."""
    found = {}
    for phase in (pretrain(scale), finetune(scale)):
        trainer = _trainer(phase, model, dataset, device, folder)
        times, started = [], time.perf_counter()
        for number, _ in enumerate(trainer.loader):
            times.append(time.perf_counter() - started)
            if number >= batches:
                break
            started = time.perf_counter()
        found[phase.name] = statistics.median(times)
    return found


def _summary(name: str, rows: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    own, base = rows[name], rows["Scratch (SyncBN)"]
    ratios = {
        key: statistics.median(a / b for a, b in zip(own[key], base[key], strict=True)) for key in ("seconds", "fps")
    }
    medians = {key: statistics.median(values) for key, values in own.items()}
    return {"method": name, "rounds": own, "medians": medians, "to_sync": ratios}


def timing_table(result: dict[str, Any]) -> Group:
    """Our figures next to the paper's, as ratios to the SyncBN row."""
    rows = {row["method"]: row for row in result["paper"]["rows"]}
    base = rows["Scratch (SyncBN)"]
    title = f"direct/table7: time by normalisation; scale {result['scale']}"
    table = Table("", title=title, title_justify="left", padding=(0, 0, 0, 1))
    ratio = "to\nSyncBN"
    for name in ("s/iter", ratio, "paper's\ns/iter", ratio, "fps", ratio, "paper's\nfps"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        paper, ours = rows[row["method"]], row["medians"]
        table.add_row(
            row["method"],
            f"{ours['seconds']:.3f}",
            f"{row['to_sync']['seconds']:.2f}",
            f"{paper['train_s_per_iter']}",
            f"{paper['train_s_per_iter'] / base['train_s_per_iter']:.2f}",
            f"{ours['fps']:.1f}",
            f"{row['to_sync']['fps']:.2f}",
            f"{paper['fps']}",
        )
    alone = "One process: SyncBN has no other process to synchronise with, so its row is live BN."
    seconds = ", ".join(f"{name} {value:.3f} s" for name, value in result["data_seconds"].items())
    data = f"Reading the data of one iteration in one process: {seconds} (paper: 0.014 direct, 0.029 scratch)."
    return Group(table, CAUTION, alone, data)
