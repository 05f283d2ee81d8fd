"""Recipes that follow the data: what is chosen for few and many pictures, and that what was given stays."""

from dataclasses import replace

import numpy as np
import pytest

from directdet.data.records import Dataset, Record
from directdet.recipes.by_name import get_recipe
from directdet.recipes.fit import DataFacts, fit_to_data
from directdet.recipes.settings import apply_settings
from directdet.train.objects import facts_of_data


def fitted(images, small, *settings):
    return fit_to_data(apply_settings(get_recipe("rtmdet_nano"), settings), DataFacts(images, small))


@pytest.mark.parametrize(
    ("images", "small", "batch", "epochs", "sides", "mosaic"),
    [
        (12, 0.2, 8, 300, (224, 320), 0.0),  # capped
        (120, 0.16, 8, 219, (224, 320), 0.0),  # 3000 * sqrt(1.2) steps of 8
        (2500, 0.04, 16, 96, (288, 416), 1.0),  # 16 pixels: 400, of which 416 is the nearest multiple of 32
        (118_000, 0.02, 32, 28, (448, 640), 1.0),  # 800 is above the largest canvas
        (5_000_000, 0.02, 32, 12, (448, 640), 1.0),
        (5, None, 5, 300, (224, 320), 0.0),  # a batch that they fill
        (0, None, 1, 300, (224, 320), 0.0),
    ],
)
def test_lengths_batches_and_sizes_follow_the_data(images, small, batch, epochs, sides, mosaic):
    recipe, words = fitted(images, small)
    pretrain, tune = recipe.phases
    assert (pretrain.batch_size, pretrain.base_batch, tune.batch_size) == (batch, batch, batch)
    assert (pretrain.epochs, tune.epochs) == (epochs, max(2, epochs // 6))
    assert (pretrain.size[0], tune.size[0], pretrain.mosaic) == (*sides, mosaic)
    assert all(phase.warmup_iterations <= phase.epochs * max(1, images) // batch / 20 for phase in recipe.phases)
    assert not recipe.fit
    assert f"for {images} pictures" in words and f"pretrain {epochs} epochs at {sides[0]}x{sides[0]}" in words


def test_what_was_given_stays():
    recipe, _ = fitted(120, 0.16, "pretrain.epochs=100", "mosaic=1", "finetune.size=640")
    pretrain, tune = recipe.phases
    assert (pretrain.epochs, pretrain.mosaic, tune.size, tune.mosaic) == (100, 1.0, (640, 640), 1.0)
    assert (pretrain.batch_size, pretrain.size, tune.epochs) == (8, (224, 224), 36)
    assert (pretrain.warmup_iterations, tune.warmup_iterations) == (100, 27)  # 219 and 36 epochs of 15 steps


def test_the_rate_of_a_step_does_not_follow_another_batch():
    """0.004 for a step of 16 would lose in fine-tuning what was learnt."""
    recipe, _ = fitted(120, 0.16, "batch_size=16")
    assert [(phase.batch_size, phase.base_batch) for phase in recipe.phases] == [(16, 16)] * 2
    recipe, _ = fitted(120, 0.16, "batch_size=16", "base_batch=4")
    assert [(phase.batch_size, phase.base_batch) for phase in recipe.phases] == [(16, 4)] * 2


def test_given_as_the_recipe_has_it_is_given_all_the_same():
    own = get_recipe("rtmdet_nano").phases[0].epochs
    recipe, _ = fit_to_data(get_recipe("rtmdet_nano").with_phase("pretrain", epochs=own), DataFacts(12, 0.2))
    assert recipe.phases[0].epochs == own


def test_what_was_changed_by_hand_stays():
    """As Python code does it, without with_phase."""
    recipe = get_recipe("rtmdet_nano")
    phases = tuple(replace(phase, size=(64, 64), batch_size=2) for phase in recipe.phases)
    fitted_recipe, _ = fit_to_data(replace(recipe, phases=phases), DataFacts(120, 0.16))
    assert [(phase.size, phase.batch_size) for phase in fitted_recipe.phases] == [((64, 64), 2)] * 2
    assert fitted_recipe.phases[0].epochs == 219


def test_other_recipes_stay_as_they_are():
    recipe = get_recipe("mask_rcnn_r18_slim")
    assert fit_to_data(recipe, DataFacts(12, 0.2)) == (recipe, "")


def test_fitted_once_is_fitted():
    recipe, _ = fitted(120, 0.16)
    assert fit_to_data(recipe, DataFacts(100_000, 0.02)) == (recipe, "")


def test_facts_of_data(tmp_path):
    def record(number, boxes, crowd=()):
        corners = np.array(boxes, np.float32).reshape(-1, 4)
        count = len(corners)
        flags = np.isin(np.arange(count), crowd)
        none = np.zeros(count, bool)
        labels = np.zeros(count, np.int64)
        path = tmp_path / "a.jpg"
        return Record(number, path, 100, 200, corners, labels, flags, none, (None,) * count, tuple(range(count)))

    records = [record(1, [[0, 0, 10, 40], [0, 0, 50, 50], [0, 0, 1, 1]], [2]), record(2, []), record(3, [[5, 5, 5, 9]])]
    facts = facts_of_data(Dataset(tmp_path, "train", "coco", ("a",), (1,), tuple(records)))
    assert facts.images == 3
    # sides 20, 50 and 0 of 200 pixels; a crowd region does not count
    assert facts.small == pytest.approx(np.quantile([0.1, 0.25, 0.0], 0.1))
    assert facts_of_data(Dataset(tmp_path, "train", "coco", ("a",), (1,), (records[1],))).small is None


@pytest.mark.parametrize("size", ["nano", "s", "l"])
def test_with_masks_a_size_is_trained_alike(size):
    facts = DataFacts(120, 0.18)
    boxes, masks = (fit_to_data(get_recipe(f"{family}_{size}"), facts)[0] for family in ("rtmdet", "rtmdet_ins"))
    assert boxes.phases == masks.phases and masks.detector == "rtmdet_ins"
