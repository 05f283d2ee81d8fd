"""A terminal of 80 columns, and what is piped into a file, shows every name and figure whole."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from directdet.benchmark.result import BenchmarkResult
from directdet.benchmark.tables import tables
from directdet.recipes.by_name import RECIPES, get_recipe
from directdet.recipes.recipe import Phase
from directdet.recipes.show import choices, describe_recipe, recipe_groups
from directdet.reproduce.comparison import Comparison
from directdet.reproduce.timing import timing_table
from directdet.train.planning.memory import StepCost
from directdet.train.planning.plan import Grid, Workload, plan

RESULTS = Path(__file__).parents[2] / "results"


def narrow(what: RenderableType) -> str:
    text = io.StringIO()
    Console(file=text, width=80).print(what)
    return text.getvalue()


def kept(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["direct_table2_h200", "scratchdet_table1", "scratchdet_table1_h200"])
def test_a_comparison(name):
    found = kept(f"reproduce_{name}")
    text = narrow(Comparison(Path(), found["plan"], found["rows"], found["finished"]).table())
    assert "…" not in text and found["rows"][0]["label"].split()[0] in text


def test_times():
    text = narrow(timing_table(kept("reproduce_direct_table7")))
    assert "…" not in text and "Scratch (SyncBN)" in text


def test_a_benchmark():
    found = kept("benchmark_ssd300_h200")
    result = BenchmarkResult.from_dict(found)
    again = json.loads(json.dumps(result.to_dict()))
    assert again["about"] == found["about"] and BenchmarkResult.from_dict(again) == result
    text = narrow(tables(result))
    assert "…" not in text and "115.0" in text


def test_recipes():
    assert "…" not in narrow(recipe_groups())
    assert "…" not in narrow(choices()) and len(narrow(choices()).splitlines()) <= 24  # one screen
    for name in RECIPES:
        assert "…" not in narrow(describe_recipe(get_recipe(name))), name


def test_a_plan_as_large_as_the_papers(monkeypatch):
    cost = StepCost(24 * 10**9, 64_000 * 10**9, {"parameters": 10**9})
    monkeypatch.setattr("directdet.train.planning.plan.step_cost", lambda *_, **__: cost)
    phase = Phase("pretrain", "direct", (448, 448), epochs=12, repeat=4)
    found = plan({}, phase, 10**11, Grid((448, 640), (2, 16)), Workload(gpus=8), progress=False)
    text = narrow(found.table())
    assert "…" not in text and "24.00" in text and "iterations" in text
