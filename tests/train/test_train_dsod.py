"""DSOD without batch normalisation trains at its recipe's own rate, and not at that of the networks with it."""

from dataclasses import replace

import pytest
import torch

from directdet.infer.preprocess import Preprocess
from directdet.models.build import build_model
from directdet.recipes.by_name import get_recipe
from directdet.recipes.recipe import Recipe
from directdet.train.data import load_splits, make_phase_loader
from directdet.train.optim import learning_rate
from directdet.train.step import Stepper

BATCH = 2


def losses(recipe: Recipe, rate: float, shapes, steps: int, batch_size: int = BATCH) -> list[float]:
    """The loss of each step of a slim network."""
    torch.set_num_threads(1)
    dataset, _ = load_splits(shapes)
    phase = replace(recipe.phases[0], batch_size=batch_size, base_batch=batch_size, workers=0)
    torch.manual_seed(0)
    settings = {**recipe.model, "width": 8}
    model = build_model({"detector": "ssd", "num_classes": len(dataset.classes), **settings}).train()
    stepper = Stepper(model, phase, Preprocess((300, 300), fixed=True, std=phase.std, warp=True), rate, seed=0)
    loader = make_phase_loader(phase, dataset, False, 0, False)
    found: list[float] = []
    while len(found) < steps:
        loader.set_epoch(len(found) // loader.batches_per_epoch)
        for batch in loader:
            values, _ = stepper.step([batch], len(found), loader.batches_per_epoch)
            found.append(float(sum(values.values())))
    return found[:steps]


def test_without_batch_normalisation_it_learns_at_its_own_rate(shapes):
    recipe = get_recipe("dsod300_no_bn")
    phase = recipe.phases[0]
    assert learning_rate(phase, phase.base_batch) == 0.001
    found = torch.tensor(losses(recipe, 0.001, shapes, 24))
    assert found.isfinite().all()
    first, last = found[:6].mean(), found[-6:].mean()  # a pass over the pictures each
    assert last < 0.75 * first, found
    assert found.max() < 100


@pytest.mark.slow
@pytest.mark.parametrize(("length", "learns"), [(10.0, True), (20.0, False)])
def test_it_goes_on_learning_at_the_whole_rate(shapes, length, learns):
    """With inputs of a length of 20 the heads swing ever further, beginning where the warm-up ends."""
    recipe = get_recipe("dsod300_no_bn").with_phase("scratch", warmup_iterations=20)
    recipe = replace(recipe, model={**recipe.model, "l2_scale": length})
    found = torch.tensor(losses(recipe, 0.001, shapes, 84, batch_size=4)).unflatten(0, (-1, 12)).mean(1)
    assert found.isfinite().all()
    assert bool(found[-1] <= 1.05 * found[1:].min()) == learns, found


def test_as_it_was_the_loss_is_soon_not_finite(shapes):
    """What the test above can see: raw maps, and at once the rate of the networks with batch normalisation."""
    recipe = get_recipe("dsod300_no_bn").with_phase("scratch", warmup_iterations=0)
    recipe = replace(recipe, model={**recipe.model, "l2_norm": False})
    found = torch.tensor(losses(recipe, 0.05, shapes, 6))
    assert found[0] > 100 and not found.isfinite().all()


def test_all_maps_are_normalised_to_one_length():
    torch.manual_seed(0)
    settings = {**get_recipe("dsod300_no_bn").model, "width": 8}
    model = build_model({"detector": "ssd", "num_classes": 3, **settings}).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 300, 300)).features
    assert [x.shape[-1] for x in maps] == [38, 19, 10, 5, 3, 1]
    for x in maps:
        torch.testing.assert_close(x.norm(dim=1), torch.full((1, *x.shape[2:]), 10.0), rtol=1e-4, atol=1e-4)
