"""When the classes get score thresholds of their own, on detections made so that the right answer is known."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from test_infer_analysis import data, made, picture, seen

from directdet.infer.accuracy.class_scores import LEAST, MARGIN, class_scores, suggested_score
from directdet.infer.accuracy.matches import Matches, match
from directdet.infer.accuracy.score_curves import score_curve

CAT, DOG, BIRD = range(3)
NAMES = ("cat", "dog", "bird")
HERE, THERE, EMPTY = [0, 0, 20, 20], [50, 50, 80, 80], [30, 0, 45, 20]


def two_scales(pictures=40, birds=()):
    """A cat and a dog in each picture, found at 0.75 and 0.375, and what is none at 0.5 and 0.125. The pictures
    `birds` have a bird as well, found at 0.25; elsewhere a bird is seen at 0.375 where none is."""
    records, found = [], []
    for number in np.random.default_rng(0).permutation(pictures).tolist():  # image ids in another order than records
        objects = [(HERE, CAT, ""), (THERE, DOG, ""), *[([0, 50, 20, 80], BIRD, "")] * (number in birds)]
        bird = ([0, 50, 20, 80], BIRD, 0.25) if number in birds else (EMPTY, BIRD, 0.375)
        rows = [(HERE, CAT, 0.75), (THERE, DOG, 0.375), (EMPTY, CAT, 0.5), (EMPTY, DOG, 0.125)]
        records.append(picture(number, objects))
        found.append(seen(number, *rows, *[bird] * bool(birds)))
    return found, data(*records).records


def of(found, records):
    return match(found, records), [record.image_id for record in records]


def test_two_scales_get_a_threshold_each():
    matches, ids = of(*two_scales())
    told = class_scores(matches, 3, ids)
    assert told.scores == {CAT: 0.625, DOG: 0.25}  # the middle of 0.501 to 0.75, and of 0.126 to 0.375
    assert told.f1 == (1.0, 1.0) and told.common_f1 == (0.8, 0.8)  # from 0.126 to 0.375, a cat too much a picture
    assert told.help
    common = score_curve(matches, 3).suggestion
    assert suggested_score(matches, NAMES, ids) == {
        **common,
        "per_class": {"cat": 0.625, "dog": 0.25},
        "held_out_f1": {"common": [0.8, 0.8], "per_class": [1.0, 1.0]},
    }


@pytest.mark.parametrize("there", [LEAST, LEAST - 1])
def test_a_rare_class_keeps_the_common_threshold(there):
    """Birds in ten pictures of one half, and in ten or nine of the other."""
    birds = {2 * n for n in range(LEAST)} | {2 * n + 1 for n in range(there)}
    matches, ids = of(*two_scales(birds=birds))
    told = class_scores(matches, 3, ids)
    assert told.help and (BIRD in told.scores) == (there == LEAST) and told.scores[CAT] == 0.625
    assert ("bird" in suggested_score(matches, NAMES, ids)["per_class"]) == (there == LEAST)


def test_too_few_pictures_one_class_or_nothing_found():
    few = of(*two_scales(2 * LEAST - 1))
    assert class_scores(few[0], 3, few[1]) is None
    assert suggested_score(few[0], NAMES, few[1]) == score_curve(few[0], 3).suggestion
    records = two_scales()[1]
    nothing = of([seen(record.image_id) for record in records], records)
    assert class_scores(nothing[0], 3, nothing[1]) is None and suggested_score(nothing[0], NAMES, nothing[1]) is None
    cats = [picture(number, [(HERE, CAT, "")]) for number in range(40)]
    alone = of([seen(number, (HERE, CAT, 0.75)) for number in range(40)], cats)
    assert class_scores(alone[0], 1, alone[1]) is None


def alike(seed, pictures=100):
    """Cats and dogs, of which four in five are found, with scores of one distribution; and as many that are none."""
    rng, records, found = np.random.default_rng(seed), [], []
    for number in range(pictures):
        objects, rows = [], []
        for label, box, other in ((CAT, HERE, [0, 50, 20, 80]), (DOG, THERE, EMPTY)):
            if rng.random() < 0.7:
                objects.append((box, label, ""))
                rows += [(box, label, rng.beta(4, 2))] * (rng.random() < 0.8)
            rows += [(other, label, rng.beta(2, 4))] * (rng.random() < 0.7)
        records.append(picture(number, objects))
        found.append(seen(number, *rows))
    return of(found, records)


def test_what_is_noise_is_not_taken():
    """Own thresholds of classes that are alike cost F1 on average, and few of 40 sets say otherwise."""
    gains, taken = [], 0
    for seed in range(40):
        matches, ids = alike(seed)
        told = class_scores(matches, 2, ids)
        gains.append(np.subtract(told.f1, told.common_f1))
        taken += told.help
        assert told.help == (gains[-1].min() >= MARGIN) == ("per_class" in suggested_score(matches, NAMES[:2], ids))
    assert np.mean(gains) < 0 and taken <= 4


def test_matches_of_some_pictures_are_those_of_these_alone():
    dataset, found = made(3, 30)
    chosen = np.random.default_rng(1).random(30) < 0.5
    part = match(found, dataset.records).of(chosen)
    alone = match(found, [record for record, is_chosen in zip(dataset.records, chosen, strict=True) if is_chosen])
    places = np.flatnonzero(chosen)
    assert len(alone.target) > 20 and (alone.target >= 0).any() and (alone.other_object >= 0).any()
    for name in (one.name for one in fields(Matches)):
        expected = getattr(alone, name)
        expected = places[expected] if name in ("picture", "object_picture") else expected
        assert np.array_equal(getattr(part, name), expected), name
