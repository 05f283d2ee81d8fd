"""Cascade R-CNN compared with a plain loop over images and stages that uses torchvision's operators."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_models_deploy import check
from test_models_step import NoHostWait, nms_runs
from torch import Tensor
from twin import conditioned_model, smooth_images
from twin_cascade import PUBLISHED, box_keys, conditioned_cascade, loop_detections, loop_losses
from twin_losses import Keys

from directdet.models.build import build_model, describe_model
from directdet.models.parts.boxes import take
from directdet.models.parts.targets import Targets
from directdet.models.two_stage import cascade_loss
from directdet.models.two_stage.cascade import Cascade
from directdet.models.two_stage.cascade_deploy import CascadeDeploy
from directdet.models.two_stage.cascade_loss import cascade_losses
from directdet.models.two_stage.config import CascadeConfig, RCNNConfig
from directdet.models.two_stage.loss import rcnn_losses, training_proposals
from directdet.models.two_stage.network import RCNN

SIZE = (128, 128)
NARROW = {"width": 16, "fpn_channels": 32, "box_features": 64, "mask_channels": 32, "box_convs": 0}
TargetsOf = Callable[..., Targets]


@pytest.fixture(scope="module")
def trunk(small: RCNNConfig) -> RCNN:
    """The loop runs our own layers, so their width may differ from torchvision's."""
    return conditioned_model(replace(small, **NARROW), SIZE)


@pytest.fixture(scope="module")
def cascade(trunk: RCNN) -> Cascade:
    """With masks; read-only."""
    return conditioned_cascade(trunk, SIZE)


@pytest.fixture(scope="module")
def boxes_only(trunk: RCNN) -> Cascade:
    return conditioned_cascade(trunk, SIZE, masks=False)


@pytest.fixture
def sampled_by_box(monkeypatch: pytest.MonkeyPatch) -> None:
    original = cascade_loss.sample_rois

    def sample_rois(config, boxes, real, targets, iou, weights, draw):
        keys = box_keys(torch.cat([boxes, targets.boxes], 1))
        return original(config, boxes, real, targets, iou, weights, lambda shape, device: keys.reshape(shape))

    monkeypatch.setattr(cascade_loss, "sample_rois", sample_rois)


def detect(model: Cascade, images: Tensor, portable: bool) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return CascadeDeploy(model, tuple(images.shape[2:]), portable)(images)


def near_proposals(model: Cascade, images: Tensor, targets: Targets) -> Targets:
    """Objects moved close to proposals, so that every stage has positives other than the ground-truth boxes."""
    with torch.no_grad():
        boxes, _, _ = training_proposals(model.config, model(images), targets)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    every_fourth = area.argsort(1, descending=True)[:, ::4][:, : targets.boxes.shape[1]]
    return targets._replace(boxes=take(boxes, every_fourth) * 0.98 * targets.valid[..., None])


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "no masks"])
@pytest.mark.parametrize(
    ("objects", "size", "sizes"),
    [
        ([10, 0], SIZE, [SIZE, SIZE]),
        ([2, 11], (160, 224), [(151, 224), (129, 197)]),
        ([0, 0], SIZE, [SIZE, SIZE]),
    ],
    ids=["one without objects", "odd sizes", "no objects"],
)
def test_losses_and_gradients_equal_the_loop(
    cascade: Cascade,
    boxes_only: Cascade,
    targets_of: TargetsOf,
    sampled_by_box: None,
    masks: bool,
    objects: list[int],
    size: tuple[int, int],
    sizes: list[tuple[int, int]],
) -> None:
    model = cascade if masks else boxes_only
    images = smooth_images(2, size, 22)
    targets = near_proposals(model, images, targets_of(objects, sizes, padded=12, masks=masks))
    losses, counts = cascade_losses(model, model(images), targets, Keys(3))
    theirs, stages = loop_losses(model, images, targets, Keys(3))
    assert losses.keys() == theirs.keys() and len(losses) == (11 if masks else 8)
    for name, expected in theirs.items():
        assert losses[name].shape == () and losses[name].isfinite()
        assert (losses[name] - expected).abs() <= 1e-4 * expected.abs(), name
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad(sum(losses.values()), parameters.values())
    expected = torch.autograd.grad(sum(theirs.values()), parameters.values(), materialize_grads=True)
    for name, gradient, reference in zip(parameters, ours, expected, strict=True):
        # As in the tests of R-CNN's losses: rounding may switch a ReLU; real errors are 1e-1 and more.
        assert (gradient - reference).norm() <= 5e-3 * reference.norm(), name
    assert counts["positives"] == sum((s["labels"] > 0).sum() for s in stages[0])
    assert counts.get("mask_dropped", 0) == 0 and ("mask_dropped" in counts) == masks
    assert all((value > 1e-4) == (sum(objects) > 0 or "class" in name) for name, value in losses.items())
    if not sum(objects):
        return
    # The comparison is meaningful only if stages 2 and 3 have positives, both ground-truth boxes and others.
    for samples in stages:
        assert any(s["candidates"] > len(s["rois"]) == model.config.roi_samples for s in samples)
        assert any(s["own"].any() for s in samples)
        assert any((s["labels"][~s["own"]] > 0).any() for s in samples)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("kind", ["square", "wide", "blank", "no masks"])
def test_every_detection_is_the_loops(cascade: Cascade, boxes_only: Cascade, kind: str, portable: bool) -> None:
    model = boxes_only if kind == "no masks" else cascade
    images = torch.zeros(1, 3, *SIZE) if kind == "blank" else smooth_images(2, (96, 160) if kind == "wide" else SIZE, 7)
    theirs = loop_detections(model, images)
    check(detect(model, images, portable), theirs, model.config)
    assert kind == "blank" or all(d["scores"].max() < 0.99 and len(d["labels"].unique()) >= 3 for d in theirs)


def test_nothing_found_is_all_zero(cascade: Cascade, variant: Callable[..., Cascade]) -> None:
    outputs = detect(variant(cascade, score_threshold=0.9999), smooth_images(2, (64, 64), 7), False)
    assert not any(value.any() for value in outputs)
    assert [tuple(v.shape) for v in outputs] == [(2, 1), (2, 30, 4), (2, 30), (2, 30), (2, 30, 28, 28)]


def test_padding_takes_no_place_among_the_candidates(cascade: Cascade, variant: Callable[..., Cascade]) -> None:
    """With more proposals requested than exist, and few candidates, the best detections stay the same.

    For this image the heads give the empty boxes of padding higher scores than all candidates but one.
    """
    images = smooth_images(1, (64, 64), 5)
    everything = detect(variant(cascade, test_proposals=1000, candidates=5000), images, False)
    few = detect(variant(cascade, test_proposals=1000, candidates=60), images, False)
    count = few[0].item()
    assert 5 < count <= 30
    for ours, theirs in zip(few[1:4], everything[1:4], strict=True):
        assert torch.equal(ours[:, :count], theirs[:, :count])


def test_the_first_stage_is_an_rcnn_with_one_box_for_all_classes(
    boxes_only: Cascade, trunk: RCNN, targets_of: TargetsOf
) -> None:
    config = replace(trunk.config, masks=False, smooth_l1_beta=1.0)
    rcnn = RCNN(config).eval()
    rcnn.load_state_dict(boxes_only.state_dict(), strict=False)
    rcnn.box_head.load_state_dict(boxes_only.box_heads[0].state_dict())
    rcnn.box_predictor.cls_score.load_state_dict(boxes_only.box_predictors[0].cls_score.state_dict())
    images, targets = smooth_images(2, SIZE, 21), targets_of([4, 0], [SIZE] * 2)
    with torch.no_grad():
        for name, repeats in (("weight", (config.num_classes + 1, 1)), ("bias", (config.num_classes + 1,))):
            agnostic = getattr(boxes_only.box_predictors[0].bbox_pred, name)
            getattr(rcnn.box_predictor.bbox_pred, name).copy_(agnostic.repeat(*repeats))
        raw = rcnn(images)
        theirs, counts = rcnn_losses(rcnn, raw, targets, Keys(3))
        ours, watched = cascade_losses(boxes_only, raw, targets, Keys(3))
    for name in ("class", "box"):
        torch.testing.assert_close(ours[f"{name}1"], theirs[name], rtol=1e-6, atol=0)
    assert watched["positives"] == counts["positives"]


def test_nothing_flows_through_refined_boxes(cascade: Cascade, targets_of: TargetsOf) -> None:
    losses, _ = cascade_losses(cascade, cascade(smooth_images(1, SIZE, 1)), targets_of([3], [SIZE]))
    named = dict(cascade.named_parameters())
    for stage in (1, 2, 3):
        alone = sum(value for name, value in losses.items() if name.endswith(str(stage)))
        gradients = torch.autograd.grad(alone, named.values(), allow_unused=True, retain_graph=True)
        for name, gradient in zip(named, gradients, strict=True):
            part = name.split(".")
            reached = part[0] in ("backbone", "fpn") or (part[0] != "rpn_head" and part[1] == str(stage - 1))
            assert (gradient is not None) == reached, (stage, name)


def step(model: Cascade, images: Tensor, targets: Targets, draw: Callable[..., Tensor]) -> Tensor:
    losses, _ = cascade_losses(model, model(images), targets, draw)
    return sum(losses.values())


class Given:
    """Keys by shape, created on first use, so that a function traced afterwards draws no random numbers."""

    def __init__(self) -> None:
        self.values: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, shape: torch.Size, device: torch.device) -> Tensor:
        if tuple(shape) not in self.values:
            self.values[tuple(shape)] = Keys(len(self.values))(shape, device)
        return self.values[tuple(shape)]


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
def test_the_step_is_one_graph(cascade: Cascade, targets_of: TargetsOf, fresh_compiler: None) -> None:
    images, targets, keys = smooth_images(2, SIZE, 1), targets_of([3, 0], [SIZE] * 2), Given()
    with torch.no_grad():
        expected = step(cascade, images, targets, keys)
        compiled = torch.compile(step, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(cascade, images, targets, keys), expected, rtol=1e-5, atol=0)
        # Other objects, the same graph: it is not specialised for the values of the targets.
        with torch.compiler.set_stance("fail_on_recompile"):
            assert compiled(cascade, images, targets_of([0, 5], [SIZE] * 2), keys).isfinite()


@pytest.mark.slow
def test_deployment_is_one_graph(cascade: Cascade, fresh_compiler: None) -> None:
    images, deploy = smooth_images(1, SIZE, 1), CascadeDeploy(cascade, SIZE, portable=True)
    with torch.no_grad():
        expected = deploy(images)
        outputs = torch.compile(deploy, fullgraph=True, backend="eager")(images)
    assert expected[0].item() > 5
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_only_the_end_of_nms_waits_for_the_host_and_every_parameter_learns(
    cascade: Cascade, targets_of: TargetsOf, variant: Callable[..., Cascade]
) -> None:
    model = variant(cascade, rpn_samples=5000)  # all anchors, since the two coarsest levels have few
    parameters = dict(model.named_parameters())
    targets = targets_of([6, 6], [SIZE] * 2)
    with NoHostWait():
        gradients = torch.autograd.grad(step(model, smooth_images(2, SIZE, 1), targets, Keys()), parameters.values())
    for name, gradient in zip(parameters, gradients, strict=True):
        assert gradient.isfinite().all() and gradient.any(), name
    for portable in (False, True):
        with torch.no_grad(), NoHostWait(looks=nms_runs(cascade, smooth_images(2, SIZE, 1), portable)):
            CascadeDeploy(cascade, SIZE, portable)(smooth_images(2, SIZE, 1))


def test_what_finds_no_mask_slot_is_counted_over_the_stages(
    cascade: Cascade, targets_of: TargetsOf, variant: Callable[..., Cascade]
) -> None:
    targets = targets_of([6, 0], [SIZE] * 2)
    with torch.no_grad():
        raw = cascade(smooth_images(2, SIZE, 26))
        losses, counts = cascade_losses(variant(cascade, mask_slots=1), raw, targets, Keys(1))
    # With six objects, each stage has six to eight positives; two of them get a slot.
    assert 3 * 4 <= counts["mask_dropped"] <= 3 * 6
    assert all(losses[f"mask{stage}"].isfinite() for stage in (1, 2, 3))


def test_parameters_are_the_published_ones() -> None:
    """mmdet counts 69.17 M and 77.10 M trainable parameters: without the stem and the first stage, which it freezes."""
    frozen = 225_344
    with torch.device("meta"):
        plain, masked = (Cascade(CascadeConfig(num_classes=80, masks=masks)) for masks in (False, True))
    count, with_masks = (sum(p.numel() for p in model.parameters()) for model in (plain, masked))
    stages = (plain.backbone.stages()[0], plain.backbone.stages()[1])
    assert frozen == sum(p.numel() for stage in stages for module in stage for p in module.parameters())
    assert count - frozen == 69_169_422
    # Ours also predict a background mask: 257 more in each of three heads.
    assert with_masks - frozen - 3 * 257 == 77_099_262


def test_defaults_are_published_and_descriptions_build_the_same(cascade: Cascade) -> None:
    config = CascadeConfig(num_classes=80)
    assert config.stage_positive_ious == tuple(iou for iou, _, _ in PUBLISHED)
    assert config.stage_loss_weights == tuple(weight for _, weight, _ in PUBLISHED)
    assert (config.train_proposals, config.roi_samples, config.rpn_smooth_l1_beta) == (2000, 512, 1 / 9)
    description = json.loads(json.dumps(describe_model(cascade.config)))
    torch.manual_seed(0)  # few weights: other seeds may be off by a tenth
    again = build_model(description)
    assert again.config == cascade.config and isinstance(again, Cascade)
    for predictor in again.box_predictors:
        assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    with pytest.raises(ValueError, match=r"model\.stage_loss_weights: \(1\.0, 0\.5\) is not 3 numbers"):
        CascadeConfig(num_classes=80, stage_loss_weights=(1.0, 0.5))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cascade, Path]:
    from directdet.export.onnx_graph import write_onnx

    few = {"mask_convs": 1, "test_pre_nms": 100, "test_proposals": 60, "candidates": 100, "detections": 30}
    trunk = conditioned_model(RCNNConfig(4, backbone="resnet18", **NARROW, **few), (96, 160))
    model = conditioned_cascade(trunk, (96, 160))
    path = tmp_path_factory.mktemp("cascade") / "model.onnx"
    write_onnx(model, (96, 160), 1, path)
    return model, path


@pytest.mark.slow
def test_the_exported_graph_detects_the_same(exported: tuple[Cascade, Path]) -> None:
    import onnxruntime

    model, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for seed in (5, 6):  # images that the graph was not traced with
        images = smooth_images(1, (96, 160), seed)
        expected = [value.numpy() for value in detect(model, images, False)]
        found = session.run(None, {"images": images.numpy()})
        assert expected[0].item() > 5
        for ours, theirs, tolerance in zip(found, expected, (0, 0.01, 1e-4, 0, 1e-3), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_an_engine_is_built(exported: tuple[Cascade, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from directdet.export.tensorrt import build_engine

    facts = build_engine("tensorrt-rtx", exported[1], tmp_path / "model.engine", ("8.9",))
    assert facts.compute_capabilities == ("8.9",)
    assert (tmp_path / "model.engine").stat().st_size > 100_000
