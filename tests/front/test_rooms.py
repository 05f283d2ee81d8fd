"""Which room imports what: data flows one way, and nothing heavy is imported where it is not needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import directdet

PACKAGE = Path(directdet.__file__).resolve().parent
# The design's table: what each room may use, from the ground up. No room uses one that stands above it.
ALLOWED = {
    "common": set(),
    "data": {"common"},
    "models": {"common"},
    "infer": {"common", "data", "models"},
    "recipes": {"common", "models", "infer"},
    "train": {"common", "data", "models", "infer", "recipes"},
    "export": {"common", "data", "models", "infer"},
    "pages": {"common", "data", "infer"},
    "serve": {"common", "data", "infer", "pages"},
    "benchmark": {"common", "data", "infer", "recipes", "pages"},
    "reproduce": {"common", "data", "models", "infer", "recipes", "train"},
    "front": {"common", "data", "infer", "recipes", "train", "export", "pages", "serve", "benchmark", "reproduce"},
}
# These use torch; in the others it is imported when it is needed, and so is whatever imports it.
TORCH_ROOMS = {"models", "train", "export"}
TORCH_FILES = {
    "data/loader.py",
    "infer/runtimes/captured.py",
    "reproduce/budget.py",
    "reproduce/comparison.py",
    "reproduce/landscape.py",
    "reproduce/timing.py",
}
ONE_SCREEN = 16  # files of a folder
MODULES = sorted(path for room in ALLOWED for path in (PACKAGE / room).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(absolute name, whether it is imported with the module) for every import in a file; not those for types only."""
    package = ".".join(["directdet", *path.relative_to(PACKAGE).parts[:-1]])
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
    return path.relative_to(PACKAGE).as_posix()


def module_of(path: Path) -> str:
    parts = ["directdet", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_table_names_every_room_and_runs_downward():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ALLOWED)
    order = list(ALLOWED)
    assert all(order.index(lower) < order.index(room) for room, lowers in ALLOWED.items() for lower in lowers)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_room_imports_back_up(path):
    room = name_of(path).split("/")[0]
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "directdet" and len(parts) > 1 and parts[1] in ALLOWED:
            assert parts[1] in ALLOWED[room] | {room}, f"{room} may not import {name}"


def test_no_file_imports_itself_by_a_detour():
    """Imports inside functions count: a circle is one whenever it is closed."""
    graph = {}
    known = {module_of(path): path for path in MODULES}
    for name, path in known.items():
        graph[name] = {used for used, _ in imports(path) if used in known and used != name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for used in graph[name]:
                visit(used, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_is_imported_where_it_is_needed(path):
    if name_of(path).split("/")[0] in TORCH_ROOMS or name_of(path) in TORCH_FILES:
        return
    early = {name.partition(".")[0] for name, at_once in imports(path) if at_once}
    assert not early & {"torch", "torchvision"}


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES}), ids=name_of)
def test_a_folder_fits_one_screen(folder):
    assert len(list(folder.glob("*.py"))) <= ONE_SCREEN


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=name_of)
def test_packages_import_nothing(path):
    """The topmost makes three of the others callable; these import nothing in their turn."""
    early = {name for name, at_once in imports(path) if at_once and name.partition(".")[0] != "typing"}
    allowed = {"importlib", "types", "directdet", *(f"directdet.{room}" for room in ("train", "export", "benchmark"))}
    assert early == (allowed if path.parent == PACKAGE else set())
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


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
    free = [path for path in MODULES if name_of(path).split("/")[0] in ("infer", "recipes", "benchmark")]
    modules = [module_of(path) for path in free if name_of(path) not in TORCH_FILES]
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {modules!r}]; print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
