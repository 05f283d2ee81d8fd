"""Four and eight processes on CPUs: they learn what one process with all of their pictures learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from distributed_worker import SETTINGS, Team, double_precision, train_double

from directdet.data.synthetic import make_synthetic
from directdet.models.build import build_model
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.by_name import get_recipe
from directdet.recipes.settings import apply_settings

NOISE = 1e-10  # of double precision, which every step lets grow


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, 8])
def test_several_processes_learn_what_one_with_all_of_their_pictures_learns(count: int, tmp_path: Path) -> None:
    data = make_synthetic(tmp_path / "data", images_train=2 * count + 1, images_val=2, size=(64, 96))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: torch divides its sums among threads
    team = Team(count)
    try:
        for run, batch, learn in (("many", 1, team), ("one", count, lambda function, *given: function(*given))):
            recipe = apply_settings(get_recipe("mask_rcnn_r18_slim"), (*SETTINGS, f"batch_size={batch}", "epochs=2"))
            learn(train_double, recipe, data, tmp_path / run)
    finally:
        team.close()
        torch.set_num_threads(threads)
    many, one = (load_checkpoint(tmp_path / run / "pretrain" / "checkpoints" / "last.pt") for run in ("many", "one"))
    assert many["step"] == one["step"] == 4 and many["images_per_step"] == one["images_per_step"] == count
    with double_precision():
        torch.manual_seed(0)
        start = build_model(one["model_config"]).state_dict()
    apart = {name: float((many["model"][name] - one["model"][name]).abs().max()) for name in start}
    moved = {name: float((one["model"][name] - start[name]).abs().max()) for name in start}
    assert max(moved.values()) > 0.01 and max(apart.values()) <= NOISE, max(apart.items(), key=lambda item: item[1])
