"""Batches that one step accumulates are the same step as all their images at once, wherever the objects lie."""

import copy

import pytest
import torch
from slim_models import FEW, HEADS, mask_rcnn
from torch import Tensor, nn

from directdet.infer.preprocess import Preprocess
from directdet.models.build import build_model
from directdet.models.parts import targets as targets_module
from directdet.recipes.recipe import Phase
from directdet.train.step import Stepper

SIDE, IMAGES = 96, 6
# Everything is sampled, so that chance has no part in what is compared.
ALL = {"rpn_samples": 10_000, "roi_samples": 400, "mask_slots": 100, "train_pre_nms": 32, "train_proposals": 64}
NETWORKS = {
    "ssd": {"detector": "ssd", "extras": "residual", "width": 4, "norm": "none", "head_norm": False, "size": 300},
    "retinanet": {"detector": "retinanet", "width": 8, "norm": "gn", "fpn_channels": 64, "head_convs": 1},
    "rcnn": {"detector": "rcnn", "width": 8, "norm": "gn", **HEADS, **FEW, **ALL},
    "cascade": {"detector": "cascade", "width": 8, "norm": "gn", **HEADS, **FEW, **ALL},
}


def network(name: str) -> nn.Module:
    settings = {"backbone": "resnet18", **NETWORKS[name], "num_classes": 3}
    if name == "cascade":
        settings.pop("box_convs")
    torch.manual_seed(0)
    return build_model(settings)


def pictures(side: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Six pictures with 0, 1, 5, 2, 3 and 0 objects: batches of two have very different counts."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (IMAGES, 3, side, side), generator=generator, dtype=torch.uint8)
    counts = torch.tensor([0, 1, 5, 2, 3, 0])
    corner = torch.rand(IMAGES, 5, 2, generator=generator) * side * 0.6
    extent = side * (0.1 + 0.25 * torch.rand(IMAGES, 5, 2, generator=generator))
    targets = {
        "boxes": torch.cat([corner, corner + extent], 2),
        "labels": torch.randint(0, 3, (IMAGES, 5), generator=generator),
        "valid": torch.arange(5) < counts[:, None],
        "sizes": torch.full((IMAGES, 2), float(side)),
        "masks": torch.randint(0, 2, (IMAGES, 5, 56, 56), generator=generator, dtype=torch.uint8),
    }
    return images, targets


def split(images: Tensor, targets: dict[str, Tensor], size: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
    parts = range(0, IMAGES, size)
    return [(images[i : i + size], {name: value[i : i + size] for name, value in targets.items()}) for i in parts]


def gradients(model: nn.Module, batches: list) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = copy.deepcopy(model).train()
    phase = Phase("scratch", "direct", (SIDE, SIDE), batch_size=len(batches[0][0]), channels_last=False)
    stepper = Stepper(model, phase, Preprocess(size=(SIDE, SIDE)), 0.1, seed=0)
    losses, _ = stepper.step(batches, 0, steps_per_epoch=10)
    return {name: p.grad for name, p in model.named_parameters()}, losses


@pytest.mark.parametrize(("name", "size"), [("ssd", 2), ("retinanet", 1), ("rcnn", 3), ("cascade", 2)])
def test_without_batch_normalisation_they_are_the_whole_batch(name, size):
    """Also the reported losses. By float32: sums in another order, of hundreds of terms."""
    model = network(name)
    given = pictures(300 if name == "ssd" else SIDE)
    whole, losses = gradients(model, split(*given, IMAGES))
    parts, losses_of_parts = gradients(model, split(*given, size))
    for key, gradient in whole.items():
        torch.testing.assert_close(parts[key], gradient, rtol=2e-3, atol=2e-4 * float(gradient.abs().max()), msg=key)
    alive = [key for key, gradient in whole.items() if gradient.abs().max() > 0]
    assert len(alive) > 0.8 * len(whole)  # a slim SSD without normalisation has dead layers
    for key, loss in losses.items():
        torch.testing.assert_close(losses_of_parts[key], loss, rtol=1e-4, atol=1e-6)


def test_each_batch_by_its_own_count_would_be_another_step():
    """What the test above can see: the mean of the batches' own gradients is far from the whole batch's."""
    model, given = network("retinanet"), pictures(SIDE)
    whole, _ = gradients(model, split(*given, IMAGES))
    singly = [gradients(model, [batch])[0] for batch in split(*given, 2)]
    for key in ("backbone.conv1.weight", "head.classification_head.cls_logits.weight"):
        mean = sum(found[key] for found in singly) / 3
        assert float((mean - whole[key]).norm() / whole[key].norm()) > 0.1, key


def test_pictures_without_objects_divide_by_one_in_all():
    model, (images, targets) = network("ssd"), pictures(300)
    targets = {**targets, "valid": torch.zeros_like(targets["valid"])}
    found, losses = gradients(model, split(images, targets, 2))
    assert all(float(loss) == 0 for loss in losses.values())
    assert all(float(gradient.abs().max()) == 0 for gradient in found.values())


def test_statistics_of_batch_normalisation_see_each_batch_once():
    batches = split(*pictures(64), 2)
    start = mask_rcnn(norm="bn")

    def stepped(number: int) -> nn.Module:
        model = copy.deepcopy(start).train()
        phase = Phase("scratch", "direct", (64, 64), batch_size=2, channels_last=False)
        Stepper(model, phase, Preprocess(size=(64, 64)), 0.0, seed=0).step(batches[:number], 0, 10)
        return model

    wanted = stepped(1)  # with a rate of 0 the weights stay, and the second batch meets the same network
    stepper = Stepper(wanted, Phase("scratch", "direct", (64, 64), batch_size=2), Preprocess(size=(64, 64)), 0.0, 0)
    stepper.step(batches[1:2], 0, 10)
    found, before = stepped(2).state_dict(), start.state_dict()
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(found[name], value)
        if name.endswith("num_batches_tracked"):
            assert value == before[name] + 2


def test_nothing_is_left_of_a_step_that_failed(monkeypatch):
    """A later step of single batches divides by its own counts."""
    mask = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ZeroDivisionError), targets_module.whole_step_counts([torch.tensor(7.0)]):
        assert targets_module.loss_normaliser(mask) == 7
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), targets_module.note_counts() as noted:
        targets_module.loss_normaliser(mask)
        raise ZeroDivisionError
    assert noted == [3] and targets_module.loss_normaliser(mask) == 3
