"""OpenVINO's one core of this process."""

from __future__ import annotations

from functools import cache
from typing import Any

from directdet.infer.runtimes.library import import_library


@cache
def openvino_core() -> Any:
    """The ``openvino.Core`` that everything here reads and compiles with, kept until the process ends.

    OpenVINO's CPU plugin gives the thread that first compiles a stack of its own for signals, and unmaps it when the
    plugin is dropped, with the last core and model that use it. Dropped in another thread, the first one keeps the
    address of memory that is gone, and the next signal that Python handles there, such as Ctrl-C, ends the process with
    a segmentation fault before any handler runs (seen with OpenVINO 2026.4). A plugin that stays never does that.

    Raises:
        MissingLibraryError: OpenVINO is not installed.
    """
    return import_library("openvino", "OpenVINO", "pip install openvino").Core()
