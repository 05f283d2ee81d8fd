"""Which anchors take part in training: none in padding that other images of a batch ask for, none across borders."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from twin import smooth_images

from directdet.data.augment.transforms import EdgesTransform, PretrainTransform
from directdet.data.loader import Padding, make_loader
from directdet.data.records import AnnotatedObject, Dataset, make_record
from directdet.data.sampling import Sampling
from directdet.models.parts.targets import Targets, match_boxes, random_keys, usable_anchors
from directdet.models.two_stage.network import RCNN
from directdet.models.two_stage.rpn import rpn_losses

CANVAS = (128, 192)
SIZES = [(60, 100), (128, 192)]  # height, width of the two images
PADDED = [(64, 128), (128, 192)]  # each padded to a multiple of 32 by itself
TargetsOf = Callable[..., Targets]


def with_padding(targets: Targets) -> Targets:
    return targets._replace(padded=torch.tensor(PADDED, dtype=torch.float32))


def valid_flags(model: RCNN, padded: tuple[int, int]) -> Tensor:
    """mmdet's valid flags: the cells of each level that lie in the image as padded by itself."""
    flags, shapes = [], len(model.anchor_shapes)
    for stride in model.strides:
        rows, columns = math.ceil(CANVAS[0] / stride), math.ceil(CANVAS[1] / stride)
        cells = torch.zeros(rows, columns, dtype=torch.bool)
        cells[: min(math.ceil(padded[0] / stride), rows), : min(math.ceil(padded[1] / stride), columns)] = True
        flags.append(cells[..., None].expand(-1, -1, shapes).reshape(-1))
    return torch.cat(flags)


def test_anchors_in_padding_are_those_without_mmdets_valid_flag(conditioned: RCNN, targets_of: TargetsOf) -> None:
    targets = with_padding(targets_of([2, 0], SIZES))
    anchors = conditioned(smooth_images(2, CANVAS, 3)).anchors.expand(2, -1, -1)
    usable = usable_anchors(anchors, targets)
    assert usable is not None
    assert torch.equal(usable, torch.stack([valid_flags(conditioned, padded) for padded in PADDED]))
    assert usable[1].all() and not usable[0].all()
    assert usable_anchors(anchors, targets._replace(padded=None)) is None
    # What is usable is assigned as if the rest did not exist; the rest is ignored.
    _, assigned = match_boxes(anchors, targets, 0.7, 0.3, 0.3, usable)
    own = usable[0]
    _, alone = match_boxes(anchors[:1, own], Targets(*(v if v is None else v[:1] for v in targets)), 0.7, 0.3, 0.3)
    assert torch.equal(assigned[0, own], alone[0])
    assert (assigned[0, ~own] == -1).all()
    assert (match_boxes(anchors, targets, 0.7, 0.3, 0.3)[1][0, ~own] == 0).any()  # else negatives


@pytest.mark.parametrize("cross_border", [True, False])
def test_the_rpn_learns_nothing_from_anchors_that_are_not_usable(
    conditioned: RCNN, variant: Callable[..., RCNN], targets_of: TargetsOf, cross_border: bool
) -> None:
    config = variant(conditioned, cross_border_anchors=cross_border, rpn_samples=4000).config
    targets = with_padding(targets_of([3, 2], SIZES))
    with torch.no_grad():
        raw = conditioned(smooth_images(2, CANVAS, 3))
    raw = raw._replace(logits=raw.logits.clone().requires_grad_())
    rpn_losses(config, raw, targets, random_keys)["rpn_class"].backward()
    learns = raw.logits.grad != 0
    anchors = raw.anchors
    for row, (height, width) in enumerate(SIZES):
        inside = (anchors >= 0).all(-1) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)
        allowed = valid_flags(conditioned, PADDED[row]) & (inside | cross_border)
        assert not learns[row, ~allowed].any()
        assert learns[row, allowed].any()
        assert learns[row, allowed & ~inside].any() == cross_border


@pytest.mark.parametrize(
    ("transform", "canvas", "padded"),
    [
        (EdgesTransform(60, 100, flip=0.0), (128, 128), [[64.0, 128.0], [128.0, 64.0]]),  # 60 x 100 and 100 x 60
        (PretrainTransform(96, (1.0, 1.0), flip=0.0), (96, 96), [[96.0, 96.0]] * 2),  # padded to a square by itself
    ],
)
def test_the_loader_tells_what_each_image_is_padded_to(
    tmp_path: Path, transform: EdgesTransform | PretrainTransform, canvas: tuple[int, int], padded: list[list[float]]
) -> None:
    import cv2

    records = []
    for number, (height, width) in enumerate([(120, 200), (200, 120)]):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))
        records.append(make_record(number, path, width, height, [AnnotatedObject(1, 0, [10, 10, 60, 60], 2500.0)]))
    dataset = Dataset(tmp_path, "train", "coco", ("a",), (1,), tuple(records))
    ((images, targets),) = make_loader(dataset, transform, Sampling(2), Padding(masks=False))
    assert images.shape[2:] == canvas
    assert sorted(targets["padded"].tolist()) == padded
