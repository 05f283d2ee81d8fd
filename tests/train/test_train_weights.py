"""Training on objects that have scores."""

import json
import shutil

import pytest
import torch

from directdet.common.errors import UserError
from directdet.data.synthetic import make_synthetic
from directdet.models.build import DETECTORS
from directdet.recipes.by_name import get_recipe
from directdet.recipes.settings import apply_settings
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
