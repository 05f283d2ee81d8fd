"""Signals in a worker process: those that are meant for the process that started it are left to that one."""

from __future__ import annotations

import os
import signal
import threading


def leave_signals_to_parent() -> None:
    """Call it in a worker as it starts: of signals to stop, only the parent's own SIGTERM ends it from then on.

    Ctrl-C and a terminal that closes reach every process of it, and only the parent may act on them.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    """Let SIGTERM end this worker if its parent sends it, and nobody else.

    A scheduler sends it to every process of a job: without workers, the steps to where all processes stop and save
    would have no batches.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(128 + signal.SIGTERM)
