"""How long training takes, from the steps and evaluations that were measured."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass
class Pace:
    """How long the steps and evaluations of a phase take.

    Attributes:
        steps: at the end of the phase.
        evaluate_every: steps between evaluations; None if there is none.
        step: seconds of one; None before any was measured.
        evaluation: the same.
    """

    steps: int
    evaluate_every: int | None
    step: float | None = None
    evaluation: float | None = None

    def evaluations(self, done: int) -> int:
        """Evaluations after `done` steps; the last step has one in any case."""
        if self.evaluate_every is None or done >= self.steps:
            return 0
        return math.ceil(self.steps / self.evaluate_every) - done // self.evaluate_every

    def rest(self, done: int) -> float | None:
        """Seconds from step `done` to the end, None if no step was measured; evaluations count once one was."""
        if self.step is None:
            return None
        return (self.steps - done) * self.step + self.evaluations(done) * (self.evaluation or 0.0)

    def words(self, done: int, label: str = "") -> str:
        """The same in words: "about 12 min: 700 steps of 0.95 s and 5 evaluations of 8 s"; `label` follows the time."""
        rest = self.rest(done)
        if self.step is None or rest is None:
            return "unknown"
        text = f"about {duration(rest)}{label}: {self.steps - done} steps of {short(self.step)}"
        count = self.evaluations(done)
        if not count:
            return text
        evaluations = f"{count} evaluation{'s' if count > 1 else ''}"
        if self.evaluation is None:
            return f"{text}, {evaluations} not counted"
        return f"{text} and {evaluations} of {short(self.evaluation)}"


class Countdown:
    """The time until a moment, which is moved as the pace changes."""

    def __init__(self) -> None:
        self._at: float | None = None

    def set(self, seconds: float | None) -> None:
        """So many seconds from now; None: unknown."""
        self._at = None if seconds is None else time.monotonic() + seconds

    def words(self) -> str:
        """As a clock: 1:02:03; "-" if it is unknown."""
        return "-" if self._at is None else clock(max(0.0, self._at - time.monotonic()))


def clock(seconds: float) -> str:
    """12:03, or 1:02:03; days are hours."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def duration(seconds: float) -> str:
    """As people say it: 48 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def short(seconds: float) -> str:
    """Of one step: 0.52 s, 12 s, 8 ms."""
    return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
