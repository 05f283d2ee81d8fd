"""`directdet train`: from a recipe and a dataset to checkpoints, one phase or both."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ..data.dataset import check_same_classes, find_splits, load_dataset
from ..data.records import Dataset
from ..errors import UsageProblem, UserError
from ..files import require_writable, write_json_atomic
from ..models.build import build_model
from ..models.checkpoint import load_checkpoint
from .loop import Trainer
from .prepare import Loaded, apply_norm, describe_norm, load_weights
from .recipes import Phase, Recipe


@dataclass(frozen=True)
class RunResult:
    """What came of a run: for every phase its name, best box AP (None without a val split), checkpoint and seconds."""

    out: Path
    phases: list[dict]


def train(
    recipe: Recipe,
    data: str | Path,
    out: str | Path,
    phase: str | None = None,
    init: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    seed: int = 0,
    dry_run: bool = False,
) -> RunResult:
    """Train `recipe` on the dataset in `data`, into the run folder `out`.

    Args:
        phase: "pretrain" or "finetune"; None is both, the second starting from the first's last checkpoint.
        init: a checkpoint whose whole detector is loaded before the first phase that runs. A finetune phase without it
            starts from OUT/pretrain.
        resume: go on from OUT/PHASE/checkpoints/last.pt; phases that are finished are left alone.
        dry_run: print the banner of every phase and stop before the first step.

    Raises:
        UserError: the data, a checkpoint or the settings do not do; the loss became infinite. UsageProblem: a wrong
            combination of arguments.
    """
    out, place = Path(out), choose_device(device)
    if resume and init is not None:
        raise UsageProblem("--resume goes on from the run's own checkpoint, --init starts a new one: give one of them")
    chosen = [p for p in recipe.phases() if phase in (None, p.name)]
    if seed < 0:
        raise UsageProblem(f"--seed {seed}: at least 0")
    if not chosen:
        raise UsageProblem(f"--phase {phase}: there are pretrain and finetune")
    require_writable(out, folder=True)
    phases = [out / p.name / "checkpoints" / "last.pt" for p in chosen]
    if resume and not any(path.is_file() for path in (*phases, out / "pretrain" / "checkpoints" / "last.pt")):
        raise UserError(f"{out}: --resume finds no run there (no checkpoint of {' or '.join(p.name for p in chosen)})")
    dataset, val = load_splits(data)
    asked = {"recipe": asdict(recipe), "data": str(data), "seed": seed, "classes": list(dataset.classes)}
    done, start = [], Path(init) if init is not None else None
    for current in chosen:
        folder = out / current.name
        if start is None and current.name == "finetune":
            start = _pretrained(out)
        done.append(
            _train_phase(
                recipe, current, dataset, val, folder, start, resume, place, seed, dry_run, asked, len(done) > 0
            )
        )
        start = None if dry_run else folder / "checkpoints" / "last.pt"
    return RunResult(out, done)


def _pretrained(out: Path) -> Path | None:
    """The last checkpoint of the run's pretrain phase, if there is one; UserError if the phase is not finished."""
    path = out / "pretrain" / "checkpoints" / "last.pt"
    if not path.is_file():
        return None
    found = load_checkpoint(path)
    if found["step"] < found["steps"]:
        raise UserError(
            f"{path}: the pretrain phase stopped at step {found['step']} of {found['steps']}; finish it with --resume, "
            "or start from it as it is with --init"
        )
    return path


def _train_phase(
    recipe: Recipe,
    phase: Phase,
    dataset: Dataset,
    val: Dataset | None,
    folder: Path,
    init: Path | None,
    resume: bool,
    device: torch.device,
    seed: int,
    dry_run: bool,
    asked: dict,
    planned: bool,
) -> dict:
    """Run one phase; returns its line of the RunResult. `planned`: the phase before it is part of the same run."""
    last = folder / "checkpoints" / "last.pt"
    if last.exists() and not resume and not dry_run:
        raise UserError(f"{folder}: holds a run already; go on with --resume, or choose another --out")
    torch.manual_seed(seed)
    model = build_model({"detector": "rcnn", "num_classes": len(dataset.classes), **recipe.model})
    resumed = resume and last.is_file()
    if resumed:
        _check_asked(folder / "run.json", asked)
        init = last
    loaded = load_weights(model, init, dataset.classes) if init is not None else None
    after_pretrain = dry_run and planned  # what it starts from is yet to be trained
    apply_norm(model, phase, trained=after_pretrain)
    trainer = Trainer(model.to(device), phase, dataset, val, folder, recipe.name, seed)
    if resumed:
        trainer.resume(last)
    start = "what the pretrain phase ends with" if after_pretrain else describe_start(loaded)
    if resumed:
        start += f"; resumed at step {trainer.position.step}"
    Console().print(banner(trainer, start))
    result = {"name": phase.name, "best_ap": None, "checkpoint": str(last), "seconds": 0.0}
    if dry_run:
        return result
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / "run.json", {**asked, "init": str(init) if init else None, "torch": torch.__version__})
    started = time.perf_counter()
    metrics = trainer.run(resumed)
    if metrics is not None:
        Console().print(metrics.table())
    best = trainer.position.best
    return {**result, "best_ap": best if best >= 0 else None, "seconds": time.perf_counter() - started}


def describe_start(loaded: Loaded | None) -> str:
    """Where the weights came from, in words."""
    if loaded is None:
        return "random weights"
    text = f"{loaded.path}: {loaded.taken} tensors"
    if loaded.skipped:
        text += f"; not in it, left as they were: {', '.join(loaded.skipped[:6])}"
        text += f" and {len(loaded.skipped) - 6} more" if len(loaded.skipped) > 6 else ""
    return text


def banner(trainer: Trainer, start: str) -> Table:
    """What is about to run, with the facts that decide whether training from scratch works."""
    phase, model = trainer.phase, trainer.model
    total = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    size = f"{phase.size[0]}x{phase.size[1]}" if phase.resize == "direct" else f"edges {phase.size}, padded to 32"
    whole = trainer.passes * trainer.loader.batches_per_epoch
    table = Table(title=f"{trainer.recipe}: {phase.name}", show_header=False)
    for name, value in {
        "data": f"{len(trainer.train)} train images, {len(trainer.val) if trainer.val else 'no'} val images, "
        f"{len(trainer.train.classes)} classes{_left_out(trainer.train)}",
        "start": start,
        "input": f"{size}, {phase.batch_size} images per step, {phase.precision}, {trainer.device}",
        "normalisation": describe_norm(model, phase),
        "parameters": f"{total / 1e6:.2f} M, of them frozen {frozen / 1e6:.2f} M (stages frozen: "
        f"{phase.frozen_stages if phase.frozen_stages >= 0 else 'none'})",
        "learning rate": f"{trainer.rate:g} = {phase.base_lr:g} x {phase.batch_size} / {phase.base_batch} images "
        f"(linear scaling), warm-up {phase.warmup_iterations} steps, x{phase.gamma:g} after epochs "
        f"{', '.join(map(str, phase.milestones)) or '(never)'}",
        "steps": f"{trainer.steps}{' (max_steps) of' if trainer.steps < whole else ' ='} {trainer.passes} passes x "
        f"{trainer.loader.batches_per_epoch}",
    }.items():
        table.add_row(name, value)
    return table


def _left_out(dataset: Dataset) -> str:
    """What reading the annotations had to drop, in words."""
    dropped = [p for p in dataset.problems if p.action == "dropped"]
    if not dropped:
        return ""
    first = dropped[0]
    return (
        f"; {len(dropped)} objects left out, the first: {first.file}: annotation {first.annotation_id}: {first.message}"
    )


def choose_device(device: str) -> torch.device:
    """ "auto" is the GPU if there is one. UserError for a GPU that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return torch.device(device)


def load_splits(data: str | Path) -> tuple[Dataset, Dataset | None]:
    """The train split, and the val split if there is one, with the same classes."""
    dataset = load_dataset(data, "train")
    if "val" not in find_splits(data):
        return dataset, None
    val = load_dataset(data, "val")
    check_same_classes(dataset, val)
    return dataset, val


def _check_asked(path: Path, asked: dict) -> None:
    """UserError if the run that `path` (run.json) describes was started with another recipe or other settings."""
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before.get("recipe") != json.loads(json.dumps(asked["recipe"])):
        raise UserError(f"{path}: was started with other settings; resume with the same recipe and --set")
