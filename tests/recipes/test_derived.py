"""What follows from a phase's settings: on any number of devices the images and the rate of the row."""

import re

import pytest

from directdet.common.settings import SettingError
from directdet.recipes.by_name import RECIPES, get_recipe
from directdet.recipes.derived import (
    accumulated,
    evaluation_size,
    images_per_step,
    passes_per_epoch,
    possible_devices,
)
from directdet.recipes.recipe import Phase
from directdet.recipes.settings import apply_settings
from directdet.train.optim import learning_rate

BY_ITERATIONS = [(name, phase) for name in RECIPES for phase in get_recipe(name).phases if phase.iterations]
DEVICES = (1, 2, 4, 8, 16)


def row_of(name: str, phase: Phase) -> tuple[int, float]:
    """Images per step and learning rate of a row, by the papers (the last ones are ours, as their sources say)."""
    if name.startswith("ssd300_vgg16_imagenet"):  # section 4.1: "the default batch size 32 for the pretrained model"
        return 32, {"001": 0.001, "r01": 0.01, "r05": 0.05}[name[-3:]]
    if name.startswith("ssd300_vgg16_") and name != "ssd300_vgg16_slim":  # section 4.1: "batch size 128", Table 1
        return 128, {"001": 0.001, "r01": 0.01, "r05": 0.05}[name[-3:]]
    if phase.name == "montage":  # Zhou et al., arXiv 2004.12178, section 4.1
        return 512, 0.8
    if "coco10" in name:  # section 4.8: 0.04 in fine-tuning; section 3.4: 0.08 for 8 images on each of 8 GPUs
        return (64, 0.08) if phase.name == "pretrain" else (16, 0.04)
    if "_voc" in name:
        return (64, 0.04) if phase.name == "pretrain" else (16, 0.01)
    if name == "dsod300_no_bn":  # Table 1: 0.001 is the only rate that trains without BN
        return 128, 0.001
    ours = {"ssd300_vgg16_slim": (16, 0.02), "faster_rcnn_vgg16_scratch": (16, 0.01)}
    ours |= {"faster_rcnn_vgg16_imagenet": (16, 0.01)}
    return ours.get(name.removesuffix("_no_bn"), (128, 0.05))


@pytest.mark.parametrize(("name", "phase"), BY_ITERATIONS, ids=[f"{n}-{p.name}" for n, p in BY_ITERATIONS])
def test_any_number_of_devices_trains_the_row_or_is_told_which_does(name, phase):
    images, rate = row_of(name, phase)
    for devices in DEVICES:
        if devices * phase.batch_size <= images:
            assert images_per_step(phase, devices) == images
            assert learning_rate(phase, images) == pytest.approx(rate)
            assert accumulated(phase, devices) * devices * phase.batch_size == images
            continue
        with pytest.raises(SettingError) as told:
            accumulated(phase, devices)
        text = str(told.value)
        assert told.value.exit_code == 2 and "\n" not in text and f"{images} images, which {devices} proc" in text
        batch = int(re.search(rf"--set {phase.name}\.batch_size=(\d+)", text)[1])
        with_it = apply_settings(get_recipe(name), [f"{phase.name}.batch_size={batch}"]).phase(phase.name)
        assert images_per_step(with_it, devices) == images  # the advice does what it says
        for number in map(int, re.findall(r"\d+", text.partition("start ")[2].partition(" (torchrun")[0])):
            assert images_per_step(phase, number) == images


def test_table1s_best_row_on_one_device():
    recipe = get_recipe("ssd300_vgg16_both_lr05")
    (phase,) = recipe.phases
    assert (accumulated(phase, 1), images_per_step(phase, 1), learning_rate(phase, 128)) == (4, 128, 0.05)
    (small,) = apply_settings(recipe, ["batch_size=8"]).phases  # a small machine: the same step, 8 at a time
    assert (accumulated(small, 1), images_per_step(small, 1)) == (16, 128)
    (smaller,) = apply_settings(recipe, ["batch_size=8", "base_batch=8"]).phases  # another step
    assert (accumulated(smaller, 1), images_per_step(smaller, 1), learning_rate(smaller, 8)) == (1, 8, 0.05)
    (scaled,) = apply_settings(recipe, ["fixed_batch=false"]).phases
    assert (images_per_step(scaled, 1), learning_rate(scaled, 32)) == (32, 0.0125)
    assert possible_devices(phase) == [4, 2, 1]


def test_epochs_follow_the_linear_scaling_rule():
    phase = get_recipe("mask_rcnn_r50_fpn").phase("pretrain")
    assert [images_per_step(phase, devices) for devices in DEVICES] == [8, 16, 32, 64, 128]
    assert learning_rate(phase, 64) == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["batch_size=24"], r"batches of 24 never make up the 128 images of a step; give 16, or .*base_batch=24"),
        (["batch_size=200"], r"batches of 200 never make up the 128 .* give 128, or .*base_batch=200"),
        (["base_batch=100"], r"batches of 32 never make up the 100 images of a step; give 25, or .*base_batch=32"),
    ],
)
def test_batches_that_never_make_up_a_step(settings, says):
    with pytest.raises(SettingError, match=says):
        apply_settings(get_recipe("ssd300_vgg16_both_lr05"), settings)


def test_accumulation_that_contradicts_the_step():
    (phase,) = apply_settings(get_recipe("ssd300_vgg16_both_lr05"), ["accumulate=2"]).phases
    with pytest.raises(SettingError, match=r"accumulate: .* 128 .* 2 times 32 are 64; leave .*base_batch=64"):
        accumulated(phase, 1)
    assert accumulated(phase, 2) == 2


def test_synchronised_normalisation_sees_all_devices():
    (phase,) = apply_settings(get_recipe("ssd300_vgg16_both_lr05"), ["norm=sync"]).phases
    with pytest.raises(SettingError, match=r"batch_size=16 \(batch normalisation then sees 128 at a time\)"):
        accumulated(phase, 8)


# ---- Settings that hang together


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8, 16])
def test_pre_training_keeps_its_steps_whatever_the_batch(batch):
    """Section 3.1 fixes the steps K: 12 epochs of 117,266 images by 2 on each of 8 GPUs, 88k."""
    (phase, _) = apply_settings(get_recipe("mask_rcnn_r50_fpn"), [f"pretrain.batch_size={batch}"]).phases
    passes = phase.epochs * passes_per_epoch(phase)
    assert passes * 117_266 / (8 * batch) == pytest.approx(88_000, rel=0.001)
    (given, _) = apply_settings(get_recipe("mask_rcnn_r50_fpn"), ["pretrain.batch_size=16", "pretrain.repeat=4"]).phases
    assert passes_per_epoch(given) == 4  # what is given stays


@pytest.mark.parametrize(
    ("recipe", "settings", "phase", "wanted"),
    [
        ("mask_rcnn_r18_slim", [], "pretrain", (224, 224)),
        ("mask_rcnn_r18_slim", [], "finetune", (448, 448)),
        ("mask_rcnn_r18_slim", ["finetune.size=640"], "finetune", (640, 640)),
        ("mask_rcnn_r18_slim", ["finetune.size=480,700"], "finetune", (704, 704)),  # a canvas for both orientations
        ("mask_rcnn_r18_slim", ["finetune.size=640", "finetune.eval_size=512"], "finetune", (512, 512)),
        ("mask_rcnn_r50_fpn", [], "pretrain", (800, 1333)),  # the authors evaluate pre-training at full size
        ("mask_rcnn_r50_fpn", ["finetune.size=480,800"], "finetune", (480, 800)),
        ("faster_rcnn_vgg16_scratch", ["size=480,800"], "scratch", (480, 800)),
        ("ssd300_resnet18", ["size=512", "model.size=512"], "scratch", (512, 512)),
        ("mask_rcnn_r18_slim", ["finetune.size=256"], "finetune", (256, 256)),
    ],
)
def test_evaluation_follows_the_size_of_training(recipe, settings, phase, wanted):
    assert evaluation_size(apply_settings(get_recipe(recipe), settings).phase(phase)) == wanted


@pytest.mark.parametrize(
    ("recipe", "settings", "wanted"),
    [
        ("mask_rcnn_r18_slim", ["finetune.epochs=30"], (18, 27)),
        ("mask_rcnn_r18_slim", ["finetune.epochs=2"], (1,)),  # of two equal ones the first, none at the end
        ("mask_rcnn_r18_slim", ["finetune.epochs=1"], ()),
        ("mask_rcnn_r18_slim", ["finetune.epochs=30", "finetune.milestones=10"], (10,)),
        ("mask_rcnn_r18_slim", ["finetune.iterations=1000"], (600, 900)),  # epochs are no steps
        ("mask_rcnn_r18_slim", ["finetune.epochs=30", "finetune.iterations=none"], (18, 27)),
        ("mask_rcnn_r50_fpn", ["finetune.epochs=24"], (16, 22)),  # mmdet's own 2x
        ("ssd300_resnet18", ["iterations=1000"], (450, 750, 950)),
        ("ssd300_resnet18", ["iterations=none", "epochs=20"], (9, 15, 19)),
        ("mask_rcnn_r18_slim", ["finetune.base_lr=0.1"], (6, 9)),
    ],
)
def test_drops_of_the_rate_stay_in_proportion(recipe, settings, wanted):
    phase = apply_settings(get_recipe(recipe), settings).phases[-1]
    assert phase.milestones == wanted


def test_from_python_as_from_the_command_line():
    recipe = get_recipe("mask_rcnn_r18_slim").with_phase("finetune", epochs=30, size=(640, 640))
    assert recipe.phase("finetune").milestones == (18, 27)
    assert evaluation_size(recipe.phase("finetune")) == (640, 640)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ["finetune.milestones=10"],
            r"finetune\.milestones: 10 do not lie within 10 epochs; .*milestones=7,9 or .*=11",
        ),
        (["finetune.epochs=5", "finetune.milestones=6,9"], r"6, 9 do not lie within 5 epochs; .*milestones=3 or .*=10"),
        (["finetune.iterations=60", "finetune.milestones=60"], r"within 60 iterations; .*milestones=40,55 or .*=61"),
        (
            ["finetune.eval_size=2048"],
            r"eval_size: \(2048, 2048\) is more than 4 times away .*eval_size=none",
        ),
        (["finetune.size=640", "finetune.eval_size=128"], r"eval_size: \(128, 128\) is more than 4 times away"),
        (["finetune.short_edges=480,640"], r"short_edges: 640 is above the long edge .* 448; .*finetune\.size=320,640"),
    ],
)
def test_pairs_that_cannot_be_meant(settings, says):
    with pytest.raises(SettingError, match=says) as told:
        apply_settings(get_recipe("mask_rcnn_r18_slim"), settings)
    assert "\n" not in str(told.value) and told.value.exit_code == 2
    for text in re.findall(r"--set (finetune\.\w+=\S+?)(?=,? |$)", str(told.value))[-1:]:
        key = text.partition("=")[0]
        kept = [setting for setting in settings if not setting.startswith(key + "=")]
        apply_settings(get_recipe("mask_rcnn_r18_slim"), [*kept, text])  # the advice is a pair that can be


def test_rules_hold_for_every_recipe():
    for name in RECIPES:
        for phase in get_recipe(name).phases:
            assert max(phase.milestones, default=0) < (phase.iterations or phase.epochs), name
            assert phase.eval_size is None or phase.name == "pretrain" or "dropblock" in name, name
