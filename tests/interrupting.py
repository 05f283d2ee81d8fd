"""Ctrl-C in the middle of something, without a signal."""

import signal


def interrupt() -> None:
    """Call what handles Ctrl-C now, as Python does between two instructions once the signal came.

    For tests of what a stopped run leaves. That signals are heard is tested with real ones (test_stopping.py,
    test_distributed.py, test_cli_errors.py, test_infer_pipeline.py).
    """
    handler = signal.getsignal(signal.SIGINT)
    assert callable(handler), handler
    handler(signal.SIGINT, None)
