"""RetinaNet compared with torchvision's with the same weights: raw maps, losses, gradients and detections."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from retina_twin import (
    build_twin,
    conditioned_model,
    plain_losses,
    same_detections,
    same_parts,
    twin_detections,
    twin_losses,
    twin_maps,
)
from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet
from torchvision.ops import sigmoid_focal_loss
from twin import smooth_images

from directdet.models.build import build_model, deploy_model, describe_model, losses_of
from directdet.models.parts.postprocess import best_pairs
from directdet.models.parts.targets import Targets
from directdet.models.retinanet.config import RetinaNetConfig
from directdet.models.retinanet.deploy import RetinaNetDeploy
from directdet.models.retinanet.loss import focal_loss, retinanet_losses
from directdet.models.retinanet.network import RetinaNet

SIZE = (128, 128)
SMALL = RetinaNetConfig(5, backbone="resnet18", fpn_channels=64, test_pre_nms=300, detections=30)
SLIM = replace(SMALL, width=8, fpn_channels=16, head_convs=1)
RELATIVE = 1e-5
TargetsOf = Callable[..., Targets]


@pytest.fixture(scope="module")
def conditioned() -> RetinaNet:
    """In evaluation mode; read-only."""
    return conditioned_model(SMALL, SIZE)


@pytest.fixture(scope="module")
def conditioned_twin(conditioned: RetinaNet) -> TorchvisionRetinaNet:
    return build_twin(conditioned)


@pytest.fixture
def model(conditioned: RetinaNet) -> RetinaNet:
    return copy.deepcopy(conditioned)


@pytest.fixture
def twin(conditioned_twin: TorchvisionRetinaNet) -> TorchvisionRetinaNet:
    return copy.deepcopy(conditioned_twin)


def same_maps(model: RetinaNet, twin: TorchvisionRetinaNet, images: Tensor) -> None:
    with torch.no_grad():
        raw = model(images)
        features, outputs, anchors = twin_maps(twin, images)
    pairs = [*zip(raw.features, features, strict=True)]
    pairs += [(raw.logits, outputs["cls_logits"]), (raw.deltas, outputs["bbox_regression"])]
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= RELATIVE * theirs.abs().max()
    torch.testing.assert_close(raw.anchors, anchors[0], rtol=1e-6, atol=1e-5)
    assert sum(raw.level_sizes) == len(raw.anchors) == raw.logits.shape[1]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [SIZE, (96, 160)])
def test_raw_maps_equal_torchvision(
    model: RetinaNet, twin: TorchvisionRetinaNet, size: tuple[int, int], training: bool
) -> None:
    same_maps(model.train(training), twin.train(training), smooth_images(2, size, 7))


@pytest.mark.parametrize(
    "settings",
    [{"norm": "gn"}, {"backbone": "resnet50", "fpn_channels": 256}, {"anchor_octave": 2, "anchor_ratios": (0.4, 1.0)}],
    ids=["group norm", "resnet50", "other anchors"],
)
def test_raw_maps_of_other_settings(settings: dict) -> None:
    torch.manual_seed(0)
    model = RetinaNet(replace(SMALL, **settings)).train()
    same_maps(model, build_twin(model), smooth_images(2, (64, 96), 7))


def test_p6_is_made_of_c5_even_where_p5_has_as_many_channels() -> None:
    model = RetinaNet(replace(SLIM, fpn_channels=64))
    assert model.backbone.channels["c5"] == 64
    with torch.no_grad():
        images = smooth_images(1, SIZE, 7)
        expected = model.eval().fpn.extra_blocks.p6(model.backbone(images)["c5"])
        assert torch.equal(model(images).features[3], expected)


def test_the_paper_s_network() -> None:
    """37.97 M parameters for COCO.

    torchvision publishes 34,014,999: with 91 classes (11 * 9 more filters of 2304 weights and a bias), P6 computed
    from P5 (256 instead of 2048 channels for 256 filters of 3x3), and without the backbone's 53,120 batch norm
    parameters.
    """
    model = RetinaNet(RetinaNetConfig(80))
    count = sum(p.numel() for p in model.parameters())
    assert count == 34_014_999 - 11 * 9 * 2305 + 256 * 9 * (2048 - 256) + 53_120 == 37_968_692
    assert model.strides == [8, 16, 32, 64, 128]
    sides = (model.anchors([(1, 1)] * 5)[:, 2:] * 2).prod(1).sqrt().reshape(5, 3, 3)  # level, ratio, scale
    expected = 32 * 2.0 ** torch.arange(5)[:, None, None] * 2.0 ** (torch.arange(3) / 3)
    torch.testing.assert_close(sides, expected.expand(5, 3, 3))


def test_it_starts_with_a_probability_of_one_in_a_hundred() -> None:
    torch.manual_seed(0)
    model = RetinaNet(RetinaNetConfig(7, backbone="resnet18", width=8, fpn_channels=32))
    head = model.head.classification_head
    for conv in (head.conv[0][0], head.cls_logits, model.head.regression_head.bbox_reg):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
    torch.testing.assert_close(torch.sigmoid(head.cls_logits.bias), torch.full((63,), 0.01))
    assert not model.head.regression_head.bbox_reg.bias.any()


def same_losses(losses: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].shape == () and losses[name].isfinite()
        assert (losses[name] - value).abs() <= RELATIVE * value.abs(), name


@pytest.mark.parametrize(("count", "size", "image_size"), [(4, SIZE, SIZE), (0, SIZE, SIZE), (6, (96, 160), (71, 151))])
def test_losses_and_gradients_of_one_image_equal_torchvision(
    model: RetinaNet,
    twin: TorchvisionRetinaNet,
    targets_of: TargetsOf,
    count: int,
    size: tuple[int, int],
    image_size: tuple[int, int],
) -> None:
    images, targets = smooth_images(1, size, 21), targets_of([count], [image_size], masks=False)
    losses, counts = losses_of(model.train(), images, targets)
    theirs = twin_losses(twin.train(), images, targets)
    same_losses(losses, theirs)
    assert counts["positives"] >= count and bool(counts["positives"]) == bool(count)
    sum(losses.values()).backward()
    sum(theirs.values()).backward()
    for reference, ours in same_parts(twin, model):
        expected = dict(reference.named_parameters())
        for name, parameter in ours.named_parameters():
            gradient = torch.zeros_like(parameter) if expected[name].grad is None else expected[name].grad
            # Not 1e-5: torchvision sums in another order, and gradients through BN are differences of large terms.
            assert (parameter.grad - gradient).norm() <= 1e-3 * gradient.norm(), name


@pytest.mark.parametrize("counts", [[4, 0], [2, 5], [0, 0]])
def test_losses_of_a_batch_are_shared_by_its_positives(
    conditioned: RetinaNet, targets_of: TargetsOf, counts: list[int]
) -> None:
    targets = targets_of(counts, [SIZE, (101, 128)], masks=False)
    with torch.no_grad():
        raw = conditioned(smooth_images(2, SIZE, 22))
        losses, watched = retinanet_losses(conditioned, raw, targets)
        expected, positives = plain_losses(SMALL, raw, targets)
    same_losses(losses, expected)
    assert watched == {"positives": positives}
    assert positives >= sum(counts)
    assert losses["class"] > 1e-3 and (losses["box"] > 1e-3) == (sum(counts) > 0)


def test_objects_of_one_pixel_have_their_best_anchors(conditioned: RetinaNet) -> None:
    boxes = torch.tensor([[[0.0, 0, 1, 1], [63, 70, 64, 71], [127, 127, 128, 128]]])
    targets = Targets(boxes, torch.tensor([[0, 4, 2]]), torch.ones(1, 3, dtype=torch.bool), torch.full((1, 2), 128.0))
    with torch.no_grad():
        raw = conditioned(smooth_images(1, SIZE, 23))
        losses, watched = retinanet_losses(conditioned, raw, targets)
        expected, positives = plain_losses(SMALL, raw, targets)
    same_losses(losses, expected)
    assert watched["positives"] == positives >= 3


def test_padding_changes_no_loss(conditioned: RetinaNet, targets_of: TargetsOf) -> None:
    targets = targets_of([3, 2], [SIZE] * 2, masks=False)
    garbage = ~targets.valid[..., None]
    other = targets._replace(
        boxes=torch.where(garbage, torch.tensor([10.0, 10, 90, 90]), targets.boxes),
        labels=torch.where(targets.valid, targets.labels, 4),
    )
    with torch.no_grad():
        raw = conditioned(smooth_images(2, SIZE, 25))
        ours, theirs = (retinanet_losses(conditioned, raw, t) for t in (targets, other))
    assert ours == theirs


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.75, 1.5), (0.25, 0.5)])
def test_focal_loss_equals_torchvision(alpha: float, gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # float64: torchvision's 1 - p loses the significant digits of easy terms.
    logits = (4 * torch.randn(2, 50, 6, dtype=torch.float64, generator=generator)).requires_grad_()
    labels = torch.randint(-1, 6, (2, 50), generator=generator)
    wanted = torch.nn.functional.one_hot(labels + 1, 7)[..., 1:].double()
    ours, theirs = focal_loss(logits, labels, alpha, gamma), sigmoid_focal_loss(logits, wanted, alpha, gamma)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(v.sum(), logits) for v in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_extreme_logits_is_finite(gamma: float) -> None:
    logits = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, -200.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0]), 0.25, gamma)
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()
    assert loss[0, 0] == 2500 and loss[0, 1] == 7500 and loss[1, 0] == loss[1, 1] == 0
    torch.testing.assert_close(logits.grad[0, :2], torch.tensor([-0.25, 0.75]))


def test_focal_loss_keeps_three_maps_for_the_backward_pass() -> None:
    kept = {}

    def keep(value: Tensor) -> Tensor:
        if value.is_floating_point():
            kept[value.untyped_storage().data_ptr()] = value.numel()
        return value

    logits = torch.randn(2, 100, 20, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss = focal_loss(logits, torch.zeros(2, 100, dtype=torch.long), 0.25, 2.0)
    assert sum(kept.values()) <= 3 * loss.numel()


def detect(model: RetinaNet, images: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return RetinaNetDeploy(model, tuple(images.shape[2:]))(images)


def pictures(kind: str) -> Tensor:
    if kind == "blank":
        return torch.zeros(1, 3, *SIZE)
    return smooth_images(2, {"square": SIZE, "odd": (96, 160), "tall": (256, 64)}[kind], 7)


@pytest.mark.parametrize("kind", ["square", "odd", "tall", "blank"])
def test_every_detection_is_torchvisions(
    conditioned: RetinaNet, conditioned_twin: TorchvisionRetinaNet, kind: str
) -> None:
    images = pictures(kind)
    with torch.no_grad():
        theirs = twin_detections(conditioned_twin, images, SMALL.detections)
    if kind != "blank":  # a meaningful comparison: several classes, varied scores, none saturated
        assert all(len(d["boxes"]) == 30 and len(d["labels"].unique()) >= 3 for d in theirs)
        assert all(d["scores"].max() < 0.9999 and d["scores"].max() - d["scores"].min() > 0.05 for d in theirs)
    same_detections(detect(conditioned, images), theirs)


def test_detections_with_the_default_numbers() -> None:
    """1000 pairs per level, 1000 candidates and 100 detections, from about 10,000 pairs above the threshold."""
    config = replace(SMALL, test_pre_nms=1000, detections=100)
    model, images = conditioned_model(config, SIZE, seed=1), smooth_images(1, SIZE, 5)
    with torch.no_grad():
        theirs = twin_detections(build_twin(model), images, config.detections)
    same_detections(detect(model, images), theirs, least=100)


def test_a_high_threshold_leaves_few_and_then_none(model: RetinaNet, twin: TorchvisionRetinaNet) -> None:
    images = smooth_images(2, SIZE, 7)
    model.config, twin.score_thresh = replace(SMALL, score_threshold=0.9), 0.9
    with torch.no_grad():
        theirs = twin_detections(twin, images, SMALL.detections)
    assert all(len(d["boxes"]) < 30 for d in theirs)
    same_detections(detect(model, images), theirs, least=1)
    model.config = replace(SMALL, score_threshold=0.9999)
    outputs = detect(model, images)
    assert not any(value.any() for value in outputs)
    assert [tuple(v.shape) for v in outputs] == [(2, 1), (2, 30, 4), (2, 30), (2, 30)]


def test_one_class_and_a_small_canvas_have_fewer_pairs_than_wanted() -> None:
    config = RetinaNetConfig(1, backbone="resnet18", fpn_channels=64)
    model, images = conditioned_model(config, (64, 64)), smooth_images(1, (32, 32), 4)
    with torch.no_grad():
        theirs = twin_detections(build_twin(model), images, config.detections)
    outputs = detect(model, images)
    same_detections(outputs, theirs, least=3)
    assert outputs[1].shape == (1, 100, 4)
    model.config = replace(config, candidates=12)
    few = detect(model, images)
    assert few[1].shape == (1, 12, 4) and 0 < few[0].item() <= 12


@pytest.mark.parametrize("count", [1, 5, 40, 60, 1000])
def test_best_pairs_are_the_best_of_all(count: int) -> None:
    order = torch.randperm(2 * 50 * 7, generator=torch.Generator().manual_seed(0))
    logits = (order / 100).reshape(2, 50, 7)
    values, index, labels = best_pairs(logits, count)
    expected, pair = torch.topk(logits.flatten(1), min(count, 350), dim=1)
    assert torch.equal(values, expected)
    assert torch.equal(index * 7 + labels, pair)


def test_odd_canvases_and_too_many_convolutions_are_refused(conditioned: RetinaNet) -> None:
    with pytest.raises(ValueError, match="multiples of 32, not 100 and 128"):
        RetinaNetDeploy(conditioned, (100, 128))
    with pytest.raises(ValueError, match=r"model\.head_convs: 5 is not between 0 and 4; the nearest is 4"):
        RetinaNet(replace(SLIM, head_convs=5))


def test_a_description_builds_the_same_network() -> None:
    model = build_model(json.loads(json.dumps(describe_model(SLIM))))
    assert model.config == SLIM and isinstance(model, RetinaNet)
    assert isinstance(deploy_model(model, (64, 64), portable=True), RetinaNetDeploy)
