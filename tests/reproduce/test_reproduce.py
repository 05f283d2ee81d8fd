"""Comparisons are asked for, planned, kept and shown; nothing is trained here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from comparison_helpers import DIRECT_NAMES, printed, trials_of
from slim_models import backbone_file, without_masks

from directdet.common.errors import UsageProblem, UserError
from directdet.data.dataset import load_dataset
from directdet.recipes.recipe import PARTS
from directdet.reproduce import budget as planning
from directdet.reproduce import run as module
from directdet.reproduce.experiments import EXPERIMENTS, SCALES, SHARED
from directdet.reproduce.run import reproduce


def test_rows_can_be_chosen():
    trials = trials_of("scratchdet/table1")
    chosen = module._chosen(trials, ["both_lr05", "none_lr001"])
    assert [trial.key for trial in chosen] == ["none_lr001", "both_lr05"]  # in the table's order
    assert module._chosen(trials, []) == trials
    with pytest.raises(UserError, match="--rows half_lr05: there are none_lr001, none_lr01"):
        module._chosen(trials, ["both_lr05", "half_lr05"])


def test_lengths_are_put_into_the_phases():
    recipe = trials_of("direct/scratch")[0].recipe
    changed = module._with_steps(recipe, {"pretrain": 100, "finetune": 60})
    pretrain, finetune = changed.phases
    assert (pretrain.iterations, pretrain.milestones, pretrain.warmup_iterations) == (100, (), 10)
    assert (finetune.iterations, finetune.milestones, finetune.warmup_iterations) == (60, (40, 55), 6)
    assert module._with_steps(recipe, {"pretrain": 10**6, "finetune": 60}).phases[0].warmup_iterations == 500
    assert replace(changed, phases=recipe.phases) == recipe  # nothing else


def test_facts_of_a_phase_come_from_its_log():
    log = [
        {"kind": "step", "step": 10, "seconds_per_step": 2.0, "data_seconds": 0.1, "memory_gib": 1.5, "loss": 3.0},
        {"kind": "step", "step": 14, "seconds_per_step": 5.0, "data_seconds": 0.3, "memory_gib": 2.5, "loss": 2.0},
        {"kind": "step", "step": 24, "seconds_per_step": 1.0, "data_seconds": 0.2, "memory_gib": 2.0, "loss": 1.0},
        {"kind": "eval", "step": 24, "bbox": {}},
    ]
    facts = module._phase_facts("scratch", log)
    assert facts["seconds"] == 10 * 2.0 + 4 * 5.0 + 10 * 1.0 and facts["steps"] == 24
    assert (facts["seconds_per_step"], facts["data_seconds"], facts["memory_gib"]) == (2.0, 0.2, 2.5)
    without = [{key: value for key, value in row.items() if key != "memory_gib"} for row in log]
    assert "memory_gib" not in module._phase_facts("scratch", without)


# ---- Plans


def test_a_plan_is_kept_and_another_is_refused(shapes, tmp_path, paced, idle, monkeypatch):
    given = {"name": "direct/scratch", "data": shapes, "budget": 300.0, "scale": "micro", "device": "cpu", "seed": 0}
    first = reproduce(out=tmp_path, **given)
    assert json.loads((tmp_path / "plan.json").read_text()) == first.plan
    assert first.plan["steps"]["direct"] == {"pretrain": 7, "finetune": 3} and not first.finished
    monkeypatch.setattr(planning, "_seconds", lambda *_: pytest.fail("measured again"))
    assert reproduce(out=tmp_path, **given).plan == first.plan
    for field, change in {
        "seed": {"seed": 1},
        "budget_s": {"budget": 301.0},
        "scale": {"scale": "tiny"},
        "experiment": {"name": "direct/table2"},
        "imagenet": {"imagenet": "imagenet"},
    }.items():
        with pytest.raises(UserError, match=rf"plan\.json: {field}: was .*another --out") as caught:
            reproduce(out=tmp_path, **{**given, **change})
        assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / "plan.json").read_text()) == first.plan


def test_steps_may_be_given_instead_of_a_budget(shapes, tmp_path, idle, monkeypatch):
    monkeypatch.setattr(planning, "_seconds", lambda *_: pytest.fail("measured"))
    given = {"name": "direct/table2", "data": shapes, "scale": "micro", "device": "cpu", "rows": ["sync", "fixed"]}
    plan = reproduce(out=tmp_path / "a", **given, steps=7).plan
    assert plan["steps"] == {SHARED: {"pretrain": 7}, "sync": {"finetune": 7}, "fixed": {"finetune": 7}}
    assert plan["budget_s"] is None and json.loads((tmp_path / "a" / "plan.json").read_text()) == plan
    with pytest.raises(UserError, match="phase_steps: was 7"):
        reproduce(out=tmp_path / "a", **given, steps=8)
    with pytest.raises(UsageProblem, match="--steps 7: the rows of direct/scratch get equal time: give a --budget"):
        reproduce(out=tmp_path / "b", **{**given, "name": "direct/scratch", "rows": ["direct"]}, steps=7)


def test_the_batch_of_ssd_may_be_given(shapes, tmp_path, monkeypatch):
    given = {"name": "scratchdet/table1", "data": shapes, "scale": "smoke", "device": "cpu", "rows": ["both_lr05"]}
    recipes = []
    monkeypatch.setattr(module, "_run_trial", lambda trial, *_: recipes.append(trial.recipe))
    assert reproduce(out=tmp_path, **given, steps=3, ssd_batch=4).plan["steps"] == {"both_lr05": {"scratch": 3}}
    (phase,) = recipes[0].phases
    assert (phase.batch_size, phase.base_lr * phase.batch_size / phase.base_batch) == (4, 0.05)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "direct/table3"}, "direct/table3: unknown; there are direct/table1, .*direct/table7"),
        ({"scale": "huge"}, "--scale huge: there are smoke, tiny, small"),
    ],
)
def test_what_there_is_not(shapes, tmp_path, change, says):
    given = {"name": "direct/scratch", "data": shapes, "out": tmp_path / "out", "scale": "micro", "device": "cpu"}
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
        reproduce("direct/scratch", data, tmp_path / "out", 100.0, "micro", "cpu")


def test_imagenet_rows_wait_for_weights(shapes, tmp_path, paced, idle):
    found = reproduce("direct/table1", shapes, tmp_path / "a", 700.0, "micro", "cpu")
    skipped = {row["key"]: row["skipped"] for row in found.rows if "skipped" in row}
    assert skipped == {"imagenet": "needs ImageNet weights of resnet18: --imagenet FILE"}
    assert "imagenet" not in found.plan["steps"] and len(found.plan["steps"]) == 6
    assert "(needs ImageNet weights of resnet18: --imagenet FILE)" in printed(found.table())
    file = str(backbone_file(tmp_path / "r18.pth"))
    found = reproduce("direct/table1", shapes, tmp_path / "b", 700.0, "micro", "cpu", imagenet=file)
    assert not [row for row in found.rows if "skipped" in row] and "imagenet" in found.plan["steps"]


def test_a_file_of_one_backbone_serves_the_rows_on_it(shapes, tmp_path, paced, idle):
    file = str(backbone_file(tmp_path / "swin.pth", "swin_t", 32))
    found = reproduce("direct/table8", shapes, tmp_path / "out", 2000.0, "micro", "cpu", imagenet=file)
    assert {row["key"] for row in found.rows if "skipped" in row} == {
        f"{n}_imagenet" for n in ("retinanet", "rcnn", "cascade")
    }
    assert "swin_imagenet" in found.plan["steps"]


def test_weights_that_fit_no_row_are_told_before_the_work(shapes, tmp_path, paced, idle):
    for path in (backbone_file(tmp_path / "r50.pth", "resnet50"), tmp_path / "missing.pth"):
        with pytest.raises(UserError, match=path.name):
            reproduce("direct/table1", shapes, tmp_path / "out", 700.0, "micro", "cpu", imagenet=str(path))
        assert not (tmp_path / "out").exists()


def test_data_without_masks(shapes, tmp_path, paced, idle):
    data = without_masks(shapes, tmp_path / "data")
    found = reproduce("direct/table5", data, tmp_path / "out", 1000.0, "micro", "cpu")
    assert [row["key"] for row in found.rows] == ["backbone", "fpn", "rpn", "box"]  # the fifth row would be the fourth
    for name in DIRECT_NAMES:
        for trial in module._trials(EXPERIMENTS[name], SCALES["micro"], load_dataset(data, "train")):
            assert not trial.recipe.model.get("masks")
    with_masks = reproduce("direct/table5", shapes, tmp_path / "masks", 1000.0, "micro", "cpu")
    assert [row["key"] for row in with_masks.rows] == list(PARTS)


# ---- The table


def test_the_table_shows_what_is_there():
    plan = {"experiment": "direct/scratch", "scale": "micro", "seed": 3}
    phases = [{"steps": 70, "seconds_per_step": 0.5, "seconds": 35.0, "last_loss": 1.0}]
    phases += [{"steps": 30, "seconds_per_step": 1.25, "seconds": 37.0, "last_loss": 1.0}]
    done = {"box_ap": 0.1234, "box_ap50": 0.25, "mask_ap": None, "phases": phases}
    rows = [
        {"key": "a", "label": "first", "paper": {"box_ap": 41.5, "mask_ap": 37.0, "days": 1.52}, **done},
        {"key": "b", "label": "second", "paper": None, **done, "mask_ap": 0.05},
        {"key": "c", "label": "third", "paper": None, "skipped": "needs weights"},
        {"key": "d", "label": "fourth", "paper": None, "diverged": 17},
        {"key": "e", "label": "fifth", "paper": None},
    ]
    text = printed(module.Comparison(Path(), plan, rows, finished=False).table())
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert cells == [
        ["first", "12.3", "25.0", "-", "70+30", "0.500 + 1.250", "1.2", "box 41.5, mask 37.0, 1.52 days"],
        ["second", "12.3", "25.0", "5.0", "70+30", "0.500 + 1.250", "1.2", "-"],
        ["third", "(needs weights)", "", "", "", "", "", "-"],
        ["fourth", "NaN", "", "after step 17", "", "", "", "-"],
        ["fifth", "to come", "", "", "", "", "", "-"],
    ]
    assert "scale micro, seed 3" in text and module.CAUTION in text and "Equal time for every row." in text
    assert "Not finished: the same command goes on." in text
    assert "Not finished" not in printed(module.Comparison(Path(), plan, rows, finished=True).table())
    assert "SyncBN" not in text
    rows[0]["key"] = "sync"
    assert "SyncBN has nobody to synchronise with" in printed(module.Comparison(Path(), plan, rows, True).table())
