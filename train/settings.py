"""Choosing a recipe by name, changing it from the command line, and showing it."""

import ast
import difflib
import types
import typing
from dataclasses import fields, replace
from typing import Any

from rich.console import Group
from rich.table import Table

from ..errors import UsageProblem
from .recipes import RECIPES, Phase, Recipe

_CHOICES = {
    "resize": ("direct", "edges"),
    "norm": ("live", "fixed"),
    "precision": ("fp32", "bf16"),
    "optimizer": ("sgd", "adamw"),
}
_MANY = 10**9
_RANGES = {
    **dict.fromkeys(("batch_size", "epochs", "repeat", "base_batch", "max_steps"), (1, _MANY)),
    **dict.fromkeys(("eval_every", "workers", "warmup_iterations"), (0, _MANY)),
    **dict.fromkeys(("momentum", "weight_decay", "gamma", "warmup_factor"), (0.0, 1.0)),
    "base_lr": (0.0, 100.0),
    "clip_norm": (1e-6, 1e9),
    "frozen_stages": (-1, 4),
}


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`; UsageProblem with the nearest name if there is none."""
    if name not in RECIPES:
        raise UsageProblem(f"recipe {name!r}: unknown{_nearest(name, list(RECIPES))}; see `directdet recipes`")
    return RECIPES[name]()


def apply_settings(recipe: Recipe, settings: list[str] | tuple[str, ...]) -> Recipe:
    """The recipe with `settings` applied, each "key=value".

    A key is a field of Phase (for both phases), one with "pretrain." or "finetune." before it (for that phase), or
    "model." and a field of the network's configuration. UsageProblem for an unknown key or a value of the wrong type.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            raise UsageProblem(f"--set {setting}: write it as key=value")
        where, _, name = key.rpartition(".")
        if where == "model":
            recipe = replace(recipe, model={**recipe.model, name: _model_value(key, name, text)})
        elif where in ("", "pretrain", "finetune"):
            _check_known(key, name, [f.name for f in fields(Phase) if f.name != "name"])
            for phase in (where,) if where else ("pretrain", "finetune"):
                changed = replace(getattr(recipe, phase), **{name: _phase_value(key, name, text)})
                recipe = replace(recipe, **{phase: changed})
        else:
            _check_known(key, where, ["model", "pretrain", "finetune"])
    for phase in recipe.phases():
        _check_sizes(phase)
    return recipe


def _check_sizes(phase: Phase) -> None:
    if phase.resize == "direct" and phase.size[0] != phase.size[1]:
        raise UsageProblem(f"--set {phase.name}.size: direct resizing makes squares, {phase.size} is none")
    if phase.eval_fixed and any(side % 32 for side in phase.eval_size):
        raise UsageProblem(
            f"--set {phase.name}.eval_size: {phase.eval_size} are not multiples of 32, as a canvas must be"
        )


def _phase_value(key: str, name: str, text: str) -> Any:
    value = _parse(key, text, typing.get_type_hints(Phase)[name])
    if name in _CHOICES and value not in _CHOICES[name]:
        raise UsageProblem(f"--set {key}: {value!r} is none of {', '.join(_CHOICES[name])}")
    if name in _RANGES and value is not None and not _RANGES[name][0] <= value <= _RANGES[name][1]:
        low, high = _RANGES[name]
        raise UsageProblem(f"--set {key}: {value} is not between {low:g} and {high:g}")
    if name in ("size", "eval_size") and min(value) < 32:
        raise UsageProblem(f"--set {key}: {value} is too small; at least 32 pixels")
    if name == "scale" and not 0 < value[0] <= value[1]:
        raise UsageProblem(f"--set {key}: {value} is not a range (low, high) above 0")
    return value


def _model_value(key: str, name: str, text: str) -> Any:
    from ..models.backbones import BACKBONES
    from ..models.rcnn import RCNNConfig

    known = [f.name for f in fields(RCNNConfig) if f.name != "num_classes"]
    _check_known(key, name, known)
    value = _parse(key, text, typing.get_type_hints(RCNNConfig)[name])
    if name == "backbone" and value not in BACKBONES:
        raise UsageProblem(f"--set {key}: {value!r} is none of {', '.join(BACKBONES)}")
    share = name in ("rpn_nms", "nms", "score_threshold") or name.endswith(("_iou", "_fraction"))
    if share and not 0 <= value <= 1:
        raise UsageProblem(f"--set {key}: {value} is not between 0 and 1")
    if isinstance(value, int) and name not in ("masks", "box_convs") and value < 1:
        raise UsageProblem(f"--set {key}: {value} must be at least 1")
    return value


def _check_known(key: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise UsageProblem(f"--set {key}: unknown setting{_nearest(name, known)}; see `directdet recipes NAME`")


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f", did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def _parse(key: str, text: str, wanted: Any) -> Any:
    """`text` as a value of the type `wanted`; UsageProblem if it is none."""
    text = text.strip()
    optional = isinstance(wanted, types.UnionType)
    if optional:
        if text.lower() == "none":
            return None
        wanted = next(t for t in typing.get_args(wanted) if t is not type(None))
    try:
        if wanted is str:
            return text
        if wanted is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        value = ast.literal_eval(text)
        if typing.get_origin(wanted) is tuple:
            return _parse_tuple(value, typing.get_args(wanted))
        return _number(value, wanted)
    except (ValueError, SyntaxError, KeyError, TypeError, OverflowError):
        kind = wanted.__name__ if isinstance(wanted, type) and not typing.get_args(wanted) else str(wanted)
        raise UsageProblem(f"--set {key}: {text!r} is not of the type {kind}") from None


def _parse_tuple(value: Any, wanted: tuple) -> tuple:
    """A number alone serves for every place of a tuple of fixed length: size=320 is size=320,320."""
    if wanted[-1] is Ellipsis:
        values = value if isinstance(value, (tuple, list)) else (value,)
        return tuple(_number(v, wanted[0]) for v in values)
    values = value if isinstance(value, (tuple, list)) else (value,) * len(wanted)
    return tuple(_number(v, kind) for v, kind in zip(values, wanted, strict=True))


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or kind(value) != value:
        raise ValueError(value)
    return kind(value)


def recipe_table() -> Table:
    """All recipes, one a line."""
    table = Table("recipe", "what it is", "in the paper")
    for name, build in RECIPES.items():
        recipe = build()
        table.add_row(name, recipe.summary, recipe.paper)
    return table


def describe_recipe(recipe: Recipe) -> Group:
    """Every setting of a recipe with where it comes from, and the command that runs it."""
    table = Table("setting", "pretrain", "finetune", "source", title=recipe.summary)
    for setting in fields(Phase):
        if setting.name == "name":
            continue
        keys = (f"pretrain.{setting.name}", f"finetune.{setting.name}", setting.name)
        source = "; ".join(f"{key}: {recipe.sources[key]}" for key in keys if key in recipe.sources)
        values = [str(getattr(phase, setting.name)) for phase in recipe.phases()]
        table.add_row(setting.name, *values, source)
    model = Table("network setting", "value", "source")
    from ..models.rcnn import RCNNConfig

    for setting in fields(RCNNConfig):
        if setting.name == "num_classes":
            continue
        key = f"model.{setting.name}"
        value, default = recipe.model.get(setting.name, setting.default), setting.default
        source = recipe.sources.get(key, "" if value == default else recipe.sources.get("model", ""))
        model.add_row(setting.name, str(value), source or "models/rcnn.py, the paper's code")
    command = f"directdet train {recipe.name} --data DATA --out RUN"
    return Group(table, model, f"In the paper: {recipe.paper}" if recipe.paper else "", f"Run it: {command}")
