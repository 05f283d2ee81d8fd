"""Comparisons are asked for, planned, kept and shown; nothing is trained here."""

import json
from dataclasses import replace

import pytest
from comparison_helpers import DIRECT_NAMES, micro_options, printed, trials_of
from slim_models import backbone_file, without_masks

from directdet.common.errors import UsageProblem, UserError
from directdet.data.dataset import load_dataset
from directdet.recipes.recipe import PARTS
from directdet.reproduce import budget as planning
from directdet.reproduce import run as module
from directdet.reproduce.experiments import EXPERIMENTS
from directdet.reproduce.run import ReproduceOptions, reproduce
from directdet.reproduce.scales import SCALES
from directdet.reproduce.tables.trials import SHARED


def test_rows_can_be_chosen():
    trials = trials_of("scratchdet/table1")
    chosen = module._chosen(trials, ["both_lr05", "none_lr001"])
    assert [trial.key for trial in chosen] == ["none_lr001", "both_lr05"]  # in the table's order
    assert module._chosen(trials, []) == trials
    with pytest.raises(UserError, match="--rows half_lr05: unknown; choose from none_lr001, none_lr01"):
        module._chosen(trials, ["both_lr05", "half_lr05"])


def test_lengths_are_put_into_the_phases():
    recipe = trials_of("direct/scratch")[0].recipe
    changed = module._with_steps(recipe, {"pretrain": 100, "finetune": 60})
    pretrain, finetune = changed.phases
    assert (pretrain.iterations, pretrain.milestones, pretrain.warmup_iterations) == (100, (), 10)
    assert (finetune.iterations, finetune.milestones, finetune.warmup_iterations) == (60, (40, 55), 6)
    assert module._with_steps(recipe, {"pretrain": 10**6, "finetune": 60}).phases[0].warmup_iterations == 500
    assert replace(changed, phases=recipe.phases) == recipe  # nothing else


# ---- Plans


def test_a_plan_is_kept_and_another_is_refused(shapes, tmp_path, paced, idle, monkeypatch):
    options = micro_options(300.0, seed=0)
    first = reproduce("direct/scratch", shapes, tmp_path, options)
    assert json.loads((tmp_path / "plan.json").read_text()) == first.plan
    assert first.plan["steps"]["direct"] == {"pretrain": 7, "finetune": 3} and not first.finished
    monkeypatch.setattr(planning, "seconds_of_steps", lambda *_: pytest.fail("measured again"))
    assert reproduce("direct/scratch", shapes, tmp_path, options).plan == first.plan
    for field, change in {
        "seed": {"seed": 1},
        "budget_s": {"budget": 301.0},
        "scale": {"scale": "tiny"},
        "imagenet": {"imagenet": "imagenet"},
    }.items():
        with pytest.raises(UserError, match=rf"plan\.json: {field}: was .*another --out") as caught:
            reproduce("direct/scratch", shapes, tmp_path, replace(options, **change))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"plan\.json: experiment: was 'direct/scratch'.*another --out"):
        reproduce("direct/table2", shapes, tmp_path, options)
    assert json.loads((tmp_path / "plan.json").read_text()) == first.plan


def test_steps_may_be_given_instead_of_a_budget(shapes, tmp_path, idle, monkeypatch):
    monkeypatch.setattr(planning, "seconds_of_steps", lambda *_: pytest.fail("measured"))
    options = micro_options(rows=["sync", "fixed"], steps=7)
    plan = reproduce("direct/table2", shapes, tmp_path / "a", options).plan
    assert plan["steps"] == {SHARED: {"pretrain": 7}, "sync": {"finetune": 7}, "fixed": {"finetune": 7}}
    assert plan["budget_s"] is None and json.loads((tmp_path / "a" / "plan.json").read_text()) == plan
    with pytest.raises(UserError, match="phase_steps: was 7"):
        reproduce("direct/table2", shapes, tmp_path / "a", replace(options, steps=8))
    with pytest.raises(UsageProblem, match=r"--steps 7: .* direct/scratch get equal time, not steps; give a --budget"):
        reproduce("direct/scratch", shapes, tmp_path / "b", replace(options, rows=["direct"]))


def test_the_batch_of_ssd_may_be_given(shapes, tmp_path, monkeypatch):
    options = ReproduceOptions(scale="smoke", device="cpu", rows=["both_lr05"], steps=3, ssd_batch=4)
    recipes = []
    monkeypatch.setattr(module, "_run_trial", lambda trial, *_: recipes.append(trial.recipe))
    assert reproduce("scratchdet/table1", shapes, tmp_path, options).plan["steps"] == {"both_lr05": {"scratch": 3}}
    (phase,) = recipes[0].phases
    assert (phase.batch_size, phase.base_lr * phase.batch_size / phase.base_batch) == (4, 0.05)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"name": "direct/table11"},
            "table11: unknown comparison; choose one of direct/table1, .*direct/table7",
        ),
        ({"options": ReproduceOptions(scale="huge")}, "--scale huge: unknown; choose one of smoke, tiny, small"),
    ],
)
def test_what_there_is_not(shapes, tmp_path, change, says):
    given = {"name": "direct/scratch", "data": shapes, "out": tmp_path / "out", "options": micro_options()}
    with pytest.raises(UsageProblem, match=says):
        reproduce(**{**given, **change})
    assert not (tmp_path / "out").exists()


def test_data_without_a_val_split(shapes, tmp_path):
    data = tmp_path / "data"
    (data / "annotations").mkdir(parents=True)
    (data / "train2017").symlink_to(shapes / "train2017")
    name = "instances_train2017.json"
    (data / "annotations" / name).write_text((shapes / "annotations" / name).read_text())
    with pytest.raises(UserError, match="has no val split to measure AP on"):
        reproduce("direct/scratch", data, tmp_path / "out", micro_options(100.0))


def test_imagenet_rows_wait_for_weights(shapes, tmp_path, paced, idle):
    found = reproduce("direct/table1", shapes, tmp_path / "a", micro_options(700.0))
    skipped = {row["key"]: row["skipped"] for row in found.rows if "skipped" in row}
    assert skipped == {"imagenet": "needs ImageNet weights of resnet18: --imagenet FILE"}
    assert "imagenet" not in found.plan["steps"] and len(found.plan["steps"]) == 6
    assert "Skipped: needs ImageNet weights of resnet18: --imagenet FILE." in printed(found.table())
    file = str(backbone_file(tmp_path / "r18.pth"))
    found = reproduce("direct/table1", shapes, tmp_path / "b", micro_options(700.0, imagenet=file))
    assert not [row for row in found.rows if "skipped" in row] and "imagenet" in found.plan["steps"]


def test_a_file_of_one_backbone_serves_the_rows_on_it(shapes, tmp_path, paced, idle):
    file = str(backbone_file(tmp_path / "swin.pth", "swin_t", 32))
    found = reproduce("direct/table8", shapes, tmp_path / "out", micro_options(2000.0, imagenet=file))
    assert {row["key"] for row in found.rows if "skipped" in row} == {
        f"{n}_imagenet" for n in ("retinanet", "rcnn", "cascade")
    }
    assert "swin_imagenet" in found.plan["steps"]


def test_weights_that_fit_no_row_are_told_before_the_work(shapes, tmp_path, paced, idle):
    for path in (backbone_file(tmp_path / "r50.pth", "resnet50"), tmp_path / "missing.pth"):
        with pytest.raises(UserError, match=path.name):
            reproduce("direct/table1", shapes, tmp_path / "out", micro_options(700.0, imagenet=str(path)))
        assert not (tmp_path / "out").exists()


def test_data_without_masks(shapes, tmp_path, paced, idle):
    data = without_masks(shapes, tmp_path / "data")
    found = reproduce("direct/table5", data, tmp_path / "out", micro_options(1000.0))
    assert [row["key"] for row in found.rows] == ["backbone", "fpn", "rpn", "box"]  # the fifth row would be the fourth
    for name in DIRECT_NAMES:
        for trial in module._trials(EXPERIMENTS[name], SCALES["micro"], load_dataset(data, "train")):
            assert not trial.recipe.model.get("masks")
    with_masks = reproduce("direct/table5", shapes, tmp_path / "masks", micro_options(1000.0))
    assert [row["key"] for row in with_masks.rows] == list(PARTS)
