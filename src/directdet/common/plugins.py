"""Code from outside the package: a user's own file with a backbone, a detector or a recipe, or an installed plug-in.

On import, such code adds what it defines (`add_backbone("mine", mine)`, `add_detector(...)`, `RECIPES["mine"] = mine`).
It runs only when the user asks for it: checkpoints and artefacts name the parts they need, but never where to load them
from.
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

GROUP = "directdet.plugins"  # entry point group; each entry is NAME = "package.module"
VARIABLE = "DIRECTDET_CODE"  # environment variable that passes the loaded files on to child processes


def load_code(files: Iterable[str | Path]) -> None:
    """Run each Python file once, in this process and (through the environment) in its child processes.

    Raises:
        UserError: a file does not exist or fails; the message names the file and the line.
    """
    for file in files:
        path = Path(file).resolve()
        _run(path)
        if str(path) not in listed_files():
            os.environ[VARIABLE] = os.pathsep.join([*listed_files(), str(path)])


@functools.cache
def load_plugins() -> None:
    """Load the installed entry points of the group and the files listed in the environment variable.

    Called only when a name is unknown or all names are listed, so that nobody waits for plug-ins they do not need.

    Raises:
        UserError: a plug-in fails to load.
    """
    load_code(listed_files())
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            raise UserError(f"plug-in {point.name} ({point.value}): {type(error).__name__}: {error}") from error


def listed_files() -> list[str]:
    """The files that the environment variable lists."""
    return [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def _run(path: Path) -> ModuleType:
    name = f"directdet_code_{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(path):
        return loaded
    if not path.is_file():
        raise UserError(f"{path}: no such file; --code takes a Python file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a Python file; --code takes a file whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as import does, so that its classes can be pickled
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        raise UserError(f"{path}: line {_line(error, path)}: {type(error).__name__}: {error}") from error
    return module


def _line(error: Exception, path: Path) -> int | None:
    """The line of `path` that raised the error."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None
