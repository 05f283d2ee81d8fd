"""`directdet serve`: one detector, one process, until it is told to stop."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from directdet.common.errors import UserError
from directdet.infer.predictor import Predictor
from directdet.infer.runtimes.library import import_library
from directdet.serve.options import ServeOptions

_IDLE = 30  # seconds that a connection without requests is kept
_GRACE = 60  # seconds that requests have to end after a signal to stop


def require_libraries() -> None:
    """MissingLibraryError, in one line that says what to install, where the extra is missing."""
    for module in ("fastapi", "uvicorn", "python_multipart"):
        import_library(module, module, 'pip install "directdet[serve]"')


def serve(detector: Predictor, options: ServeOptions, host: str, port: int, say: Callable[[str], None]) -> None:
    """Answer requests until SIGINT or SIGTERM; those that were begun are answered first.

    Args:
        host, port: to listen on; port 0 takes a free one, which the line of the start tells.
        say: called with a line when it listens, and with one at the end.

    Raises:
        UserError: the address cannot be listened on.
        MissingLibraryError: the extra is not installed.
    """
    require_libraries()
    uvicorn = import_library("uvicorn", "uvicorn", 'pip install "directdet[serve]"')
    from directdet.serve.app import batch_size, make_app

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(max(128, 2 * options.queue))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{host}:{port}: cannot listen there: {reason}; give another --host or --port") from None
        settings = uvicorn.Config(
            make_app(detector, options), log_level="warning", access_log=False, timeout_keep_alive=_IDLE,
            timeout_graceful_shutdown=_GRACE, server_header=False,
        )  # fmt: skip
        shown = f"[{host}]" if ":" in host else host
        say(
            f"{detector.source} in {detector.runtime}, batches of up to {batch_size(detector, options)}: "
            f"http://{shown}:{listener.getsockname()[1]}"
        )
        with _quiet_signals():
            uvicorn.Server(settings).run([listener])
    say("stopped: every request that was begun is answered")


@contextlib.contextmanager
def _quiet_signals() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more at its end, for whoever handled it before: nobody, then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, lambda number, frame: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
