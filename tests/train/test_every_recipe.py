"""Every recipe runs: two iterations of each phase and an evaluation, at tiny size, on real file formats."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from directdet.models.backbones.builders import build_backbone
from directdet.models.build import DETECTORS
from directdet.recipes.by_name import RECIPES, get_recipe
from directdet.recipes.recipe import Phase, Recipe
from directdet.train.log import read_log
from directdet.train.run import train

SMALL = {
    "rcnn": {"fpn_channels": 16, "box_features": 16, "mask_convs": 1, "mask_channels": 8},
    "cascade": {"fpn_channels": 16, "box_features": 16, "mask_convs": 1, "mask_channels": 8},
    "ssd": {},
    "retinanet": {"fpn_channels": 16, "head_convs": 1, "test_pre_nms": 32, "candidates": 64},
    "rtmdet": {"fpn_channels": 16, "neck_blocks": 1, "candidates": 64},
    "rtmdet_ins": {"fpn_channels": 16, "neck_blocks": 1, "candidates": 64},
}
FEW = {
    "train_pre_nms": 64,
    "train_proposals": 32,
    "test_pre_nms": 32,
    "test_proposals": 16,
    "rpn_samples": 32,
    "roi_samples": 16,
    "mask_slots": 4,
    "candidates": 64,
}


def tiny_phase(phase: Phase) -> Phase:
    """The same phase in everything but pixels, images and length."""
    size = {"direct": (64, 64), "edges": (64, 96), "warp": (300, 300)}[phase.resize]  # SSD's priors are of 300
    length = {"iterations": 2, "milestones": ()} if phase.iterations else {"max_steps": 2}
    short_edges = tuple(edge // 10 // 16 * 16 for edge in phase.short_edges)
    # Contiguous: PyTorch 2.15 on a CPU has crashed in the backward pass of channels-last networks as narrow as these.
    layout = {"channels_last": False}
    changes = {
        "size": size,
        "short_edges": short_edges,
        "batch_size": 2,
        "base_batch": 2,
        "workers": 0,
        **length,
        **layout,
    }
    if phase.name == "montage":
        return replace(phase, **changes, base_lr=phase.base_lr * 2 / phase.base_batch)  # its rate is of 512 pictures
    eval_size = (300, 300) if phase.resize == "warp" else (64, 96)
    return replace(phase, **changes, eval_size=eval_size, eval_fixed=False, eval_every=1_000_000)


def tiny_recipe(recipe: Recipe) -> Recipe:
    """The same recipe, tiny."""
    width = 32 if recipe.model["backbone"] == "swin_t" else 8
    model = {**recipe.model, "width": width, **SMALL[recipe.detector]}
    if recipe.detector in ("rcnn", "cascade"):
        model |= FEW
    model["box_convs"] = min(1, model.get("box_convs", 1)) if recipe.detector == "rcnn" else None
    model = {key: value for key, value in model.items() if value is not None}
    phases = tuple(tiny_phase(phase) for phase in recipe.phases)
    return replace(recipe, phases=phases, model=model, data_fraction=max(recipe.data_fraction, 0.4))


def backbone_file(recipe: Recipe, folder: Path) -> Path:
    """What stands for ImageNet weights: a backbone's state as torchvision saves it, its statistics not fresh."""
    torch.manual_seed(0)
    norm = recipe.model.get("norm", "bn")
    kinds = DETECTORS[recipe.detector].backbones
    backbone = build_backbone(kinds, recipe.model["backbone"], recipe.model["width"], norm)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    path = folder / "backbone.pth"
    # On top, the classifier of torchvision's network; a slim VGG has no counterpart there, and is saved by our names.
    classifier = {"vgg16": (), "swin_t": ("head.weight",)}.get(recipe.model["backbone"], ("fc.weight",))
    torch.save({**backbone.state_dict(), **dict.fromkeys(classifier, torch.zeros(3, 3))}, path)
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_iterations_and_an_evaluation(name, shapes, tmp_path, one_thread):
    """With a log that says so."""
    recipe = tiny_recipe(get_recipe(name))
    init = backbone_file(recipe, tmp_path) if recipe.init == "imagenet" else None
    result = train(recipe, shapes, tmp_path / "run", init=init)
    assert [row["name"] for row in result.phases] == [phase.name for phase in get_recipe(name).phases]
    for phase in recipe.phases:
        rows = read_log(tmp_path / "run" / phase.name / "log.jsonl")
        evaluated = [] if phase.name == "montage" else [("eval", 2)]  # a classifier has no AP
        assert [(row["kind"], row["step"]) for row in rows][-1 - len(evaluated) :] == [("step", 2), *evaluated]
        assert all(torch.tensor(list(row["losses"].values())).isfinite().all() for row in rows if row["kind"] == "step")
        if not evaluated:
            continue
        assert ("segm" in rows[-1]) == recipe.model.get("masks", recipe.detector in ("rcnn", "rtmdet_ins"))
