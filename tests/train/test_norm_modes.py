"""Batch normalisation in its modes: what learns, what does not, and what the banner says of it."""

import copy

import pytest
import torch
from slim_models import copied, lived_in, mask_rcnn
from torch import nn

from directdet.common.errors import UserError
from directdet.data.dataset import load_dataset
from directdet.infer.preprocess import Preprocess
from directdet.models.parts.norm import FixedBatchNorm2d, SyncBatchNorm2d, conv_norm, fix_batch_norm
from directdet.recipes.recipe import Phase
from directdet.train import distributed
from directdet.train.data import make_phase_loader
from directdet.train.prepare import apply_norm, describe_norm
from directdet.train.step import Stepper


def phase_of(**changes) -> Phase:
    settings = {"batch_size": 2, "workers": 0, "warmup_iterations": 0, "base_batch": 2, "weight_decay": 0.0}
    return Phase(name="finetune", resize="direct", size=(64, 64), clip_norm=5.0, **{**settings, **changes})


@pytest.fixture(scope="module")
def batches(shapes):
    """Six batches of two pictures, 64x64."""
    return list(make_phase_loader(phase_of(), load_dataset(shapes, "train"), True, 0, False))


def trained(phase: Phase, batches: list, steps: int = 2) -> tuple[nn.Module, dict[str, torch.Tensor], list[float]]:
    """A model after some steps, its state before, and the losses."""
    torch.set_num_threads(1)
    model = lived_in(mask_rcnn(num_classes=4))
    apply_norm(model, phase, trained=True)
    before = copied(model)
    stepper = Stepper(model, phase, Preprocess(size=(64, 64)), phase.base_lr, 0)
    losses = []
    for number in range(steps):
        model.train()
        found, _ = stepper.step([batches[number]], number, steps_per_epoch=3)
        losses.append(float(sum(found.values())))
    return model, before, losses


def changed_kinds(model: nn.Module, before: dict[str, torch.Tensor], prefix: str = "backbone") -> dict[str, set[bool]]:
    """By kind of tensor, whether those of the backbone changed: statistics, affine parameters, convolutions."""
    owners = dict(model.named_modules())
    found: dict[str, set[bool]] = {"statistics": set(), "affine": set(), "weights": set()}
    for name, value in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        kind = "weights"
        if isinstance(owners[owner], nn.BatchNorm2d):
            kind = "affine" if leaf in ("weight", "bias") else "statistics"
        if name.startswith(prefix):
            found[kind].add(not torch.equal(value, before[name]))
    return found


@pytest.mark.parametrize(
    ("norm", "statistics", "affine"),
    [("live", True, True), ("sync", True, True), ("affine", False, True), ("fixed", False, False)],
)
def test_what_a_mode_lets_change(batches, norm, statistics, affine):
    model, before, _ = trained(phase_of(norm=norm), batches)
    assert changed_kinds(model, before) == {"statistics": {statistics}, "affine": {affine}, "weights": {True}}


def test_sync_in_one_process_is_live(batches):
    (live, _, first), (sync, _, second) = (trained(phase_of(norm=norm), batches) for norm in ("live", "sync"))
    assert sum(isinstance(m, SyncBatchNorm2d) for m in sync.modules()) == 20
    assert first == second
    for name, value in live.state_dict().items():
        assert torch.equal(value, sync.state_dict()[name]), name


@pytest.mark.parametrize("norm", ["live", "sync", "affine", "fixed"])
def test_frozen_stages_are_frozen_wholly(batches, norm):
    model, before, _ = trained(phase_of(norm=norm, frozen_stages=1, weight_decay=0.1), batches)
    for frozen in ("backbone.conv1", "backbone.bn1", "backbone.layer1"):
        kinds = changed_kinds(model, before, frozen)
        assert set().union(*kinds.values()) == {False}, (frozen, kinds)
    for learning in ("backbone.layer2", "backbone.layer3", "backbone.layer4"):
        assert changed_kinds(model, before, learning) == {
            "statistics": {norm in ("live", "sync")},
            "affine": {norm != "fixed"},
            "weights": {True},
        }
    for modules in model.backbone.stages()[:2]:
        for module in modules:
            assert not any(p.requires_grad for p in module.parameters())
            norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
            assert all(isinstance(m, FixedBatchNorm2d) and not m.training for m in norms)
    rest = [p for name, p in model.named_parameters() if not name.startswith("backbone")]
    assert all(p.requires_grad and p.grad is not None for p in rest)


@pytest.mark.parametrize("bias", [False, True])
def test_affine_gradients_are_those_of_evaluation_mode(bias):
    torch.manual_seed(1)
    conv, norm = nn.Conv2d(6, 10, 3, 2, 1, groups=2, bias=bias), lived_in(nn.BatchNorm2d(10))
    ours = copy.deepcopy(norm)
    fix_batch_norm(ours, affine=True)
    ours.train()
    norm.eval()
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64, requires_grad=True)
    for module in (conv, norm, ours):
        module.double()
    found, wanted = conv_norm(conv, ours, x), norm(conv(x))
    torch.testing.assert_close(found, wanted)
    shared = [x, *conv.parameters()]
    found = torch.autograd.grad(found.square().sum(), [*shared, ours.weight, ours.bias])
    wanted = torch.autograd.grad(wanted.square().sum(), [*shared, norm.weight, norm.bias])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)  # float64: the order of operations is all that differs


NETWORKS = {
    "bn": {"backbone": "resnet18", "width": 8},
    "gn": {"backbone": "resnet18", "width": 8, "norm": "gn"},
    "swin": {"backbone": "swin_t", "width": 32},
}


@pytest.mark.parametrize("network", NETWORKS)
def test_random_weights_are_not_frozen(network):
    fresh = mask_rcnn(**NETWORKS[network])
    used = lived_in(copy.deepcopy(fresh))
    for norm in ("live", "sync", "affine", "fixed"):
        for frozen in (-1, 0, 1, 4):
            phase = phase_of(norm=norm, frozen_stages=frozen)
            freezes = frozen >= 0 or (network == "bn" and norm in ("affine", "fixed"))
            fixed = network == "bn" and norm in ("affine", "fixed")
            states = [(fresh, False), (used, False), (fresh, True)] if network == "bn" else [(used, False)]
            for model, loaded in states if freezes else []:
                with pytest.raises(UserError, match=r"finetune: .*random weights.*--init FILE") as caught:
                    apply_norm(model, phase, trained=loaded)
                assert (f"{norm} batch normalisation" if fixed else f"frozen_stages={frozen}") in str(caught.value)
                assert "\n" not in str(caught.value)
                assert all(p.requires_grad for p in model.parameters())
            model = copy.deepcopy(used) if network == "bn" else used  # of batch normalisations the class changes
            apply_norm(model, phase, trained=True)
            assert any(not p.requires_grad for p in model.parameters()) == (frozen >= 0 or (fixed and norm == "fixed"))
            model.requires_grad_(True)
            if not freezes:
                apply_norm(model, phase, trained=False)
    apply_norm(fresh, phase_of(norm="fixed", frozen_stages=1), trained=False, known=False)  # a plan, made of no weights


@pytest.mark.parametrize(
    ("network", "settings", "text"),
    [
        ("bn", {"norm": "live", "batch_size": 8}, "20 live batch normalisations over 8 images on one device"),
        (
            "bn",
            {"norm": "live", "batch_size": 8, "accumulate": 4},
            "20 live batch normalisations over 8 images on one device (not over the 4 accumulated batches)",
        ),
        (
            "bn",
            {"norm": "live", "batch_size": 2, "accumulate": 4},
            "20 live batch normalisations over 2 images on one device (fewer than 8: expect noisy statistics; "
            "gradient accumulation does not help)",
        ),
        (
            "bn",
            {"norm": "sync", "batch_size": 2},
            "20 live batch normalisations over 2 images on all devices (fewer than 8: expect noisy statistics; "
            "gradient accumulation does not help)",
        ),
        ("bn", {"norm": "affine"}, "20 batch normalisations with fixed statistics, affine parameters learned"),
        ("bn", {"norm": "fixed"}, "20 batch normalisations with fixed statistics and affine parameters"),
        (
            "bn",
            {"norm": "affine", "frozen_stages": 1},
            "15 batch normalisations with fixed statistics, affine parameters learned; "
            "5 batch normalisations with fixed statistics and affine parameters",
        ),
        (
            "bn",
            {"norm": "sync", "frozen_stages": 0, "batch_size": 8},
            "1 batch normalisations with fixed statistics and affine parameters; "
            "19 live batch normalisations over 8 images on all devices",
        ),
        # Backbone 20; pyramid 4 + 4; box head 1; mask head 1.
        ("gn", {"norm": "live"}, "30 live group normalisations"),
        ("gn", {"norm": "fixed"}, "30 live group normalisations"),
        # Patch embedding 1; two in each of 12 blocks; three mergings; four levels.
        ("swin", {"norm": "live"}, "32 live layer normalisations"),
    ],
)
def test_the_banners_words(network, settings, text):
    model, phase = lived_in(mask_rcnn(**NETWORKS[network])), phase_of(**settings)
    apply_norm(model, phase, trained=True)
    assert describe_norm(model, phase) == text


def test_the_banner_counts_every_devices_images_only_where_they_are_shared(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    for norm, text in (("sync", "over 8 images on all devices"), ("live", "over 2 images on one device (fewer than 8")):
        model, phase = mask_rcnn(), phase_of(norm=norm, batch_size=2)
        apply_norm(model, phase, trained=False)
        assert text in describe_norm(model, phase)
