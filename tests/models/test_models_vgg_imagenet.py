"""torchvision's ImageNet VGG-16 converted to SSD's truncated one."""

import pytest
import torch
import torchvision
from torch import nn

from directdet.models.backbones.vgg import vgg16
from directdet.models.build import build_model
from directdet.train.prepare import load_weights


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "name", "last"), [("none", "vgg16", 23), ("bn", "vgg16_bn", 33)])
def test_conv4_3_is_that_of_torchvision(norm: str, name: str, last: int) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.bias, std=0.1)
    ours = vgg16(norm=norm).eval()
    missing, unexpected = ours.load_state_dict(ours.from_torchvision(theirs.state_dict()), strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = theirs.features[:last](images), ours(images)["s8"]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    fc7 = theirs.state_dict()["classifier.3.weight"]
    assert torch.equal(ours.fc7.conv.weight[5, 7, 0, 0], fc7[20, 28])


def test_another_network_gives_nothing() -> None:
    assert vgg16(norm="bn", width=8).from_torchvision(torchvision.models.resnet18(weights=None).state_dict()) == {}


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    """torchvision's VGG-16 with random weights, in evaluation mode; read-only."""
    torch.manual_seed(1)
    return torchvision.models.vgg16(weights=None).eval()


def two_stage(**changes) -> nn.Module:
    settings = {"backbone": "vgg16", "norm": "none", "masks": False, "pyramid": False, "box_convs": 0}
    settings |= {"box_features": 4096, "in_channels": 3, "num_classes": 3, **changes}
    return build_model({"detector": "rcnn", **settings}).eval()


@pytest.mark.slow
def test_the_box_head_of_faster_rcnn_computes_what_the_classifier_does(tmp_path, classifier) -> None:
    torch.save(classifier.state_dict(), tmp_path / "vgg16.pth")
    model = two_stage()
    loaded = load_weights(model, tmp_path / "vgg16.pth", ("a", "b", "c"))
    assert loaded.taken["backbone"] == 26 and loaded.taken["box"] == 4 and loaded.taken["rpn"] == 0
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        pooled = classifier.features(images)  # 7x7
        (ours,) = model.backbone(images).values()  # 14x14, before the last pooling
        assert (torch.nn.functional.max_pool2d(ours, 2) - pooled).abs().max() <= 1e-5 * pooled.abs().max()
        expected = classifier.classifier[:5](pooled.flatten(1))
        assert torch.allclose(model.box_head(pooled), expected, rtol=1e-5, atol=1e-6)
    only_backbone = two_stage()
    before = only_backbone.box_head.fc6.weight.clone()
    load_weights(only_backbone, tmp_path / "vgg16.pth", ("a", "b", "c"), ("backbone",))
    assert torch.equal(only_backbone.box_head.fc6.weight, before)


@pytest.mark.slow
def test_a_smaller_box_head_takes_evenly_spaced_outputs(classifier) -> None:
    state = classifier.state_dict()
    found = two_stage(box_features=1024).from_torchvision(state)
    assert torch.equal(found["box_head.fc6.weight"], state["classifier.0.weight"][::4])
    assert torch.equal(found["box_head.fc7.weight"], state["classifier.3.weight"][::4, ::4])
    assert torch.equal(found["box_head.fc7.bias"], state["classifier.3.bias"][::4])
    for model in (two_stage(box_features=64, width=8), two_stage(box_features=64, pyramid=False, box_convs=1)):
        assert not any(name.startswith("box_head") for name in model.from_torchvision(state))
