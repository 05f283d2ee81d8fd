"""ScratchDet's recipes are the paper's rows and say where their constants come from."""

import re
from dataclasses import fields

import pytest
import torch
from rich.console import Console
from scratchdet_tables import GPUS, RATES, TABLE1, TABLE2

from directdet.common.errors import UsageProblem
from directdet.data.pixels.format import STD
from directdet.models.backbones.builders import SSD_BACKBONES
from directdet.models.ssd.config import SSDConfig
from directdet.recipes.by_name import get_recipe
from directdet.recipes.derived import evaluation_size
from directdet.recipes.recipe import Phase, Recipe
from directdet.recipes.scratchdet import SCRATCHDET_RECIPES
from directdet.recipes.settings import apply_settings
from directdet.recipes.show import describe_recipe
from directdet.recipes.table_rows import TABLES, published_results
from directdet.train.optim import learning_rate

SSDS = [name for name, build in SCRATCHDET_RECIPES.items() if build().detector == "ssd"]
COCO = "ssd300_root_resnet34_coco"
DSOD = {"backbone": "dsod", "extras": "dsod", "l2_norm": True}


# ---- The paper's tables


def test_table1_is_the_papers():
    names, rows = iter(TABLES["scratchdet/table1"].recipes), iter(TABLES["scratchdet/table1"].published().rows)
    for imagenet, backbone, head, figures in TABLE1:
        for rate, figure in zip(RATES, figures, strict=True):
            name = next(names)
            recipe = get_recipe(name)
            assert next(rows).ap == figure, name
            wanted = {"backbone": "vgg16", "norm": "bn" if backbone else "none", "head_norm": head}
            assert recipe.model == wanted and recipe.init == ("imagenet" if imagenet else "random"), name
            images = 32 if imagenet else 32 * GPUS  # section 4.1
            assert learning_rate(recipe.phases[0], images) == rate, name
            (shown,) = published_results(name)
            assert shown.startswith("ScratchDet, Table 1, ") and f"learning rate {rate:g}: " in shown
            assert shown.endswith("did not converge" if figure is None else f": mAP {figure}")
            assert ("ImageNet" in shown) == imagenet
    assert not list(names) and not list(rows)


def test_table2_is_the_papers():
    names, rows = TABLES["scratchdet/table2"].recipes, TABLES["scratchdet/table2"].published().rows
    for name, row, (stride, convs, kernel, fps, figure) in zip(names, rows, TABLE2, strict=True):
        recipe = get_recipe(name)
        root = SSD_BACKBONES[recipe.model["backbone"]](8)
        assert root.conv1.stride == (stride, stride) and root.conv1.kernel_size == (kernel, kernel), name
        assert root.root_convs == convs and [len(stage) for stage in root._stages().values()] == [2, 2, 2, 2], name
        assert (row.fps, row.ap) == (fps, figure), name
        words = ("one", "two", "three", "four", "five")[convs - 1]
        assert row.method.startswith(f"stride {stride}, {words} {kernel}x{kernel}"), name
        assert published_results(name) == [f"ScratchDet, Table 2, {row.method}: mAP {figure}; {fps} fps"]
        assert recipe.model["extras"] == "residual" and learning_rate(recipe.phases[0], 128) == 0.05


def test_recipes_beside_the_tables():
    a = SSD_BACKBONES["resnet18_a"](8)  # Figure 3
    assert a.conv1.stride == (2, 2) and isinstance(a.maxpool, torch.nn.Identity)
    deep = SSD_BACKBONES[get_recipe("ssd300_root_resnet34").model["backbone"]](8)
    assert deep.root_convs == 3 and [len(stage) for stage in deep._stages().values()] == [3, 4, 6, 3]
    assert get_recipe("ssd300_resnet101").model["backbone"] == "resnet101"
    assert get_recipe("dsod300").model == {**DSOD, "norm": "bn", "head_norm": True, "l2_scale": 20.0}
    assert get_recipe("dsod300_no_bn").model == {**DSOD, "norm": "none", "head_norm": False, "l2_scale": 10.0}


@pytest.mark.parametrize("name", SSDS)
def test_constants_are_those_of_section_4(name):
    recipe = get_recipe(name)
    (phase,) = recipe.phases
    assert phase.name == ("finetune" if recipe.init == "imagenet" else "scratch")
    assert (phase.resize, phase.size, evaluation_size(phase)) == ("warp", (300, 300), (300, 300))
    assert (phase.optimizer, phase.momentum, phase.weight_decay, phase.gamma) == ("sgd", 0.9, 0.0005, 0.1)
    assert (phase.batch_size, phase.fixed_batch, phase.norm, phase.frozen_stages) == (32, True, "live", -1)
    warmup = 100 if name == "dsod300_no_bn" else 0
    assert (phase.warmup_iterations, phase.clip_norm, phase.precision, phase.max_steps) == (warmup, None, "fp32", None)
    # Weights of torchvision know pixels divided by ImageNet's deviation, whatever ScratchDet does.
    assert phase.std == (STD if recipe.init == "imagenet" else (1.0, 1.0, 1.0))
    length = (325_000, (150_000, 250_000, 310_000)) if name == COCO else (100_000, (45_000, 75_000, 95_000))
    assert (phase.iterations, phase.milestones) == length
    config = SSDConfig(20, **recipe.model)
    l2_norm = config.backbone == "dsod"  # of DSOD itself; section 4.1 removes SSD's
    assert (config.size, config.l2_norm, config.last_map_3x3, config.width) == (300, l2_norm, False, None)
    assert config.priors == ("coco" if name == COCO else "voc")
    # Of the original SSD, as in the authors' scripts.
    assert (config.positive_iou, config.negative_ratio) == (0.5, 3)
    assert (config.score_threshold, config.nms, config.detections) == (0.01, 0.45, 200)
    images = 117_266 if name == COCO else 16_551  # train2017 with objects; VOC 2007 and 2012 trainval
    step = phase.batch_size * (1 if recipe.init == "imagenet" else GPUS)
    assert 5 <= phase.iterations * step / images / phase.eval_every <= 50  # evaluations


# ---- Sources


def said_of(recipe: Recipe, key: str) -> str:
    return recipe.sources.get(f"{recipe.phases[0].name}.{key}", recipe.sources.get(key, ""))


@pytest.mark.parametrize("name", SSDS)
def test_every_setting_has_a_source_and_every_source_a_setting(name):
    recipe = get_recipe(name)
    (phase,) = recipe.phases
    for setting in fields(Phase):
        if setting.name != "name" and getattr(phase, setting.name) != setting.default:
            assert said_of(recipe, setting.name), setting.name
    known = {f.name for f in fields(Phase)}
    known |= {f"{phase.name}.{key}" for key in known} | {f"model.{f.name}" for f in fields(SSDConfig)}
    assert recipe.sources.keys() <= known
    assert {f"model.{key}" for key in recipe.model} <= recipe.sources.keys()
    text = rendered(recipe)
    assert not re.search(r"│ ours +│", text)
    codes = re.findall(r"│ (\w+) +│ [^│]+│ the paper's code +│", text)
    assert codes == ["width", "positive_iou", "negative_ratio", "score_threshold", "nms", "detections"]
    defaults = re.findall(r"│ (\w+) +│ [^│]+│ default +│", text)
    assert not {"std", "size", "iterations", "weight_decay", "milestones", "norm_weight_decay"} & set(defaults)


def rendered(recipe: Recipe) -> str:
    console = Console(width=300)
    with console.capture() as capture:
        console.print(describe_recipe(recipe))
    return capture.get()


@pytest.mark.parametrize("name", SSDS)
def test_sources_of_a_phase_do_not_contradict_it(name):
    recipe = get_recipe(name)
    (phase,) = recipe.phases
    rate, images = re.search(r"([\d.]+) for (\d+) images", said_of(recipe, "base_lr")).groups()
    assert learning_rate(phase, int(images)) == float(rate) and int(images) == phase.base_batch
    lengths = [int(number) for number in re.findall(r"(\d+)k\b", said_of(recipe, "iterations"))]
    assert sum(lengths) * 1000 == phase.iterations
    drops = re.findall(r"(\d+)k\b", said_of(recipe, "milestones"))
    assert tuple(int(number) * 1000 for number in drops) == phase.milestones
    assert f"{phase.base_batch} images" in said_of(recipe, "base_batch")
    assert f"{phase.base_batch} images" in said_of(recipe, "batch_size")
    assert f"{phase.batch_size}" in said_of(recipe, "batch_size")
    for key in ("resize", "size", "eval_size"):
        assert "300x300" in said_of(recipe, key)
    assert said_of(recipe, "weight_decay").endswith(f" {phase.weight_decay:g}")
    assert said_of(recipe, "momentum").endswith(f" {phase.momentum:g}")
    assert ("nothing divided" in said_of(recipe, "std")) == (phase.std == (1.0, 1.0, 1.0))
    assert ("ImageNet" in said_of(recipe, "std")) == (recipe.init == "imagenet")
    assert ("COCO" in said_of(recipe, "iterations") + said_of(recipe, "base_lr")) == (name == COCO)
    assert ("Table 1" in said_of(recipe, "base_lr")) == (recipe.model["backbone"] in ("vgg16", "dsod"))


@pytest.mark.parametrize("name", SSDS)
def test_sources_of_a_network_do_not_contradict_it(name):
    recipe = get_recipe(name)
    says = {key.removeprefix("model."): text for key, text in recipe.sources.items() if key.startswith("model.")}
    config = SSDConfig(20, **recipe.model)
    assert says["priors"].endswith(config.priors.upper())
    assert ("no BN" in says["norm"]) == (config.norm == "none") and "BN" in says["norm"]
    assert ("no BN" in says["head_norm"]) == (not config.head_norm) and "BN" in says["head_norm"]
    assert {"Figure 8": "residual", "original SSD": "ssd", "DSOD": "dsod"}[
        re.search("Figure 8|original SSD|DSOD", says["extras"])[0]
    ] == config.extras
    assert ("VGG-16" in says["backbone"]) == (config.backbone == "vgg16")
    assert ("DSOD" in says["backbone"]) == (config.backbone == "dsod")
    assert ("Table 2" in says["backbone"]) == (name in TABLES["scratchdet/table2"].recipes)
    assert f"{config.candidates} at a time" in says["candidates"]


# ---- Mistakes


@pytest.mark.parametrize("value", ["0", "1,0,1", "-1"])
def test_pixels_cannot_be_divided_by_nothing(value):
    with pytest.raises(UsageProblem, match=r"--set scratch\.std: .* is not above 0"):
        apply_settings(get_recipe("ssd300_resnet18"), [f"std={value}"])


def test_warp_needs_one_size_for_training_and_evaluation():
    with pytest.raises(UsageProblem, match=r"eval_size: .* must equal scratch\.size, \(320, 320\), with resize=warp"):
        apply_settings(get_recipe("ssd300_resnet18"), ["size=320", "eval_size=300"])
    (phase,) = apply_settings(get_recipe("ssd300_resnet18"), ["size=320"]).phases
    assert evaluation_size(phase) == (320, 320)
