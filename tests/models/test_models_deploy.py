"""The deployed graph compared with torchvision's own inference with the same weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou
from twin import build_twin, conditioned_model, smooth_images, twin_detections

from directdet.models.two_stage.config import RCNNConfig
from directdet.models.two_stage.deploy import RCNNDeploy
from directdet.models.two_stage.network import RCNN

Variant = Callable[..., RCNN]


def detect(model: RCNN, images: Tensor, portable: bool) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return RCNNDeploy(model, tuple(images.shape[2:]), portable)(images)


def check(outputs: tuple[Tensor, ...], theirs: list[dict], config: RCNNConfig, least: int = 10) -> None:
    """Every detection has exactly one counterpart with the same label, box, score and mask; the other rows are 0."""
    num, boxes, scores, labels, *masks = outputs
    assert num.dtype == labels.dtype == torch.int32
    assert num.shape == (len(theirs), 1)
    assert len(masks) == config.masks
    for i, expected in enumerate(theirs):
        count = num[i].item()
        assert count == len(expected["boxes"]) >= least
        assert (scores[i, :count].diff() <= 0).all()
        assert not boxes[i, count:].any() and not scores[i, count:].any() and not labels[i, count:].any()
        if not count:
            continue
        iou = box_iou(boxes[i, :count], expected["boxes"])
        iou[labels[i, :count, None] + 1 != expected["labels"]] = 0
        value, partner = iou.max(1)
        assert (value > 0.99).all()
        assert len(partner.unique()) == count
        torch.testing.assert_close(boxes[i, :count], expected["boxes"][partner], rtol=0, atol=0.01)
        torch.testing.assert_close(scores[i, :count], expected["scores"][partner], rtol=0, atol=1e-4)
        if config.masks:
            assert not masks[0][i, count:].any()
            torch.testing.assert_close(masks[0][i, :count], expected["masks"][partner, 0], rtol=0, atol=1e-3)


def pictures(kind: str) -> Tensor:
    if kind == "blank":
        return torch.zeros(1, 3, 128, 128)
    if kind == "noise":
        return torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    size = {"square": (128, 128), "wide": (96, 160), "tall": (256, 64)}[kind]
    return smooth_images(2, size, 7)


@pytest.fixture(scope="module")
def expected(conditioned_twin: FasterRCNN) -> Callable[[str], list[dict]]:
    """torchvision's detections of pictures(kind), computed once."""
    known: dict[str, list[dict]] = {}

    def find(kind: str) -> list[dict]:
        if kind not in known:
            with torch.no_grad():
                known[kind] = twin_detections(conditioned_twin, pictures(kind))
        return known[kind]

    return find


def test_the_oracle_is_worth_its_name(expected: Callable[[str], list[dict]]) -> None:
    found = expected("square") + expected("wide")
    assert all(len(d["boxes"]) == 30 for d in found)
    assert all(len(d["labels"].unique()) >= 3 for d in found)
    assert all(d["scores"].max() < 0.9999 and d["scores"].max() - d["scores"].min() > 0.2 for d in found)
    masks = torch.cat([d["masks"] for d in found])
    assert masks.std() > 0.2
    assert 0.2 < (masks > 0.5).float().mean() < 0.8


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("kind", ["square", "wide", "tall", "blank", "noise"])
def test_every_detection_is_torchvisions(
    conditioned: RCNN, expected: Callable[[str], list[dict]], kind: str, portable: bool
) -> None:
    check(detect(conditioned, pictures(kind), portable), expected(kind), conditioned.config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"box_convs": 4, "mask_convs": 4, "test_proposals": 40, "detections": 10},  # the paper's heads
        {"box_convs": 0},
        {"masks": False},
    ],
    ids=["paper", "two-layer box head", "no masks"],
)
def test_other_heads(settings: dict) -> None:
    defaults = {"num_classes": 4, "backbone": "resnet18", "box_convs": 1, "mask_convs": 1, "detections": 20}
    config = RCNNConfig(**{**defaults, "test_pre_nms": 300, "test_proposals": 60, **settings})
    model = conditioned_model(config, (128, 128), seed=1)
    images = smooth_images(1, (128, 128), 5)
    with torch.no_grad():
        theirs = twin_detections(build_twin(model), images)
    for portable in (False, True):
        check(detect(model, images, portable), theirs, config)


@pytest.mark.slow
def test_one_class_and_a_small_canvas_have_fewer_candidates_than_wanted() -> None:
    config = RCNNConfig(num_classes=1, backbone="resnet18", box_convs=1, mask_convs=1, box_features=64)
    model = conditioned_model(config, (64, 64))
    images = smooth_images(1, (32, 32), 4)  # 1000 proposals are requested, but there are far fewer anchors
    with torch.no_grad():
        theirs = twin_detections(build_twin(model), images)
    for portable in (False, True):
        outputs = detect(model, images, portable)
        check(outputs, theirs, config, least=3)
        assert outputs[1].shape == (1, 100, 4)


@pytest.mark.parametrize("portable", [False, True])
def test_nothing_found_is_all_zero(conditioned: RCNN, variant: Variant, portable: bool) -> None:
    outputs = detect(variant(conditioned, score_threshold=0.9999), smooth_images(2, (64, 64), 7), portable)
    assert not any(value.any() for value in outputs)
    assert [tuple(v.shape) for v in outputs] == [(2, 1), (2, 30, 4), (2, 30), (2, 30), (2, 30, 28, 28)]


def test_candidates_limit_only_the_worst(conditioned: RCNN, variant: Variant) -> None:
    """A few of the best candidates lead to the same best detections."""
    images = smooth_images(1, (128, 128), 7)
    all_of_them = detect(conditioned, images, False)
    few = detect(variant(conditioned, candidates=60), images, False)
    count = few[0].item()
    assert 5 < count <= 30
    for ours, theirs in zip(few[1:4], all_of_them[1:4], strict=True):
        assert torch.equal(ours[:, :count], theirs[:, :count])


def test_there_are_never_more_rows_than_candidates(conditioned: RCNN, variant: Variant) -> None:
    outputs = detect(variant(conditioned, candidates=12), smooth_images(1, (64, 64), 7), False)
    assert 0 < outputs[0].item() <= 12
    assert outputs[1].shape == (1, 12, 4)


def test_each_image_of_a_batch_stands_alone(conditioned: RCNN) -> None:
    images = torch.cat([smooth_images(1, (128, 128), 7), torch.zeros(1, 3, 128, 128)])
    together = detect(conditioned, images, True)
    for i in range(2):
        alone = detect(conditioned, images[i : i + 1], True)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i], b[0], rtol=1e-4, atol=1e-3)


def test_odd_canvases_are_refused(conditioned: RCNN) -> None:
    with pytest.raises(ValueError, match="multiples of 32, not 100 and 128"):
        RCNNDeploy(conditioned, (100, 128))
