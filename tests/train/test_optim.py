"""The learning rate over a phase, and the weight decay of each parameter."""

import pytest

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


def test_weight_decay_of_normalisations():
    recipe = get_recipe("mask_rcnn_r18_slim")
    model = build_model({"detector": "rcnn", "num_classes": 2, **recipe.model})
    decays = [group["weight_decay"] for group in build_optimizer(model, recipe.phase("pretrain"), 0.1).param_groups]
    assert decays == [1e-4, 0.0]
    sizes = [
        sum(p.numel() for p in g["params"]) for g in build_optimizer(model, recipe.phase("pretrain"), 0.1).param_groups
    ]
    assert sum(sizes) == sum(p.numel() for p in model.parameters())
