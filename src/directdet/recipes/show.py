"""Recipes as tables for a terminal: all of them, by the tables of the two papers, or one with all its settings."""

from dataclasses import fields
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Column, Table

from directdet.common.plugins import load_plugins
from directdet.common.terminal import TITLE, plain
from directdet.models.configs import config_of
from directdet.recipes.by_name import BUILT_IN, RECIPES
from directdet.recipes.choices import CHOICES, COST
from directdet.recipes.derived import describe_batches, evaluation_size, passes_per_epoch
from directdet.recipes.meanings import meanings
from directdet.recipes.recipe import Phase, Recipe
from directdet.recipes.table_rows import TABLES, published_results, rows_of

FROM_DATA = ("num_classes", "in_channels")  # settings of a model that follow the data


def choices() -> Group:
    """The recipes to pick from, and those that --code brought, on one screen."""
    title = "Train one of these: directdet train RECIPE --data DATA --out RUN"
    numbers = (Column(name, justify="right") for name in ("M", "G", "ms", "AP"))
    table = Table(Column("recipe", no_wrap=True), "finds", *numbers, "for", title=title, box=SIMPLE_HEAD)
    table.title_justify = "left"
    for one in CHOICES:
        ap = "" if one.coco_ap is None else f"{one.coco_ap:.1f}"
        ms = "" if one.milliseconds is None else str(one.milliseconds)
        costs = f"{one.parameters:.1f}", f"{one.multiply_adds:.1f}", ms
        table.add_row(one.recipe, one.finds, *costs, ap, one.suits)
    for name in [name for name in RECIPES if name not in BUILT_IN]:
        table.add_row(plain(name), *[""] * 5, plain(RECIPES[name]().summary))
    rest = len(BUILT_IN) - len(CHOICES)
    return Group(
        table,
        f"M: million weights. G (thousand million multiply-adds) and ms: {COST}. AP: of boxes on COCO, the papers'.\n"
        "RTMDet's sizes and lengths follow the data. Every setting of one: `directdet recipes NAME`.\n"
        f"The {rest} others, by the tables of the two papers: `directdet recipes --papers`.",
    )


def recipe_groups() -> Group:
    """Every recipe, grouped by the tables of the two papers, with the paper's result and cost."""
    load_plugins()
    groups = []
    longest = max(map(len, RECIPES))

    def names() -> Column:
        return Column("recipe", width=longest, overflow="fold")  # to be copied, so never truncated

    placed = set()
    for trained in TABLES.values():
        title = f"{trained.place}: {trained.published().title}"
        table = Table(names(), "row of the table", "in the paper", title=title, title_justify="left")
        for row in rows_of(trained):
            placed.add(row.recipe)
            table.add_row(row.recipe or f"(no recipe: {row.why_not})", row.label, row.result)
        groups.append(table)
    others = Table(names(), "what it is", title="Not in a table of the papers", title_justify="left")
    for name, build in RECIPES.items():
        if name not in placed:
            others.add_row(plain(name), plain(build().summary))
    return Group(*groups, others)


def describe_recipe(recipe: Recipe) -> Group:
    """Every setting of a recipe with its source, and the command that runs it."""
    names = [phase.name for phase in recipe.phases]
    title = plain(recipe.summary, TITLE)
    notes = _Notes({recipe.sources[key] for key in (*names, "model") if key in recipe.sources})
    table = Table(Column("setting", no_wrap=True), *names, Column("source", overflow="fold"), title=title)
    for setting in fields(Phase):
        if setting.name == "name":
            continue
        keys = [f"{name}.{setting.name}" for name in names]
        if not all(key in recipe.sources for key in keys):
            keys.append(setting.name)
        found = {key: recipe.sources[key] for key in keys if key in recipe.sources}
        values = [getattr(phase, setting.name) for phase in recipe.phases]
        if not found and any(value != setting.default for value in values):
            found = {name: recipe.sources[name] for name in names if name in recipe.sources}
        unused = all(value == setting.default for value in values)
        why = notes.short(found) or ("default" if unused else "ours")
        shown = [_shown_of(phase, setting.name) for phase in recipe.phases]
        table.add_row(setting.name, *(plain(value) for value in shown), plain(why))
    model = Table(Column(f"{recipe.detector} setting", no_wrap=True), "value", Column("source", overflow="fold"))
    for setting in fields(config_of(recipe.detector)):
        if setting.name in FROM_DATA:
            continue
        key = f"model.{setting.name}"
        value, default = recipe.model.get(setting.name, setting.default), setting.default
        other = (
            "the paper's code" if value == default else recipe.sources.get("model", "what the recipe is named after")
        )
        source = notes.short({key: recipe.sources.get(key, other)})
        model.add_row(setting.name, plain(_shown(value)), plain(source))
    facts = [f"First phase starts from: {recipe.init} weights"]
    if recipe.data_fraction < 1:
        facts.append(f"Share of the training images: {recipe.data_fraction:g} ({recipe.sources['data_fraction']})")
    facts += [describe_batches(phase) for phase in recipe.phases if phase.fixed_batch]
    facts += [f"In the paper: {text}" for text in published_results(recipe.name)]
    facts.append(f"Run it: directdet train {recipe.name} --data DATA --out RUN")
    means = _meanings("What they mean", Phase, "name")
    of_model = _meanings(f"What those of {recipe.detector} mean", config_of(recipe.detector), *FROM_DATA)
    return Group(table, model, *map(plain, notes.lines()), means, of_model, *map(plain, facts))


class _Notes:
    """Sources that stand for many settings (`shared`) are numbered, and told once below the tables."""

    def __init__(self, shared: set[str]) -> None:
        self._shared = shared
        self._numbers: dict[str, int] = {}

    def short(self, sources: dict[str, str]) -> str:
        """The sources of a setting by the keys that they stand under; the key is left out where all say the same."""
        texts = dict.fromkeys(sources.values())
        if len(texts) == 1 and len(sources) > 1:
            sources = {"": next(iter(texts))}
        return "; ".join(self._one(key, text) for key, text in sources.items())

    def _one(self, key: str, text: str) -> str:
        if text in self._shared:
            text = f"[{self._numbers.setdefault(text, len(self._numbers) + 1)}]"
        return f"{key}: {text}" if key and not key.startswith("model.") else text

    def lines(self) -> list[str]:
        """The sources by number."""
        return [f"[{number}] {text}" for text, number in self._numbers.items()]


def _meanings(title: str, kind: type, *left_out: str) -> Table:
    """What each setting of a dataclass means."""
    found = meanings(kind)
    table = Table("setting", Column("meaning", overflow="fold"), title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in (one.name for one in fields(kind) if one.name not in left_out):
        table.add_row(name, plain(found.get(name, "")))
    return table


def _shown_of(phase: Phase, name: str) -> str:
    """A setting of a phase; where it is not given, what it follows from."""
    value = getattr(phase, name)
    if value is not None:
        return _shown(value)
    if name == "eval_size":
        return f"{_shown(evaluation_size(phase))} (follows size)"
    if name == "repeat":
        follows = " (follows batch_size)" if phase.epoch_batch is not None else ""
        return f"{passes_per_epoch(phase):g}{follows}"
    if name == "accumulate":
        return "follows base_batch" if phase.fixed_batch else "1"
    return _shown(value)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
