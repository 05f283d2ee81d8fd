"""The rows of a comparison are the paper's, and each can be trained."""

from dataclasses import replace

import pytest
import torch
from comparison_helpers import DIRECT_NAMES, trials_of
from slim_models import MICRO

from directdet.data.dataset import load_dataset
from directdet.models.build import build_model
from directdet.recipes.recipe import PARTS
from directdet.recipes.table_rows import TABLES
from directdet.reproduce.experiments import EXPERIMENTS, SHARED
from directdet.reproduce.scales import SCALES
from directdet.train.loop import Trainer
from directdet.train.prepare import apply_norm


@pytest.mark.parametrize("name", DIRECT_NAMES)
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
        assert all(trial.shares_pretrain for trial in trials)
        assert len({(str(trial.recipe.phases[0]), str(trial.recipe.model)) for trial in trials}) == 1
    else:
        assert not any(trial.shares_pretrain for trial in trials)


@pytest.mark.parametrize("name", DIRECT_NAMES)
def test_figures_beside_the_rows_are_the_papers(name):
    rows = TABLES[EXPERIMENTS[name].table].published().rows + TABLES["direct/table1"].published().rows
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
    paper = replace(MICRO, factor=1.0, full=(800, 1333))
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
@pytest.mark.parametrize(("name", "key"), [(name, trial.key) for name in DIRECT_NAMES for trial in trials_of(name)])
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
