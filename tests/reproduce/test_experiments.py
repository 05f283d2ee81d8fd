"""The rows of a comparison are the paper's, and each can be trained."""

from dataclasses import replace

import pytest
import torch
from comparison_helpers import DIRECT_NAMES, trials_of
from slim_models import MICRO

from directdet.data.dataset import load_dataset
from directdet.recipes.recipe import PARTS
from directdet.recipes.table_rows import TABLES
from directdet.reproduce.experiments import EXPERIMENTS
from directdet.reproduce.scales import SCALES
from directdet.reproduce.tables.trials import SHARED, Trial
from directdet.train.loop import Trainer
from directdet.train.prepare import apply_norm, network_of


@pytest.mark.parametrize("name", DIRECT_NAMES)
@pytest.mark.parametrize("scale", SCALES)
def test_rows_are_well_formed(name, scale):
    trials = trials_of(name, SCALES[scale])
    assert len({trial.key for trial in trials}) == len({trial.label for trial in trials}) == len(trials) > 1
    assert SHARED not in {trial.key for trial in trials}
    for trial in trials:
        phases = [phase.name for phase in trial.recipe.phases]
        assert phases in (["pretrain", "finetune"], ["montage", "finetune"], ["scratch"], ["finetune"])
        assert trial.needs_imagenet == (trial.recipe.init == "imagenet") == (phases == ["finetune"])
        assert all(phase.eval_every == 0 for phase in trial.recipe.phases[:-1])
        assert trial.recipe.phases[-1].eval_every > 1000  # at the end alone
    sharing = [trial for trial in trials if trial.shares_pretrain]
    assert len({(str(trial.recipe.phases[0]), str(trial.recipe.model)) for trial in sharing}) <= 1  # there is one
    equal = EXPERIMENTS[name].equal
    if equal == "steps":
        assert len(sharing) == sum(not trial.needs_imagenet for trial in trials)
    for trial in trials:
        wanted = [phase.name for phase in trial.recipe.phases] if equal == "schedule" else []
        assert list(trial.lengths) == wanted and all(length > 0 for length in trial.lengths.values())
        assert all(0 < drop < 1 for drop in trial.drops) and list(trial.drops) == sorted(trial.drops)
    if equal == "time":
        assert not sharing


@pytest.mark.parametrize("name", DIRECT_NAMES)
def test_figures_beside_the_rows_are_the_papers(name):
    rows = (*TABLES[EXPERIMENTS[name].table].published().rows, *TABLES["direct/table1"].published().rows)
    found = [
        {"box_ap": row.ap_box, "mask_ap": row.ap_mask, "days": row.total_cost_days, "s_per_iter": row.s_per_iter}
        for row in rows
    ]
    for trial in trials_of(name):
        if trial.paper is not None:
            assert any(trial.paper.items() <= figures.items() for figures in found), trial.key
        else:
            # The paper has no such rows, or draws them without printing their figures.
            assert name in ("direct/figure2", "direct/figure4") or trial.key.endswith("_scratch")


def test_rows_differ_in_what_their_table_compares():
    batches = {t.key: (t.recipe.phases[0].batch_size, t.recipe.phases[0].size) for t in trials_of("direct/table1")}
    paper = replace(MICRO, factor=1.0, full=(800, 1333))
    assert [trial.recipe.phases[0].size[0] for trial in trials_of("direct/table1", paper)[:5]] == [448] * 3 + [320, 640]
    assert [batch for batch, _ in batches.values()] == [2, 4, 8, 4, 4, 2, 2]
    tiny = [trial.recipe.phases[0].size for trial in trials_of("direct/table1", SCALES["tiny"])[2:5]]
    assert len(set(tiny)) == 3
    norms = [(t.recipe.init, t.recipe.phases[-1].norm) for t in trials_of("direct/table2")]
    assert norms[:2] == [("imagenet", "affine"), ("imagenet", "fixed")]
    assert norms[2:] == [("random", "affine"), ("random", "sync"), ("random", "fixed")]
    assert [t.recipe.phases[1].parts for t in trials_of("direct/table5")] == [PARTS[:n] for n in range(1, 6)]
    norms = {t.key: (t.recipe.phases[-1].norm, t.recipe.model.get("norm", "bn")) for t in trials_of("direct/scratch")}
    assert norms == {"direct": ("fixed", "bn"), "scratch_bn": ("live", "bn"), "scratch_gn": ("live", "gn")}
    montage = {t.key: [phase.name for phase in t.recipe.phases] for t in trials_of("direct/montage")}
    assert list(montage) == ["direct", "montage", "scratch_bn"] and montage["montage"] == ["montage", "finetune"]
    first, last = trials_of("direct/montage", paper)[1].recipe.phases
    assert first.size == (224, 224) and (last.norm, last.parts) == ("fixed", PARTS[:1])
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


def settings_of(trial: Trial) -> tuple[str, ...]:
    """All that a row trains with."""
    recipe, lengths = trial.recipe, [(name, str(value)) for name, value in trial.lengths.items()]
    return str(recipe.phases), str(recipe.model), recipe.init, str(recipe.data_fraction), str(lengths), recipe.detector


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_are_settings_of_their_own(name):
    for scale in ("smoke", "paper"):
        trials = trials_of(name, SCALES[scale])
        same = len(trials) - len({settings_of(trial) for trial in trials})
        # At 64 pixels, lengths of 224, 320 and 448 pixels are all the least of 64.
        few = {"direct/figure2": 8, "direct/table1": 1} if scale == "smoke" else {}
        assert same == few.get(name, 0)


def test_rows_of_the_schedules_are_the_papers():
    scale = replace(SCALES["paper"], full=(800, 1333))
    thirds = {trial.key: trial for trial in trials_of("direct/table3", scale)}
    assert [str(value) for value in thirds["p3x_1x"].lengths.values()] == ["3", "1"]
    scratch = thirds["scratch_sync_6x"]
    assert 12 * scratch.lengths["scratch"] == 73  # epochs of 6x
    assert [drop * 73 for drop in scratch.drops] == [65, 71] and scratch.recipe.phases[0].norm == "sync"
    assert thirds["scratch_gn_6x"].recipe.model["norm"] == "gn"
    figure1b = {trial.key: replace(trial, curve="") for trial in trials_of("direct/figure1b", scale)}
    assert figure1b == thirds and all(trial.curve for trial in trials_of("direct/figure1b", scale))
    grid = trials_of("direct/figure2", scale)
    assert {t.recipe.phases[0].size[0] for t in grid} == {224, 320, 448, 640} == {t.x for t in grid}
    assert {t.recipe.phases[0].batch_size for t in grid} == {2, 4, 8, 16} and len(grid) == 16
    assert len({str(t.lengths) for t in grid}) == 1  # fixed steps K, whatever the batch
    fourth = {t.key: t for t in trials_of("direct/figure4", scale)}
    assert len(fourth) == 28 and 12 * fourth["p3x_9epochs"].lengths["finetune"] == 9
    assert fourth["p3x_12epochs"].paper == {"box_ap": 41.5, "mask_ap": 37.0} and fourth["p3x_9epochs"].paper is None
    edges = {t.key: t.recipe.phases[-1].short_edges for t in trials_of("direct/table6", scale)}
    assert edges["p1x_2x_ms"] == edges["scratch_sync_3x_ms"] == (640, 672, 704, 736, 768, 800)
    assert edges["p1x_2x"] == ()
    less = {t.key: t for t in trials_of("direct/table9", scale)}
    assert [88_000 * value for value in less["coco10_direct"].lengths.values()] == [60_000, 30_000]
    assert [88_000 * value for value in less["voc_direct"].lengths.values()] == [93_000, 12_400]
    assert [t.recipe.data_fraction for t in less.values()] == [0.1, 0.1, 1.0, 1.0]
    tune = less["coco10_direct"].recipe.phases[1]
    assert (tune.base_lr * 16 / tune.base_batch, tune.gamma) == (0.04, 0.02)
    assert less["voc_direct"].recipe.phases[1].size == (600, 999) and not less["voc_direct"].recipe.model["masks"]
    (whole,) = trials_of("direct/table10", scale)[1].recipe.phases
    assert (whole.size, whole.batch_size, whole.norm, whole.eval_size) == ((640, 640), 8, "sync", (640, 640))
    (usual, stitched) = (t.recipe.phases[0] for t in trials_of("direct/section3.2", scale))
    assert (usual.resize, stitched.resize, stitched.shrink) == ("direct", "edges", pytest.approx(2.0))


def kinds(names: list[str]) -> dict[str, tuple[str, str]]:
    """(comparison, row) of a representative of each kind of row: those that differ in more than lengths and sizes."""
    found = {}
    for name in names:
        for trial in trials_of(name):
            recipe = trial.recipe
            phases = tuple(
                (p.name, p.resize, p.norm, p.optimizer, p.parts, bool(p.short_edges), p.shrink > 1, p.eval_fixed)
                for p in recipe.phases
            )
            found.setdefault((recipe.detector, str(recipe.model), phases), (name, trial.key))
    return {f"{name}-{key}": (name, key) for name, key in found.values()}


KINDS = kinds(DIRECT_NAMES)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), KINDS.values(), ids=KINDS)
def test_every_kind_of_row_builds_and_makes_a_step(name, key, shapes, tmp_path):
    trial = next(trial for trial in trials_of(name) if trial.key == key)
    dataset = load_dataset(shapes, "train")
    for phase in trial.recipe.phases:
        model = network_of(trial.recipe, phase, 4)
        apply_norm(model, phase, trained=False, known=False)
        trainer = Trainer(model, phase, dataset, None, tmp_path / phase.name, name, 0)
        model.train()
        losses, counts = trainer.step([next(iter(trainer.loader))])
        assert all(torch.isfinite(value) for value in losses.values()) and "positives" in counts
