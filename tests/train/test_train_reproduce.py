"""The paper's comparisons, scaled down: their rows are the paper's, their budgets equal, their plans kept."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from slim_models import MICRO, backbone_file, without_masks

from directdet.common.errors import UsageProblem, UserError
from directdet.data.dataset import load_dataset
from directdet.models.build import build_model
from directdet.recipes.recipe import PARTS
from directdet.recipes.table_rows import paper_table
from directdet.reproduce import budget as planning
from directdet.reproduce import run as module
from directdet.reproduce import timing
from directdet.reproduce.experiments import EXPERIMENTS, SCALES, SHARED, Scale, Trial
from directdet.reproduce.run import reproduce
from directdet.train.loop import Trainer
from directdet.train.prepare import apply_norm

NAMES = [name for name in EXPERIMENTS if name.startswith("direct/")]


@pytest.fixture(autouse=True)
def micro(monkeypatch):
    """A scale of networks that take a fraction of a second a step."""
    torch.set_num_threads(1)
    monkeypatch.setitem(SCALES, "micro", MICRO)


@pytest.fixture
def paced(monkeypatch):
    """Steps of ten seconds and evaluations of none, not measured: a budget then says how many steps there are."""
    monkeypatch.setattr(planning, "_seconds", lambda *_: {"step": 10.0, "evaluation": 0.0})
    monkeypatch.setattr(planning, "FEWEST_STEPS", 2)


@pytest.fixture
def idle(monkeypatch):
    """Plans are made, rows are not run."""
    monkeypatch.setattr(module, "_run_trial", lambda *_: None)


def trials_of(name: str, scale: Scale = MICRO) -> list[Trial]:
    return EXPERIMENTS[name].trials(scale)


def printed(renderable: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


# ---- Rows


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", SCALES)
def test_rows_are_well_formed(name, scale):
    trials = trials_of(name, SCALES[scale])
    assert len({trial.key for trial in trials}) == len({trial.label for trial in trials}) == len(trials) > 2
    assert SHARED not in {trial.key for trial in trials}
    for trial in trials:
        phases = [phase.name for phase in trial.recipe.phases]
        assert phases in (["pretrain", "finetune"], ["scratch"], ["finetune"])
        assert trial.needs_imagenet == (trial.recipe.init == "imagenet") == (phases == ["finetune"])
        assert all(phase.eval_every == 0 for phase in trial.recipe.phases[:-1])
        assert trial.recipe.phases[-1].eval_every > 1000  # at the end alone
    if EXPERIMENTS[name].equal == "steps":  # of what they share there is one
        assert all(trial.shares for trial in trials)
        assert len({(str(trial.recipe.phases[0]), str(trial.recipe.model)) for trial in trials}) == 1
    else:
        assert not any(trial.shares for trial in trials)


@pytest.mark.parametrize("name", NAMES)
def test_figures_beside_the_rows_are_the_papers(name):
    rows = paper_table(EXPERIMENTS[name].table).rows + paper_table("1").rows
    found = [
        {"box_ap": row.ap_box, "mask_ap": row.ap_mask, "days": row.total_cost_days, "s_per_iter": row.s_per_iter}
        for row in rows
    ]
    for trial in trials_of(name):
        if trial.paper is not None:
            assert any(trial.paper.items() <= figures.items() for figures in found), trial.key
        else:
            assert name == "direct/table8" and trial.key.endswith("_scratch")  # the paper has no such rows


def test_rows_differ_in_what_their_table_compares():
    batches = {t.key: (t.recipe.phases[0].batch_size, t.recipe.phases[0].size) for t in trials_of("direct/table1")}
    paper = replace(MICRO, factor=1.0)
    assert [trial.recipe.phases[0].size[0] for trial in trials_of("direct/table1", paper)[:5]] == [448] * 3 + [320, 640]
    assert [batch for batch, _ in batches.values()] == [2, 4, 8, 4, 4, 2, 2]
    tiny = [trial.recipe.phases[0].size for trial in trials_of("direct/table1", SCALES["tiny"])[2:5]]
    assert len(set(tiny)) == 3
    assert [t.recipe.phases[1].norm for t in trials_of("direct/table2")] == ["affine", "sync", "fixed"]
    assert [t.recipe.phases[1].parts for t in trials_of("direct/table5")] == [PARTS[:n] for n in range(1, 6)]
    norms = {t.key: (t.recipe.phases[-1].norm, t.recipe.model.get("norm", "bn")) for t in trials_of("direct/scratch")}
    assert norms == {"direct": ("fixed", "bn"), "scratch_bn": ("live", "bn"), "scratch_gn": ("live", "gn")}
    for trial in trials_of("direct/table8"):
        masks = trial.recipe.model.get("masks", False)
        assert masks == trial.key.startswith("swin")  # section 4.7: the others are trained without masks
        for phase in trial.recipe.phases:
            swin = trial.key.startswith("swin")
            assert (phase.optimizer, phase.weight_decay) == (("adamw", 0.05) if swin else ("sgd", 1e-4))
            assert phase.norm == "live" or not swin
    rates = {
        p.base_lr * 16 / p.base_batch for t in trials_of("direct/table8", SCALES["paper"]) for p in t.recipe.phases
    }
    assert sorted(rates) == pytest.approx([1e-4, 0.02])  # for 16 images: AdamW's of the authors' code, and SGD's


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), [(name, trial.key) for name in NAMES for trial in trials_of(name)])
def test_every_row_builds_and_makes_a_step(name, key, shapes, tmp_path):
    trial = next(trial for trial in trials_of(name) if trial.key == key)
    dataset = load_dataset(shapes, "train")
    for phase in trial.recipe.phases:
        model = build_model({"detector": trial.recipe.detector, "num_classes": 4, **trial.recipe.model})
        apply_norm(model, phase, trained=False, known=False)
        trainer = Trainer(model, phase, dataset, None, tmp_path / phase.name, name, 0)
        model.train()
        losses, counts = trainer.step([next(iter(trainer.loader))])
        assert all(torch.isfinite(value) for value in losses.values()) and "positives" in counts


def test_rows_can_be_chosen():
    trials = trials_of("scratchdet/table1")
    chosen = module._chosen(trials, ["both_lr05", "none_lr001"])
    assert [trial.key for trial in chosen] == ["none_lr001", "both_lr05"]  # in the table's order
    assert module._chosen(trials, []) == trials
    with pytest.raises(UserError, match="--rows half_lr05: there are none_lr001, none_lr01"):
        module._chosen(trials, ["both_lr05", "half_lr05"])


# ---- Budgets


def pace_of(trials: list[Trial]) -> tuple[dict, dict, dict]:
    """Made-up seconds of every phase, all different: of rows, of what they share, of evaluations."""
    seconds = iter(range(3, 100))
    pace = {
        trial.key: {
            phase.name: {"step": next(seconds) / 17}
            for phase in trial.recipe.phases
            if not (trial.shares and phase.name == "pretrain")
        }
        for trial in trials
    }
    return pace, {"step": 0.9}, {trial.key: 1.5 for trial in trials}


@pytest.mark.parametrize("name", NAMES)
def test_budgets_are_equal_and_kept(name):
    experiment, trials, budget = EXPERIMENTS[name], trials_of(name), 2000.0
    pace, shared, evaluation = pace_of(trials)
    shared = shared if experiment.equal == "steps" else None
    steps, _ = planning._steps(experiment, trials, budget, pace, shared, evaluation)
    spent = {
        key: {
            phase: count * ({SHARED: {"pretrain": shared}} | pace)[key][phase]["step"] for phase, count in row.items()
        }
        for key, row in steps.items()
    }
    total = sum(sum(row.values()) for row in spent.values()) + sum(evaluation.values())
    longest = sum(phase["step"] for row in pace.values() for phase in row.values()) + 0.9
    assert budget - longest <= total <= budget
    if experiment.equal == "steps":
        assert len({tuple(row.items()) for key, row in steps.items() if key != SHARED}) == 1
        # 40 % of the time for what all rows share
        assert spent[SHARED]["pretrain"] == pytest.approx(0.4 * (budget - sum(evaluation.values())), abs=0.9)
        return
    each = (budget - sum(evaluation.values())) / len(trials)
    for key, row in spent.items():
        assert each - sum(pace[key][phase]["step"] for phase in row) <= sum(row.values()) <= each
        if len(row) == 2:  # split as P3x + 1x of Table 3: 1.07 of 1.52 days
            assert row["pretrain"] / each == pytest.approx(1.07 / 1.52, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_least_budget_is_the_least(name):
    experiment, trials = EXPERIMENTS[name], trials_of(name)
    pace, shared, evaluation = pace_of(trials)
    shared = shared if experiment.equal == "steps" else None

    def fewest(budget: float) -> tuple[int, float]:
        steps, needed = planning._steps(experiment, trials, budget, pace, shared, evaluation)
        return min(count for row in steps.values() for count in row.values()), needed

    _, needed = fewest(1.0)
    assert fewest(needed + 1e-6)[0] == planning.FEWEST_STEPS > fewest(needed * 0.999)[0]


def test_too_small_a_budget_names_one_that_does(shapes, tmp_path, monkeypatch, idle):
    monkeypatch.setattr(planning, "_seconds", lambda *_: {"step": 0.5, "evaluation": 2.0})
    with pytest.raises(
        UserError, match=r"--budget: 0\.2 minutes are too few for 3 rows here; give at least (\d+)m"
    ) as no:
        reproduce("direct/scratch", shapes, tmp_path / "out", 10.0, "micro", "cpu")
    assert "\n" not in str(no.value) and not (tmp_path / "out").exists()
    enough = 60.0 * int(re.search(r"least (\d+)m", str(no.value))[1])
    plan = reproduce("direct/scratch", shapes, tmp_path / "out", enough, "micro", "cpu").plan
    assert min(count for row in plan["steps"].values() for count in row.values()) >= planning.FEWEST_STEPS


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
    for name in NAMES:
        for trial in module._trials(EXPERIMENTS[name], SCALES["micro"], load_dataset(data, "train")):
            assert not trial.recipe.model.get("masks")
    with_masks = reproduce("direct/table5", shapes, tmp_path / "masks", 1000.0, "micro", "cpu")
    assert [row["key"] for row in with_masks.rows] == list(PARTS)


def test_measuring_takes_steps_of_the_real_thing(shapes, tmp_path):
    dataset, val = load_dataset(shapes, "train"), load_dataset(shapes, "val")
    recipe = trials_of("direct/scratch")[1].recipe
    found = planning._seconds(recipe, recipe.phases[0], dataset, val, torch.device("cpu"))
    assert 0.001 < found["step"] < 20 and 0.001 < found["evaluation"] < 20


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


def test_reading_is_shared_by_the_workers(shapes, tmp_path, monkeypatch):
    """Budgets are to be used up: on a machine with many cores reading hardly takes time."""
    dataset, val = load_dataset(shapes, "train"), load_dataset(shapes, "val")
    recipe = trials_of("direct/scratch")[1].recipe
    phase = replace(recipe.phases[0], workers=10)
    clock = itertools.count()  # a second between any two looks at it
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr(planning, "os", SimpleNamespace(cpu_count=lambda: 10))
    assert planning._seconds(recipe, phase, dataset, val, torch.device("cpu"))["step"] == pytest.approx(1.1)
