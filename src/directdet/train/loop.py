"""The training loop of one phase."""

from __future__ import annotations

import itertools
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from directdet.common.errors import Stopped, UserError
from directdet.data.loader import WorkerError
from directdet.data.records import Dataset
from directdet.infer.accuracy.evaluate import Evaluation, Metrics, detect, scored
from directdet.infer.runtimes.torch_runtime import TorchPredictor
from directdet.models.build import describe_model
from directdet.models.checkpoint import load_checkpoint, matching, not_finite, save_checkpoint
from directdet.models.parts.network import Network
from directdet.recipes.derived import accumulated, images_per_step, passes_per_epoch
from directdet.recipes.recipe import Phase
from directdet.train import distributed
from directdet.train.continuing import Course, check_continues, check_longer, is_longer
from directdet.train.data import make_phase_loader, phase_preprocess
from directdet.train.interrupt import Interrupt
from directdet.train.log import RunLog, evaluation_row, step_row
from directdet.train.montage.stepper import stepper_of
from directdet.train.objects import count_objects
from directdet.train.optim import learning_rate
from directdet.train.prepare import check_sizes, safe_format, with_precision
from directdet.train.step import Batch, Losses, is_out_of_memory
from directdet.train.watch.callbacks import EvaluationNumbers, Outcome, PhaseEnd, PhaseFacts, StepNumbers, Watchers
from directdet.train.watch.display import Display

LOG_EVERY = 10  # steps; the host waits for the device only then
CHECKPOINT_SECONDS = 300.0
SAVING_SHARE = 0.05  # of the time at most, for the checkpoints after a pass: small datasets make many passes


@dataclass
class Position:
    """How far a phase is: steps done, the best of its `best_by` so far (-1 for none), the step of the last evaluation,
    and the evaluations since the best one."""

    step: int = 0
    best: float = -1.0
    evaluated: int = 0
    waited: int = 0


class Diverged(UserError):
    """The loss is no longer finite: a result where learning rates are compared, otherwise a wrong setting."""


class Trainer:
    """One phase of one run: a model, its data, its optimiser, and how far it is.

    With several processes, each has its share of every batch and of the evaluation; the main process writes.

    Args:
        model: on the device that is trained on.
        train, val: the splits; val None means no evaluation.
        folder: of the phase, for its checkpoints and its log.
        recipe: its name.
        seed: of the order of the data, its augmentation and random sampling.
        watchers: are told of steps, evaluations and checkpoints; in the main process only.
        display: one of them, which is told that an evaluation begins, too.

    Raises:
        UserError: the network cannot take images of the phase's size, or the dataset does not fill one step or has no
            object that training would see.
    """

    def __init__(
        self,
        model: Network,
        phase: Phase,
        train: Dataset,
        val: Dataset | None,
        folder: Path,
        recipe: str,
        seed: int,
        watchers: Watchers | None = None,
        display: Display | None = None,
    ):
        check_sizes(model, phase)
        self.device = next(model.parameters()).device
        phase = safe_format(model, with_precision(phase, self.device))
        self.model, self.phase, self.train, self.val = model, phase, train, val
        self.folder, self.recipe, self.seed = folder, recipe, seed
        self.watchers, self.display = watchers or Watchers(), display
        if phase.channels_last:
            model.to(memory_format=torch.channels_last)
        self.objects = count_objects(phase, train)
        self.loader = make_phase_loader(phase, train, model.config.masks, seed, self.device.type == "cuda")
        self.accumulate = accumulated(phase, distributed.world_size())
        self.images_per_step = images_per_step(phase, distributed.world_size())
        self.steps_per_pass = self.loader.batches_per_epoch // self.accumulate
        if not self.steps_per_pass:
            takes = f"a step takes {self.accumulate} batches of {phase.batch_size} images, but the data has only "
            setting, few = "base_batch" if phase.fixed_batch else "accumulate", self.loader.batches_per_epoch
            value = few * phase.batch_size * distributed.world_size() if phase.fixed_batch else few
            raise UserError(
                f"{phase.name}.{setting}: {takes}{few}; lower it (--set {phase.name}.{setting}={value}) or batch_size"
            )
        self.steps_per_epoch = max(1, round(self.steps_per_pass * passes_per_epoch(phase)))
        whole = phase.iterations or self.steps_per_epoch * phase.epochs
        self.steps = min(whole, phase.max_steps or sys.maxsize)
        self.rate = learning_rate(phase, self.images_per_step)
        self.preprocess = phase_preprocess(phase, train.pixels)
        self.stepper = stepper_of(model)(model, phase, self.preprocess, self.rate, seed)
        self.position = Position()
        self.evaluation: Evaluation | None = None  # the last one, of the main process
        self._saved, self._saving = -math.inf, 0.0  # when last.pt was written, and how long that took
        self._saved_step = 0  # that last.pt holds; 0 if there is none

    def run(self, resumed: bool) -> Metrics | None:
        """Train to the end of the phase, and return the last evaluation, if there was one.

        On Ctrl-C, SIGTERM and SIGHUP, the step in progress is finished and saved before Stopped is raised.

        Raises:
            Diverged: the loss is no longer finite.
            WorkerError: a worker process of the loader failed; what was trained is saved.
            UserError: memory ran out, or a file cannot be written.
        """
        start = (self.position.step, self.position.evaluated) if resumed else None
        with RunLog(self.folder, self.phase.name, start, distributed.is_main()) as log, Interrupt() as interrupt:
            outcome: Outcome = "failed"
            self.watchers.start(self.facts())
            try:
                metrics = self._passes(log, interrupt)
                outcome = "finished"
                return metrics
            except Stopped as stop:
                outcome = "stopped"
                raise self._stopped(stop.number) from None
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise self.out_of_memory() from error
            finally:
                self.watchers.end(PhaseEnd(outcome, self.position.step))

    def facts(self) -> PhaseFacts:
        """What is told to those who watch, before the phase begins."""
        model = {f"model.{name}": value for name, value in describe_model(self.model.config).items()}
        return PhaseFacts(
            recipe=self.recipe,
            phase=self.phase.name,
            folder=self.folder,
            steps=self.steps,
            step=self.position.step,
            steps_per_epoch=self.steps_per_epoch,
            evaluate_every=None if self.val is None else self.steps_per_epoch * self.phase.eval_every or None,
            settings={**asdict(self.phase), **model, "seed": self.seed},
        )

    def _passes(self, log: RunLog, interrupt: Interrupt) -> Metrics | None:
        """Passes over the data and evaluations up to the end of the phase."""
        metrics = None
        while True:
            # First, since a resumed run may have been stopped during its evaluation.
            if self.val is not None and self._evaluation_is_due():
                metrics = self._evaluate(self.val, log, interrupt)
            if self.finished:
                return metrics
            with interrupt.deferred():
                self._one_pass(log, interrupt)
                if interrupt.requested or self._saving_is_due():
                    self.save("last.pt")
                interrupt.agree(self.device)

    @property
    def finished(self) -> bool:
        """Whether the phase is at its end, or AP has not risen for as many evaluations as the phase's patience."""
        return self.position.step >= self.steps or self.position.waited >= (self.phase.patience or sys.maxsize)

    def out_of_memory(self) -> UserError:
        """What to do where memory ran out."""
        phase, kept = self.phase, self._saved_step
        place = "the GPU's memory" if self.device.type == "cuda" else "memory"
        start = f"; {self.folder / 'checkpoints' / 'last.pt'} holds step {kept}" if kept else ""
        return UserError(
            f"{phase.name}: {place} ran out at step {self.position.step + 1} with batch_size {phase.batch_size}; "
            f"lower it (--set {phase.name}.batch_size={max(1, phase.batch_size // 2)}); "
            f"`directdet plan {self.recipe}` says what fits{start}"
        )

    def _stopped(self, number: int) -> Stopped:
        step, kept = self.position.step, self._saved_step
        where = f"at step {step}"
        if kept != step:
            where += f", of which {step - kept} are not saved" if kept else ", nothing is saved"
        return Stopped(number, where, str(self.folder / "checkpoints" / "last.pt") if kept else "")

    def _evaluation_is_due(self) -> bool:
        step, every = self.position.step, self.phase.eval_every
        if self.val is None or not every or step in (0, self.position.evaluated):
            return False
        period = self.steps_per_epoch * every  # of epochs that need not end with a pass; evaluations do
        passed = step // period > self.position.evaluated // period
        return step == self.steps or (passed and step % self.steps_per_pass == 0)

    def _saving_is_due(self) -> bool:
        """Whether to write last.pt after a pass."""
        ends = self.position.step >= self.steps or self._evaluation_is_due()
        return ends or time.perf_counter() - self._saved > self._saving / SAVING_SHARE

    def _one_pass(self, log: RunLog, interrupt: Interrupt) -> None:
        """One pass over the dataset, or the rest of it, or as much as comes before an interrupt."""
        self.model.train()
        accumulate, number = self.accumulate, self.position.step // self.steps_per_pass
        self.loader.set_epoch(number, self.position.step % self.steps_per_pass * accumulate)
        totals, since = None, 0
        begun = started = waiting = time.perf_counter()
        data_seconds = 0.0
        batches = iter(self.loader)
        while True:
            try:
                group = list(itertools.islice(batches, accumulate))
            except WorkerError as error:
                if interrupt.requested and distributed.world_size() == 1:  # the signal reached the workers as well
                    return
                raise WorkerError(f"{error}; {self._after_worker_error(totals)}") from error
            if not group:
                break
            data_seconds += time.perf_counter() - waiting
            losses, counts = self.step(group)
            values = torch.stack([*losses.values(), *counts.values()])
            totals = values if totals is None else totals + values
            since += 1
            self.position.step += 1
            step = self.position.step
            last = step % self.steps_per_pass == 0 or step == self.steps
            # Several processes have to stop at the same step, and agree on it only where they log.
            last = last or (interrupt.requested and distributed.world_size() == 1)
            if step % LOG_EVERY == 0 or last:  # before anything is saved: a loss that is not finite is found here
                names = [*losses, *counts]
                means = dict(zip(names, distributed.mean(totals / since).tolist(), strict=True))
                loss = self._check_finite(means, losses, step)
                seconds = (time.perf_counter() - started) / since
                self._report(log, loss, means, seconds, data_seconds / since)
                totals, since, data_seconds, started = None, 0, 0.0, time.perf_counter()
                last = interrupt.agree(self.device) or last
                if time.perf_counter() - max(self._saved, begun) > CHECKPOINT_SECONDS:
                    self.save("last.pt")
            if last:
                break
            waiting = time.perf_counter()

    def step(self, batches: list[Batch]) -> Losses:
        """One optimisation step over `batches`, as many as the phase accumulates; see Stepper.step."""
        return self.stepper.step(batches, self.position.step, self.steps_per_epoch)

    def _after_worker_error(self, totals: Tensor | None) -> str:
        """What to do about it. Saves the steps done, if their losses (whose sums are `totals`) are finite."""
        mend = f"read with fewer workers or with none (--set {self.phase.name}.workers=0)"
        if (
            not self.position.step
            or distributed.world_size() > 1
            or (totals is not None and not totals.isfinite().all())
        ):
            return mend
        self.save("last.pt")
        return f"{mend} and go on with --resume: step {self.position.step} is saved"

    def _check_finite(self, means: dict[str, float], losses: dict[str, Tensor], step: int) -> float:
        loss = sum(means[name] for name in losses)
        if math.isfinite(loss):
            return loss
        bad = ", ".join(name for name in losses if not math.isfinite(means[name]))
        raise self._diverged(f"the loss became {loss} ({bad}) by step {step}")

    def _diverged(self, what: str) -> Diverged:
        phase, kept = self.phase, self.folder / "checkpoints" / "last.pt"
        start = f", from {kept} with --init" if kept.is_file() else ""
        return Diverged(
            f"{phase.name}: {what}; try again with another --out{start} and a "
            f"lower rate (--set {phase.name}.base_lr={phase.base_lr / 2:g}), a longer warm-up (--set {phase.name}."
            f"warmup_iterations={max(phase.warmup_iterations * 2, 100)}) or --set {phase.name}.clip_norm=10"
        )

    def _report(self, log: RunLog, loss: float, means: dict[str, float], seconds: float, data_seconds: float) -> None:
        """Log the means of the last steps, and tell those who watch."""
        counts = {name: means.pop(name, 0.0) for name in ("positives", "mask_dropped", "nms_undecided")}
        numbers = StepNumbers(
            step=self.position.step,
            epoch=self.position.step / self.steps_per_epoch,
            lr=self.stepper.optimizer.param_groups[0]["lr"],
            loss=loss,
            losses=means,
            seconds_per_step=seconds,
            data_seconds=data_seconds,
            memory_gib=torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else None,
            **counts,
        )
        log.write("step", numbers.step, step_row(numbers))
        self.watchers.step(numbers)

    def _evaluate(self, val: Dataset, log: RunLog, interrupt: Interrupt) -> Metrics:
        """AP on `val`: each image by one process, all with the main process's statistics of batch normalisation."""
        model = self.stepper.deployed
        distributed.share_buffers(model)
        detector = TorchPredictor.from_model(
            model, self.preprocess, self.train.classes, self.train.category_ids, self.device
        )
        if self.display is not None:
            self.display.evaluating(len(val))
        started = time.perf_counter()
        mine = val.records[distributed.rank() :: distributed.world_size()]
        found = distributed.gather(detect(detector, val, mine))
        if distributed.is_main():
            self.evaluation = scored(itertools.chain.from_iterable(found), val)
            self.evaluation.metrics.seconds = time.perf_counter() - started
        metrics = distributed.from_main(self.evaluation and self.evaluation.metrics)
        reached = metrics.bbox["AP"] if self.phase.best_by == "AP" else metrics.voc[self.phase.best_by]
        numbers = EvaluationNumbers(
            step=self.position.step,
            epoch=self.position.step // self.steps_per_epoch,
            bbox=metrics.bbox,
            segm=metrics.segm or None,
            voc=metrics.voc,
            seconds=metrics.seconds,
            images=len(val),
            best=reached > self.position.best,
        )
        with interrupt.deferred():
            log.write("eval", numbers.step, evaluation_row(numbers))
            self.position.evaluated = self.position.step
            self.position.waited += 1
            if numbers.best:
                self.position.best, self.position.waited = reached, 0
                self.save("best.pt")
            self.save("last.pt")
            self.watchers.evaluation(numbers)
        return metrics

    def save(self, name: str) -> None:
        """Write everything that resuming and inference need to FOLDER/checkpoints/`name`; Diverged if it is not finite.

        The loss of a step tells of the weights before it, so the last step may have broken them.
        """
        bad = not_finite(self.model.state_dict())
        if bad is not None:
            raise self._diverged(f"the weights {bad} are no longer finite at step {self.position.step}")
        if name == "last.pt" and not distributed.is_main():
            self._saved_step = self.position.step  # the main process has it written, or ends with an error
        if not distributed.is_main():
            return
        started = time.perf_counter()
        save_checkpoint(
            self.folder / "checkpoints" / name,
            {
                "model_config": describe_model(self.model.config),
                "classes": list(self.train.classes),
                "category_ids": list(self.train.category_ids),
                "preprocess": self.preprocess.to_dict(),
                "recipe": self.recipe,
                "phase": self.phase.name,
                **self.stepper.state(),
                **asdict(self.position),
                "steps": self.steps,
                "stopped_early": self.finished and self.position.step < self.steps,
                "seed": self.seed,
                "images_per_step": self.images_per_step,
                "compiled": self.stepper.compiled,
            },
        )
        if name == "last.pt":
            self._saved = time.perf_counter()
            self._saving = self._saved - started
            self._saved_step = self.position.step
        self.watchers.checkpoint(self.folder / "checkpoints" / name, self.position.step)

    def resume(self, path: Path, before: Phase | None = None) -> None:
        """Continue from a checkpoint of the same phase: weights, optimiser and position.

        Args:
            before: the phase as it was, if it may have been made longer since.

        Raises:
            UserError: the checkpoint is of another phase, network or schedule.
        """
        checkpoint = load_checkpoint(path, str(self.device))
        model = describe_model(self.model.config)
        course = Course(self.phase.name, self.steps, self.seed, self.images_per_step, model)
        if before is not None and is_longer(before, self.phase):
            check_longer(before, self.phase, checkpoint["step"], self.steps_per_epoch)
            course = replace(course, steps=checkpoint["steps"])
        check_continues(path, checkpoint, course)
        with matching(path):
            self.stepper.load_state(checkpoint)
            self.stepper.compile(checkpoint.get("compiled", False) and self.phase.compiled)
            self.position = Position(
                checkpoint["step"], checkpoint["best"], checkpoint["evaluated"], checkpoint.get("waited", 0)
            )
        self._saved_step = self.position.step
