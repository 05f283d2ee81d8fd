"""Anchors, matching and sampling compared with torchvision, and their behaviour with padding."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou
from twin import TwinAnchors

from directdet.models.parts.anchors import anchor_shapes, level_anchors
from directdet.models.parts.targets import match, random_keys, sample
from directdet.models.two_stage.config import RCNNConfig
from directdet.models.two_stage.network import RCNN


@pytest.mark.parametrize("size", [(128, 128), (160, 224), (96, 320)])
def test_anchors_equal_torchvision_level_by_level(conditioned: RCNN, small: RCNNConfig, size: tuple[int, int]) -> None:
    maps = [torch.zeros(1, 1, -(-size[0] // s), -(-size[1] // s)) for s in conditioned.strides]
    theirs = TwinAnchors(small, conditioned.strides)(ImageList(torch.zeros(1, 3, *size), [size]), maps)[0]
    ours = conditioned.anchors([tuple(m.shape[2:]) for m in maps])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)


def test_anchors_have_the_stated_area_ratio_and_centre() -> None:
    anchors = level_anchors(2, 3, 16, anchor_shapes((8.0,), (0.5, 1.0, 2.0)))
    assert anchors.shape == (18, 4)
    width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    torch.testing.assert_close(width * height, torch.full((18,), 128.0**2))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1, 2]).repeat(6))
    centres = (anchors[::3, :2] + anchors[::3, 2:]) / 2
    assert centres.tolist() == [[0, 0], [16, 0], [32, 0], [0, 16], [16, 16], [32, 16]]


def crowd(count: int, objects: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 100
    boxes = torch.cat([corner, corner + 10 + torch.rand(count, 2, generator=generator) * 50], 1).round()
    chosen = boxes[torch.randperm(count, generator=generator)[:objects]]
    shift = torch.randint(-6, 7, chosen.shape, generator=generator)
    shift[::2] = 0  # so that every threshold is reached
    return boxes, chosen + shift


@pytest.mark.parametrize("rescue", [None, 0.0])
@pytest.mark.parametrize(("high", "low"), [(0.7, 0.3), (0.5, 0.5), (0.9, 0.4)])
def test_matching_equals_torchvision(high: float, low: float, rescue: float | None) -> None:
    # Integer coordinates produce equal IoUs, so ties are tested as well. Padding rows deliberately hold real boxes.
    matcher = Matcher(high, low, allow_low_quality_matches=rescue is not None)
    for seed in range(5):
        boxes, objects = crowd(400, 7, seed)
        iou = torch.cat([box_iou(boxes, objects), box_iou(boxes, boxes[:3])], 1)
        valid = torch.tensor([True] * 7 + [False] * 3)
        index, assigned = match(iou[None], valid[None], high, low, rescue)
        theirs = matcher(box_iou(objects, boxes))
        assert torch.equal(assigned[0], torch.where(theirs >= 0, 1, torch.where(theirs == -1, 0, -1)))
        positive = theirs >= 0
        assert positive.any()
        assert torch.equal(index[0][positive], theirs[positive])


def test_the_best_box_of_an_object_counts_only_from_the_least_iou_on() -> None:
    iou = torch.tensor([[[0.2, 0.0, 0.0], [0.1, 0.4, 0.0], [0.2, 0.35, 0.0]]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    assert match(iou, valid, 0.7, 0.3, None)[1].tolist() == [[0, -1, -1]]
    assert match(iou, valid, 0.7, 0.3, 0.3)[1].tolist() == [[0, 1, -1]]  # mmdet's rule: 0.2 is too low
    # Both best boxes of object 0. An object without any overlap makes no box positive (torchvision would take all).
    assert match(iou, valid, 0.7, 0.3, 0.0)[1].tolist() == [[1, 1, 1]]
    assert match(iou[:, :2], valid, 0.7, 0.3, 0.0)[1].tolist() == [[1, 1]]


def test_an_image_without_objects_has_negatives_only() -> None:
    iou = torch.rand(2, 50, 4)
    valid = torch.tensor([[False] * 4, [True] * 4])
    for rescue in (None, 0.0, 0.3):
        assert (match(iou, valid, 0.5, 0.5, rescue)[1][0] == 0).all()


@pytest.mark.parametrize(
    ("positives", "negatives", "ignored", "expected"),
    [
        (40, 200, 10, (16, 48)),  # enough of both
        (5, 200, 10, (5, 59)),  # filled up with negatives
        (0, 200, 0, (0, 64)),  # no objects
        (40, 20, 100, (16, 20)),  # too few candidates: the remaining slots stay empty
        (3, 0, 0, (3, 0)),
        (0, 0, 100, (0, 0)),
        (30, 10, 0, (16, 10)),  # fewer boxes than requested: positives beyond their limit are not used
    ],
)
def test_sample_counts(positives: int, negatives: int, ignored: int, expected: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    assigned = torch.tensor([1] * positives + [0] * negatives + [-1] * ignored)
    assigned = torch.stack([assigned[torch.randperm(len(assigned), generator=generator)] for _ in range(3)])
    index, filled, positive = sample(assigned, 64, 16, random_keys)
    assert index.shape == (3, min(64, assigned.shape[1]))
    assert positive.sum(1).tolist() == [expected[0]] * 3
    assert filled.sum(1).tolist() == [sum(expected)] * 3
    chosen = assigned.gather(1, index)
    assert (chosen[positive] == 1).all()
    assert (chosen[filled & ~positive] == 0).all()
    assert not (positive & ~filled).any()
    for i in range(3):
        assert len(index[i].unique()) == index.shape[1]  # no duplicates
        assert positive[i, : expected[0]].all()  # positives first


def test_sampling_is_uniform() -> None:
    torch.manual_seed(0)
    assigned = torch.tensor([[1] * 10 + [0] * 20 + [-1] * 5]).expand(4000, -1)
    index, filled, _ = sample(assigned, 10, 4, random_keys)
    share = torch.zeros(4000, 35).scatter_add(1, index, filled.float()).mean(0)
    torch.testing.assert_close(share[:10], torch.full((10,), 0.4), rtol=0, atol=0.035)  # 4.5 standard deviations
    torch.testing.assert_close(share[10:30], torch.full((20,), 0.3), rtol=0, atol=0.033)
    assert (share[30:] == 0).all()


def test_a_key_of_0_can_be_chosen() -> None:
    index, filled, positive = sample(torch.tensor([[1, 0, -1]]), 3, 1, lambda shape, device: torch.zeros(shape))
    assert index[0, :2].tolist() == [0, 1]
    assert filled.tolist() == [[True, True, False]]
    assert positive.tolist() == [[True, False, False]]
