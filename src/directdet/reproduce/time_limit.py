"""A time limit on work that saves itself when it is interrupted."""

import os
import signal
import threading


class TimeIsUp(Exception):
    """The time limit was reached."""


class StopAfter:
    """Interrupt the block after a number of seconds, as Ctrl-C would, and raise TimeIsUp; None sets no limit.

    Training in the block saves itself at the end of a step.
    """

    def __init__(self, seconds: float | None):
        self.timer = None if seconds is None else threading.Timer(max(0.1, seconds), self._stop)
        self.reached = False

    def _stop(self) -> None:
        self.reached = True
        os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self) -> None:
        if self.timer is not None:
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts background jobs
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self.timer.daemon = True
            self.timer.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if kind is not None and issubclass(kind, KeyboardInterrupt) and self.reached:
            raise TimeIsUp
