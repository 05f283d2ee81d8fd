"""Ctrl-C during training: the step in progress is finished first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupt:
    """While entered, Ctrl-C inside deferred() takes effect at the end of that block instead of at once.

    A run that stopped in the middle of a step could not be resumed as the same run. A second Ctrl-C, and one outside of
    deferred(), interrupts at once.

    Attributes:
        requested: Ctrl-C was pressed inside deferred(). Training may set it, too: on several devices, all processes
            have to stop at the same step.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferring = False
        self._before: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, *_: object) -> None:
        if not self._deferring or self.requested:
            raise KeyboardInterrupt
        self.requested = True

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Ctrl-C inside this block is raised at its end."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.requested:
            raise KeyboardInterrupt
