"""Detectors, images and targets shared by the tests of the models. Small, so that the suite takes under a minute."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import mmdet_twin
import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from twin import build_twin, conditioned_model

from directdet.models.parts.targets import Targets
from directdet.models.two_stage.config import RCNNConfig
from directdet.models.two_stage.network import RCNN

# torchvision's smooth L1 and its rule for the best anchor of an object; few boxes and small heads.
SMALL = RCNNConfig(
    num_classes=5,
    backbone="resnet18",
    box_convs=1,
    box_features=128,
    mask_convs=1,
    train_pre_nms=300,
    train_proposals=100,
    test_pre_nms=300,
    test_proposals=100,
    rpn_samples=64,
    roi_samples=32,
    mask_slots=8,
    rpn_min_positive_iou=0.0,
    smooth_l1_beta=1 / 9,
    rpn_smooth_l1_beta=1 / 9,
    detections=30,
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small() -> RCNNConfig:
    return SMALL


@pytest.fixture(scope="session")
def conditioned() -> RCNN:
    """A conditioned small Mask R-CNN, in evaluation mode; read-only."""
    return conditioned_model(SMALL, (128, 128))


@pytest.fixture
def model(conditioned: RCNN) -> RCNN:
    """A copy of the conditioned model that tests may modify."""
    return copy.deepcopy(conditioned)


@pytest.fixture(scope="session")
def conditioned_twin(conditioned: RCNN) -> FasterRCNN:
    """torchvision's detector with the weights of `conditioned`; read-only."""
    return build_twin(conditioned)


@pytest.fixture
def twin(conditioned_twin: FasterRCNN) -> FasterRCNN:
    """A copy of the conditioned twin that tests may modify."""
    return copy.deepcopy(conditioned_twin)


@pytest.fixture(scope="session")
def variant() -> Callable[..., RCNN]:
    """variant(model, **settings): the same weights with other settings, which must not affect any weight."""

    def make(model: RCNN, **settings: object) -> RCNN:
        other = copy.copy(model)
        other.config = replace(model.config, **settings)
        return other

    return make


@pytest.fixture(scope="session")
def targets_of() -> Callable[..., Targets]:
    """targets_of(counts, sizes): counts[i] random objects in image i, at random rows of the padding."""
    return make_targets


def make_targets(
    counts: list[int], sizes: list[tuple[int, int]], padded: int = 6, seed: int = 0, masks: bool = True
) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    images = len(counts)
    boxes, valid = torch.zeros(images, padded, 4), torch.zeros(images, padded, dtype=torch.bool)
    labels = torch.zeros(images, padded, dtype=torch.long)
    for i, (count, (height, width)) in enumerate(zip(counts, sizes, strict=True)):
        rows = torch.randperm(padded, generator=generator)[:count]
        corners = torch.rand(count, 2, 2, generator=generator).sort(1).values * torch.tensor([width - 16, height - 16])
        boxes[i, rows] = torch.cat([corners[:, 0], corners[:, 1] + 16], 1)
        labels[i, rows] = torch.randint(SMALL.num_classes, (count,), generator=generator)
        valid[i, rows] = True
    crops = _ellipse()[None, None].repeat(images, padded, 1, 1) * valid[..., None, None] if masks else None
    return Targets(boxes, labels, valid, torch.tensor(sizes, dtype=torch.float32), crops)


def _ellipse(side: int = 56) -> Tensor:
    position = (torch.arange(side) + 0.5) / side * 2 - 1
    return (position[:, None] ** 2 + position**2 <= 1).to(torch.uint8)


@pytest.fixture(scope="module")
def mmdet() -> None:
    """Skips the test where mmdet is not installed."""
    try:
        mmdet_twin.import_mmdet()
    except mmdet_twin.NoMmdet as error:
        pytest.skip(str(error))
