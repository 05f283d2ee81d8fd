"""Changes to a recipe written as text, the way the command line takes them: "finetune.size=320,448"."""

import ast
import types
import typing
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from directdet.common.settings import SettingError, check_key, describe_type, field_types
from directdet.models.configs import config_of
from directdet.recipes.recipe import Phase, Recipe

OF_RECIPE = ("init", "data_fraction")


def apply_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with `settings` applied, each "key=value".

    A key is "FIELD" (a field of Phase, set in every phase), "PHASE.FIELD" (set in one phase), "init", "data_fraction",
    or "model.FIELD" (a field of the detector's configuration). The dataclasses check the values themselves. An SSD is
    of one size: "size" sets that of its network too, unless "model.size" is given.

    Raises:
        SettingError: an unknown key, or a value that is not allowed; the message suggests the nearest valid one.
    """
    names = [phase.name for phase in recipe.phases]
    phases: dict[str, dict[str, Any]] = {name: {} for name in names}
    model, own = dict(recipe.model), {}
    config = config_of(recipe.detector)
    known = [field.name for field in fields(Phase) if field.name != "name"]
    of_model = [field.name for field in fields(config) if field.name != "num_classes"]
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            raise SettingError(f"--set {setting}: expected key=value")
        where, _, name = key.rpartition(".")
        if where == "model":
            check_key(f"--set {key}", name, of_model)
            model[name] = parse(key, text, field_types(config)[name])
        elif key in OF_RECIPE:
            own[key] = parse(key, text, field_types(Recipe)[key])
        elif where == "" or where in names:
            check_key(f"--set {key}", name, [*known, *OF_RECIPE] if where == "" else known)
            for phase in (where,) if where else names:
                phases[phase][name] = parse(key, text, field_types(Phase)[name])
        else:
            check_key(f"--set {key}", where, ["model", *names])
    sizes = {changes["size"] for changes in phases.values() if "size" in changes}
    if recipe.detector == "ssd" and len(sizes) == 1 and model.get("size") == recipe.model.get("size"):
        model["size"] = next(iter(sizes))[0]
    try:
        for name, changes in phases.items():
            recipe = recipe.with_phase(name, **changes)
        return replace(recipe, model=model, **own)
    except SettingError as error:
        raise SettingError(f"--set {error}") from None


def parse(key: str, text: str, wanted: Any) -> Any:
    """`text` converted to the type `wanted`; the dataclass that receives the value checks its range.

    A single number fills a tuple of fixed length: size=320 means size=320,320.

    Raises:
        SettingError: the text does not describe a value of this type.
    """
    text, kind = text.strip(), _without_rules(wanted)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if text.lower() == "none":
            return None
        kind = _without_rules(next(part for part in typing.get_args(kind) if part is not type(None)))
    parts = typing.get_args(kind)
    try:
        if typing.get_origin(kind) is not tuple:
            return _parse_one(text, kind)
        one = _without_rules(parts[0])
        if one not in (int, float):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        value = ast.literal_eval(text) if text else ()
        values = value if isinstance(value, (tuple, list)) else (value,) * max(1, len(parts) - (parts[-1] is Ellipsis))
        if parts[-1] is not Ellipsis and len(values) != len(parts):
            raise ValueError(values)
        return tuple(_number(number, one) for number in values)
    except (ValueError, SyntaxError, KeyError, TypeError, OverflowError):
        raise SettingError(f"--set {key}: {text!r} is not {describe_type(wanted)}") from None


def _without_rules(wanted: Any) -> Any:
    return typing.get_args(wanted)[0] if typing.get_origin(wanted) is typing.Annotated else wanted


def _parse_one(text: str, kind: Any) -> Any:
    if kind is bool:
        return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
    return _number(ast.literal_eval(text), kind) if kind in (int, float) else text


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or kind(value) != value:
        raise ValueError(value)
    return kind(value)
