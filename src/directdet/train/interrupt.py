"""Ctrl-C, SIGTERM and SIGHUP during training: the step in progress is finished first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from directdet.common.errors import Stopped

# Schedulers, containers and machines that are taken away send SIGTERM; a terminal that closes sends SIGHUP.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupt:
    """While entered, a signal to stop inside deferred() takes effect at the end of that block instead of at once.

    A run that stopped in the middle of a step could not be resumed as the same run. A second signal, and one outside of
    deferred(), interrupts at once. SIGTERM and SIGHUP stay ignored where they were, as under nohup.

    Attributes:
        requested: a signal came inside deferred(). Training may set it, too: on several devices, all processes have to
            stop at the same step.
    """

    def __init__(self) -> None:
        self.requested = False
        self._number: int = signal.SIGINT
        self._deferring = False
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
        if not self._deferring or self.requested:
            raise Stopped(number)
        self.requested, self._number = True, number

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal inside this block is raised at its end, as Stopped."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.requested:
            raise Stopped(self._number)
