"""Ctrl-C, SIGTERM and SIGHUP during training: the step in progress is finished first."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import torch

from directdet.common.errors import Stopped
from directdet.train import distributed

# Schedulers, containers and machines that are taken away send SIGTERM; a terminal that closes sends SIGHUP.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# A scheduler signals every process of a job, and torchrun passes on to its processes what it gets: two of one signal.
COPY_SECONDS = 5.0


class Interrupt:
    """While entered, a signal to stop inside deferred() takes effect at the end of that block instead of at once.

    A run that stopped in the middle of a step could not be resumed as the same run. A second signal, and one outside of
    deferred(), interrupts at once; but the same one within COPY_SECONDS, other than Ctrl-C, is a copy and is passed
    over. SIGTERM and SIGHUP stay ignored where they were, as under nohup.

    Several processes have to stop at the same step: there a block ends so only once they agree.

    Attributes:
        requested: a signal came inside deferred(), here or, once they agree, in another process.
    """

    def __init__(self) -> None:
        self.requested = False
        self._agreed = distributed.world_size() == 1
        self._number: int = signal.SIGINT
        self._deferring = False
        self._first: tuple[int, float] | None = None  # the first signal, and when it came
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in _SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = number, now
        elif number != signal.SIGINT and number == self._first[0] and now - self._first[1] < COPY_SECONDS:
            return
        if not self._deferring or self.requested:
            raise Stopped(number)
        self.requested, self._number = True, number

    def agree(self, device: torch.device) -> bool:
        """Whether all processes stop at the end of this block, since one of them is to; waits for all."""
        if distributed.any_of(self.requested, device):  # not assigned: a signal may come meanwhile
            self.requested = self._agreed = True
        return self.requested and self._agreed

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal inside this block is raised at its end, as Stopped; in several processes once they agree."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.requested and self._agreed:
            raise Stopped(self._number)
