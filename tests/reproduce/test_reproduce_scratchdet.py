"""The comparisons of ScratchDet's Tables 1 and 2: their rows, and what becomes of a loss that is not finite."""

import json

import cv2
import pytest
import torch
from comparison_helpers import micro_options, only, printed
from scratchdet_tables import RATES, TABLE1, TABLE2

from directdet.recipes.by_name import get_recipe
from directdet.recipes.table_rows import TABLES
from directdet.reproduce.comparison_plot import draw_comparison
from directdet.reproduce.experiments import EXPERIMENTS
from directdet.reproduce.run import reproduce
from directdet.reproduce.scales import SCALES
from directdet.train.loop import Trainer
from directdet.train.optim import learning_rate
from directdet.train.prepare import check_sizes, network_of


def test_trials_of_scratchdet1_are_the_rows_that_start_from_scratch():
    trials = [one for one in EXPERIMENTS["scratchdet/table1"].trials(SCALES["small"]) if not one.needs_imagenet]
    wanted = [(rate, row[1:3], figure) for row in TABLE1[:4] for rate, figure in zip(RATES, row[3], strict=True)]
    assert len(trials) == len({trial.key for trial in trials}) == 12
    for trial, (rate, (backbone, head), figure) in zip(trials, wanted, strict=True):
        (phase,) = trial.recipe.phases
        assert learning_rate(phase, SCALES["small"].ssd_batch) == rate and trial.label.endswith(f", {rate:g}")
        assert trial.recipe.model["norm"] == ("bn" if backbone else "none")
        assert trial.recipe.model["head_norm"] == head
        assert trial.paper == {"map": figure} and trial.recipe.init == "random" and not trial.shares_pretrain
        assert (phase.batch_size, trial.recipe.model["width"]) == (16, 16)


def test_trials_of_scratchdet2_are_the_roots():
    trials = EXPERIMENTS["scratchdet/table2"].trials(SCALES["paper"])
    for trial, name, (*_, fps, figure) in zip(trials, TABLES["scratchdet/table2"].recipes, TABLE2, strict=True):
        whole = get_recipe(name)
        assert trial.paper == {"map": figure, "fps": fps}
        assert trial.recipe.model == {**whole.model, "size": 300, "width": None}
        (phase,), (wanted,) = trial.recipe.phases, whole.phases
        assert learning_rate(phase, phase.batch_size) == 0.05 and phase.batch_size == 128
        assert (phase.std, phase.weight_decay, phase.resize) == (wanted.std, wanted.weight_decay, "warp")


@pytest.mark.parametrize("name", ["scratchdet/table1", "scratchdet/table2", "scratchdet/section4"])
@pytest.mark.parametrize("scale", SCALES)
def test_the_networks_of_every_scale_take_the_size_of_its_pictures(name, scale):
    side = {"smoke": 193, "tiny": 208}.get(scale, 300)
    for trial in EXPERIMENTS[name].trials(SCALES[scale]):
        if trial.recipe.detector == "ssd":
            with torch.device("meta"):
                model = network_of(trial.recipe, trial.recipe.phases[0], 3)
                maps = model(torch.empty(2, 3, side, side))
            check_sizes(model, trial.recipe.phases[0])
            assert model.input_size() == (side, side) and len(maps.level_sizes) == 6
            assert maps.logits.shape[1] == len(maps.anchors) == sum(maps.level_sizes)


@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured")
def test_a_row_that_is_not_finite_is_nan_and_the_others_go_on(shapes, tmp_path, monkeypatch):
    step, stepped = Trainer.step, []

    def broken(self: Trainer, batches: list) -> tuple[dict, dict]:
        losses, counts = step(self, batches)
        row = self.folder.parent.name
        stepped.append(row)
        return ({**losses, "class": losses["class"] + float("inf")} if row == "none_lr05" else losses), counts

    monkeypatch.setattr(Trainer, "step", broken)
    only(monkeypatch, "scratchdet/table1", "none_lr05", "head_lr01", "both_lr05")
    given = ("scratchdet/table1", shapes, tmp_path, micro_options(6.0))
    for _ in range(2):  # and the second time nothing is tried again
        found = reproduce(*given)
        assert found.finished
        assert ["diverged" in row for row in found.rows] == [True, False, False]
        assert [stepped.count(row["key"]) for row in found.rows] == [2, 2, 2]
    lost, *others = found.rows
    assert lost["paper"] == {"map": None} and "voc" not in lost
    for row in others:
        assert 0 <= row["voc"]["mAP_11point"] <= 1 and row["images_per_second"] > 0
    assert json.loads((tmp_path / "results.json").read_text())["plan"]["metric"] == "voc"
    lines = printed(found.table()).splitlines()
    cells = {row["key"]: next(line for line in lines if row["label"] in line).split("│") for row in found.rows}
    assert cells["none_lr05"][2].strip() == "NaN" and cells["none_lr05"][-2].strip() == "mAP NaN"
    for row in others:
        mean, fps = (cell.strip() for cell in cells[row["key"]][2:4])
        assert mean == f"{100 * row['voc']['mAP_11point']:.1f}" and fps == f"{row['images_per_second']:.1f}"
    draw_comparison(found.to_dict(), tmp_path / "rows.png")
    assert cv2.imread(str(tmp_path / "rows.png")).std() > 5
