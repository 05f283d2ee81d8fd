"""`directdet train`: from a recipe and a dataset to checkpoints, in one phase or several."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from directdet.common.errors import UsageProblem, UserError
from directdet.common.files import require_writable, write_json_atomic
from directdet.common.folder_lock import hold_folder
from directdet.common.terminal import plain, terminal
from directdet.common.urls import url_of
from directdet.data.digest import describe_content
from directdet.data.pixels.format import RGB
from directdet.data.records import Dataset
from directdet.infer.accuracy.evaluate import Evaluation, Metrics
from directdet.infer.runtimes.load import find_model
from directdet.models.checkpoint import load_checkpoint
from directdet.models.parts.network import Network
from directdet.recipes.derived import accumulated
from directdet.recipes.recipe import Phase, Recipe
from directdet.train import distributed
from directdet.train.averages.statistics import estimate_statistics
from directdet.train.banner import banner, describe_schedule, describe_start
from directdet.train.compiled.trial import choose_form
from directdet.train.continuing import describe_longer, is_longer
from directdet.train.data import load_splits
from directdet.train.loop import Trainer
from directdet.train.measuring import measured_pace
from directdet.train.objects import fitted
from directdet.train.prepare import IMAGENET, apply_norm, load_weights, network_of, settled
from directdet.train.processes.agreement import Meeting, facts_of, meeting
from directdet.train.run_file import begun, check_same_run, loggers_of, settled_before, started_from, stored_phase
from directdet.train.watch.callbacks import Callback, Watchers
from directdet.train.watch.display import Display
from directdet.train.watch.loggers import DEFAULT, build_loggers
from directdet.train.watch.pace import duration


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        out: its folder.
        phases: for each phase "name", "best_ap" (None without a val split), "best_by" (what that is), "checkpoint" and
            "seconds". With several processes, only the main one has them.
        evaluation: the last one of the last phase, if this call made one; of the main process only.
        data: the dataset's folder.
        report: the page about the run, if one was written.
    """

    out: Path
    phases: list[dict]
    evaluation: Evaluation | None = None
    data: str = ""
    report: Path | None = None

    @property
    def best(self) -> Path | None:
        """The last phase's checkpoint with the best AP, or its last one where none was evaluated; None before any."""
        folder = Path(self.phases[-1]["checkpoint"]).parent if self.phases else None
        files = [folder / name for name in ("best.pt", "last.pt")] if folder is not None else []
        return next((file for file in files if file.is_file()), None)

    @property
    def metrics(self) -> Metrics | None:
        """The numbers of that evaluation: of the weights at the end, where `best` may hold earlier ones."""
        return None if self.evaluation is None else self.evaluation.metrics


@dataclass(frozen=True)
class _Run:
    """What all phases of a run share."""

    recipe: Recipe
    data: str
    dataset: Dataset
    val: Dataset | None
    out: Path
    device: torch.device
    seed: int
    resume: bool
    dry_run: bool
    phase: str | None
    log: tuple[str, ...]
    watchers: Watchers = field(default_factory=Watchers)
    display: Display | None = None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What run.json keeps, so that a run is resumed as the same run."""
        facts = {
            "recipe": asdict(self.recipe),
            "data": url_of(self.data) or str(Path(self.data).absolute()),
            "seed": self.seed,
            "phase": self.phase,
            "log": list(self.log),
        }
        splits = {"train": self.dataset, "val": self.val}
        content = {name: describe_content(split) for name, split in splits.items() if split is not None}
        if self.dataset.pixels != RGB:
            facts["pixels"] = asdict(self.dataset.pixels)
        return {**facts, "classes": list(self.dataset.classes), "images": len(self.dataset), "content": content}

    def network(self, phase: Phase) -> Network:
        """The network of a phase for the classes of the data; see network_of."""
        return network_of(self.recipe, phase, len(self.dataset.classes))

    def trainer(self, model: Network, phase: Phase) -> Trainer:
        """What trains `model` in this phase."""
        shared = self.dataset, self.val, self.out / phase.name, self.recipe.name, self.seed
        return Trainer(model, phase, *shared, self.watchers, self.display)


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
    log: Sequence[str] | None = None,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Train `recipe` on the dataset in `data`, and write checkpoints and logs to the run folder `out`.

    Under torchrun, every process calls this function; each trains on its share of every batch, and the main process
    writes.

    Args:
        phase: one of the recipe's phases; None runs all of them, each from the last checkpoint of the one before.
        init: what the first phase starts from: a run folder (its best.pt, else last.pt, of the last phase), a
            checkpoint, a file with a torchvision backbone, "imagenet" or "random". None takes the recipe's own start; a
            phase that runs alone starts from the one before it in OUT, a finetune phase by default from OUT/pretrain.
        resume: continue from OUT/PHASE/checkpoints/last.pt; finished phases are left as they are. A phase that was
            killed before its first checkpoint starts again as it did. A phase may be longer than it was, where its
            steps so far would have had the same learning rate; see continuing.py.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        seed: of weights, the order of the data, augmentation and sampling.
        dry_run: print the banner of every phase and how long it will take, from three steps of each; nothing is
            written.
        log: names of loggers: "tensorboard", "wandb", "mlflow", "none", and what `add_logger` added; None takes those
            of the run that is resumed, and else TensorBoard. RUN/PHASE/log.jsonl is always written.
        callbacks: are told of steps, evaluations and checkpoints.

    Raises:
        UserError: the dataset, a checkpoint or a setting cannot be used, or the loss is no longer finite.
        UsageProblem: arguments that do not go together.
    """
    if init is not None and str(init) not in ("random", IMAGENET) and Path(init).is_dir():
        init = _checkpoint_of(Path(init))
    with distributed.told_of_loss(Path(out)), meeting() as met:
        return _train(recipe, data, Path(out), phase, init, resume, device, seed, dry_run, log, callbacks, met)


def _checkpoint_of(folder: Path) -> Path:
    """The checkpoint that a run folder stands for; UserError if it is none."""
    what, file = find_model(folder)
    if what != "checkpoint":
        raise UserError(
            f"--init {folder}: is an artefact, which has no weights to train on; give a run or a checkpoint"
        )
    return file


def _train(
    recipe: Recipe,
    data: str | Path,
    out: Path,
    phase: str | None,
    init: str | Path | None,
    resume: bool,
    device: str,
    seed: int,
    dry_run: bool,
    log: Sequence[str] | None,
    callbacks: Sequence[Callback],
    met: Meeting | None,
) -> RunResult:
    """train(), once the processes of the run have met, if there are several."""
    place = choose_device(device)
    if resume and init is not None:
        raise UsageProblem("--init starts a new run, --resume continues one; give one of them")
    chosen = [p for p in recipe.phases if phase in (None, p.name)]
    if seed < 0:
        raise UsageProblem(f"--seed {seed}: must be at least 0")
    if not chosen:
        names = " and ".join(p.name for p in recipe.phases)
        raise UsageProblem(f"--phase {phase}: {recipe.name} has no such phase; it has {names}")
    for one in chosen:
        accumulated(one, distributed.launched())  # before anything is read: whether so many devices can run it
    if log is None:
        log = (loggers_of(out) if resume else None) or DEFAULT
    watching = [*(() if dry_run else build_loggers(log)), *callbacks]
    require_writable(out, folder=True)
    if resume and not any(begun(out / name) for name in (*(p.name for p in recipe.phases), "pretrain")):
        names = " or ".join(p.name for p in chosen)
        raise UserError(f"{out}: --resume finds no run there (none of {names}); leave --resume out to start one")
    dataset, val = load_splits(data, recipe.data_fraction)
    recipe, why = fitted(settled_before(recipe, out), dataset)
    recipe = replace(settled(recipe, dataset, place), given=())  # a run is the same however its settings came about
    chosen = [p for p in recipe.phases if phase in (None, p.name)]
    run = _Run(recipe, str(data), dataset, val, out, place, seed, resume, dry_run, phase, tuple(log))
    for later in chosen[1:]:
        _check_later(run, later)
    if met is not None:
        names = dict.fromkeys(("pretrain", *(p.name for p in recipe.phases)))
        files = [Path(init)] if init not in (None, "random", IMAGENET) else []
        files += [out / name / "checkpoints" / "last.pt" for name in names]
        asked = [*(p.name for p in chosen), *(["--resume"] if resume else [])]
        met.agree(facts_of(recipe, asked, dataset, val, seed, place.type, files))
    run = replace(run, device=distributed.start(place, met and met.store))
    if distributed.is_main():
        display = Display()
        run = replace(run, display=display, watchers=Watchers([display, *watching]))
    if why and distributed.is_main():
        terminal().print(plain(f"{recipe.name}, {why}"))
    with hold_folder(out, "train") if distributed.is_main() and not dry_run else contextlib.nullcontext():
        result = _train_phases(run, chosen, init)
    distributed.stop()  # not after an error: other processes may wait for this one, and on GPUs it would wait for them
    return result


def _check_later(run: _Run, phase: Phase) -> None:
    """UserError for settings that a later phase cannot run with, before the hours that the phases before it take."""
    model = run.network(phase)
    # Of weights that are not trained yet, only this is known: whether the backbone's will be loaded.
    apply_norm(model, phase, trained=False, known="backbone" not in phase.parts)
    run.trainer(model, phase)


def _train_phases(run: _Run, chosen: list[Phase], init: str | Path | None) -> RunResult:
    done: list[dict] = []
    evaluation = None
    start: str | Path = init if init is not None else run.recipe.init
    if run.resume and (before := started_from(run.out / chosen[0].name)):
        start = init = before
    expected = 0.0
    for phase in chosen:
        if start == "random" and init is None and (before := _before(run.recipe, phase)):
            start = _pretrained(run.out, before) or start
        entry, evaluation = _train_phase(run, phase, start, planned=run.dry_run and bool(done))
        done.append(entry)
        expected += entry.pop("expected", 0.0)
        start = "random" if run.dry_run else run.out / phase.name / "checkpoints" / "last.pt"
    if expected and len(chosen) > 1 and distributed.is_main():
        terminal().print(f"all phases: about {duration(expected)}")
    return RunResult(run.out, done if distributed.is_main() else [], evaluation, run.data)


def _before(recipe: Recipe, phase: Phase) -> str:
    """The name of the phase whose weights a phase starts from; empty for one that is the first."""
    number = recipe.phases.index(phase)
    return recipe.phases[number - 1].name if number else "pretrain" if phase.name == "finetune" else ""


def _pretrained(out: Path, name: str) -> Path | None:
    """The last checkpoint of the run's phase of that name, if there is one; UserError if it is not finished."""
    path = out / name / "checkpoints" / "last.pt"
    if not path.is_file():
        return None
    found = load_checkpoint(path)
    if found["step"] < found["steps"] and not found.get("stopped_early"):
        raise UserError(
            f"{path}: the {name} phase stopped at step {found['step']} of {found['steps']}; finish it with --resume, "
            "or start from it as it is with --init"
        )
    return path


def _train_phase(run: _Run, phase: Phase, start: str | Path, planned: bool) -> tuple[dict, Evaluation | None]:
    """Run one phase; returns its entry in the RunResult and its last evaluation.

    `planned`: in a dry run, a phase after the first, so that the weights it will start from do not exist yet.
    """
    folder = run.out / phase.name
    last = folder / "checkpoints" / "last.pt"
    if last.exists() and not run.resume and not run.dry_run:
        raise UserError(f"{folder}: already holds a run; continue it with --resume, or choose another --out")
    torch.manual_seed(run.seed)
    model = run.network(phase)
    resumed = run.resume and last.is_file()
    loaded = None
    before = stored_phase(folder) if run.resume else None
    if before is not None:
        check_same_run(folder / "run.json", run.settings)
    if resumed:
        loaded = load_weights(model, last, run.dataset.classes)
    elif str(start) != "random":
        loaded = load_weights(model, start, run.dataset.classes, phase.parts)
    if phase.precise_bn and loaded is not None and not (resumed or run.dry_run):
        images = estimate_statistics(model.to(run.device), phase, run.dataset, run.seed)
        if distributed.is_main():
            terminal().print(f"{phase.name}: statistics of batch normalisation re-estimated over {images} images")
    apply_norm(model, phase, trained=loaded is not None and loaded.taken["backbone"] > 0, known=not planned)
    trainer = run.trainer(model.to(run.device), phase)
    if resumed:
        trainer.resume(last, before)
    longer = before if resumed and before is not None and is_longer(before, phase) else None
    if longer is not None:
        _check_last(run, phase, trainer)
    if distributed.is_main():
        words = describe_start(loaded, start)
        if planned:
            words = f"the weights at the end of the {_before(run.recipe, phase)} phase"
        terminal().print(banner(trainer, f"{words}; resumed at step {trainer.position.step}" if resumed else words))
        if loaded is not None and not resumed:
            terminal().print(loaded.table())
        if longer is not None:
            words = f"{phase.name}: {describe_longer(longer, phase)}; learning rate {describe_schedule(phase)}"
            terminal().print(plain(words))
    result = {"name": phase.name, "best_ap": None, "best_by": phase.best_by, "checkpoint": str(last), "seconds": 0.0}
    if run.dry_run and trainer.finished:
        return result, None
    if run.dry_run:
        pace = measured_pace(trainer)
        if distributed.is_main():
            how = f"(measured{', not compiled' * phase.compiled})"
            terminal().print(f"{phase.name}: {pace.words(trainer.position.step)} {how}")
        return {**result, "expected": pace.rest(trainer.position.step) or 0.0}, None
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"init": str(last if resumed else start), "torch": torch.__version__}
        write_json_atomic(folder / "run.json", {**run.settings, **facts, "processes": distributed.world_size()})
    if phase.compiled and not resumed:
        verdict = choose_form(trainer)
        if distributed.is_main():
            terminal().print(plain(f"{phase.name}: {'not ' * (not verdict.compiled)}compiled: {verdict.words}"))
    started = time.perf_counter()
    metrics = trainer.run(resumed)
    if metrics is not None and distributed.is_main():
        terminal().print(metrics.table())
        if trainer.position.step < trainer.steps:
            terminal().print(
                f"{phase.name}: stopped at step {trainer.position.step} of {trainer.steps}: AP has not risen in "
                f"{phase.patience} evaluations (patience)"
            )
    distributed.from_main(None)  # no process reads the phase's checkpoint before it is written
    best = trainer.position.best
    result |= {"best_ap": best if best >= 0 else None, "seconds": time.perf_counter() - started}
    return result, trainer.evaluation


def _check_last(run: _Run, phase: Phase, trainer: Trainer) -> None:
    """UserError where a longer phase would change nothing, or would no longer be what a later one began from."""
    names = [one.name for one in run.recipe.phases]
    for later in names[names.index(phase.name) + 1 :]:
        if begun(run.out / later):
            raise UserError(f"{run.out / later}: has begun from the end of {phase.name}, which cannot be longer now")
    if trainer.finished and trainer.position.step < trainer.steps and phase.patience is not None:
        raise UserError(
            f"{run.out / phase.name}: ended since AP has not risen in {phase.patience} evaluations (patience), and a "
            "longer phase ends there, too; start a new run from it: --init RUN --out OTHER"
        )


def choose_device(device: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one.

    Raises:
        UserError: torch sees no GPU, or none of that number, and one was asked for.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch sees no CUDA device here; use --device cpu")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: torch sees {torch.cuda.device_count()} GPUs here, numbered from 0")
    return place
