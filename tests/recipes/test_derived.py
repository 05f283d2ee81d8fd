"""What follows from a phase's settings: on any number of devices the images and the rate of the row."""

import re

import pytest

from directdet.common.settings import SettingError
from directdet.recipes.by_name import RECIPES, get_recipe
from directdet.recipes.derived import accumulated, images_per_step, possible_devices
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
    if "coco10" in name:  # section 4.8: 0.04 in fine-tuning; section 3.4: 0.08 for 8 images on each of 8 GPUs
        return (64, 0.08) if phase.name == "pretrain" else (16, 0.04)
    if "_voc" in name:
        return (64, 0.04) if phase.name == "pretrain" else (16, 0.01)
    ours = {"ssd300_vgg16_slim": (16, 0.02), "faster_rcnn_vgg16_scratch": (16, 0.01)}
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
