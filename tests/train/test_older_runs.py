"""Runs that an earlier version started."""

import json

import pytest

from directdet.common.errors import UserError
from directdet.recipes.settings import apply_settings
from directdet.train.run import train


def test_a_run_from_before_a_setting_existed_is_resumed(shapes, tiny, tmp_path):
    train(tiny, shapes, tmp_path / "run", phase="pretrain")
    file = tmp_path / "run" / "pretrain" / "run.json"
    facts = json.loads(file.read_text())
    for name in ("ema", "mosaic", "schedule"):
        del facts["recipe"]["phases"][0][name]
    file.write_text(json.dumps(facts))
    train(tiny, shapes, tmp_path / "run", phase="pretrain", resume=True)
    file.write_text(json.dumps(facts))
    with pytest.raises(UserError, match="other settings"):
        train(apply_settings(tiny, ["ema=0.9"]), shapes, tmp_path / "run", phase="pretrain", resume=True)
