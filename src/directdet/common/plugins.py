"""Code from outside the package: a user's own file with a backbone, a detector or a recipe, or an installed plug-in.

Such code adds what it defines to the package's own dictionaries when it is imported (`BACKBONES["mine"] = mine`). It
runs only where the user asks for it: checkpoints and artefacts name what they need, never where to get it from.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from directdet.common.errors import UserError

GROUP = "directdet.plugins"  # of entry points: NAME = "package.module"
VARIABLE = "DIRECTDET_CODE"  # the files of this process, for those that it starts


def load_code(files: Iterable[str | Path]) -> None:
    """Run Python files, each once, here and (through the environment) in the processes that this one starts.

    Raises:
        UserError: there is no such file, or it fails; the message names the file and the line.
    """
    for file in files:
        path = Path(file).resolve()
        _run(path)
        known = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
        if str(path) not in known:
            os.environ[VARIABLE] = os.pathsep.join([*known, str(path)])


@functools.cache
def load_plugins() -> None:
    """Load what is installed under the entry point group, and the files that the environment names.

    Called where a name is not known, and where all names are listed: whoever needs no plug-in does not wait for any.

    Raises:
        UserError: one of them fails.
    """
    load_code(name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name)
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            raise UserError(f"plug-in {point.name} ({point.value}): {type(error).__name__}: {error}") from error


def _run(path: Path) -> ModuleType:
    name = f"directdet_code_{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(path):
        return loaded
    if not path.is_file():
        raise UserError(f"{path}: no such file; --code takes a Python file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: is not Python; --code takes a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as import does: its classes can then be pickled
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        raise UserError(f"{path}: line {_line(error, path)}: {type(error).__name__}: {error}") from error
    return module


def _line(error: Exception, path: Path) -> int | None:
    """The line of `path` that an error came from."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None
