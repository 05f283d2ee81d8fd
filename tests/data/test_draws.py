"""Repeat factors and class balance: which images an epoch draws, for any number of processes, and after a resume."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from directdet.common.errors import UserError
from directdet.data.augment.transforms import PretrainTransform
from directdet.data.dataset import Dataset, Record, load_dataset
from directdet.data.draws.classes import repeat_factors, shown_classes
from directdet.data.draws.orders import Balanced, Repeated, Uniform, drawing_in_words, epoch_order, make_order
from directdet.data.loader import make_loader
from directdet.data.records import Records, take
from directdet.data.sampling import BatchSampler, Sampling, usable
from directdet.recipes.by_name import get_recipe
from directdet.recipes.recipe import Phase
from directdet.recipes.settings import apply_settings

CLASSES = ("frequent", "middling", "rare", "absent")


def record(index, labels, crowd=()):
    count = len(labels)
    return Record(
        index,
        Path(f"{index}.jpg"),
        90,
        60,
        np.tile(np.array([1, 1, 9, 9], np.float32), (count, 1)),
        np.array(labels, np.int64),
        np.array([place in crowd for place in range(count)], bool),
        np.zeros(count, bool),
        (None,) * count,
        tuple(range(count)),
    )


def made_up(images=200):
    """Class 0 in 160 images, 1 in 20 (with 0), 2 in two (one with 0) and as a crowd in one; 39 without objects."""
    labels = [[0, 0] if index < 160 else [] for index in range(images)]
    for index in range(0, 100, 5):
        labels[index].append(1)
    labels[7].append(2)
    labels[199].append(2)
    records = [record(index, one) for index, one in enumerate(labels)]
    records[3] = record(3, [0, 2], crowd=(1,))
    return Dataset(Path("made-up"), "train", "coco", CLASSES, (1, 2, 3, 4), tuple(records))


def lvis(records, classes, threshold):
    """Repeat factors by the formula alone: r(i) = max over c in i of max(1, sqrt(t / f(c))), f over all images."""
    shown = [{int(c) for c, crowd in zip(one.labels, one.crowd, strict=True) if not crowd} for one in records]
    shares = [sum(c in one for one in shown) / len(shown) for c in range(classes)]
    return np.array([max([1.0] + [max(1.0, math.sqrt(threshold / shares[c])) for c in one]) for one in shown])


@pytest.mark.parametrize("threshold", [0.001, 0.05, 0.3, 1.0])
def test_repeat_factors_are_those_of_the_formula(threshold):
    records = made_up().records
    images, labels = shown_classes(records)
    found = repeat_factors(images, labels, len(records), threshold)
    np.testing.assert_allclose(found, lvis(records, 4, threshold), rtol=1e-12)
    if threshold == 0.05:  # 2 of 200 images show the rare class: sqrt(0.05 / 0.01)
        assert found[7] == found[199] == pytest.approx(math.sqrt(5)) and set(np.delete(found, [7, 199])) == {1.0}


def test_classes_are_the_same_from_columns(synthetic, monkeypatch):
    plain = load_dataset(synthetic, "train").records
    monkeypatch.setattr("directdet.data.formats.coco.LARGE", 0)
    columns = load_dataset(synthetic, "train").records
    assert isinstance(columns, Records) and not isinstance(plain, Records)
    weights = np.where(np.arange(len(columns.columns.weights)) % 3, 1, 0).astype(np.float32)
    columns = Records(replace(columns.columns, weights=weights), columns.folder)
    plain = tuple(columns)
    chosen = np.array([4, 0, 9, 5])
    for first, second in ((plain, columns), (take(plain, chosen), take(columns, chosen))):
        wanted = sorted({(at, int(label)) for at, one in enumerate(first) for label in one.labels[one.learnt]})
        assert wanted and wanted == list(zip(*(values.tolist() for values in shown_classes(first)), strict=True))
        assert wanted == list(zip(*(values.tolist() for values in shown_classes(second)), strict=True))


def test_what_is_not_learnt_shows_no_class():
    """An edge of a tile leaves objects of weight 0: neither their class nor their picture counts."""
    data = made_up()
    records = [replace(one, weights=np.where(one.labels == 2, 0, 1).astype(np.float32)) for one in data.records]
    data = replace(data, records=tuple(records))
    images, labels = shown_classes(data.records)
    assert set(labels.tolist()) == {0, 1} and 199 not in images
    assert 199 not in make_order("class_balanced", 0, data.records).of(0)
    assert usable(made_up(), Sampling(1, skip_empty=True))[-1].image_id == 199
    assert usable(data, Sampling(1, skip_empty=True))[-1].image_id != 199


def order_of(draw, dataset, seed=3, threshold=0.05):
    return make_order(draw, seed, dataset.records, threshold)


def test_uniform_is_the_order_of_before():
    order = order_of("uniform", made_up())
    for epoch in (0, 5):
        wanted = np.random.default_rng([3, epoch]).permutation(200)
        assert (order.of(epoch) == wanted).all() and (epoch_order(3, epoch, 200) == wanted).all()


def test_repeated_images_come_as_often_as_their_factor_says():
    factors = np.array([1.0, 1.0, 1.25, 2.5, 3.0, 1.9])
    order = Repeated(11, factors)
    assert order.length == 10  # of a sum of 10.65
    drawn = [np.bincount(order.of(epoch), minlength=6) for epoch in range(4000)]
    assert {int(one.sum()) for one in drawn} == {10}
    # The whole part always, but for the one image that may be too many; never more than one above it.
    assert (np.array(drawn) <= np.ceil(factors)).all()
    assert ((np.floor(factors) - np.array(drawn)).clip(0).sum(1) <= 1).all()
    # One draw in 10.65 is left out in 65 % of the epochs, whichever it is.
    np.testing.assert_allclose(np.mean(drawn, axis=0), factors * 10 / 10.65, rtol=0.02)
    assert len({tuple(one) for one in drawn}) > 4  # the fractions are drawn anew


def test_repeated_without_fractions_is_exact():
    drawn = np.bincount(Repeated(0, np.array([1.0, 3.0, 2.0])).of(4))
    assert drawn.tolist() == [1, 3, 2]


def test_balanced_draws_each_class_as_often_and_each_of_its_images_in_turn():
    dataset = made_up()
    order = order_of("class_balanced", dataset)
    assert isinstance(order, Balanced) and len(order.members) == 3 and order.length == 200
    drawn = np.bincount(order.of(0), minlength=200)
    assert not drawn[160:199].any()  # images without objects
    # A third of the draws (66 or 67) are for the rare class, half of them for its image 199, which shows no other.
    assert drawn[199] in (33, 34)
    assert all(drawn[index] >= 3 for index in range(0, 100, 5))
    assert not (order.of(0) == order.of(1)).all() and (order.of(1) == order_of("class_balanced", dataset).of(1)).all()


@pytest.mark.parametrize("draw", ["repeat_factor", "class_balanced"])
def test_processes_share_what_one_would_draw_and_a_resume_goes_on(draw):
    dataset = made_up()
    order = order_of(draw, dataset)
    portrait = np.zeros(len(dataset), bool)
    setting = Sampling(8, seed=3, draw=draw, repeat_threshold=0.05)
    whole = BatchSampler(setting, order, portrait)
    halves = [BatchSampler(replace(setting, batch_size=4, world_size=2, rank=rank), order, portrait) for rank in (0, 1)]
    for sampler in (whole, *halves):
        sampler.epoch = 2
    batches = list(whole)
    assert len(batches) == whole.batches_per_epoch == order.length // 8
    assert batches == [first + second for first, second in zip(*map(list, halves), strict=True)]
    assert [entry[2] for batch in batches for entry in batch] == order.of(2)[: len(batches) * 8].tolist()
    whole.start = 5
    assert list(whole) == batches[5:]


@pytest.mark.parametrize("draw", ["repeat_factor", "class_balanced"])
def test_batches_are_the_same_with_workers(synthetic, draw):
    dataset = load_dataset(synthetic, "train")
    setting = Sampling(3, seed=5, draw=draw, repeat_threshold=1.0)
    alone = make_loader(dataset, PretrainTransform(64), setting)
    workers = make_loader(dataset, PretrainTransform(64), setting, workers=2)
    for loader in (alone, workers):
        loader.set_epoch(1, 1)
    pairs = list(zip(alone, workers, strict=True))
    assert len(pairs) == alone.batches_per_epoch - 1
    for (images, targets), (others, their_targets) in pairs:
        assert (images == others).all() and all((targets[key] == their_targets[key]).all() for key in targets)


def test_what_is_drawn_is_told():
    dataset = made_up()
    assert drawing_in_words(Uniform(0, 200), 200) == ""
    assert drawing_in_words(order_of("repeat_factor", dataset), 200) == (
        "repeat factors: rare classes drawn up to 2.24 times as often (2 of 200 pictures more than once); a pass draws "
        "202 pictures"
    )
    assert "no class is rare enough" in drawing_in_words(order_of("repeat_factor", dataset, threshold=0.001), 200)
    assert drawing_in_words(order_of("class_balanced", dataset), 200) == (
        "class-balanced: each of 3 classes drawn equally often, the pictures of the rarest 33.3 times a pass, of the "
        "most frequent 0.417 times; a pass draws 200 pictures; 39 without objects are never drawn"
    )


def test_no_object_to_balance_by():
    none = replace(made_up(), records=tuple(record(index, []) for index in range(8)))
    with pytest.raises(UserError, match="made-up: train: class_balanced: no image has an object"):
        make_loader(none, PretrainTransform(64), Sampling(2, draw="class_balanced"))


def test_settings():
    recipe = apply_settings(
        get_recipe("mask_rcnn_r18_slim"), ["pretrain.sampling=repeat_factor", "pretrain.repeat_threshold=0.01"]
    )
    phase = recipe.phase("pretrain")
    assert (phase.sampling, phase.repeat_threshold) == ("repeat_factor", 0.01)
    assert Phase("scratch", "direct", (64, 64)).sampling == "uniform"
    with pytest.raises(UserError, match=r"pretrain.sampling: 'repeat' is not one of uniform, repeat_factor"):
        apply_settings(get_recipe("mask_rcnn_r18_slim"), ["pretrain.sampling=repeat"])
    with pytest.raises(UserError, match=r"pretrain.repeat_threshold: 0 is not above 0"):
        apply_settings(get_recipe("mask_rcnn_r18_slim"), ["pretrain.repeat_threshold=0"])
