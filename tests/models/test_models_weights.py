"""Losses of weighted objects: pseudo-labels count by their score, and an object of weight 0 is left aside."""

from collections.abc import Iterable

import pytest
import torch
from test_contract import build, pictures
from test_contract import targets as made_targets
from torch import Tensor

from directdet.models.backbones.names import NAMES
from directdet.models.build import DETECTORS, architecture_of
from directdet.models.parts.targets import Targets, match_boxes
from directdet.models.rtmdet.assign import assign
from directdet.models.rtmdet.network import boxes_of


def apart(model) -> Targets:
    """Two objects in the first image that no point is inside of both, none in the second."""
    found = made_targets(model)
    found.boxes[0, 1] = torch.tensor([50.0, 8.0, 92.0, 60.0])
    return found


BACKBONES = {name: NAMES[parts.backbones[0]][0] for name, parts in DETECTORS.items()}


@pytest.fixture(scope="module", params=BACKBONES)
def case(request):
    """A model with its raw maps of two pictures, and their targets: two objects in the first."""
    model = build(request.param, BACKBONES[request.param]).eval()
    with torch.no_grad():
        return model, model(pictures(model)), apart(model)


def losses(case, weights: Iterable[float] | None) -> dict[str, Tensor]:
    model, raw, targets = case
    given = None if weights is None else torch.tensor([[*weights, 0.0], [0.0] * 3])
    torch.manual_seed(3)  # what is sampled does not depend on the weights
    with torch.no_grad():
        return architecture_of(model).losses(model, raw, targets._replace(weights=given))[0]


def test_weights_of_one_change_nothing(case):
    usual, ones = losses(case, None), losses(case, (1, 1))
    assert usual.keys() == ones.keys() and all(torch.equal(usual[name], ones[name]) for name in usual)


def test_each_object_counts_by_its_weight(case):
    neither, first, second = losses(case, (0, 0)), losses(case, (1, 0)), losses(case, (0, 1))
    mixed = losses(case, (0.3, 0.8))
    for name in neither:
        if name.startswith(("box", "rpn_box", "mask")):
            assert neither[name] == 0
        shares = 0.3 * (first[name] - neither[name]), 0.8 * (second[name] - neither[name])
        torch.testing.assert_close(mixed[name], neither[name] + sum(shares), rtol=1e-4, atol=1e-6)
    assert any(first[name] > neither[name] for name in neither)
    assert any(second[name] > neither[name] for name in neither)


def gradients(model, raw, targets: Targets, names: tuple[str, str]) -> list[Tensor]:
    maps = {name: getattr(raw, name).detach().requires_grad_() for name in names}
    found, _ = architecture_of(model).losses(model, raw._replace(**maps), targets)
    return list(torch.autograd.grad(found["class"] + found["box"], maps.values()))


def scaled_as_they_should(model, raw, targets, names, owner: Tensor, weights: Tensor) -> None:
    """The gradient of each point is that of weight 1 times the weight of its object, of others as it was."""
    factors = torch.where(owner >= 0, weights.gather(1, owner.clamp(min=0)), 1.0).unsqueeze(-1)
    usual = gradients(model, raw, targets, names)
    weighted = gradients(model, raw, targets._replace(weights=weights), names)
    for one, other in zip(usual, weighted, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(other, one * factors, rtol=1e-4, atol=1e-7)


WEIGHTS = torch.tensor([[0.25, 0.0, 0.0], [0.0, 0.0, 0.0]])


def test_points_of_an_rtmdet_learn_by_the_weight_of_their_object():
    model = build("rtmdet", BACKBONES["rtmdet"]).eval()
    targets = apart(model)
    with torch.no_grad():
        raw = model(pictures(model))
        raw = raw._replace(distances=torch.full_like(raw.distances, 20.0))  # of an untrained network, no box meets one
        boxes = boxes_of(raw.distances, raw.points)
        found = assign(raw.logits, boxes, raw.points, targets, model.config.top_ious)
    owner = torch.where(found.positive, found.objects, -1)
    assert {0, 1} <= set(owner[0].tolist())
    scaled_as_they_should(model, raw, targets, ("logits", "distances"), owner, WEIGHTS)


def test_anchors_of_a_retinanet_learn_by_the_weight_of_their_object():
    model = build("retinanet", BACKBONES["retinanet"]).eval()
    targets = apart(model)
    with torch.no_grad():
        raw = model(pictures(model))
    anchors = raw.anchors.expand(2, -1, -1)
    index, assigned = match_boxes(anchors, targets, model.config.positive_iou, model.config.negative_iou, 0.0)
    owner = torch.where(assigned == 1, index, -1)
    assert {0, 1} <= set(owner[0].tolist())
    scaled_as_they_should(model, raw, targets, ("logits", "deltas"), owner, WEIGHTS)
