"""Importing the library of a runtime when it is needed."""

from __future__ import annotations

import importlib
from typing import Any

from directdet.common.errors import MissingLibraryError


def import_library(module: str, title: str, mend: str) -> Any:
    """The module of a library.

    Args:
        module: what is imported.
        title: what the library is called in the error.
        mend: what to do where it is missing.

    Raises:
        MissingLibraryError: it is not installed, or what it needs is missing; the reason is in the message.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingLibraryError(f"{title} cannot be imported ({error}); {mend}") from None
