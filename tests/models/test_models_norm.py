"""Batch normalisation: live, fixed exactly, and folded."""

import copy

import pytest
import torch
from torch import nn

from directdet.models.backbones.builders import BACKBONES
from directdet.models.backbones.resnet import ResNet
from directdet.models.parts.fold import conv_norm_pairs, fold_batch_norm
from directdet.models.parts.norm import FixedBatchNorm2d, conv_norm, fix_batch_norm, has_statistics

NORMS = {"resnet18": 20, "resnet50": 53}


def lived_in(name: str, width: int = 8) -> ResNet:
    """A slim backbone with random statistics and affine parameters in its normalisations."""
    torch.manual_seed(0)
    backbone = BACKBONES[name](width)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.2)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return backbone.eval()


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    for level, expected in theirs.items():
        assert (ours[level] - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("bias", [False, True])
def test_the_fixed_form_equals_evaluation_mode_in_values_and_gradients(bias: bool) -> None:
    torch.manual_seed(1)
    conv, norm = nn.Conv2d(6, 10, 3, 2, 1, groups=2, bias=bias), nn.BatchNorm2d(10)
    norm.train()(torch.randn(8, 10, 6, 6) * 3 + 1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    fixed = copy.deepcopy(norm)
    assert fix_batch_norm(fixed) == 1
    x = torch.randn(2, 6, 9, 9, requires_grad=True)
    expected, ours = norm.eval()(conv(x)), conv_norm(conv, fixed.train(), x)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    inputs = [x, *conv.parameters()]
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_live_normalisation_is_left_to_batch_norm() -> None:
    torch.manual_seed(2)
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    x = torch.randn(4, 3, 8, 8)
    reference = copy.deepcopy(norm)
    assert torch.equal(conv_norm(conv, norm.train(), x), reference.train()(conv(x)))
    assert torch.equal(norm.running_var, reference.running_var)


@pytest.mark.parametrize("name", NORMS)
def test_fixed_means_not_one_bit_changes(name: str) -> None:
    backbone = lived_in(name)
    # Gradients left over from pre-training must not cause weight decay to be applied.
    sum(v.mean() for v in backbone.train()(torch.randn(2, 3, 64, 64)).values()).backward()
    assert fix_batch_norm(backbone) == NORMS[name]
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    optimiser = torch.optim.SGD(backbone.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        backbone.train()
        optimiser.zero_grad(set_to_none=step == 1)
        torch.manual_seed(step)
        sum(v.square().mean() for v in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
        optimiser.step()
    owners = dict(backbone.named_modules())
    for key, value in backbone.state_dict().items():
        fixed = isinstance(owners[key.rpartition(".")[0]], nn.BatchNorm2d)
        assert torch.equal(value, before[key]) == fixed, key


def test_fixed_survives_train_and_is_idempotent() -> None:
    backbone = lived_in("resnet18")
    fix_batch_norm(backbone)
    assert fix_batch_norm(backbone) == 20
    backbone.train()
    assert backbone.training
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert isinstance(module, FixedBatchNorm2d) and not module.training
            assert not any(p.requires_grad for p in module.parameters())
    close(backbone(torch.ones(1, 3, 64, 64)), lived_in("resnet18")(torch.ones(1, 3, 64, 64)))


def test_has_statistics() -> None:
    backbone = BACKBONES["resnet18"](8)
    assert not has_statistics(backbone)
    assert not has_statistics(nn.Conv2d(3, 3, 1))
    backbone.train()(torch.randn(2, 3, 64, 64))
    assert has_statistics(backbone)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_folding_leaves_no_normalisation_and_the_same_outputs(name: str, fixed: bool) -> None:
    backbone = lived_in(name)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = backbone(images)
        if fixed:
            fix_batch_norm(backbone)
        folded = copy.deepcopy(backbone)
        folding = fold_batch_norm(folded, conv_norm_pairs(folded, images))
        assert folding.folded == NORMS[name] and not folding.unfolded
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        close(folded(images), expected)
        assert conv_norm_pairs(folded, images) == []  # nothing left to fold
        close(backbone(images), expected)  # only the copy was folded


def test_folding_without_statistics_is_refused() -> None:
    owner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="without running statistics"):
        fold_batch_norm(owner, [(owner[0], owner[1])])


@pytest.mark.parametrize("name", NORMS)
def test_the_pairs_are_what_the_network_applies(name: str) -> None:
    backbone = lived_in(name)
    order: list[nn.Module] = []
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(lambda module, inputs, output: order.append(module))
    with torch.no_grad():
        backbone(torch.randn(1, 3, 64, 64))
    applied = {(order[i], order[i + 1]) for i in range(0, len(order), 2)}
    assert all(isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) for conv, norm in applied)
    stated = set(conv_norm_pairs(backbone, torch.randn(1, 3, 64, 64)))
    assert stated == applied
    assert len(stated) == NORMS[name]
