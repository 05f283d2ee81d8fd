"""Four and eight processes on CPUs: they learn what one process with all of their pictures learns."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed_runs import assert_close, assert_learnt, checkpoint_of, one_thread, recipe
from distributed_worker import Team, train_double

from directdet.data.synthetic import make_synthetic


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, 8])
def test_several_processes_learn_what_one_with_all_of_their_pictures_learns(count: int, tmp_path: Path) -> None:
    data = make_synthetic(tmp_path / "data", images_train=2 * count + 1, images_val=2, size=(64, 96))
    team = Team(count)
    try:
        team(train_double, recipe("batch_size=1", "epochs=2"), data, tmp_path / "many")
    finally:
        team.close()
    with one_thread():
        train_double(recipe(f"batch_size={count}", "epochs=2"), data, tmp_path / "one")
    many, one = checkpoint_of(tmp_path / "many"), checkpoint_of(tmp_path / "one")
    assert many["step"] == one["step"] == 4 and many["images_per_step"] == one["images_per_step"] == count
    assert_learnt(one)
    assert_close(many["model"], one["model"])
