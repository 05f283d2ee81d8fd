"""Raw maps and proposals compared with the torchvision twin; and the detector's description."""

import json
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from twin import build_twin, conditioned_model, smooth_images

from directdet.models.backbones.builders import BACKBONES
from directdet.models.build import build_model, describe_model
from directdet.models.two_stage.config import RCNNConfig
from directdet.models.two_stage.network import RCNN
from directdet.models.two_stage.rpn import propose

RELATIVE = 1e-5


def same_maps(model: RCNN, twin: FasterRCNN, images: Tensor) -> None:
    raw = model(images)
    features = twin.backbone(images)
    objectness, deltas = twin.rpn.head(list(features.values()))
    logits, deltas = concat_box_prediction_layers(objectness, deltas)
    pairs = [*zip(raw.features, features.values(), strict=True)]
    pairs += [(raw.logits, logits.reshape(len(images), -1)), (raw.deltas, deltas.reshape(len(images), -1, 4))]
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= RELATIVE * theirs.abs().max()
    sizes = ImageList(images, [tuple(images.shape[2:])] * len(images))
    anchors = twin.rpn.anchor_generator(sizes, list(features.values()))[0]
    torch.testing.assert_close(raw.anchors, anchors, rtol=1e-6, atol=1e-5)
    assert sum(raw.level_sizes) == len(anchors)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
def test_raw_maps_of_resnet18(model: RCNN, twin: FasterRCNN, size: tuple[int, int], training: bool) -> None:
    model.train(training), twin.train(training)
    with torch.no_grad():
        same_maps(model, twin, smooth_images(2, size, 7))
    statistics = {k: v for k, v in model.backbone.state_dict().items() if "running" in k}
    theirs = twin.backbone.body.state_dict()
    for key, value in statistics.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_raw_maps_of_resnet50() -> None:
    config = RCNNConfig(num_classes=3, backbone="resnet50", masks=False, box_convs=0, box_features=64)
    model = conditioned_model(config, (128, 128))
    twin = build_twin(model)
    for training in (False, True):
        model.train(training), twin.train(training)
        with torch.no_grad():
            same_maps(model, twin, smooth_images(2, (128, 128), 7))


def first_of_equals(objectness: Tensor, per_level: list[int], most: int) -> Tensor:
    """The indices [N, K] of the best of each level; of equal ones the first, where torchvision leaves it open."""
    best, start = [], 0
    for values in objectness.split(per_level, 1):
        best.append(start + values.argsort(dim=1, descending=True, stable=True)[:, :most])
        start += values.shape[1]
    return torch.cat(best, 1)


def their_proposals(twin: FasterRCNN, images: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    most = twin.rpn.pre_nms_top_n()
    with mock.patch.object(twin.rpn, "_get_top_n_idx", lambda given, levels: first_of_equals(given, levels, most)):
        return twin.rpn(ImageList(images, sizes), twin.backbone(images))[0]


@pytest.mark.parametrize("single_nms", [False, True])
@pytest.mark.parametrize("kind", ["pictures", "smaller than the canvas", "blank", "noisy"])
def test_proposals_equal_torchvision(
    conditioned: RCNN, conditioned_twin: FasterRCNN, kind: str, single_nms: bool
) -> None:
    size, config = (160, 224), conditioned.config
    images = smooth_images(2, size, 11)
    sizes = [size, size]
    if kind == "smaller than the canvas":
        sizes = [(151, 224), (129, 197)]
        for image, (height, width) in zip(images, sizes, strict=True):
            image[:, height:], image[:, :, width:] = 0, 0
    elif kind == "blank":
        images = torch.zeros(2, 3, *size)
    elif kind == "noisy":
        images += 0.2 * torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        boxes, real, _ = propose(
            conditioned(images),
            torch.tensor(sizes, dtype=torch.float32),
            config.test_pre_nms,
            config.test_proposals,
            config.rpn_nms,
            single_nms,
        )
        theirs = their_proposals(conditioned_twin, images, sizes)
    for i, expected in enumerate(theirs):
        count = len(expected)
        assert real[i].sum() == count > 20
        assert real[i, :count].all()
        ours = boxes[i, :count]
        if kind == "blank":  # equal scores, whose order torchvision leaves open
            ours, expected = (rows[np.lexsort(rows.round(decimals=2).T.numpy())] for rows in (ours, expected))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)
        assert not boxes[i, count:].any()


def test_fewer_proposals_than_asked_for_are_padded(conditioned: RCNN, conditioned_twin: FasterRCNN) -> None:
    images = smooth_images(2, (64, 64), 3)
    twin = conditioned_twin
    with torch.no_grad():
        for single_nms in (False, True):
            boxes, real, _ = propose(conditioned(images), torch.full((2, 2), 64.0), 300, 1000, 0.5, single_nms)
            twin.rpn.nms_thresh, nms = 0.5, twin.rpn.nms_thresh
            twin.rpn._post_nms_top_n["testing"], count = 1000, twin.rpn._post_nms_top_n["testing"]
            theirs = their_proposals(twin, images, [(64, 64)] * 2)
            twin.rpn.nms_thresh, twin.rpn._post_nms_top_n["testing"] = nms, count
            assert boxes.shape[1] == sum([300, 192, 48, 12, 3])
            for i, expected in enumerate(theirs):
                assert real[i].sum() == len(expected) < boxes.shape[1]
                torch.testing.assert_close(boxes[i][real[i]], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_state_their_channels_and_strides(name: str) -> None:
    backbone = BACKBONES[name](32)
    with torch.no_grad():
        levels = backbone(torch.randn(1, 3, 96, 64))
    assert list(levels) == list(backbone.channels) == list(backbone.strides)
    for level, value in levels.items():
        stride = backbone.strides[level]
        assert value.shape == (1, backbone.channels[level], 96 // stride, 64 // stride)
    stages = backbone.stages()
    assert len(stages) == 5
    inside = {id(p) for stage in stages for module in stage for p in module.parameters()}
    outside = [key for key, p in backbone.named_parameters() if id(p) not in inside]
    assert all(key.startswith("norm") for key in outside) and bool(outside) == (
        name == "swin_t"
    )  # those of the outputs


def test_a_description_builds_the_same_network(small: RCNNConfig) -> None:
    description = json.loads(json.dumps(describe_model(small)))
    assert build_model(description).config == small


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"detector": "yolo"}, "detector: 'yolo' is not one of rcnn"),
        ({"backbone": "resnet19"}, r"model\.backbone: 'resnet19' is not one of resnet18, .*did you mean 'resnet18'"),
        ({"colour": 3}, r"model\.colour: unknown setting"),
    ],
)
def test_unknown_settings_are_refused(small: RCNNConfig, change: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_model({**describe_model(small), **change})


def test_the_last_layers_start_small() -> None:
    model = RCNN(RCNNConfig(num_classes=80, backbone="resnet18", width=8, fpn_channels=16))
    assert model.box_predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert model.box_predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))
