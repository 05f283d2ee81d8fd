"""`directdet train`: from a recipe and a dataset to checkpoints, one phase or both."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from directdet.common.errors import UsageProblem, UserError
from directdet.common.files import require_writable, write_json_atomic
from directdet.data.dataset import check_same_classes, find_splits, load_dataset
from directdet.data.records import Dataset
from directdet.models.build import build_model
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.recipe import Phase, Recipe
from directdet.train import distributed
from directdet.train.loop import Trainer
from directdet.train.prepare import IMAGENET, Loaded, apply_norm, describe_norm, load_weights
from directdet.train.step import reduced_precision


@dataclass(frozen=True)
class RunResult:
    """What came of a run: for every phase its name, best box AP (None without a val split), checkpoint and seconds.

    Of several processes the main one tells; in the others there are no phases.
    """

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

    Started by torchrun, every process calls this; each trains on its share of every batch, the main one writes.

    Args:
        phase: one of the recipe's; None is all of them, each starting from the one before's last checkpoint.
        init: what the first phase that runs starts from: a checkpoint or a torchvision backbone's file, "imagenet" or
            "random". None is the recipe's own start; a finetune phase that runs alone starts from OUT/pretrain.
        resume: go on from OUT/PHASE/checkpoints/last.pt; phases that are finished are left alone.
        dry_run: print the banner of every phase and stop before the first step.

    Raises:
        UserError: the data, a checkpoint or the settings do not do; the loss became infinite. UsageProblem: a wrong
            combination of arguments.
    """
    out, place = Path(out), choose_device(device)
    if resume and init is not None:
        raise UsageProblem("--resume goes on from the run's own checkpoint, --init starts a new one: give one of them")
    chosen = [p for p in recipe.phases if phase in (None, p.name)]
    if seed < 0:
        raise UsageProblem(f"--seed {seed}: at least 0")
    if not chosen:
        names = " and ".join(p.name for p in recipe.phases)
        raise UsageProblem(f"--phase {phase}: {recipe.name} has {names}")
    require_writable(out, folder=True)
    phases = [out / p.name / "checkpoints" / "last.pt" for p in chosen]
    if resume and not any(path.is_file() for path in (*phases, out / "pretrain" / "checkpoints" / "last.pt")):
        raise UserError(f"{out}: --resume finds no run there (no checkpoint of {' or '.join(p.name for p in chosen)})")
    dataset, val = load_splits(data, recipe.data_fraction)
    asked = {"recipe": asdict(recipe), "data": str(data), "seed": seed, "classes": list(dataset.classes)}
    asked["images"] = len(dataset)
    for later in chosen[1:]:
        _check_later(recipe, later, dataset, out)
    place = distributed.start(place)
    result = _train_phases(recipe, chosen, dataset, val, out, init, resume, place, seed, dry_run, asked)
    distributed.stop()  # not after an error: the others may be waiting for this process, and on GPUs it then for them
    return result


def _check_later(recipe: Recipe, phase: Phase, dataset: Dataset, out: Path) -> None:
    """UserError for settings that a phase cannot run with, before the hours that the phase before it takes."""
    model = _network(recipe, dataset)
    # Of weights that are yet to be trained only this is known: whether the backbone's will be taken.
    apply_norm(model, phase, trained=False, known="backbone" not in phase.parts)
    Trainer(model, phase, dataset, None, out / phase.name, recipe.name, seed=0)


def _network(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """The recipe's network for the classes of the data; UsageProblem if its settings do not go together."""
    try:
        return build_model({"detector": recipe.detector, "num_classes": len(dataset.classes), **recipe.model})
    except ValueError as error:  # settings that are each allowed, but not together
        raise UsageProblem(f"{recipe.name}: model: {error}") from None


def _train_phases(
    recipe: Recipe,
    chosen: list[Phase],
    dataset: Dataset,
    val: Dataset | None,
    out: Path,
    init: str | Path | None,
    resume: bool,
    device: torch.device,
    seed: int,
    dry_run: bool,
    asked: dict,
) -> RunResult:
    done: list[dict] = []
    start = init if init is not None else recipe.init
    for current in chosen:
        folder = out / current.name
        if start == "random" and init is None and current.name == "finetune":
            start = _pretrained(out) or start
        planned = dry_run and bool(done)  # what it starts from is yet to be trained
        done.append(
            _train_phase(recipe, current, dataset, val, folder, start, resume, device, seed, dry_run, asked, planned)
        )
        start = "random" if dry_run else folder / "checkpoints" / "last.pt"
    return RunResult(out, done if distributed.is_main() else [])


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
    start: str | Path,
    resume: bool,
    device: torch.device,
    seed: int,
    dry_run: bool,
    asked: dict,
    planned: bool,
) -> dict:
    """Run one phase; returns its line of the RunResult. `planned`: a dry run of the phase before it came first."""
    last = folder / "checkpoints" / "last.pt"
    if last.exists() and not resume and not dry_run:
        raise UserError(f"{folder}: holds a run already; go on with --resume, or choose another --out")
    torch.manual_seed(seed)
    model = _network(recipe, dataset)
    resumed = resume and last.is_file()
    if resumed:
        _check_asked(folder / "run.json", asked)
    loaded = None
    if resumed:
        loaded = load_weights(model, last, dataset.classes)
    elif str(start) != "random":
        loaded = load_weights(model, start, dataset.classes, phase.parts)
    apply_norm(model, phase, trained=loaded is not None and loaded.taken["backbone"] > 0, known=not planned)
    trainer = Trainer(model.to(device), phase, dataset, val, folder, recipe.name, seed)
    if resumed:
        trainer.resume(last)
    if distributed.is_main():
        words = "what the pretrain phase ends with" if planned else describe_start(loaded, start)
        Console().print(banner(trainer, f"{words}; resumed at step {trainer.position.step}" if resumed else words))
        if loaded is not None and not resumed:
            Console().print(loaded.table())
    result = {"name": phase.name, "best_ap": None, "checkpoint": str(last), "seconds": 0.0}
    if dry_run:
        return result
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"init": str(last if resumed else start), "torch": torch.__version__}
        write_json_atomic(folder / "run.json", {**asked, **facts, "processes": distributed.world_size()})
    started = time.perf_counter()
    metrics = trainer.run(resumed)
    if metrics is not None and distributed.is_main():
        Console().print(metrics.table())
    distributed.from_main(None)  # nobody reads the phase's checkpoint before it is written
    best = trainer.position.best
    return {**result, "best_ap": best if best >= 0 else None, "seconds": time.perf_counter() - started}


def describe_start(loaded: Loaded | None, start: str | Path) -> str:
    """Where the weights came from, in words."""
    if loaded is None:
        return "random weights"
    name = "ImageNet (torchvision)" if str(start) == IMAGENET else loaded.source
    left = sum(len(names) for names in loaded.left.values())
    return f"{name}: {loaded.count()} tensors" + (f", {left} left as they were" if left else "")


def banner(trainer: Trainer, start: str) -> Table:
    """What is about to run, with the facts that decide whether training from scratch works."""
    phase, model = trainer.phase, trainer.model
    total = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    size = f"{phase.size[0]}x{phase.size[1]}"
    if phase.resize == "edges":
        size = f"edges {phase.size}, padded to 32"
        size += f", divided by {phase.shrink:g}" if phase.shrink != 1 else ""
        size += f", short edge of {', '.join(map(str, phase.short_edges))}" if phase.short_edges else ""
    whole = phase.iterations or trainer.steps_per_epoch * phase.epochs
    unit = "epochs" if phase.iterations is None else "steps"
    table = Table(title=f"{trainer.recipe}: {phase.name}", show_header=False)
    for name, value in {
        "data": f"{len(trainer.train)} train images, {len(trainer.val) if trainer.val else 'no'} val images, "
        f"{len(trainer.train.classes)} classes{_left_out(trainer.train)}",
        "start": start,
        "input": f"{size}, {_images(trainer)}, {_precision(trainer)}, {trainer.device}",
        "normalisation": describe_norm(model, phase),
        "parameters": f"{total / 1e6:.2f} M, of them frozen {frozen / 1e6:.2f} M (stages frozen: "
        f"{phase.frozen_stages if phase.frozen_stages >= 0 else 'none'})",
        "learning rate": f"{trainer.rate:g} = {phase.base_lr:g} x {trainer.images_per_step} / {phase.base_batch} "
        f"images (linear scaling), warm-up {phase.warmup_iterations} steps, x{phase.gamma:g} after {unit} "
        f"{', '.join(map(str, phase.milestones)) or '(never)'}",
        "steps": f"{trainer.steps}{f' (max_steps) of {whole}' if trainer.steps < whole else ''}, "
        f"{whole / trainer.steps_per_pass:.4g} passes of {trainer.steps_per_pass}",
    }.items():
        table.add_row(name, value)
    return table


def _precision(trainer: Trainer) -> str:
    """The precision that is computed in, and the one asked for where they differ."""
    asked = trainer.phase.precision
    same = asked != "fp16" or reduced_precision(trainer.phase, trainer.device) is not None
    return asked if same else f"fp32 ({asked} is for GPUs)"


def _images(trainer: Trainer) -> str:
    """How the images of a step come together."""
    phase, processes = trainer.phase, distributed.world_size()
    text = f"{trainer.images_per_step} images per step"
    if processes > 1 or phase.accumulate > 1:
        text += f" ({phase.batch_size}"
        text += f" on each of {processes} devices" if processes > 1 else ""
        text += f", {phase.accumulate} times" if phase.accumulate > 1 else ""
        text += ")"
    return text


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


def load_splits(data: str | Path, fraction: float = 1.0) -> tuple[Dataset, Dataset | None]:
    """The train split or a fixed share of it, and the val split if there is one, with the same classes."""
    dataset = load_dataset(data, "train")
    if fraction < 1:
        dataset = dataset.subset(fraction, seed=0)
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
    if before.get("classes") != asked["classes"]:
        raise UserError(f"{path}: was started on data with other classes; resume with the same --data")
    if before.get("images", asked["images"]) != asked["images"]:  # older files do not tell
        raise UserError(
            f"{path}: was started on {before['images']} images, here are {asked['images']}; resume with the same --data"
        )
