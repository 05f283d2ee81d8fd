"""The order of confident candidates, whose probabilities all round to 1: NMS keeps the best, in every runtime."""

from types import SimpleNamespace

import pytest
import torch

from directdet.models.parts.postprocess import log_odds
from directdet.models.ssd.config import SSDConfig
from directdet.models.ssd.deploy import select_in_rounds
from directdet.models.two_stage.deploy import TwoStageDeploy


def logits(count=40, classes=5, scale=6.0, seed=0):
    return scale * torch.randn(3, count, classes, generator=torch.Generator().manual_seed(seed))


def test_the_sigmoid_of_log_odds_is_the_softmax():
    values = logits()
    assert torch.allclose(torch.sigmoid(log_odds(values)), torch.softmax(values, -1), atol=1e-6)
    exact = torch.log(torch.softmax(values.double(), -1)) - torch.log1p(-torch.softmax(values.double(), -1))
    near = exact.abs() < 30  # beyond, the exact value loses its digits
    assert torch.allclose(log_odds(values).double()[near], exact[near], atol=1e-4)


@pytest.mark.parametrize("ties", [2, 3, 5])
def test_equal_logits_share_the_probability(ties):
    values = torch.full((1, 5), -40.0)
    values[0, :ties] = 7.0
    assert torch.allclose(torch.sigmoid(log_odds(values))[0, :ties], torch.full((ties,), 1 / ties))


def test_confident_ones_keep_their_order():
    top = torch.linspace(20, 80, 50)[torch.randperm(50, generator=torch.Generator().manual_seed(1))]
    values = torch.zeros(50, 4)
    values[:, 2] = top
    assert len(torch.softmax(values, -1)[:, 2].unique()) == 1
    assert torch.equal(log_odds(values)[:, 2].argsort(), top.argsort())
    assert log_odds(torch.tensor([[1e4, 0.0], [-1e4, 0.0]])).isfinite().all()


def test_candidates_of_two_stages_are_ranked_beyond_a_probability_of_one():
    values = torch.zeros(6, 3)
    values[:, 1] = torch.tensor([30.0, 50.0, 40.0, 60.0, 70.0, 20.0])
    deploy = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(candidates=5)))
    valid = torch.tensor([[True, True, True, True, False, True]])
    scores, index, roi, labels = TwoStageDeploy.best_candidates(deploy, values, valid)
    assert roi.tolist() == [[3, 1, 2, 0, 5]] and labels.tolist() == [[0] * 5] and (index == 2 * roi).all()
    assert (scores > 0.999).all()
    scores, *_ = TwoStageDeploy.best_candidates(deploy, values, torch.zeros(1, 6, dtype=torch.bool))
    assert not scores.any()


def test_rounds_keep_the_order_of_equal_scores():
    """Of each pair of boxes on one object the first is kept, in the later rounds as well."""
    left = torch.arange(12.0).repeat_interleave(2) * 50
    left[1::2] += 2  # the second of a pair
    boxes = torch.stack([left, torch.zeros(24), left + 40, torch.full((24,), 40.0)], -1)[None]
    order = torch.cat([torch.arange(0, 24, 2), torch.arange(1, 24, 2)])  # every first one before every second one
    config = SSDConfig(1, candidates=8, detections=12)
    found, scores, _ = select_in_rounds(
        config, boxes[:, order], torch.ones(1, 24), torch.zeros(1, 24, dtype=torch.int64)
    )
    assert sorted(found[0, :, 0].tolist()) == left[0::2].tolist() and (scores == 1).all()
