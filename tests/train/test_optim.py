"""The learning rate over a phase, and the weight decay of each parameter."""

from dataclasses import replace

import pytest
import torch
from torch.optim import lr_scheduler

from directdet.models.build import build_model
from directdet.recipes.by_name import get_recipe
from directdet.train.optim import build_optimizer, factor_at


def test_schedule():
    phase = get_recipe("mask_rcnn_r50_fpn").phase("finetune")
    assert factor_at(phase, 0, 1000) == pytest.approx(0.001)
    assert factor_at(phase, 250, 1000) == pytest.approx(0.5005)
    assert factor_at(phase, 500, 1000) == 1.0
    assert factor_at(phase, 7999, 1000) == 1.0
    assert factor_at(phase, 8000, 1000) == pytest.approx(0.1)
    assert factor_at(phase, 11000, 1000) == pytest.approx(0.01)


@pytest.mark.parametrize(("schedule", "begin"), [("cosine", 20), ("flat-cosine", 60)])
def test_cosine_is_torchs(schedule, begin):
    """Against torch's own schedulers: a linear warm-up, then flat, then a cosine to 5 % of the rate."""
    settings = {"schedule": schedule, "milestones": (1,), "warmup_iterations": 20, "warmup_factor": 1e-5}
    phase = replace(get_recipe("mask_rcnn_r18_slim").phase("pretrain"), **settings, epochs=12)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warm = lr_scheduler.LinearLR(optimizer, 1e-5, total_iters=20)
    flat = lr_scheduler.ConstantLR(optimizer, 1.0, total_iters=1)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, 120 - begin, eta_min=0.05)
    parts, ends = ([warm, cosine], [20]) if begin == 20 else ([warm, flat, cosine], [20, 60])
    scheduler = lr_scheduler.SequentialLR(optimizer, parts, ends)
    wanted = []
    for _ in range(120):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = [factor_at(phase, step, steps_per_epoch=10) for step in range(120)]
    assert found == pytest.approx(wanted, rel=1e-9)
    assert found[begin] == 1.0 > found[begin + 1] and found[119] > 0.05 == factor_at(phase, 120, 10)
    by_steps = replace(phase, iterations=120)
    assert [factor_at(by_steps, step, 7) for step in range(120)] == found
    longer = replace(phase, warmup_iterations=200)  # than the phase: the cosine never begins
    assert [factor_at(longer, step, 10) for step in (0, 100)] == pytest.approx([1e-5, 0.5], rel=1e-3)


def test_weight_decay_of_normalisations():
    recipe = get_recipe("mask_rcnn_r18_slim")
    model = build_model({"detector": "rcnn", "num_classes": 2, **recipe.model})
    decays = [group["weight_decay"] for group in build_optimizer(model, recipe.phase("pretrain"), 0.1).param_groups]
    assert decays == [1e-4, 0.0]
    sizes = [
        sum(p.numel() for p in g["params"]) for g in build_optimizer(model, recipe.phase("pretrain"), 0.1).param_groups
    ]
    assert sum(sizes) == sum(p.numel() for p in model.parameters())
