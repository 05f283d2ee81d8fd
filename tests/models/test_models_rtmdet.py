"""RTMDet: assignment, losses and detections against plain loops; the head's convolutions; static graphs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmdet_twin import CANVAS, batch, ours
from test_models_step import NoHostWait
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou, generalized_box_iou

from directdet.export.onnx_graph import fold
from directdet.models.build import build_model, deploy_model, describe_model
from directdet.models.parts.targets import Targets
from directdet.models.rtmdet.assign import Assigned, assign
from directdet.models.rtmdet.loss import giou, quality_focal_loss, rtmdet_losses
from directdet.models.rtmdet.network import PointMaps, RTMDet, boxes_of
from directdet.recipes.by_name import get_recipe
from directdet.train.optim import build_optimizer

CLASSES = 3
TOP = 13


@pytest.fixture(scope="module")
def tiny() -> RTMDet:
    """In evaluation mode; read-only."""
    return ours("tiny")


def targets_of(boxes: list[list[float]], labels: list[int], padded: int = 0) -> Targets:
    """One image with these objects, and `padded` rows that hold none, before them."""
    rows = torch.zeros(1, padded + len(boxes), 4)
    rows[0, padded:] = torch.tensor(boxes).reshape(-1, 4)
    numbers = torch.tensor([[0] * padded + labels])
    valid = torch.arange(rows.shape[1])[None] >= padded
    return Targets(rows, numbers, valid, torch.tensor([CANVAS], dtype=torch.float32))


def predictions(points: Tensor, boxes: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [1, A, C] and boxes [1, A, 4] near those of random objects."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(boxes), (len(points),), generator=generator)
    near = boxes[chosen] + torch.randn(len(points), 4, generator=generator) * 4
    return torch.randn(1, len(points), CLASSES, generator=generator) * 2, near[None]


def loop_assign(logits: Tensor, boxes: Tensor, points: Tensor, objects: Tensor, labels: Tensor) -> list[int]:
    """The object of each point of one image, -1 for none, as the paper says it: one pair after the other."""
    inside = [any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in objects.tolist()) for x, y, _ in points.tolist()]
    usable = [index for index, is_inside in enumerate(inside) if is_inside]
    owner, costs = [-1] * len(points), {}
    iou = box_iou(boxes, objects)
    for column, box in enumerate(objects):
        for row in usable:
            wanted = torch.zeros(CLASSES)
            wanted[labels[column]] = iou[row, column]
            entropy = F.binary_cross_entropy_with_logits(logits[row], wanted, reduction="none")
            class_cost = (entropy * (wanted - logits[row].sigmoid()) ** 2).sum()
            distance = (points[row, :2] - (box[:2] + box[2:]) / 2).norm() / points[row, 2]
            cost = class_cost - 3 * torch.log(iou[row, column] + 1e-7) + 10.0 ** (distance - 3)
            costs[row, column] = float(cost)
    takers: dict[int, list[int]] = {}
    for column in range(len(objects)):
        best = sorted((float(iou[row, column]) for row in usable), reverse=True)[:TOP]
        for row in sorted(usable, key=lambda row: costs[row, column])[: max(int(sum(best)), 1)]:
            takers.setdefault(row, []).append(column)
    for row, columns in takers.items():
        every = range(len(objects)) if len(columns) > 1 else columns
        owner[row] = min(every, key=lambda column: costs[row, column])
    return owner


@pytest.mark.parametrize("seed", range(6))
def test_assignment_equals_loops(tiny: RTMDet, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(5, 2, 2, generator=generator).sort(1).values * torch.tensor([96.0, 64.0])
    objects, labels = corners.flatten(1), torch.randint(CLASSES, (5,), generator=generator)
    points = tiny.points(CANVAS)
    logits, boxes = predictions(points, objects, seed)
    targets = targets_of(objects.tolist(), labels.tolist(), padded=2)
    found = assign(logits, boxes, points, targets, TOP)
    expected = loop_assign(logits[0], boxes[0], points, objects, labels)
    assert torch.where(found.positive, found.objects - 2, -1)[0].tolist() == expected
    iou = box_iou(boxes[0], objects)
    for row, column in enumerate(expected):
        assert float(found.quality[0, row]) == pytest.approx(float(iou[row, column]) if column >= 0 else 0, abs=1e-6)


def assigned(tiny: RTMDet, boxes: Tensor, targets: Targets) -> Assigned:
    """With no opinion of the classes."""
    points = tiny.points(CANVAS)
    return assign(torch.zeros(1, len(points), CLASSES), boxes, points, targets, TOP)


def test_no_objects_no_positives(tiny: RTMDet) -> None:
    boxes = torch.rand(1, len(tiny.points(CANVAS)), 4) * 60
    for targets in (targets_of([], [], padded=3), targets_of([], [], padded=1)):
        found = assigned(tiny, boxes, targets)
        assert not found.positive.any() and not found.quality.any()


def test_an_object_nothing_overlaps_has_one_point_inside_it(tiny: RTMDet) -> None:
    points = tiny.points(CANVAS)
    boxes = torch.tensor([80.0, 50.0, 90.0, 60.0]).expand(1, len(points), -1)
    found = assigned(tiny, boxes, targets_of([[3.0, 3.0, 40.0, 40.0]], [1]))
    assert found.positive.sum() == 1 and found.quality.sum() == 0
    x, y, stride = points[found.positive[0]][0].tolist()
    assert (x, y, stride) == (16.0, 16.0, 32.0) or (3 < x < 40 and 3 < y < 40)


def test_an_object_has_as_many_points_as_its_best_ious_add_up_to(tiny: RTMDet) -> None:
    target = torch.tensor([8.5, 8.5, 72.5, 56.5])
    points = tiny.points(CANVAS)
    exact = target.expand(1, len(points), -1)
    assert assigned(tiny, exact, targets_of([target.tolist()], [0])).positive.sum() == TOP
    half = target.clone()
    half[2] = 40.5  # IoU 0.5 with the object
    assert assigned(tiny, half.expand(1, len(points), -1), targets_of([target.tolist()], [0])).positive.sum() == 6


@pytest.mark.parametrize("box", [[40.0, 20.0, 41.0, 21.0], [49.0, 33.0, 55.0, 39.0]])
def test_a_box_without_points_takes_none_unless_another_has_some(tiny: RTMDet, box: list[float]) -> None:
    """A pixel, or between the points: points inside another object's box can be taken, as in mmdet."""
    points, other = tiny.points(CANVAS), [4.0, 4.0, 92.0, 60.0]
    boxes = torch.where(points[:, :1] < 48, torch.tensor([other]), torch.tensor([box]))[None]
    assert not assigned(tiny, boxes, targets_of([box], [0])).positive.any()
    found = assigned(tiny, boxes, targets_of([box, other], [0, 1]))
    right = points[found.positive[0], 0] >= 48
    assert found.objects[found.positive].tolist() == (~right).int().tolist()
    assert right.sum() == (~right).sum() == TOP


def test_a_one_pixel_box_on_a_point_takes_it(tiny: RTMDet) -> None:
    points = tiny.points(CANVAS)
    box = [39.5, 23.5, 40.5, 24.5]
    found = assigned(tiny, torch.tensor(box).expand(1, len(points), -1), targets_of([box], [2]))
    assert points[found.positive[0]].tolist() == [[40.0, 24.0, 8.0]]
    assert found.quality.sum() == 1


def test_a_point_that_two_objects_want_goes_to_the_cheaper(tiny: RTMDet) -> None:
    """Two boxes around the same single point, of which the predicted box fits the second better."""
    points = tiny.points(CANVAS)
    objects = [[36.0, 20.0, 44.0, 28.0], [37.0, 21.0, 43.0, 27.0]]
    boxes = torch.tensor(objects[1]).expand(1, len(points), -1)
    found = assigned(tiny, boxes, targets_of(objects, [0, 1]))
    assert points[found.positive[0]].tolist() == [[40.0, 24.0, 8.0]]
    assert found.objects[found.positive].tolist() == [1]


def test_an_object_too_far_from_every_usable_point_has_none(tiny: RTMDet) -> None:
    """Its costs overflow: the point goes to its own object."""
    points = torch.tensor([[8.0, 8.0, 8.0]])
    targets = targets_of([[7.0, 7.0, 9.0, 9.0], [1000.5, 1000.5, 1001.0, 1001.0]], [0, 1])
    found = assign(torch.zeros(1, 1, CLASSES), torch.tensor([[[7.0, 7.0, 9.0, 9.0]]]), points, targets, TOP)
    assert found.positive.tolist() == [[True]] and found.objects.tolist() == [[0]]


def test_padding_and_the_order_of_objects_change_no_loss(tiny: RTMDet) -> None:
    images, targets = batch()
    with torch.no_grad():
        raw = tiny(images)
        expected, counts = rtmdet_losses(tiny, raw, targets)
        order = [3, 1, 0, 2]
        moved = Targets(targets.boxes[:, order], targets.labels[:, order], targets.valid[:, order], targets.sizes)
        wider = Targets(*(F.pad(v, (0, 0) * (v.dim() - 2) + (0, 5)) for v in moved[:3]), targets.sizes)
        losses, again = rtmdet_losses(tiny, raw, wider)
    assert again["positives"] == counts["positives"] > 10
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-6, atol=0)


def test_an_image_without_objects_has_a_class_loss_only(tiny: RTMDet) -> None:
    images, _ = batch()
    raw = tiny(images[:1])
    losses, counts = rtmdet_losses(tiny, raw, targets_of([], [], padded=2))
    assert counts["positives"] == 0 and losses["box"] == 0
    score = raw.logits.sigmoid()
    torch.testing.assert_close(losses["class"], -(score**2 * torch.log(1 - score)).sum(), rtol=1e-4, atol=0)
    (losses["class"] + losses["box"]).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tiny.parameters())
    tiny.zero_grad(set_to_none=True)


def test_giou_equals_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(2, 200, 2, 2, generator=generator).sort(2).values.flatten(2) * 100
    expected = generalized_box_iou(boxes[0], boxes[1]).diagonal()
    torch.testing.assert_close(giou(boxes[0], boxes[1]), expected, atol=1e-5, rtol=1e-5)


def test_quality_focal_loss_is_least_where_the_score_is_the_quality() -> None:
    quality, labels = torch.tensor([[0.7, 0.0]]), torch.tensor([[1, -1]])
    right = torch.logit(torch.tensor([[[1e-3, 0.7, 1e-3], [1e-3, 1e-3, 1e-3]]]))
    assert quality_focal_loss(right, labels, quality).sum() < 1e-8
    for row, column in ((0, 0), (0, 1), (1, 2)):
        wrong = right.clone()
        wrong[0, row, column] += 2
        loss = quality_focal_loss(wrong, labels, quality)
        assert loss[0, row, column] == loss.max() > 1e-7


def test_detections_are_the_best_that_nms_leaves(tiny: RTMDet) -> None:
    """All pairs of a point and a class, with torchvision's NMS; a canvas small enough for all to be candidates."""
    model = copy.copy(tiny)
    pairs = len(tiny.points(CANVAS)) * CLASSES
    description = {**describe_model(tiny.config), "candidates": pairs, "score_threshold": 0.45, "detections": 40}
    model.config = build_model(description).config
    images, _ = batch()
    with torch.no_grad():
        raw = model(images)
        found = deploy_model(model, CANVAS)(images)
    for index in range(len(images)):
        boxes = boxes_of(raw.distances[index], raw.points)
        boxes = torch.stack([boxes[:, 0::2].clamp(0, CANVAS[1]), boxes[:, 1::2].clamp(0, CANVAS[0])], -1).flatten(1)
        boxes = boxes.repeat_interleave(CLASSES, 0)
        labels = torch.arange(CLASSES).repeat(len(raw.points))
        scores = raw.logits[index].sigmoid().flatten()
        usable = (scores > 0.45) & ((boxes[:, 2:] - boxes[:, :2]).amin(1) > 0.01)
        boxes, labels, scores = boxes[usable], labels[usable], scores[usable]
        kept = batched_nms(boxes, scores, labels, model.config.nms)[:40]
        number = int(found[0][index])
        assert number == len(kept) > 5
        torch.testing.assert_close(found[2][index, :number], scores[kept])
        torch.testing.assert_close(found[1][index, :number], boxes[kept])
        assert found[3][index, :number].tolist() == labels[kept].tolist()


@pytest.mark.parametrize("size", ["tiny", "m"])
def test_folding_makes_one_convolution_of_each_levels_normalisation(size: str) -> None:
    model = ours(size)
    images, _ = batch()
    folded, folding, _ = fold(model, CANVAS)
    count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert (folding.folded, folding.unfolded) == (count, ())
    with torch.no_grad():
        before, after = model(images), folded(images)
    torch.testing.assert_close(after.logits, before.logits, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(after.distances, before.distances, atol=5e-4, rtol=1e-5)
    convs = [module for module in folded.head.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 2 * 3 * (2 + 1) and all(conv.bias is not None for conv in convs)
    assert len({id(conv.weight) for conv in convs}) == len(convs)


def test_a_shared_convolution_with_a_use_of_its_own_is_not_folded() -> None:
    """One of three uses is not normalised, so the weight must stay what it is."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))

        def forward(self, x: Tensor) -> list[Tensor]:
            return [*(norm(self.conv(x)) for norm in self.norms), self.conv(x)]

    from directdet.models.parts.fold import conv_norm_pairs, fold_batch_norm

    model, images = Shared().eval(), torch.randn(1, 3, 4, 4)
    model.norms[0].running_mean.fill_(0.3)
    expected = model(images)
    assert conv_norm_pairs(model, images) == []
    assert fold_batch_norm(model, []).unfolded == ("norms.0", "norms.1")
    for value, other in zip(model(images), expected, strict=True):
        torch.testing.assert_close(value, other)


def test_nothing_waits_for_the_host(tiny: RTMDet) -> None:
    model = copy.deepcopy(tiny)
    images, targets = batch()
    deployed = deploy_model(model, CANVAS)
    with torch.no_grad(), NoHostWait(looks=1):  # NMS, whether it has come to its end
        deployed(images)
    with NoHostWait():
        losses, _ = rtmdet_losses(model, model.train()(images), targets)
        sum(losses.values()).backward()


def test_losses_and_detections_are_static_graphs(tiny: RTMDet) -> None:
    """torch.export: of the criterion with any objects, and of the deployed form with any batch."""
    images, targets = batch()

    class Loss(nn.Module):
        def forward(self, logits: Tensor, distances: Tensor, boxes: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
            raw = PointMaps([], logits, distances, tiny.points(CANVAS))
            losses, _ = rtmdet_losses(tiny, raw, Targets(boxes, labels, valid, boxes[:, 0, :2]))
            return losses["class"] + losses["box"]

    with torch.no_grad():
        raw = tiny(images)
    arguments = (raw.logits, raw.distances, *targets[:3])
    program = torch.export.export(Loss(), arguments, strict=False).module()
    torch.testing.assert_close(program(*arguments), Loss()(*arguments), rtol=1e-6, atol=0)
    empty = (raw.logits, raw.distances, targets.boxes, targets.labels, torch.zeros_like(targets.valid))
    torch.testing.assert_close(program(*empty), Loss()(*empty), rtol=1e-6, atol=0)
    deployed = deploy_model(copy.deepcopy(tiny), CANVAS, portable=True).eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=8)},)
    with torch.no_grad():
        graph = torch.export.export(deployed, (images,), dynamic_shapes=shapes, strict=False).module()
        for found, expected in zip(graph(images[:2]), deployed(images[:2]), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("recipe", ["rtmdet_tiny", "rtmdet_m"])
def test_neither_normalisations_nor_biases_decay(recipe: str) -> None:
    """And every parameter is in one group: the shared convolutions once."""
    phase = get_recipe(recipe).phases[0]
    model = build_model({"detector": "rtmdet", "num_classes": 2, **get_recipe(recipe).model})
    groups = build_optimizer(model, phase, 0.1).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert {group["weight_decay"] for group in groups} == {0.0, phase.weight_decay}
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())
    assert decayed == {id(p) for p in model.parameters() if p.dim() == 4}


def test_it_starts_with_a_probability_of_one_in_a_hundred() -> None:
    torch.manual_seed(0)
    model = build_model({"detector": "rtmdet", "num_classes": 4, **get_recipe("rtmdet_tiny").model})
    with torch.no_grad():
        score = model.train()(torch.randn(2, 3, *CANVAS)).logits.sigmoid()
    torch.testing.assert_close(score.mean(), torch.tensor(0.01), atol=1e-3, rtol=0)
