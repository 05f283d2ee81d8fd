"""SSD's matching, losses and detections compared with torchvision's for the same raw maps."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from ssd_twin import (
    SIZE,
    bare_twin,
    build_twin,
    conditioned_model,
    pictures,
    same_detections,
    trained_maps,
    twin_detections,
    twin_losses,
    twin_maps,
    twin_matches,
)
from torch import Tensor

from directdet.models.parts.boxes import pairwise_iou
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import Targets
from directdet.models.ssd import deploy as ssd_deploy
from directdet.models.ssd.config import SSDConfig
from directdet.models.ssd.deploy import SSDDeploy
from directdet.models.ssd.loss import hard_negatives, match_priors, ssd_losses
from directdet.models.ssd.network import SSD

# The original SSD, as in torchvision, with few channels.
ORIGINAL = SSDConfig(5, width=8, norm="none", head_norm=False, l2_norm=True)
RELATIVE = 1e-5
TargetsOf = Callable[..., Targets]


@pytest.fixture(scope="module")
def conditioned() -> SSD:
    """In evaluation mode; read-only."""
    return conditioned_model(ORIGINAL)


@pytest.fixture(scope="module")
def raw(conditioned: SSD) -> RawMaps:
    with torch.no_grad():
        return conditioned(pictures(3, 21))


def same_losses(losses: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].shape == () and losses[name].isfinite()
        assert (losses[name] - value).abs() <= RELATIVE * value.abs(), name


@pytest.mark.parametrize("counts", [[4, 0, 1], [2, 6, 3], [0, 0, 0]])
def test_losses_and_gradients_equal_torchvision(raw: RawMaps, targets_of: TargetsOf, counts: list[int]) -> None:
    targets, model = targets_of(counts, [SIZE] * 3, masks=False), SSD(ORIGINAL)
    ours, theirs = ([getattr(raw, name).clone().requires_grad_() for name in ("logits", "deltas")] for _ in range(2))
    losses, watched = ssd_losses(model, raw._replace(logits=ours[0], deltas=ours[1]), targets)
    expected, positives = twin_losses(bare_twin(ORIGINAL), raw._replace(logits=theirs[0], deltas=theirs[1]), targets)
    same_losses(losses, expected)
    assert watched == {"positives": positives} and (positives >= sum(counts)) and (positives > 0) == (sum(counts) > 0)
    assert (losses["class"] > 0.1 and losses["box"] > 0.1) == (sum(counts) > 0)
    for side in (losses, expected):
        sum(side.values()).backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad.isfinite().all() and (a.grad - b.grad).abs().max() <= RELATIVE * b.grad.abs().max()
        for i, count in enumerate(counts):
            assert a.grad[i].any() == (count > 0)  # an image without objects contributes no negatives either


def objects(boxes: list[list[float]], labels: list[int]) -> Targets:
    return Targets(
        torch.tensor([boxes]),
        torch.tensor([labels]),
        torch.ones(1, len(boxes), dtype=torch.bool),
        torch.full((1, 2), 300.0),
    )


HARD_OBJECTS = {
    "one pixel": objects([[0.0, 0, 1, 1], [150, 160, 151, 161], [299, 299, 300, 300]], [0, 4, 2]),
    "the same object twice, then a third": objects([[40.0, 50, 140, 120]] * 2 + [[40, 50, 140, 121]], [1, 2, 3]),
    "all in one cell": objects([[148.0 + i, 148, 156, 156 + i] for i in range(5)], [0, 1, 2, 3, 4]),
    "the whole picture": objects([[0.0, 0, 300, 300], [0, 0, 300, 150]], [0, 1]),
}


@pytest.mark.parametrize("kind", HARD_OBJECTS)
def test_hard_objects_are_matched_as_torchvision_does(raw: RawMaps, kind: str) -> None:
    targets = HARD_OBJECTS[kind]
    own, positive = match_priors(pairwise_iou(raw.anchors[None], targets.boxes), targets.valid, 0.5)
    twin = bare_twin(ORIGINAL)
    theirs = twin_matches(twin, targets.boxes[0], raw.anchors)
    assert torch.equal(torch.where(positive, own, -1)[0], theirs)
    if kind == "one pixel":
        assert sorted(theirs[theirs >= 0].tolist()) == [0, 1, 2]
    one = raw._replace(logits=raw.logits[:1], deltas=raw.deltas[:1])
    losses, watched = ssd_losses(SSD(ORIGINAL), one, targets)
    expected, positives = twin_losses(twin, one, targets)
    same_losses(losses, expected)
    assert watched["positives"] == positives >= 1


def test_an_object_s_best_prior_is_its_own() -> None:
    """The third of three priors is the best of both objects, and overlaps the first object more."""
    iou = torch.tensor([[[0.6, 0.1, 0.9], [0.2, 0.3, 0.9], [0.7, 0.4, 0.9]]])
    own, positive = match_priors(iou, torch.tensor([[True, True, False]]), 0.5)
    assert own.tolist() == [[0, 1, 1]] and positive.tolist() == [[True, False, True]]
    own, positive = match_priors(iou, torch.tensor([[True, False, False]]), 0.65)
    assert own.tolist() == [[0, 0, 0]] and positive.tolist() == [[False, False, True]]
    own, positive = match_priors(iou, torch.zeros(1, 3, dtype=torch.bool), 0.5)
    assert not positive.any()


def test_padding_changes_no_loss(raw: RawMaps, targets_of: TargetsOf) -> None:
    targets, model = targets_of([3, 2, 0], [SIZE] * 3, masks=False), SSD(ORIGINAL)
    other = targets._replace(
        boxes=torch.where(targets.valid[..., None], targets.boxes, torch.tensor([10.0, 10, 90, 90])),
        labels=torch.where(targets.valid, targets.labels, 4),
    )
    assert ssd_losses(model, raw, targets) == ssd_losses(model, raw, other)


def test_negatives_are_the_hardest_of_their_image() -> None:
    entropy = torch.tensor([[5.0, 1, 4, 2, 3, 0.5], [9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4]])
    positive = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]).bool()
    # The three hardest for one positive; none without positives; all four of the third image, where six could count.
    assert hard_negatives(entropy, positive, 3) == (4 + 3 + 2) + 0 + (7 + 6 + 5 + 4)
    assert hard_negatives(entropy, positive, 1) == 4 + 0 + (7 + 6)


def detect(model: SSD, images: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return SSDDeploy(model, SIZE)(images)


def expected_detections(model: SSD, raw: RawMaps) -> list[dict]:
    with torch.no_grad():
        return twin_detections(bare_twin(model.config), raw, model.config.detections)


def with_maps(config: SSDConfig, raw: RawMaps) -> SSD:
    """A detector that returns these raw maps for every image."""
    model = SSD(config).eval()
    model.forward = lambda images, anchors: raw
    return model


def test_every_detection_is_torchvisions(conditioned: SSD) -> None:
    """torchvision's complete inference, including its own network."""
    images, twin = pictures(2, 33), build_twin(conditioned)
    with torch.no_grad():
        _, outputs, priors = twin_maps(twin, images)
        maps = RawMaps([], outputs["cls_logits"], outputs["bbox_regression"], priors, [])
        theirs = twin_detections(twin, maps, 200)
    # A meaningful comparison: several classes, varied scores, none saturated.
    assert all(len(d["boxes"]) == 200 and len(d["labels"].unique()) >= 3 for d in theirs)
    assert all(d["scores"].max() < 0.9999 and d["scores"].max() - d["scores"].min() > 0.02 for d in theirs)
    same_detections(detect(conditioned, images), theirs, 200)


def test_detections_of_a_blank_picture(conditioned: SSD) -> None:
    """All cells of a map are tied there. With the ties broken, both select the same detections."""
    images = torch.zeros(1, 3, *SIZE)
    outputs = detect(conditioned, images)
    assert outputs[0].item() == 200 and all(v.isfinite().all() for v in outputs)
    with torch.no_grad():
        maps = conditioned(images)
    noise = 1e-3 * torch.randn(maps.logits.shape, generator=torch.Generator().manual_seed(0))
    maps = maps._replace(logits=maps.logits + noise)
    twin = bare_twin(ORIGINAL)
    twin.topk_candidates = 8732  # its 400 per class would not contain the best 200 of all
    same_detections(detect(with_maps(ORIGINAL, maps), images), twin_detections(twin, maps, 200), 200)


@pytest.mark.parametrize("classes", [20, 80])
def test_every_detection_of_a_sure_network_is_torchvisions(classes: int) -> None:
    """Up to fifteen objects, each with hundreds of confident priors; all of them are detected."""
    config = replace(ORIGINAL, num_classes=classes)
    model = SSD(config)
    maps = trained_maps(config, model.priors, model.level_sizes, [0, 1, 3, 8, 15])
    theirs = expected_detections(model, maps)
    counts = [len(d["boxes"]) for d in theirs]
    above = (torch.softmax(maps.logits, -1)[..., 1:] > config.score_threshold).sum((1, 2))
    assert counts[0] == 0 and counts[-1] > 60 and 1500 < above[-1] <= ssd_deploy.MAX_PAIRS
    outputs = detect(with_maps(config, maps), torch.zeros(5, 3, *SIZE))
    same_detections(outputs, theirs, 0)


def test_one_round_alone_would_lose_detections(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SSD(ORIGINAL)
    maps = trained_maps(ORIGINAL, model.priors, model.level_sizes, [15])
    theirs = expected_detections(model, maps)
    monkeypatch.setattr(ssd_deploy, "ROUNDS", 1)
    number = detect(with_maps(ORIGINAL, maps), torch.zeros(1, 3, *SIZE))[0].item()
    assert 10 < number < 0.7 * len(theirs[0]["boxes"])


def test_a_high_threshold_leaves_few_and_then_none(conditioned: SSD, raw: RawMaps) -> None:
    few, none = replace(ORIGINAL, score_threshold=0.9), replace(ORIGINAL, score_threshold=0.99999)
    model = with_maps(few, raw)
    theirs = expected_detections(model, raw)
    assert all(0 < len(d["boxes"]) < 200 for d in theirs)
    same_detections(detect(model, torch.zeros(3, 3, *SIZE)), theirs, 1)
    outputs = detect(with_maps(none, raw), torch.zeros(3, 3, *SIZE))
    assert not any(value.any() for value in outputs)
    assert [tuple(v.shape) for v in outputs] == [(3, 1), (3, 200, 4), (3, 200), (3, 200)]


def test_fewer_candidates_than_wanted(raw: RawMaps) -> None:
    """Ten priors of one class: fewer than a round, and fewer than the requested detections."""
    config = replace(ORIGINAL, num_classes=1)
    maps = RawMaps([], raw.logits[:, ::900, :2], raw.deltas[:, ::900], raw.anchors[::900], [])
    assert maps.logits.shape == (3, 10, 2)
    model = with_maps(config, maps)
    outputs = detect(model, torch.zeros(3, 3, *SIZE))
    assert outputs[1].shape == (3, 10, 4)
    same_detections(outputs, expected_detections(model, maps), 2)


@pytest.mark.parametrize(("candidates", "nms"), [(7, 0.45), (200, 1.0), (8732, 0.45)])
def test_other_numbers_of_candidates(raw: RawMaps, candidates: int, nms: float) -> None:
    """Rounds of 7, rounds that suppress nothing, and one that contains all 1095 pairs."""
    config = replace(ORIGINAL, candidates=candidates, nms=nms, detections=15)
    maps = RawMaps([], raw.logits[:, ::40], raw.deltas[:, ::40], raw.anchors[::40], [])
    model = with_maps(config, maps)
    same_detections(detect(model, torch.zeros(3, 3, *SIZE)), expected_detections(model, maps), 15)


def test_a_class_without_objects_is_never_found(raw: RawMaps) -> None:
    logits = raw.logits.clone()
    logits[..., 3] = -30
    maps = raw._replace(logits=logits)
    model = with_maps(ORIGINAL, maps)
    outputs = detect(model, torch.zeros(3, 3, *SIZE))
    same_detections(outputs, expected_detections(model, maps), 200)
    assert outputs[3].unique().tolist() == [0, 1, 3, 4]
