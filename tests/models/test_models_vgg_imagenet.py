"""torchvision's ImageNet VGG-16 converted to SSD's truncated one."""

import pytest
import torch
import torchvision
from torch import nn

from directdet.models.backbones.vgg import vgg16


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
