"""A tiny recipe, so that a step takes a fraction of a second."""

from dataclasses import replace

import pytest

from directdet.recipes.by_name import get_recipe
from directdet.recipes.recipe import Recipe

TINY_MODEL = {
    "backbone": "resnet18",
    "width": 8,
    "fpn_channels": 16,
    "box_convs": 1,
    "box_features": 16,
    "mask_convs": 1,
    "mask_channels": 8,
    "train_pre_nms": 64,
    "train_proposals": 32,
    "test_pre_nms": 64,
    "test_proposals": 32,
    "rpn_samples": 32,
    "roi_samples": 16,
    "mask_slots": 8,
    "candidates": 64,
}


def make_tiny() -> Recipe:
    recipe = get_recipe("mask_rcnn_r18_slim")
    common = {"batch_size": 4, "epochs": 2, "workers": 0, "warmup_iterations": 2, "eval_size": (64, 64)}
    common |= {"precision": "fp32"}  # the same numbers on every machine
    recipe = recipe.with_phase("pretrain", size=(64, 64), eval_every=1, **common)
    recipe = recipe.with_phase("finetune", size=(64, 96), eval_every=2, **common)
    return replace(recipe, model=TINY_MODEL)


@pytest.fixture
def tiny() -> Recipe:
    return make_tiny()


@pytest.fixture(scope="module")
def module_tiny() -> Recipe:
    return make_tiny()
