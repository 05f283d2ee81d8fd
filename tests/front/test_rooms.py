"""Which room imports what: data flows one way, and nothing heavy is imported where it is not needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("models", "data", "infer", "train", "export", "directdet")
# The design's table. Every room may use the front door's two small modules.
SHARED = {"errors", "files"}
ALLOWED = {
    "models": set(),
    "data": set(),
    "infer": {"data"},
    "train": {"models", "data", "infer"},
    "export": {"models", "data", "infer"},
    "directdet": {"models", "data", "infer", "train", "export"},
}
# The one place where a room below training runs a network of the models room, imported when it is used.
TORCH_RUNTIME = "infer/torch_runtime.py"
MODULES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(absolute name, whether it is imported with the module) for every import in a file; not those for types only."""
    room = path.relative_to(REPOSITORY).parts[0]
    package = "directdet" if room == "directdet" else f"directdet.{room}"
    yield from _walk(ast.parse(path.read_text("utf-8")).body, package, at_once=True)


def _walk(body: list[ast.stmt], package: str, at_once: bool) -> Iterator[tuple[str, bool]]:
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _walk(node.orelse, package, at_once)
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield base, at_once
            yield from ((f"{base}.{alias.name}", at_once) for alias in node.names)
        else:
            later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, (ast.stmt, ast.ExceptHandler))]
            for child in inner:
                nested = child.body if isinstance(child, ast.ExceptHandler) else [child]
                yield from _walk(nested, package, at_once and not later)


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_room_imports_back_up(path):
    room = name_of(path).split("/")[0]
    rooms = ALLOWED[room] | ({"models"} if name_of(path) == TORCH_RUNTIME else set())
    for name, at_once in imports(path):
        parts = name.split(".")
        assert parts[0] not in ROOMS or parts[0] == "directdet", f"{name}: rooms are imported as parts of directdet"
        if parts[0] != "directdet" or len(parts) == 1 or room == "directdet":
            continue
        assert parts[1] in rooms | {room} | SHARED, f"{room} may not import {name}"
        if name_of(path) == TORCH_RUNTIME and parts[1] == "models":
            assert not at_once, f"{name} is to be imported when it is used"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_is_imported_where_it_is_needed(path):
    room = name_of(path).split("/")[0]
    if room in ("models", "train", "export") or name_of(path) == "data/loader.py":
        return
    early = {name.partition(".")[0] for name, at_once in imports(path) if at_once}
    assert not early & {"torch", "torchvision"}


@pytest.mark.parametrize("room", ROOMS)
def test_packages_import_nothing(room):
    body = ast.parse((REPOSITORY / room / "__init__.py").read_text("utf-8")).body
    assert not [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]


def test_the_walk_sees_imports(tmp_path):
    """The checks above are worth something only if the walk finds what is there."""
    code = (
        "import a\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import t\ntry:\n    import b\n"
        "except ImportError:\n    import c\nclass K:\n    import d\n    def f(self):\n        if 1:\n"
        "            from ..models import e\nfrom . import g\n"
    )
    found = dict(_walk(ast.parse(code).body, "directdet.infer", at_once=True))
    assert {name for name, at_once in found.items() if at_once} >= {"a", "b", "c", "d", "directdet.infer.g"}
    assert found["directdet.models.e"] is False and "t" not in found


def test_running_an_artefact_imports_no_torch():
    modules = [f"directdet.infer.{path.stem}" for path in sorted((REPOSITORY / "infer").glob("*.py"))]
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {modules!r}]; print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
