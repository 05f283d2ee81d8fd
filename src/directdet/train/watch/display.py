"""What a person sees of a run: a line with a bar in a terminal, and lines now and then in a pipe or a file."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from directdet.common.terminal import terminal
from directdet.train.watch.callbacks import Callback, EvaluationNumbers, PhaseEnd, PhaseFacts, StepNumbers
from directdet.train.watch.pace import Countdown, Pace, short

LINE_SECONDS = 30.0  # between lines of a pipe
PER_SECOND = 2  # drawings of the bar


class _Left(ProgressColumn):
    """The time that is left, counted down between two reports."""

    def render(self, task: Task) -> Text:
        """The column."""
        return Text(f"ETA {task.fields['left'].words()}", "progress.remaining")


class Display(Callback):
    """Shows the phases of a run, one after the other.

    Args:
        quiet: show nothing; for all processes but the main one.
        console: to show it on; None is standard output.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or terminal(quiet=quiet)
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._told: set[str] = set()  # what is said once in a run

    def start(self, phase: PhaseFacts) -> None:
        """Show the bar."""
        self._phase, self._begun = phase, phase.step
        self._pace = Pace(phase.steps, phase.evaluate_every)
        self._reports, self._loss, self._ap, self._left = 0, "", "", Countdown()
        self._spoken = time.monotonic()
        columns = [
            TextColumn("{task.description}"),
            BarColumn(None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}", "progress.download"),
            _Left(),
            TextColumn("{task.fields[note]}"),
        ]
        self._bar = Progress(
            *columns, console=self._console, refresh_per_second=PER_SECOND, expand=True, disable=not self._live
        )
        self._task = self._bar.add_task(phase.phase, total=phase.steps, completed=phase.step, note="", left=self._left)
        self._bar.start()

    def step(self, numbers: StepNumbers) -> None:
        """Move the bar; in a pipe, say a line each half minute."""
        self._reports += 1
        self._measure(numbers)
        self._left.set(self._pace.rest(numbers.step))
        self._loss = f"loss {numbers.loss:.3g}"
        note = self._loss + self._ap
        self._bar.update(self._task, completed=numbers.step, note=note)
        for key, words in _odd(numbers).items():
            if key not in self._told:
                self._told.add(key)
                self._say(f"step {numbers.step}: {words}")
        if not self._live and time.monotonic() - self._spoken >= LINE_SECONDS:
            rate = f"lr {numbers.lr:.2g}, {short(numbers.seconds_per_step)} a step"
            self._say(f"{numbers.step}/{self._phase.steps}, ETA {self._left.words()}, {note}, {rate}")

    def _measure(self, numbers: StepNumbers) -> None:
        """Learn from the steps that the numbers are about; the first ones are slower than the others."""
        before = self._pace.step if self._reports > 2 else None
        seconds = numbers.seconds_per_step
        self._pace.step = seconds if before is None else 0.9 * before + 0.1 * seconds
        if self._reports == 2 and numbers.step < self._phase.steps:
            self._say(self._pace.words(numbers.step, " to go"))

    def evaluating(self, images: int) -> None:
        """An evaluation begins."""
        self._bar.update(self._task, note=f"evaluating {images} images", refresh=True)

    def evaluation(self, numbers: EvaluationNumbers) -> None:
        """Say the result in a line that stays."""
        self._pace.evaluation = numbers.seconds
        self._left.set(self._pace.rest(numbers.step))
        self._ap = f"  AP {_percent(numbers.bbox['AP'])}"
        self._bar.update(self._task, note=f"{self._loss}{self._ap}".strip())
        masks = f", mask AP {_percent(numbers.segm['AP'])}" if numbers.segm else ""
        best = ", best" if numbers.best else ""
        self._say(
            f"step {numbers.step}, epoch {numbers.epoch}: box AP {_percent(numbers.bbox['AP'])}, "
            f"AP50 {_percent(numbers.bbox['AP50'])}{masks}{best}"
        )

    def end(self, phase: PhaseEnd) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def _say(self, text: str) -> None:
        self._spoken = time.monotonic()
        self._bar.console.print(f"{self._phase.phase}: {text}", soft_wrap=not self._live, highlight=False)


def _odd(numbers: StepNumbers) -> dict[str, str]:
    """What should not be so, by a key to say it once."""
    found: dict[str, str] = {}
    if numbers.mask_dropped:
        found["mask_dropped"] = (
            f"{numbers.mask_dropped:.0f} of {numbers.positives:.0f} positives of a batch get no mask RoI; raise "
            "model.mask_slots"
        )
    if numbers.nms_undecided:
        found["nms_undecided"] = f"{numbers.nms_undecided:.0f} boxes of a batch are undecided in NMS, and kept"
    return found


def _percent(share: float) -> str:
    """As COCO's tables say it; there is nothing to measure below 0."""
    return f"{100 * share:.1f}" if share >= 0 else "-"
