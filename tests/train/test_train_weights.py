"""Training on objects that have scores."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from directdet.common.errors import UserError
from directdet.data.dataset import load_dataset
from directdet.data.records import only_objects
from directdet.data.synthetic import make_synthetic
from directdet.models.build import DETECTORS
from directdet.recipes.by_name import get_recipe
from directdet.recipes.settings import apply_settings
from directdet.train.objects import count_objects, facts_of_data
from directdet.train.run import train

SMALL = ["pretrain.size=64", "pretrain.epochs=1", "pretrain.batch_size=2", "pretrain.workers=0", "pretrain.mosaic=0"]
FILE = "annotations/instances_train2017.json"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("plain") / "data", 4, 1, seed=5)


def with_scores(plain, folder, score):
    shutil.copytree(plain, folder)
    content = json.loads((folder / FILE).read_text())
    for entry in content["annotations"]:
        entry["score"] = score
    (folder / FILE).write_text(json.dumps(content))
    return folder


def weights_after(data, out):
    train(apply_settings(get_recipe("rtmdet_nano"), SMALL), data, out, phase="pretrain", device="cpu", log=["none"])
    return torch.load(out / "pretrain" / "checkpoints" / "last.pt", weights_only=True)["model"]


def test_scores_change_what_is_learnt_and_ones_do_not(plain, tmp_path):
    usual = weights_after(plain, tmp_path / "usual")
    ones = weights_after(with_scores(plain, tmp_path / "ones", 1), tmp_path / "run_of_ones")
    half = weights_after(with_scores(plain, tmp_path / "half", 0.5), tmp_path / "run_of_half")
    assert all(torch.equal(usual[name], ones[name]) for name in usual)
    assert not all(torch.equal(usual[name], half[name]) for name in usual)


def test_a_detector_that_does_not_weigh_is_refused(plain, tmp_path, monkeypatch):
    monkeypatch.setitem(DETECTORS, "rtmdet", DETECTORS["rtmdet"]._replace(weights=False))
    data = with_scores(plain, tmp_path / "half", 0.5)
    with pytest.raises(UserError, match="some objects have a score, by which the losses of rtmdet are not weighed"):
        train(
            apply_settings(get_recipe("rtmdet_nano"), SMALL),
            data,
            tmp_path / "run",
            phase="pretrain",
            device="cpu",
            log=["none"],
        )
    assert not (tmp_path / "run").exists()


def test_objects_of_weight_nothing_are_not_what_a_recipe_fits_itself_to(plain, tmp_path):
    usual = load_dataset(plain, "train")
    records = tuple(
        replace(one, weights=np.where(np.arange(len(one.boxes)) == 0, 0, one.weights).astype(np.float32))
        for one in usual.records
    )
    fewer = tuple(only_objects(one, np.arange(len(one.boxes)) > 0) for one in usual.records)
    aside, without = replace(usual, records=records), replace(usual, records=fewer)
    assert facts_of_data(aside) == facts_of_data(without) != facts_of_data(usual)
    phase = get_recipe("rtmdet_nano").phases[0]
    assert count_objects(phase, aside) == count_objects(phase, without) != count_objects(phase, usual)
    nothing = tuple(replace(one, weights=np.zeros(len(one.boxes), np.float32)) for one in usual.records)
    with pytest.raises(UserError, match=r"no object to train on \(1 crowd regions, .* of score 0"):
        count_objects(phase, replace(usual, records=nothing))
