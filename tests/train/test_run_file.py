"""`directdet train --resume RUN`: a run goes on from its folder alone, and a difference is named."""

import json
import signal
from dataclasses import asdict, replace

import pytest

from directdet.common.errors import Stopped, UserError
from directdet.front.cli import main
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.by_name import RECIPES, get_recipe
from directdet.train.loop import Trainer
from directdet.train.run import train
from directdet.train.run_file import check_same_run, stored_run


def write(out, recipe, phase="pretrain", **others):
    path = out / phase / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"recipe": asdict(recipe), "data": "shapes", "seed": 3, "classes": ["a"], "phase": None}
    path.write_text(json.dumps({**facts, **others}))
    return path


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_comes_back_from_its_file(tmp_path, name):
    recipe = get_recipe(name)
    write(tmp_path, recipe, recipe.phases[0].name)
    run = stored_run(tmp_path)
    assert replace(run.recipe, sources=recipe.sources) == recipe
    assert (run.data, run.seed, run.phase) == ("shapes", 3, None)


def test_no_run_and_damaged_ones(tmp_path):
    with pytest.raises(UserError, match="--resume finds no run there"):
        stored_run(tmp_path)
    path = write(tmp_path, get_recipe("demo"))
    content = json.loads(path.read_text())
    content["recipe"]["phases"][0]["batch_size"] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"run\.json: recipe: pretrain\.batch_size: 0"):
        stored_run(tmp_path)
    content["recipe"]["phases"][0] = {"name": "pretrain", "of_tomorrow": 1}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"of_tomorrow.*name the recipe and --data instead"):
        stored_run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"batch_size": 99}, r"finetune\.batch_size was \d+, now 99"),
        ({"scale": (0.5, 2.0)}, r"finetune\.scale was \[0\.8, 1\.2\], now \[0\.5, 2\.0\]"),
    ],
)
def test_the_setting_that_differs_is_named(tmp_path, changes, what):
    recipe = get_recipe("mask_rcnn_r18_slim")
    path = write(tmp_path, recipe)
    now = {"recipe": asdict(recipe.with_phase("finetune", **changes)), "classes": ["a"], "images": 1, "content": {}}
    now["recipe"]["given"] = ()
    with pytest.raises(UserError, match=what):
        check_same_run(path, now)


def test_another_network_is_named(tmp_path):
    recipe = get_recipe("mask_rcnn_r18_slim")
    path = write(tmp_path, recipe)
    other = replace(recipe, model={**recipe.model, "width": 16})
    with pytest.raises(UserError, match=r"model\.width was 32, now 16"):
        check_same_run(path, {"recipe": asdict(other), "classes": ["a"], "images": 1, "content": {}})


def test_workers_and_sources_may_differ(tmp_path):
    recipe = get_recipe("mask_rcnn_r18_slim")
    path = write(tmp_path, recipe)
    other = replace(recipe.with_phase("pretrain", workers=7), sources={}, given=())
    check_same_run(path, {"recipe": asdict(other), "classes": ["a"], "images": None, "content": {}})


def test_a_run_goes_on_from_its_folder_alone(shapes, tiny, tmp_path, monkeypatch, capsys):
    """With its own seed, data and settings; both phases, to the end that it would have had."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(tiny, shapes, whole, seed=4, device="cpu")
    step = Trainer.step

    def stopped(self, batches):
        if self.position.step == 4:
            raise Stopped(signal.SIGTERM)
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        with pytest.raises(Stopped):
            train(tiny, shapes, run, seed=4, device="cpu")
    assert main(["train", "--resume", str(run), "--device", "cpu"]) == 0
    assert "finetune: best box AP" in capsys.readouterr().out
    for phase in ("pretrain", "finetune"):
        ours, theirs = (load_checkpoint(one / phase / "checkpoints" / "last.pt")["model"] for one in (run, whole))
        assert all((ours[key] == theirs[key]).all() for key in theirs)
