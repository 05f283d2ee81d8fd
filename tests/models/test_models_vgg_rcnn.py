"""Faster R-CNN on VGG-16's single map, with and without batch normalisation, compared with torchvision's."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from ssd_twin import same_detections
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import roi_align
from twin import conditioned_model, smooth_images, twin_detections
from twin_losses import Keys, twin_losses
from vgg_twin import OneMap, build_twin, same_layers

from directdet.models.backbones.builders import BACKBONES
from directdet.models.backbones.vgg import vgg16_conv5
from directdet.models.build import build_model, deploy_model, describe_model
from directdet.models.parts.fold import Folding, conv_norm_pairs, fold_batch_norm
from directdet.models.parts.roi_pool import level_of, pool_rois, pyramid_rows
from directdet.models.parts.targets import Targets
from directdet.models.two_stage.config import RCNNConfig
from directdet.models.two_stage.deploy import RCNNDeploy
from directdet.models.two_stage.loss import rcnn_losses
from directdet.models.two_stage.network import RCNN
from directdet.models.two_stage.rpn import propose

# torchvision's smooth L1 and its rule for the best anchor of an object; anchors that fit into small images.
SLIM = RCNNConfig(
    num_classes=4,
    backbone="vgg16",
    width=8,
    masks=False,
    pyramid=False,
    box_convs=0,
    box_features=64,
    anchor_scales=(1.5, 3.0, 6.0),
    rpn_min_positive_iou=0.0,
    rpn_smooth_l1_beta=1 / 9,
    smooth_l1_beta=1 / 9,
    train_pre_nms=300,
    train_proposals=100,
    test_pre_nms=300,
    test_proposals=60,
    rpn_samples=64,
    roi_samples=32,
    detections=30,
)
NORMS = ("bn", "none")
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def models() -> dict[str, RCNN]:
    """Conditioned networks with and without batch normalisation, in evaluation mode; read-only."""
    return {norm: conditioned_model(replace(SLIM, norm=norm), (128, 128)) for norm in NORMS}


# ---- The backbone


@pytest.mark.parametrize("norm", NORMS)
def test_the_map_is_conv5_3_of_torchvision(norm: str) -> None:
    """With torchvision's own weights, as loaded by --init imagenet."""
    torch.manual_seed(0)
    theirs = OneMap(8, norm == "bn").eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.bias, std=0.1)
    ours = vgg16_conv5(8, norm).eval()
    state = {name.replace("body.", "features."): value for name, value in theirs.state_dict().items()}
    missing, unexpected = ours.load_state_dict(ours.from_torchvision(state), strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        (expected,), found = theirs(images).values(), ours(images)
    assert list(found) == list(ours.channels) == list(ours.strides) == ["c4"]
    assert found["c4"].shape == (2, ours.channels["c4"], 96 // ours.strides["c4"], 64 // 16)
    assert (found["c4"] - expected).abs().max() <= RELATIVE * expected.abs().max()
    assert ours.from_torchvision(torchvision.models.resnet18(weights=None).state_dict()) == {}


def test_the_stages_hold_every_parameter_once() -> None:
    backbone = vgg16_conv5(8)
    parts = [p for modules in backbone.stages() for module in modules for p in module.parameters()]
    assert len(backbone.stages()) == 5
    assert sorted(map(id, parts)) == sorted(map(id, backbone.parameters()))


def test_convolutions_start_as_xavier_has_it() -> None:
    torch.manual_seed(0)
    convs = [m for m in vgg16_conv5(16, "none").modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 13
    for conv in convs:
        bound = (6 / (9 * (conv.in_channels + conv.out_channels))) ** 0.5
        assert 0.9 * bound < conv.weight.abs().max() <= bound and not conv.bias.any()


# ---- The network


def test_the_published_network() -> None:
    """VGG-16's own layers, including fc6 and fc7; three ratios times three sizes of anchors per cell."""
    with torch.device("meta"):
        config = RCNNConfig(20, "vgg16", norm="none", masks=False, pyramid=False, box_convs=0, box_features=4096)
        model, theirs = RCNN(replace(config, anchor_scales=(8.0, 16.0, 32.0))), torchvision.models.vgg16()
        raw = model(torch.empty(1, 3, 608, 1024))

    def count(*parts: nn.Module) -> int:
        return sum(p.numel() for part in parts for p in part.parameters())

    assert count(model.backbone) == count(theirs.features)
    assert count(model.box_head) == count(theirs.classifier[0], theirs.classifier[3])
    assert model.box_predictor.bbox_pred.out_features == 21 * 4  # one box per class
    assert [tuple(f.shape) for f in raw.features] == [(1, 512, 38, 64)]
    assert raw.level_sizes == [38 * 64 * 9] and raw.logits.shape == (1, 38 * 64 * 9)


def test_anchors_are_of_every_scale_and_ratio() -> None:
    model = RCNN(replace(SLIM, anchor_scales=(8.0, 16.0, 32.0)))
    cell = model.anchors([(2, 3)]).reshape(6, 9, 4)
    sides = cell[..., 2:] - cell[..., :2]
    assert sides[0, 3:6].tolist() == [[128, 128], [256, 256], [512, 512]]
    torch.testing.assert_close(sides[0].prod(-1).sqrt(), torch.tensor([128.0, 256, 512] * 3))
    torch.testing.assert_close(sides[0, :, 1] / sides[0, :, 0], torch.tensor([0.5, 1, 2]).repeat_interleave(3))
    centres = (cell[..., 2:] + cell[..., :2])[:, 0] / 2
    torch.testing.assert_close(centres, torch.tensor([[x, y] for y in (0.0, 16.0) for x in (0.0, 16.0, 32.0)]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [False, True])
def test_raw_maps_equal_torchvision(models: dict[str, RCNN], norm: str, training: bool) -> None:
    model = copy.deepcopy(models[norm]).train(training)
    twin, images = build_twin(model), smooth_images(2, (96, 160), 7)
    with torch.no_grad():
        raw, features = model(images), list(twin.backbone(images).values())
        logits, deltas = concat_box_prediction_layers(*twin.rpn.head(features))
        anchors = twin.rpn.anchor_generator(ImageList(images, [(96, 160)] * 2), features)[0]
    pairs = [*zip(raw.features, features, strict=True)]
    pairs += [(raw.logits, logits.reshape(2, -1)), (raw.deltas, deltas.reshape(2, -1, 4))]
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= RELATIVE * theirs.abs().max()
    torch.testing.assert_close(raw.anchors, anchors, rtol=1e-6, atol=1e-5)
    assert raw.level_sizes == [6 * 10 * 9] == [len(anchors)]


@pytest.mark.parametrize("single_nms", [False, True])
def test_proposals_equal_torchvision(models: dict[str, RCNN], single_nms: bool) -> None:
    model, size, config = models["bn"], (160, 224), SLIM
    images, sizes = smooth_images(2, size, 11), [(151, 224), (129, 197)]
    with torch.no_grad():
        limit = torch.tensor(sizes, dtype=torch.float32)
        boxes, real, _ = propose(
            model(images), limit, config.test_pre_nms, config.test_proposals, config.rpn_nms, single_nms
        )
        twin = build_twin(model)
        theirs = twin.rpn(ImageList(images, sizes), twin.backbone(images))[0]
    for i, expected in enumerate(theirs):
        assert real[i].sum() == len(expected) > 20
        torch.testing.assert_close(boxes[i][real[i]], expected, rtol=0, atol=1e-3)


# ---- RoI pooling from one map


def test_pooling_from_one_map_is_roi_align() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 8, 20, 30, generator=generator)
    corners = torch.rand(40, 2, 2, generator=generator).sort(1).values * torch.tensor([480.0, 320.0])
    whole = torch.tensor([[0.0, 0, 480, 320], [-40, -30, 530, 380], [10.2, 11.7, 10.9, 11.8]])  # largest, beyond, tiny
    boxes, image = torch.cat([corners.flatten(1), whole]).repeat(2, 1), torch.arange(2).repeat_interleave(43)
    expected = roi_align(features, torch.cat([image[:, None], boxes], 1), 7, 1 / 16, 2, aligned=False)
    for portable in (False, True):
        found = pool_rois(pyramid_rows([features], [16]), boxes, image, 7, portable)
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()  # see test_models_roi_pool


def test_a_level_that_is_not_there_is_the_last() -> None:
    sides = torch.tensor([20.0, 112, 224, 448, 2000])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    assert [level_of(boxes, n).tolist() for n in (1, 2, 3)] == [[0] * 5, [0, 1, 1, 1, 1], [0, 1, 2, 2, 2]]
    assert torch.equal(level_of(boxes, 4), level_of(boxes)) and level_of(boxes).tolist() == [0, 1, 2, 3, 3]


# ---- Losses


@pytest.mark.parametrize("norm", NORMS)
def test_losses_and_gradients_equal_torchvision(
    models: dict[str, RCNN], targets_of: Callable[..., Targets], monkeypatch: pytest.MonkeyPatch, norm: str
) -> None:
    model = copy.deepcopy(models[norm]).train()
    twin, images = build_twin(model), smooth_images(2, (160, 224), 21)
    targets = targets_of([2, 3], [(151, 224), (129, 197)], masks=False)
    targets = targets._replace(labels=targets.labels.clamp(max=SLIM.num_classes - 1))
    losses, counts = rcnn_losses(model, model(images), targets, Keys(3))
    theirs = twin_losses(twin, images, targets, Keys(3), SLIM.train_proposals, monkeypatch)
    assert losses.keys() == theirs.keys() == {"rpn_class", "rpn_box", "class", "box"}
    for name, expected in theirs.items():  # class and box depend on RoI pooling
        assert (losses[name] - expected).abs() <= 1e-4 * expected.abs() and losses[name] > 1e-3, name
    assert counts["positives"] >= 5
    sum(losses.values()).backward()
    sum(theirs.values()).backward()
    for reference, ours in same_layers(twin, model):
        expected = dict(reference.named_parameters())
        for name, parameter in ours.named_parameters():
            gradient = expected[name].grad
            # As in test_models_losses: rounding may switch a ReLU; real errors are 1e-1 and more.
            assert (parameter.grad - gradient).norm() <= 5e-3 * gradient.norm(), (ours, name)


@pytest.mark.parametrize("norm", ["bn", "none", "gn"])
def test_gradients_reach_every_parameter(targets_of: Callable[..., Targets], norm: str) -> None:
    torch.manual_seed(0)
    model = RCNN(replace(SLIM, norm=norm)).train()
    norms = sum(isinstance(m, nn.BatchNorm2d | nn.GroupNorm) for m in model.backbone.modules())
    assert norms == (0 if norm == "none" else 13)
    targets = targets_of([2, 3], [(128, 128)] * 2, masks=False)
    targets = targets._replace(labels=targets.labels.clamp(max=SLIM.num_classes - 1))
    losses, _ = rcnn_losses(model, model(smooth_images(2, (128, 128), 5)), targets, Keys(1))
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


# ---- Deployed


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_detections_equal_torchvision(models: dict[str, RCNN], norm: str, portable: bool) -> None:
    images = smooth_images(2, (96, 160), 7)
    with torch.no_grad():
        theirs = twin_detections(build_twin(models[norm]), images)
        outputs = RCNNDeploy(models[norm], (96, 160), portable)(images)
    assert all(len(found["labels"].unique()) >= 3 for found in theirs)
    same_detections(outputs, theirs, least=10, score=1e-4)


@torch.no_grad()
def test_folding_keeps_the_maps(models: dict[str, RCNN]) -> None:
    folded, images = copy.deepcopy(models["bn"]), smooth_images(1, (96, 160), 8)
    folding = fold_batch_norm(folded, conv_norm_pairs(folded.eval(), images))
    assert folding == Folding(13, ())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    before, after = models["bn"](images), folded(images)
    for ours, expected in ((after.features[0], before.features[0]), (after.logits, before.logits)):
        assert (ours - expected).abs().max() <= RELATIVE * expected.abs().max()
    plain = copy.deepcopy(models["none"])
    assert conv_norm_pairs(plain.eval(), images) == []


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_the_exported_graph_detects_the_same(models: dict[str, RCNN], tmp_path: Path, norm: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from directdet.export.onnx_graph import write_onnx

    path, images = tmp_path / "model.onnx", smooth_images(1, (96, 160), 9)
    facts = write_onnx(models[norm], (96, 160), 1, path)  # refuses operators that some runtimes lack
    assert facts.folded == (13 if norm == "bn" else 0)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))
    with torch.no_grad():
        num, boxes, scores, labels = RCNNDeploy(models[norm], (96, 160))(images)
    count = num[0].item()
    expected = {"boxes": boxes[0, :count], "scores": scores[0, :count], "labels": labels[0, :count] + 1}
    same_detections(outputs, [expected], least=10, score=1e-4)


# ---- Descriptions


def test_a_description_builds_the_same_network() -> None:
    description = json.loads(json.dumps(describe_model(SLIM)))
    model = build_model(description)
    assert model.config == SLIM and isinstance(model.config.anchor_scales, tuple)
    assert deploy_model(model, (64, 96)).anchors.shape == (4 * 6 * 9, 4)


def test_an_older_description_is_of_a_pyramid_with_one_scale() -> None:
    model = build_model({"detector": "rcnn", "num_classes": 3, "backbone": "resnet18", "width": 8, "anchor_scale": 4.0})
    assert model.config.pyramid and model.roi_strides == [4, 8, 16, 32] and model.strides == [4, 8, 16, 32, 64]
    assert model.anchor_shapes[:, 0].tolist() == [4.0] * 3


def test_a_pyramid_on_one_map_pools_from_its_first() -> None:
    model = RCNN(replace(SLIM, pyramid=True, fpn_channels=16)).eval()
    images = smooth_images(1, (64, 96), 3)
    with torch.no_grad():
        raw = model(images)
        outputs = RCNNDeploy(model, (64, 96))(images)
    assert model.strides == [16, 32] and model.roi_strides == [16] and len(raw.features) == 2
    assert raw.features[0].shape == (1, 16, 4, 6) and all(v.isfinite().all() for v in outputs)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"backbone": "resnet50", "norm": "none"}, r"model\.norm: 'none' requires vgg16, not resnet50"),
        ({"backbone": "swin_t", "pyramid": True, "norm": "none"}, r"model\.norm: 'none' requires vgg16, not swin_t"),
        ({"backbone": "resnet50", "norm": "bn"}, r"model\.pyramid: false requires vgg16, not resnet50"),
        ({"backbone": "vgg19"}, "'vgg19' is not one of resnet18, .*did you mean 'vgg16'"),
    ],
)
def test_wrong_settings_are_refused(change: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_model({**describe_model(SLIM), **change})


def test_retinanet_needs_a_pyramid() -> None:
    assert "vgg16" not in BACKBONES
    with pytest.raises(ValueError, match="'vgg16' is not one of resnet18"):
        build_model({"detector": "retinanet", "num_classes": 3, "backbone": "vgg16"})
