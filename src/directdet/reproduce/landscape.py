"""`directdet landscape`: ScratchDet's Figures 1 and 7, training loss and gradient with and without normalisation.

Every variant sees the same data in the same order from the same seed. Three numbers are kept at each step: the loss,
the L2 norm of the gradient of all parameters, and its fluctuation. The paper does not define the last; here it is
|norm(t) - norm(t - 1)|, smoothed in the figure by a moving average, as the paper says of its own.
"""

import itertools
import json
import math
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import nn

from directdet.common.errors import UsageProblem, UserError
from directdet.common.files import require_writable, write_json_atomic
from directdet.common.json_files import check_json, read_json
from directdet.data.records import Dataset
from directdet.infer.machine import hardware, versions
from directdet.infer.preprocess import Preprocess
from directdet.models.build import build_model
from directdet.recipes.scratchdet import PLACES, VOC_PHASE
from directdet.train.data import load_splits, make_phase_loader
from directdet.train.optim import learning_rate
from directdet.train.run import choose_device
from directdet.train.step import Stepper, total

PART_FILE = "landscape.part.json"  # the variants so far
SMOOTHING = 15  # steps of the moving average


@dataclass(frozen=True)
class Variant:
    """One curve of a figure.

    Attributes:
        place: where batch normalisation is, a key of scratchdet.PLACES.
        times: what the base learning rate is multiplied by.
    """

    place: str
    times: int

    @property
    def name(self) -> str:
        """As landscape.json calls it: "head_10x"."""
        return f"{self.place}_{self.times}x"


# Figure 1 has normalisation in the head, Figure 7 in the backbone.
FIGURES = {
    "Figure 1": (Variant("none", 1), Variant("head", 1), Variant("head", 10)),
    "Figure 7": (Variant("none", 1), Variant("backbone", 1), Variant("backbone", 10)),
}


@dataclass(frozen=True)
class Size:
    """How large a landscape is.

    Attributes:
        side: of the input, in pixels.
        batch: images per step.
        width: channels of VGG-16's stem; None for the full width.
        steps: of each variant.
        workers: processes that read data.
    """

    side: int
    batch: int
    width: int | None
    steps: int
    workers: int


SIZES = {"small": Size(300, 8, 8, 80, 2), "paper": Size(300, 128, None, 1000, 8)}
BASE_RATE = 0.001  # for 128 images, Table 1's smallest


def landscape(
    data: str | Path,
    out: str | Path,
    size: str | None = None,
    steps: int | None = None,
    device: str = "auto",
    seed: int = 0,
    base_lr: float = BASE_RATE,
) -> dict[str, Any]:
    """Train every variant of FIGURES briefly on `data`; writes OUT/landscape.json and returns its content.

    A variant whose loss is no longer finite stops there; its "stopped" is the step. The same call after one that was
    stopped goes on with the variants that are left.

    Args:
        size: a key of SIZES; None is "paper" on a GPU and "small" on a CPU.
        steps: of each variant, instead of the size's.
        device, seed: as in train.run.train.
        base_lr: the learning rate of the variants at 1x, whatever the batch.

    Raises:
        UserError: the dataset cannot be used. UsageProblem: an unknown size.
    """
    place = choose_device(device)
    size = size or ("paper" if place.type == "cuda" else "small")
    if size not in SIZES:
        raise UsageProblem(f"--size {size}: unknown; choose one of {', '.join(SIZES)}")
    require_writable(Path(out), folder=True)
    chosen = SIZES[size] if steps is None else replace(SIZES[size], steps=steps)
    dataset, _ = load_splits(data)
    wanted = dict.fromkeys(variant for figure in FIGURES.values() for variant in figure)
    settings = {"size": {**asdict(chosen), "name": size}, "base_lr": base_lr, "seed": seed, "data": str(data)}
    asked = {**settings, "images": len(dataset), "device": place.type}
    part = Path(out) / PART_FILE
    runs = _trained(part, asked)
    for variant in track(list(wanted), description="training"):
        if variant.name not in (run["name"] for run in runs):
            runs.append(_run(variant, chosen, dataset, place, seed, base_lr))
            write_json_atomic(part, {"asked": asked, "runs": runs})
    result = {
        "figures": {name: [variant.name for variant in figure] for name, figure in FIGURES.items()},
        "fluctuation": f"|norm(t) - norm(t - 1)|, smoothed over {SMOOTHING} steps",
        **settings,
        "runs": runs,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": {**versions(), "torch": torch.__version__},
    }
    Path(out).mkdir(parents=True, exist_ok=True)
    write_json_atomic(Path(out) / "landscape.json", result)
    part.unlink(missing_ok=True)
    return result


@dataclass(frozen=True)
class _PartFile:
    """The content of PART_FILE."""

    asked: dict[str, Any]
    runs: tuple[Any, ...]


@dataclass(frozen=True)
class _Trained:
    """The curves of one variant."""

    name: str
    label: str
    learning_rate: float
    stopped: int | None
    loss: tuple[float, ...]
    norm: tuple[float, ...]
    fluctuation: tuple[float, ...]


def _trained(path: Path, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The variants that a stopped run with these settings has trained."""
    if not path.is_file():
        return []
    fix = "remove it to start again"
    part = read_json(path, _PartFile, fix)[1]
    for number, run in enumerate(part.runs):
        where = f"{path}: runs[{number}]"
        if not isinstance(run, dict):
            raise UserError(f"{where}: is not a table; {fix}")
        check_json(run, _Trained, where, fix)
    return list(part.runs) if part.asked == json.loads(json.dumps(asked)) else []


def _run(
    variant: Variant, size: Size, dataset: Dataset, device: torch.device, seed: int, base_lr: float
) -> dict[str, Any]:
    """Train one variant; its three curves."""
    norm, head_norm, words = PLACES[variant.place]
    rate = base_lr * variant.times
    phase = replace(
        VOC_PHASE,
        batch_size=size.batch,
        base_batch=size.batch,
        base_lr=rate,
        iterations=size.steps,
        milestones=(),
        workers=size.workers,
    )
    torch.manual_seed(seed)
    settings = {"backbone": "vgg16", "width": size.width, "norm": norm, "head_norm": head_norm, "size": size.side}
    model = build_model({"detector": "ssd", "num_classes": len(dataset.classes), **settings}).to(device)
    preprocess = Preprocess((size.side, size.side), std=phase.std, warp=True)
    stepper = Stepper(model, phase, preprocess, learning_rate(phase, size.batch), seed)
    loader = make_phase_loader(phase, dataset, False, seed, device.type == "cuda")
    model.train()
    losses: list[float] = []
    norms: list[float] = []
    stopped = None
    while len(losses) < size.steps and stopped is None:
        loader.set_epoch(len(losses) // loader.batches_per_epoch)
        for batch in loader:
            found, _ = stepper.step([batch], len(losses), loader.batches_per_epoch)
            losses.append(float(total(found.values())))
            norms.append(_gradient_norm(model))
            if not (math.isfinite(losses[-1]) and math.isfinite(norms[-1])):
                losses.pop()
                norms.pop()
                stopped = len(losses)
                break
            if len(losses) >= size.steps:
                break
    loader.close()
    fluctuation = [abs(b - a) for a, b in itertools.pairwise(norms)]
    label = f"SSD {words}, learning rate {rate:g}"
    curves = {"loss": losses, "norm": norms, "fluctuation": fluctuation}
    return {"name": variant.name, "label": label, "learning_rate": rate, "stopped": stopped, **curves}


def _gradient_norm(model: nn.Module) -> float:
    """The L2 norm of the gradient of all parameters together, as the last step left it."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients))
