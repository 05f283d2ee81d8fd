"""Recipes and what the command line may change in them."""

import io
import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from directdet.common.errors import UsageProblem
from directdet.models.build import build_model
from directdet.models.configs import CONFIGS
from directdet.recipes.by_name import BUILT_IN, RECIPES, get_recipe
from directdet.recipes.choices import CHOICES
from directdet.recipes.derived import passes_per_epoch
from directdet.recipes.meanings import meanings
from directdet.recipes.recipe import PARTS, Phase
from directdet.recipes.settings import apply_settings
from directdet.recipes.show import describe_recipe
from directdet.train.optim import learning_rate


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_whole(name):
    recipe = get_recipe(name)
    assert recipe.name == name and recipe.summary
    names = [phase.name for phase in recipe.phases]
    assert names in (["pretrain", "finetune"], ["montage", "finetune"], ["scratch"], ["finetune"])
    assert (recipe.init == "imagenet") == (names == ["finetune"])
    if recipe.init == "random":  # nothing is frozen or fixed while it is random
        assert recipe.phases[0].frozen_stages == -1 and recipe.phases[0].norm in ("live", "sync")
    assert all(phase.parts == PARTS[: len(phase.parts)] for phase in recipe.phases)
    known = {f.name for f in fields(Phase)}
    for key in recipe.sources:
        where, _, setting = key.rpartition(".")
        assert where == "model" or setting in known or key in ("model", "data_fraction", *names), key
    with pytest.raises(FrozenInstanceError):
        recipe.name = "other"


@pytest.mark.parametrize("name", RECIPES)
def test_every_positive_has_a_mask_roi(name):
    recipe = get_recipe(name)
    model = build_model({"detector": recipe.detector, "num_classes": 2, **recipe.model}).config
    if getattr(model, "masks", False) and hasattr(model, "roi_samples"):
        assert model.mask_slots >= int(model.roi_samples * model.roi_positive_fraction)


@pytest.mark.parametrize("kind", [Phase, *CONFIGS.values()])
def test_every_setting_has_a_meaning(kind):
    found = meanings(kind)
    for one in fields(kind):
        assert one.name == "num_classes" or len(found[one.name]) > 8, one.name


def test_a_source_stands_once_below_the_table():
    text = io.StringIO()
    Console(file=text, width=80).print(describe_recipe(get_recipe("mask_rcnn_r18_slim")))
    shown = " ".join(text.getvalue().split())
    assert shown.count("scaled down by us for small datasets on CPUs") == 1
    assert shown.count("resize by a factor alpha from") == 1  # what `resize` means
    assert "[1] direct pre-training's phase, scaled down by us" in shown


def test_paper_constants():
    recipe = get_recipe("mask_rcnn_r50_fpn")
    # Section 3.3: "we set the learning rate as 0.08 for baseline with a batch size of 8" on each of 8 GPUs.
    assert learning_rate(recipe.phase("pretrain"), 8 * 8) == pytest.approx(0.08)
    assert learning_rate(recipe.phase("finetune"), 2 * 8) == pytest.approx(0.02)
    assert recipe.phase("pretrain").size == (448, 448) and recipe.phase("finetune").size == (800, 1333)
    coco_train = 117266  # images of train2017 with objects
    passes = recipe.phase("pretrain").epochs * passes_per_epoch(recipe.phase("pretrain"))
    assert passes * coco_train / 64 == pytest.approx(88_000, rel=0.01)  # "1x schedule is 12 epochs (88k steps)"


def test_published_parameter_count():
    """torchvision publishes 44,401,393 for its Mask R-CNN R50-FPN (91 classes, 2fc head): there normalisations are
    frozen, so their scales and shifts are no parameters."""
    model = build_model({"detector": "rcnn", "num_classes": 90, "box_convs": 0})
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    affine = sum(p.numel() for m in norms for p in m.parameters())
    assert sum(p.numel() for p in model.parameters()) - affine == 44_401_393


def test_settings_reach_one_phase_or_both():
    recipe = get_recipe("mask_rcnn_r18_slim")
    changed = apply_settings(
        recipe, ["batch_size=3", "finetune.size=320,512", "pretrain.size=96", "model.width=16", "clip_norm=none"]
    )
    assert (changed.phase("pretrain").batch_size, changed.phase("finetune").batch_size) == (3, 3)
    assert (changed.phase("pretrain").size, changed.phase("finetune").size) == ((96, 96), (320, 512))
    assert changed.model["width"] == 16 and changed.phase("pretrain").clip_norm is None
    assert apply_settings(recipe, ["milestones=2,3"]).phase("finetune").milestones == (2, 3)
    assert recipe == get_recipe("mask_rcnn_r18_slim")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("batch_sise=3", "did you mean 'batch_size'"),
        ("model.widht=3", "did you mean 'width'"),
        ("finetun.size=3", "did you mean 'finetune'"),
        ("batch_size", "key=value"),
        ("batch_size=many", "is not a whole number"),
        ("batch_size=0", "not at least 1; the nearest is 1"),
        ("frozen_stages=-2", "not between -1 and 4; the nearest is -1"),
        ("epochs=1e999", "is not a whole number"),
        ("scale=0,0", "0 is not above 0"),
        ("scale=1,0.5", "not a range"),
        ("pretrain.size=224,320", "not square"),
        ("eval_size=100", "multiples of 32"),
        ("model.nms=7", "not between 0 and 1; the nearest is 1"),
        ("model.smooth_l1_beta=-1", "not at least 0; the nearest is 0"),
        ("model.box_convs=-1", "not at least 0; the nearest is 0"),
        ("model.anchor_scale=1e999", "inf is not above 0"),
        ("model.anchor_scale=0", "is not above 0"),
        ("model.anchor_ratios=1,0", "is not above 0"),
        ("model.anchor_ratios=()", "must not be empty; give at least one number"),
        ("milestones=-4", "at least 1"),
        ("model.mask_slots=0", "at least 1"),
        ("batch_size=1.5", "is not a whole number"),
        ("size=1,2,3", "is not 2 whole numbers"),
        ("size=8", "at least 32"),
        ("norm=fixd", "not one of live, sync, affine, fixed; did you mean 'fixed'"),
        ("model.backbone=vgg", "not one of resnet18, resnet50, .*did you mean 'vgg16'"),
        ("channels_last=perhaps", "is not true or false"),
        ("schedule=cosin", "not one of steps, cosine, flat-cosine; did you mean 'cosine'"),
        ("finetune.mosaic=0.5", "finetune.mosaic: 0.5 needs resize=direct or resize=warp"),
        ("pretrain.precise_bn=9", "pretrain.precise_bn: 9 is for statistics that are then fixed, not for norm=live"),
        ("flip=2", "not between 0 and 1; the nearest is 1"),
        ("colour=rgb", "not one of none, hsv, photometric"),
        ("ema=1.1", "not between 0 and 1; the nearest is 1"),
        ("final_lr=1.5", "not between 0 and 1; the nearest is 1"),
    ],
)
def test_wrong_settings(setting, says):
    with pytest.raises(UsageProblem, match=says) as caught:
        apply_settings(get_recipe("mask_rcnn_r18_slim"), [setting])
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize("setting", ["colour=hsv", "ssd_crop=true"])
def test_what_warping_does_already(setting):
    with pytest.raises(UsageProblem, match="is part of resize=warp already"):
        apply_settings(get_recipe("ssd300_vgg16_slim"), [setting])


def test_patience_needs_evaluations():
    with pytest.raises(UsageProblem, match="patience: 3 needs evaluations; give eval_every of at least 1"):
        apply_settings(get_recipe("mask_rcnn_r18_slim"), ["pretrain.patience=3", "pretrain.eval_every=0"])


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UsageProblem, match="did you mean 'mask_rcnn_r50_fpn'"):
        get_recipe("mask_rcn_r50_fpn")


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.recipe)
def test_choices_tell_the_truth(choice):
    recipe = get_recipe(choice.recipe)
    with torch.device("meta"):
        model = build_model({"detector": recipe.detector, "num_classes": 80, **recipe.model})
    assert sum(value.numel() for value in model.parameters()) / 1e6 == pytest.approx(choice.parameters, abs=0.005)
    assert choice.finds == ("masks" if model.config.masks else "boxes")
    rows = json.loads(Path(__file__, "../../../results/choices.json").resolve().read_text())["rows"]
    if choice.recipe not in rows:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(torch.empty(1, 3, 640, 640))
        assert choice.multiply_adds == round(counter.get_total_flops() / 2e9, 1) and choice.milliseconds is None
        return
    assert choice.multiply_adds == round(rows[choice.recipe]["multiply_adds"] / 1e9, 1)
    assert choice.milliseconds == round(rows[choice.recipe]["median_ms"])


def test_built_in_recipes_are_all_there():
    assert set(BUILT_IN) <= set(RECIPES) and {choice.recipe for choice in CHOICES} <= set(BUILT_IN)
