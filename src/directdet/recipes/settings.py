"""Choosing a recipe by name, changing it from the command line, and showing it."""

import ast
import difflib
import math
import types
import typing
from dataclasses import fields, replace
from typing import Any

from rich.console import Group
from rich.table import Column, Table

from directdet.common.errors import UsageProblem
from directdet.recipes.recipe import PARTS, Phase, Recipe
from directdet.recipes.slim import RECIPES
from directdet.recipes.table_rows import paper_groups, results_of

_CHOICES = {
    "resize": ("direct", "edges", "warp"),
    "norm": ("live", "sync", "affine", "fixed"),
    "precision": ("fp32", "bf16", "fp16"),
    "parts": PARTS,
    "optimizer": ("sgd", "adamw"),
}
_MANY = 10**9
_RANGES = {
    **dict.fromkeys(
        ("batch_size", "accumulate", "epochs", "repeat", "iterations", "base_batch", "max_steps", "shrink"), (1, _MANY)
    ),
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

    A key is a field of Phase (for every phase), one with the name of a phase and a dot before it (for that one),
    "init", "data_fraction", or "model." and a field of the network's configuration. UsageProblem for an unknown key or
    a value of the wrong type.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            raise UsageProblem(f"--set {setting}: write it as key=value")
        where, _, name = key.rpartition(".")
        names = [phase.name for phase in recipe.phases]
        if where == "model":
            recipe = replace(recipe, model={**recipe.model, name: _model_value(recipe.detector, key, name, text)})
        elif key in ("init", "data_fraction"):
            recipe = replace(recipe, **{key: _recipe_value(key, text)})
        elif where == "" or where in names:
            _check_known(key, name, [f.name for f in fields(Phase) if f.name != "name"])
            for phase in (where,) if where else names:
                recipe = recipe.with_phase(phase, **{name: _phase_value(key, name, text)})
        else:
            _check_known(key, where, ["model", *names])
    for phase in recipe.phases:
        _check_sizes(phase)
    return recipe


def _check_sizes(phase: Phase) -> None:
    if phase.resize != "edges" and phase.size[0] != phase.size[1]:
        raise UsageProblem(f"--set {phase.name}.size: {phase.resize} resizing makes squares, {phase.size} is none")
    if phase.resize == "warp":
        if phase.eval_size != phase.size:
            raise UsageProblem(
                f"--set {phase.name}.eval_size: {phase.eval_size} must be the size {phase.size}, with warp"
            )
    elif phase.eval_fixed and any(side % 32 for side in phase.eval_size):
        raise UsageProblem(
            f"--set {phase.name}.eval_size: {phase.eval_size} are not multiples of 32, as a canvas must be"
        )


def _recipe_value(key: str, text: str) -> Any:
    if key == "init":
        if text not in ("random", "imagenet"):
            raise UsageProblem(f"--set init: {text!r} is none of random, imagenet; a file is given with --init FILE")
        return text
    value = _parse(key, text, float)
    if not 0 < value <= 1:
        raise UsageProblem(f"--set data_fraction: {value} is not above 0 and at most 1")
    return value


def _phase_value(key: str, name: str, text: str) -> Any:
    value = _parse(key, text, typing.get_type_hints(Phase)[name])
    for one in value if name == "parts" else (value,):
        if name in _CHOICES and one not in _CHOICES[name]:
            raise UsageProblem(f"--set {key}: {one!r} is none of {', '.join(_CHOICES[name])}")
    if name in _RANGES and value is not None and not _RANGES[name][0] <= value <= _RANGES[name][1]:
        low, high = _RANGES[name]
        raise UsageProblem(f"--set {key}: {value} is not between {low:g} and {high:g}")
    if name in ("size", "eval_size", "short_edges") and value and min(value) < 32:
        raise UsageProblem(f"--set {key}: {value} is too small; at least 32 pixels")
    if name == "milestones" and any(one < 1 for one in value):
        raise UsageProblem(f"--set {key}: {value} must all be at least 1")
    if name == "std" and min(value) <= 0:
        raise UsageProblem(f"--set {key}: {value} must be above 0")
    if name == "scale" and not 0 < value[0] <= value[1]:
        raise UsageProblem(f"--set {key}: {value} is not a range (low, high) above 0")
    return value


def _model_value(detector: str, key: str, name: str, text: str) -> Any:
    from directdet.models.build import DETECTORS

    config, backbones = DETECTORS[detector].config, DETECTORS[detector].backbones
    _check_known(key, name, [f.name for f in fields(config) if f.name != "num_classes"])
    value = _parse(key, text, typing.get_type_hints(config)[name])
    norms = ("bn", "gn", "none") if detector in ("ssd", "rcnn") else ("bn", "gn")
    if name == "norm" and value not in norms:
        raise UsageProblem(f"--set {key}: {value!r} is none of {', '.join(norms)}")
    if name == "backbone" and value not in backbones:
        raise UsageProblem(f"--set {key}: {value!r} is none of {', '.join(backbones)}")
    _check_model_number(key, name, value)
    return value


def _check_model_number(key: str, name: str, value: Any) -> None:
    """UsageProblem for a number, or one in a tuple, that no network can have."""
    values = value if isinstance(value, tuple) else (value,)
    if name == "anchor_ratios" and not values:
        raise UsageProblem(f"--set {key}: give one number at least")
    for one in values:
        if isinstance(one, bool) or not isinstance(one, (int, float)):
            continue
        share = name in ("rpn_nms", "nms", "score_threshold", "focal_alpha")
        if (share or name.endswith(("_iou", "_ious", "_fraction"))) and not 0 <= one <= 1:
            raise UsageProblem(f"--set {key}: {one} is not between 0 and 1")
        if not 0 <= one < math.inf:
            raise UsageProblem(f"--set {key}: {one} is not a number from 0 on")
        if isinstance(one, int) and name not in ("box_convs", "head_convs") and one < 1:
            raise UsageProblem(f"--set {key}: {one} must be at least 1")
        if name.startswith("anchor") and not one > 0:
            raise UsageProblem(f"--set {key}: {one} must be above 0")


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
        if wanted == tuple[str, ...]:
            return tuple(part.strip() for part in text.split(",") if part.strip())
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


def recipe_groups() -> Group:
    """Every recipe, grouped by the paper's tables, with the paper's result and cost beside it."""
    groups = []
    longest = max(map(len, RECIPES))

    def names() -> Column:
        return Column("recipe", width=longest, overflow="fold")  # to be copied: never cut, however narrow it gets

    for title, rows in paper_groups():
        table = Table(names(), "row of the table", "in the paper", title=title, title_justify="left")
        for row in rows:
            table.add_row(row.recipe or f"(no recipe: {row.why_not})", row.label, row.result)
        groups.append(table)
    placed = {row.recipe for _, rows in paper_groups() for row in rows}
    others = Table(names(), "what it is", title="Beside the tables", title_justify="left")
    for name, build in RECIPES.items():
        if name not in placed:
            others.add_row(name, build().summary)
    return Group(*groups, others)


def describe_recipe(recipe: Recipe) -> Group:
    """Every setting of a recipe with where it comes from, and the command that runs it."""
    from directdet.models.build import DETECTORS

    names = [phase.name for phase in recipe.phases]
    table = Table(Column("setting", no_wrap=True), *names, Column("source", overflow="fold"), title=recipe.summary)
    for setting in fields(Phase):
        if setting.name == "name":
            continue
        keys = [f"{name}.{setting.name}" for name in names]
        if not all(key in recipe.sources for key in keys):
            keys.append(setting.name)
        found = [f"{key}: {recipe.sources[key]}" for key in keys if key in recipe.sources]
        values = [getattr(phase, setting.name) for phase in recipe.phases]
        if not found and any(value != setting.default for value in values):
            found = [f"{name}: {recipe.sources[name]}" for name in names if name in recipe.sources]
        unused = all(value == setting.default for value in values)
        table.add_row(setting.name, *map(_shown, values), "; ".join(found) or ("default" if unused else "ours"))
    model = Table(Column(f"{recipe.detector} setting", no_wrap=True), "value", Column("source", overflow="fold"))
    for setting in fields(DETECTORS[recipe.detector].config):
        if setting.name == "num_classes":
            continue
        key = f"model.{setting.name}"
        value, default = recipe.model.get(setting.name, setting.default), setting.default
        other = (
            "the paper's code" if value == default else recipe.sources.get("model", "what the recipe is named after")
        )
        source = recipe.sources.get(key, other)
        model.add_row(setting.name, _shown(value), source)
    facts = [f"First phase starts from: {recipe.init} weights"]
    if recipe.data_fraction < 1:
        facts.append(f"Share of the training images: {recipe.data_fraction:g} ({recipe.sources['data_fraction']})")
    facts += [f"In the paper: {text}" for text in results_of(recipe.name)]
    return Group(table, model, *facts, f"Run it: directdet train {recipe.name} --data DATA --out RUN")


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
