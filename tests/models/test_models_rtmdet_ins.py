"""RTMDet-Ins computes what mmdet's does, and its masks, computed at few places, are those of the whole map.

mmdet's results are stored in oracle/rtmdet_ins.npz. Where mmdet is installed, it is also run; see mmdet_twin.py.
"""

import copy

import mmdet_twin
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet_ins_twin import EVERY, SIZES, STORED, STORED_SIZES, ins_batch, ours, plain_masks, their_results, twin
from mmdet_twin import CANVAS
from test_models_step import NoHostWait
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from directdet.export.onnx_graph import fold
from directdet.models.build import build_model, deploy_model, describe_model
from directdet.models.parts.boxes import clip_boxes
from directdet.models.parts.targets import Targets, note_counts
from directdet.models.rtmdet.assign import centres_of
from directdet.models.rtmdet.loss import point_losses
from directdet.models.rtmdet.network import boxes_of
from directdet.models.rtmdet_ins.loss import AROUND, dice_loss, rtmdet_ins_losses, wanted_masks
from directdet.models.rtmdet_ins.masks import PARAMETERS, grid, mask_logits
from directdet.models.rtmdet_ins.network import RTMDetIns
from directdet.recipes.by_name import get_recipe

# What mmdet 3.3 builds for 80 classes. Published are 5.6, 10.18, 27.58 and 57.37 million.
PARAMETERS_OF = {"tiny": 5_638_187, "s": 10_183_311, "m": 27_575_111, "l": 57_365_663}
# Billions of multiply-adds of mmdet's network at 640x640. Published: 11.8, 21.5, 54.13 and 106.56.
MULTIPLY_ADDS = {"tiny": 11.871, "s": 21.516, "m": 54.124, "l": 106.542}
POINTS = 80 * 80 + 40 * 40 + 20 * 20


@pytest.fixture(scope="module")
def tiny() -> RTMDetIns:
    """In evaluation mode; read-only."""
    return ours("tiny")


def our_results(model: RTMDetIns, images: Tensor, targets: Targets) -> dict[str, Tensor]:
    """As mmdet_ins_twin.their_results."""
    raw = model(images)
    losses, _ = rtmdet_ins_losses(model, raw, targets)
    del losses["mask"]  # not mmdet's
    images_, _, height, width = raw.prototypes.shape
    points, kernels = raw.points[::EVERY].expand(images_, -1, -1), raw.kernels[:, ::EVERY]
    # Places in the middles of cells: as many columns as rows, those beyond the map are cut off.
    middles = (torch.arange(max(height, width)) * 8.0 + 4).expand(*points.shape[:2], -1)
    masks = mask_logits(raw.prototypes, 8, kernels, points, middles, middles)[..., :height, :width]
    maps = {"logits": raw.logits, "distances": raw.distances, "kernels": kernels, "prototypes": raw.prototypes}
    return {**maps, "masks": masks, **losses}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max()) if name == "masks" else 1.0  # of sums of products of large numbers
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("size", STORED_SIZES)
def test_maps_losses_and_masks_are_those_stored(size: str) -> None:
    with np.load(STORED) as stored:
        names = [name for name in stored if name.startswith(f"{size}/")]
        expected = {name.partition("/")[2]: torch.from_numpy(stored[name]) for name in names}
    assert (expected["distances"] == 0).any() and expected["masks"].std() > 0.1
    with torch.no_grad():
        assert_same(our_results(ours(size), *ins_batch()), expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_maps_losses_and_masks_are_mmdets(size: str, mmdet: None) -> None:
    model = ours(size)
    with torch.no_grad():
        assert_same(our_results(model, *ins_batch()), their_results(twin(model, size), *ins_batch()))


@pytest.mark.parametrize("size", SIZES)
def test_parameters_and_multiply_adds(size: str) -> None:
    """As mmdet's, but for the convolutions of classes and boxes, which are the same and computed once."""
    with torch.device("meta"):
        model = build_model({"detector": "rtmdet_ins", "num_classes": 80, **get_recipe(f"rtmdet_ins_{size}").model})
        images = torch.empty(1, 3, 640, 640)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS_OF[size]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(images)
    twice = 2 * 9 * model.config.fpn_channels**2 * POINTS
    assert (counter.get_total_flops() / 2 + twice) / 1e9 == pytest.approx(MULTIPLY_ADDS[size], abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_parameters_and_multiply_adds_are_mmdets(size: str, mmdet: None) -> None:
    other = mmdet_twin.theirs(size, 80, "rtmdet-ins")
    assert sum(p.numel() for p in other.parameters()) == PARAMETERS_OF[size]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        other.bbox_head(other.neck(other.backbone(torch.zeros(1, 3, 640, 640))))
    assert counter.get_total_flops() / 2e9 == pytest.approx(MULTIPLY_ADDS[size], abs=5e-4)


@pytest.mark.parametrize("seed", range(4))
def test_masks_equal_the_whole_map_at_every_place(seed: int) -> None:
    """Boxes of any size, also beyond the map and of no size, in two images, of points of every level."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(2, 8, 8, 12, generator=generator)
    kernels = torch.randn(2, 6, PARAMETERS, generator=generator)
    places = torch.rand(2, 6, 2, generator=generator) * torch.tensor([96.0, 64.0])
    points = torch.cat([places, torch.tensor([8.0, 16.0, 32.0]).repeat(2)[None, :, None].expand(2, -1, -1)], -1)
    corners = (torch.rand(2, 6, 2, 2, generator=generator) * 1.4 - 0.2).sort(2).values * torch.tensor([96.0, 64.0])
    boxes = corners.flatten(2)
    boxes[0, 0, 2:] = boxes[0, 0, :2]
    boxes[1, 1] = torch.tensor([0.0, 0.0, 96.0, 64.0])
    x, y = grid(boxes, 28)
    found = mask_logits(prototypes, 8, kernels, points, x, y)
    assert found.std() > 1
    for image in range(2):
        for row in range(6):
            one = (kernels[image, row], points[image, row], x[image, row], y[image, row])
            torch.testing.assert_close(found[image, row], plain_masks(prototypes[image], *one), atol=1e-4, rtol=1e-4)


def test_between_cells_it_is_mmdets_interpolation_as_far_as_the_network_is_linear() -> None:
    """With all its hidden values above 0 the order of interpolation and network makes no difference."""
    generator = torch.Generator().manual_seed(0)
    prototypes, kernels = torch.randn(1, 8, 8, 12, generator=generator), torch.randn(1, 2, 169, generator=generator)
    points = torch.tensor([[[40.0, 24.0, 8.0], [32.0, 32.0, 32.0]]])
    x, y = grid(torch.tensor([[[3.0, 5.0, 60.0, 61.0], [30.0, -4.0, 99.0, 40.0]]]), 28)
    middles = (torch.arange(12) * 8.0 + 4).expand(1, 2, -1)
    apart = []
    for bias in (0.0, 500.0):
        kernels[..., 152:168] = bias
        cells = mask_logits(prototypes, 8, kernels, points, middles, middles)[..., :8, :]
        found = mask_logits(prototypes, 8, kernels, points, x, y)[0]
        later = [interpolated(cells[0, row], x[0, row], y[0, row]) for row in range(2)]
        apart.append(float((found - torch.stack(later)).abs().max()))
    assert apart[0] > 0.1 and apart[1] < 0.05  # of logits of thousands


def interpolated(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A map [8, 12] of stride 8 at (x, y) in pixels."""
    places = torch.stack(torch.meshgrid(y / 32 - 1, x / 48 - 1, indexing="ij"), -1).flip(-1)[None]
    return F.grid_sample(values[None, None], places, padding_mode="border", align_corners=False)[0, 0]


def test_the_grid_is_the_middles_of_the_parts_of_a_box() -> None:
    x, y = grid(torch.tensor([[10.0, 20.0, 66.0, 48.0]]), 28)
    assert x[0].tolist() == [11.0 + 2 * i for i in range(28)] and y[0].tolist() == [20.5 + i for i in range(28)]
    x, _ = grid(torch.tensor([[10.0, 20.0, 66.0, 48.0]]), 28, around=2)
    assert x[0].tolist() == [7.0 + 2 * i for i in range(32)]


def test_deployed_masks_are_those_of_the_points_that_found_the_objects(tiny: RTMDetIns) -> None:
    """Batch of three; each detection's point is the one with its box and score."""
    model = copy.copy(tiny)
    description = {**describe_model(tiny.config), "score_threshold": 0.4, "detections": 30, "candidates": 200}
    model.config = build_model(description).config
    images, _ = ins_batch()
    with torch.no_grad():
        raw = model(images)
        number, boxes, scores, labels, masks = deploy_model(model, CANVAS)(images)
    assert number.min() > 3 and masks.shape == (3, 30, 28, 28)
    assert len({tuple(mask.flatten().tolist()) for mask in masks[0, : int(number[0])]}) == number[0]
    for image in range(3):
        every = clip_boxes(boxes_of(raw.distances, raw.points), torch.tensor([CANVAS] * 3))[image]
        assert not masks[image, int(number[image]) :].any()
        for row in range(int(number[image])):
            score = raw.logits[image, :, labels[image, row]].sigmoid()
            same = ((every - boxes[image, row]).abs().amax(1) < 1e-3) & ((score - scores[image, row]).abs() < 1e-6)
            (point,) = same.nonzero().flatten().tolist()
            x, y = grid(boxes[image, row], 28)
            expected = plain_masks(raw.prototypes[image], raw.kernels[image, point], raw.points[point], x, y)
            torch.testing.assert_close(masks[image, row], expected.sigmoid(), atol=1e-4, rtol=0)


def test_the_mask_loss_equals_a_loop(tiny: RTMDetIns) -> None:
    """Over all positive points, as there are fewer than slots: dice at 36x36 places."""
    images, targets = ins_batch()
    with torch.no_grad():
        raw = tiny(images)
        losses, counts = rtmdet_ins_losses(tiny, raw, targets)
        _, found = point_losses(tiny.config, raw, targets)
    assert counts["positives"] > 10 and int(found.positive.sum(1).max()) <= tiny.config.mask_slots
    each = []
    for image, point in found.positive.nonzero().tolist():
        box = targets.boxes[image, found.objects[image, point]]
        x, y = grid(box, 28, AROUND)
        mask = plain_masks(raw.prototypes[image], raw.kernels[image, point], raw.points[point], x, y).sigmoid()
        # The object is the upper left half of its box, cut from corner to corner; the middles of cells lie on the cut
        # or at least half a cell from it, as do those of the 56x56 that was given.
        share_x, share_y = (x - box[0]) / (box[2] - box[0]), (y - box[1]) / (box[3] - box[1])
        inside = ((share_x > 0) & (share_x < 1))[None, :] & ((share_y > 0) & (share_y < 1))[:, None]
        wanted = inside & (share_y[:, None] + share_x[None, :] < 1 + 1e-4)
        each.append(1 - 2 * mask[wanted].sum() / (mask.square().sum() + wanted.sum()))
    torch.testing.assert_close(losses["mask"], 2 * torch.stack(each).mean(), rtol=1e-4, atol=0)


def test_wanted_masks_end_at_the_box() -> None:
    masks = torch.zeros(1, 2, 56, 56, dtype=torch.uint8)
    masks[0, 0] = 1
    masks[0, 1, :28] = 1  # the upper half
    boxes = torch.tensor([[[10.0, 10.0, 38.0, 66.0], [0.0, 0.0, 56.0, 28.0]]])
    full, upper = wanted_masks(masks, boxes)[0]
    inner = slice(AROUND, AROUND + 28)
    assert full.shape == (36, 36) and full.sum() == full[inner, inner].sum() == 28 * 28
    assert upper.sum() == upper[AROUND : AROUND + 14, inner].sum() == 14 * 28


def test_the_centre_of_an_object_is_that_of_its_mask() -> None:
    boxes = torch.tensor([[[10.0, 20.0, 66.0, 48.0]] * 3])
    masks = torch.zeros(1, 3, 56, 56, dtype=torch.uint8)
    masks[0, 0] = 1
    masks[0, 1, :14, 42:] = 1  # the upper right corner: a quarter of each side
    targets = Targets(boxes, torch.zeros(1, 3).long(), torch.ones(1, 3, dtype=torch.bool), boxes[:, 0, 2:], masks)
    assert centres_of(targets).tolist() == [[[38.0, 34.0], [59.0, 23.5], [38.0, 34.0]]]  # an empty one: of its box
    assert centres_of(targets._replace(masks=None)).tolist() == [[[38.0, 34.0]] * 3]


def test_dice() -> None:
    wanted = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert dice_loss(wanted, wanted) == pytest.approx(0, abs=1e-5)
    assert dice_loss(1 - wanted, wanted) == 1
    assert dice_loss(torch.full((4,), 0.5), wanted) == pytest.approx(1 - 2 * 1 / 3, abs=1e-5)


def test_at_most_as_many_masks_as_slots_drawn_by_the_keys(tiny: RTMDetIns) -> None:
    model = copy.copy(tiny)
    model.config = build_model({**describe_model(tiny.config), "mask_slots": 2}).config
    images, targets = ins_batch()
    with torch.no_grad():
        raw = model(images)
        _, found = point_losses(model.config, raw, targets)
    positives = int((found.positive.sum(1).clamp(max=2)).sum())
    asked = []

    def last_first(shape: torch.Size, _: torch.device) -> Tensor:
        return torch.linspace(0, 0.9, shape[1]).expand(shape)

    def first_first(shape: torch.Size, _: torch.device) -> Tensor:
        return torch.linspace(0.9, 0, shape[1]).expand(shape)

    with torch.no_grad(), note_counts() as counts:
        for draw in (last_first, last_first, first_first):
            asked.append(float(rtmdet_ins_losses(model, raw, targets, draw)[0]["mask"]))
    assert asked[0] == asked[1] != asked[2]
    assert [float(count) for count in counts[1::2]] == [positives] * 3 and int(found.positive.sum()) > positives


def test_an_image_without_objects_has_no_mask_loss_and_finite_gradients(tiny: RTMDetIns) -> None:
    model = copy.deepcopy(tiny).train()
    images, targets = ins_batch()
    empty = targets._replace(valid=torch.zeros_like(targets.valid))
    losses, counts = rtmdet_ins_losses(model, model(images), empty)
    assert counts["positives"] == 0 and losses["mask"] == 0 and losses["box"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_step_changes_every_weight() -> None:
    """With objects of every size, so that every level has positive points."""
    torch.manual_seed(0)
    model = build_model({"detector": "rtmdet_ins", "num_classes": 2, "backbone": "cspnext_tiny", "fpn_channels": 16})
    boxes = torch.tensor([[[3.0, 3.0, 30.0, 30.0], [40.0, 4.0, 120.0, 90.0], [4.0, 20.0, 250.0, 190.0]]] * 2)
    masks = torch.ones(2, 3, 56, 56, dtype=torch.uint8)
    targets = Targets(boxes, torch.tensor([[0, 1, 0]] * 2), torch.ones(2, 3, dtype=torch.bool), boxes[:, 0, 2:], masks)
    # An untrained network's boxes are small: every point far from the three objects' middles learns nothing.
    with torch.no_grad():
        for conv in model.head.boxes:
            conv.bias.fill_(3.0)
    losses, _ = rtmdet_ins_losses(model, model.train()(torch.randn(2, 3, 192, 256)), targets)
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_targets_without_masks_are_refused(tiny: RTMDetIns) -> None:
    images, targets = ins_batch()
    with pytest.raises(ValueError, match="needs targets with masks"), torch.no_grad():
        rtmdet_ins_losses(tiny, tiny(images), targets._replace(masks=None))


def test_folding_leaves_no_normalisation(tiny: RTMDetIns) -> None:
    folded, folding, _ = fold(tiny, CANVAS)
    count = sum(isinstance(module, nn.BatchNorm2d) for module in tiny.modules())
    assert (folding.folded, folding.unfolded) == (count, ())
    images, _ = ins_batch()
    with torch.no_grad():
        before, after = tiny(images), folded(images)
    torch.testing.assert_close(after.kernels, before.kernels, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(after.prototypes, before.prototypes, atol=2e-5, rtol=1e-4)


def test_nothing_waits_for_the_host(tiny: RTMDetIns) -> None:
    model = copy.deepcopy(tiny)
    images, targets = ins_batch()
    deployed = deploy_model(model, CANVAS)
    with torch.no_grad(), NoHostWait(looks=1):  # NMS, whether it has come to its end
        deployed(images)
    with NoHostWait():
        losses, _ = rtmdet_ins_losses(model, model.train()(images), targets)
        sum(losses.values()).backward()


def test_the_deployed_form_is_a_static_graph_for_any_batch(tiny: RTMDetIns) -> None:
    images, _ = ins_batch()
    deployed = deploy_model(copy.deepcopy(tiny), CANVAS, portable=True).eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=8)},)
    with torch.no_grad():
        graph = torch.export.export(deployed, (images,), dynamic_shapes=shapes, strict=False).module()
        for found, expected in zip(graph(images[:2]), deployed(images[:2]), strict=True):
            torch.testing.assert_close(found, expected)
