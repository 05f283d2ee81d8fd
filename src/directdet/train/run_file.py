"""RUN/PHASE/run.json: what a phase trains, so that a run goes on as the same run, and from its folder alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from directdet.common.errors import UsageProblem, UserError
from directdet.common.json_files import check_json, read_json
from directdet.common.settings import SettingError
from directdet.data.digest import difference
from directdet.infer.runtimes.load import find_model
from directdet.recipes.recipe import Phase, Recipe
from directdet.train.continuing import LENGTH

NAME = "run.json"
FIX = "restore it, or remove it to go on without its check of the settings"
LAST = Path("checkpoints", "last.pt")  # of a phase
ORDER = ("montage", "pretrain", "scratch", "finetune")  # of a recipe's phases


@dataclass(frozen=True)
class RunFile:
    """What is read of the file; older ones lack some."""

    recipe: dict[str, Any]
    classes: tuple[str, ...]
    data: str | None = None
    seed: int = 0
    images: int | None = None
    init: str | None = None
    content: dict[str, dict[str, Any]] | None = None
    phase: str | None = None  # what was asked for: this phase alone
    log: tuple[str, ...] | None = None  # loggers
    pixels: dict[str, Any] | None = None  # of the pictures; None: 8-bit RGB


@dataclass(frozen=True)
class _RunRecipe:
    """What is read of its recipe."""

    phases: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class StoredRun:
    """What `directdet train --resume RUN` needs to know: the recipe as it was trained, its data and seed, one phase."""

    recipe: Recipe
    data: str | None
    seed: int
    phase: str | None


def stored_run(out: Path) -> StoredRun:
    """The run in a folder.

    Raises:
        UserError: there is none, or its file is damaged.
    """
    paths = [out / name / NAME for name in ORDER if (out / name / NAME).is_file()]
    if not paths:
        raise UserError(f"{out}: --resume finds no run there (no {' or '.join(ORDER)} with a {NAME})")
    path = paths[-1]
    found = read_json(path, RunFile, FIX)[1]
    return StoredRun(_recipe(found, path), found.data, found.seed, found.phase)


def stored_phase(folder: Path) -> Phase | None:
    """The phase in a folder as its run.json has it; None if there is no such file."""
    path = folder / NAME
    if not path.is_file():
        return None
    phases = _recipe(read_json(path, RunFile, FIX)[1], path).phases
    return next((phase for phase in phases if phase.name == folder.name), None)


def settled_before(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with precision="auto" as the run in `out` settled it, on whichever machine that was."""
    asked = [phase.name for phase in recipe.phases if phase.precision == "auto"]
    if not asked or not any((out / name / NAME).is_file() for name in ORDER):
        return recipe
    had = {phase.name: phase.precision for phase in stored_run(out).recipe.phases}
    for name in asked:
        recipe = recipe.with_phase(name, precision=had.get(name, "auto"))
    return recipe


def longer_settings(recipe: Recipe, out: Path, settings: Sequence[str], epochs: int | None) -> list[str]:
    """The --set of a run that goes on: those given, `epochs` of the phase that it is in, and the milestones of phases
    that are made longer, which stay where they were once the phase has begun.

    Raises:
        UsageProblem: the phase is counted in steps.
    """
    known = [phase for phase in recipe.phases if begun(out / phase.name)]
    found = list(settings)
    if epochs is not None and known:
        if known[-1].iterations is not None:
            raise UsageProblem(f"--epochs: {known[-1].name} is counted in steps; --set {known[-1].name}.iterations=N")
        found.append(f"{known[-1].name}.epochs={epochs}")
    keys = {setting.partition("=")[0].strip() for setting in found}
    for phase in known:
        longer = {"epochs", "iterations", f"{phase.name}.epochs", f"{phase.name}.iterations"} & keys
        if longer and not {"milestones", f"{phase.name}.milestones"} & keys:
            found.append(f"{phase.name}.milestones={','.join(map(str, phase.milestones))}")
    return found


def data_of_run(model: Path) -> tuple[Path, str] | None:
    """The run.json of the model that a run folder stands for, and the data in it; None if the path is no run folder."""
    if not model.is_dir():
        return None
    what, file = find_model(model)
    path = file.parent.parent / NAME
    if what != "checkpoint" or not path.is_file():
        return None
    data = read_json(path, RunFile, FIX)[1].data
    return None if data is None else (path, data)


def _recipe(found: RunFile, path: Path) -> Recipe:
    """The recipe of a run.json."""
    content = _with_defaults(found.recipe, path)
    try:
        phases = tuple(Phase(**{key: _tuples(value) for key, value in phase.items()}) for phase in content["phases"])
        own = {key: _tuples(value) for key, value in content.items() if key not in ("phases", "model", "sources")}
        model = {key: _tuples(value) for key, value in content.get("model", {}).items()}
        return Recipe(phases=phases, model=model, **own)
    except (SettingError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: recipe: {str(error)[:200]}; name the recipe and --data instead") from None


def loggers_of(out: Path) -> tuple[str, ...] | None:
    """The names of the loggers of the run in a folder; None if there is no run, or an older one."""
    paths = [out / name / NAME for name in ORDER if (out / name / NAME).is_file()]
    return read_json(paths[-1], RunFile, FIX)[1].log if paths else None


def begun(folder: Path) -> bool:
    """Whether a run has begun in the folder of a phase; it may have been killed before its first checkpoint."""
    return (folder / NAME).is_file() or (folder / "checkpoints" / "last.pt").is_file()


def started_from(folder: Path) -> str | None:
    """What a phase started from that has no checkpoint yet; None if it has not begun."""
    path = folder / NAME
    if not path.is_file() or (folder / "checkpoints" / "last.pt").is_file():
        return None
    init = read_json(path, RunFile, FIX)[1].init
    if init is None or Path(init).is_file() or Path(init).parts[-3:] not in [(name, *LAST.parts) for name in ORDER]:
        return init
    return str(folder.parent.joinpath(*Path(init).parts[-3:]))  # the run folder was moved


def check_same_run(path: Path, settings: dict[str, Any]) -> None:
    """UserError if the run that `path` (run.json) describes was started with another recipe or other data."""
    before = read_json(path, RunFile, FIX)[1]
    recipes = _with_defaults(before.recipe, path), json.loads(json.dumps(settings["recipe"]))
    had, has = (dict(flat_settings(recipe)) for recipe in recipes)
    for key in dict.fromkeys((*had, *has)):
        if had.get(key) != has.get(key) and key.rpartition(".")[2] not in LENGTH:  # see continuing.py
            raise UserError(
                f"{path}: was started with other settings: {key} was {_shown(had.get(key))}, now "
                f"{_shown(has.get(key))}; resume with the same recipe and --set, or with --resume RUN alone"
            )
    if before.classes != tuple(settings["classes"]):
        raise UserError(f"{path}: was started on data with other classes; resume with the same --data")
    if before.images not in (None, settings["images"]):  # older files do not have the number
        raise UserError(
            f"{path}: was started on {before.images} images, but --data has {settings['images']}; resume with the "
            "same --data"
        )
    pixels = json.loads(json.dumps(settings.get("pixels")))
    if before.pixels != pixels:
        raise UserError(
            f"{path}: was started on other pictures: pixels was {_shown(before.pixels)}, now {_shown(pixels)}; resume "
            "with the same [pixels] in dataset.toml"
        )
    for split in ("train", "val"):
        had, has = ((content or {}).get(split, {}) for content in (before.content, settings["content"]))
        what = "" if before.content is None else difference(had, has)  # older files do not have it
        if what:
            raise UserError(
                f"{path}: was started on other data: {split} differs in the {what}; resume with the same --data"
            )


def flat_settings(recipe: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """("PHASE.setting", value) and the like of a recipe as a dict, without the numbers of workers, on which no batch
    depends, and without what explains a setting."""
    for key, value in recipe.items():
        if key == "phases":
            yield "phases", [phase.get("name") for phase in value]
            for phase in value:
                yield from ((f"{phase.get('name')}.{name}", own) for name, own in phase.items() if name != "workers")
        elif key == "model" and isinstance(value, dict):
            yield from ((f"model.{name}", own) for name, own in value.items())
        elif key not in ("sources", "summary"):
            yield key, value


def _with_defaults(recipe: dict[str, Any], path: Path) -> dict[str, Any]:
    """The recipe of a run.json, with the defaults of settings that did not exist when it was written."""
    phases = check_json(recipe, _RunRecipe, f"{path}: recipe", FIX).phases
    defaults = {one.name: one.default for one in fields(Phase) if one.default is not MISSING}
    known: dict[str, Any] = json.loads(json.dumps(defaults))
    return {"fit": False, "given": [], **recipe, "phases": [{**known, **phase} for phase in phases]}


def _tuples(value: Any) -> Any:
    """Lists of JSON as the tuples they were."""
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
