"""Ctrl-C in the middle of something, without a signal."""

import signal


def interrupt() -> None:
    """Call what handles Ctrl-C now, as Python does between two instructions once the signal came.

    A real signal is sent to a process of its own only (test_stopping.py, test_distributed.py, test_cli_errors.py): in a
    worker of the test run it would meet whatever the tests before loaded into it.
    """
    handler = signal.getsignal(signal.SIGINT)
    assert callable(handler), handler
    handler(signal.SIGINT, None)
