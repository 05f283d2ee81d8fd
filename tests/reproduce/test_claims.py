"""Verdicts on made numbers, against computations that are not ours."""

import itertools
import math
from statistics import fmean, stdev

import numpy as np
import pytest
from comparison_helpers import printed

from directdet.reproduce.claims import Claim, SeedFigures, claims_table, judge, paired_t, t_below, t_quantile
from directdet.reproduce.experiments import EXPERIMENTS
from directdet.reproduce.scales import SCALES
from directdet.reproduce.tables.paper_claims import CLAIMS

A_OVER_B = Claim("a > b", ("a",), ("b",), "Table 0")


def figures(rows: list[dict[str, float]], spread: float = 0.001, pictures: int = 60, **changes) -> list[SeedFigures]:
    """Of each seed, AP by row; with draws that move every row of a seed by itself, at random."""
    rng, found = np.random.default_rng(0), []
    for seed, row in enumerate(rows):
        draws = {key: np.append(value, value + spread * rng.standard_normal(100)) for key, value in row.items()}
        values = {key: {"AP": value} for key, value in row.items()}
        found.append(SeedFigures(seed, dict.fromkeys(row, "done"), values, draws, pictures, **changes))
    return found


def of_differences(differences: list[float], **changes) -> list[SeedFigures]:
    return figures([{"a": 0.3 + one, "b": 0.3} for one in differences], **changes)


# ---- The test over seeds


@pytest.mark.parametrize(("free", "quantile"), [(1, 12.706), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622)])
def test_quantiles_are_the_tables(free, quantile):
    """As printed in every table of Student's distribution."""
    assert t_quantile(0.975, free) == pytest.approx(quantile, rel=1e-4)
    assert t_below(t_quantile(0.9, free), free) == pytest.approx(0.9, abs=1e-12)
    assert t_below(0.0, free) == 0.5


def test_one_and_two_degrees_of_freedom_are_the_closed_forms():
    for t in (0.1, 1.0, 4.0, 30.0):
        assert t_below(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-14)
        assert t_below(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-14)


def test_the_distribution_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    for free, t in itertools.product(range(1, 40), (0.0, 0.3, 1.0, 2.5, 8.0)):
        assert t_below(t, free) == pytest.approx(stats.t.cdf(t, free), abs=1e-12)
    for differences in ([0.01, 0.03, 0.02], [0.01, -0.03], [0.0, 0.5, 0.1, -0.2, 0.4]):
        test = stats.ttest_1samp(differences, 0.0)
        interval = test.confidence_interval(0.95)
        half, p = paired_t(differences)
        assert p == pytest.approx(test.pvalue, abs=1e-12)
        assert half == pytest.approx((interval.high - interval.low) / 2, rel=1e-9)


def test_differences_without_spread():
    assert paired_t([0.25, 0.25]) == (0.0, 0.0) and paired_t([0.0, 0.0, 0.0]) == (0.0, 1.0)


# ---- Verdicts


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([0.05, 0.04, 0.06], "shown"),
        ([-0.05, -0.04, -0.06], "contradicted"),
        ([0.05, 0.00, 0.10], "not shown"),  # the seeds differ too much
        ([0.05, 0.05, -0.01], "not shown"),
        ([0.10], "shown"),
        ([-0.10], "contradicted"),
        ([0.001], "not shown"),
    ],
)
def test_words(differences, word):
    assert judge(A_OVER_B, of_differences(differences)).word == word


def test_numbers_of_a_verdict():
    differences, spread = [0.05, 0.02, 0.06], 0.01
    seeds = of_differences(differences, spread=spread)
    found = judge(A_OVER_B, seeds)
    assert found.by_seed == pytest.approx(differences) and found.mean == pytest.approx(fmean(differences))
    assert found.spread == pytest.approx(stdev(differences))
    reach = 4.302653 * stdev(differences) / math.sqrt(3)
    assert found.over_seeds == pytest.approx((fmean(differences) - reach, fmean(differences) + reach))
    mean_of_draws = sum(one.draws["a"][1:] - one.draws["b"][1:] for one in seeds) / 3
    wide = 1.96 * mean_of_draws.std()
    assert found.over_pictures == pytest.approx((fmean(differences) - wide, fmean(differences) + wide))
    assert found.rows == (("a",), ("b",)) and found.reason == ""
    plain = found.to_dict()
    assert plain["verdict"] == found.word and plain["text"] == "a > b" and plain["p"] == found.p


def test_pictures_alone_can_stop_a_claim():
    sure_seeds = [0.050, 0.051, 0.049]
    assert judge(A_OVER_B, of_differences(sure_seeds)).word == "shown"
    assert judge(A_OVER_B, of_differences(sure_seeds, spread=0.1)).word == "not shown"
    few = judge(A_OVER_B, of_differences(sure_seeds, pictures=9))
    assert (few.word, few.reason, few.over_pictures) == ("not shown", "fewer than 10 pictures", None)
    without = [SeedFigures(one.seed, one.states, one.values, {}, 60) for one in of_differences(sure_seeds)]
    assert judge(A_OVER_B, without).word == "not shown" and "no draws" in judge(A_OVER_B, without).reason


def test_draws_without_objects_do_not_count():
    seeds = of_differences([0.05, 0.04, 0.06])
    expected = judge(A_OVER_B, seeds).over_pictures
    for one in seeds:
        for key in "ab":
            one.draws[key] = np.append(one.draws[key], -1.0 if key == "a" else 0.7)
    assert judge(A_OVER_B, seeds).over_pictures == pytest.approx(expected)


def test_one_seed_says_so():
    found = judge(A_OVER_B, of_differences([0.05]))
    assert found.reason == "one seed: the pictures alone decide" and found.over_seeds is found.p is found.spread is None


def test_margins():
    by_two = Claim("a > b by 2 points", ("a",), ("b",), "", margin=0.02)
    assert judge(by_two, of_differences([0.05, 0.04, 0.06])).word == "shown"
    assert judge(by_two, of_differences([0.02, 0.01, 0.03])).word == "not shown"
    assert judge(by_two, of_differences([0.010, 0.011, 0.009])).word == "contradicted"
    no_worse = Claim("a is no worse than b", ("a",), ("b",), "", margin=-0.01)
    assert judge(no_worse, of_differences([0.001, 0.0, -0.001])).word == "shown"
    assert judge(no_worse, of_differences([-0.05, -0.05, -0.051])).word == "contradicted"


def test_rows_that_learned_nothing_are_not_no_worse():
    no_worse = Claim("a is no worse than b", ("a",), ("b",), "", margin=-0.01)
    for level, word in ((0.004, "not shown"), (0.09, "not shown"), (0.11, "shown")):
        rows = [{"a": level + 0.0001 * seed, "b": level} for seed in range(3)]
        found = judge(no_worse, figures(rows))
        assert found.word == word and (found.reason == "") == (word == "shown")
    assert judge(no_worse, figures([{"a": 0.004, "b": 0.004}] * 2)).reason == (
        "AP is below 10%: too low for a margin of 1%"
    )


def test_the_gain_of_one_row_against_that_of_another():
    claim = Claim("c - b > b - a", ("c", "a"), ("b", "b"), "")
    rows = [{"a": 0.10 + k, "b": 0.11 + k, "c": 0.20 + 2 * k} for k in (0.0, 0.01, 0.02)]
    found = judge(claim, figures(rows))
    assert found.by_seed == pytest.approx([0.08, 0.09, 0.10]) and found.word == "shown"


def test_the_best_of_several_rows_is_that_of_the_highest_mean():
    claim = Claim("a at its best > b at its best", ("a_*",), ("b_*",), "")
    rows = [
        {"a_1": 0.2, "a_2": 0.3, "b_1": 0.1, "b_2": 0.25, "bc": 0.9},
        {"a_1": 0.45, "a_2": 0.3, "b_1": 0.1, "b_2": 0.2, "bc": 0.9},
    ]
    found = judge(claim, figures(rows))
    assert found.rows == (("a_1",), ("b_2",)) and found.by_seed == pytest.approx([-0.05, 0.25])
    seeds = figures(rows)
    del seeds[1].values["a_1"]  # diverged with one seed
    seeds[1].states["a_1"] = "diverged"
    assert judge(claim, seeds).rows == (("a_2",), ("b_2",))


@pytest.mark.parametrize(
    ("state", "word", "reason"),
    [
        ("to come", "to come", "to come: b (seed 1)"),
        ("skipped", "not shown", "rows were skipped"),
        ("diverged", "not shown", "b has no result with seed 1"),
    ],
)
def test_rows_without_a_result(state, word, reason):
    seeds = of_differences([0.05, 0.04])
    del seeds[1].values["b"]
    seeds[1].states["b"] = state
    found = judge(A_OVER_B, seeds)
    assert (found.word, found.reason, found.mean) == (word, reason, None)


def test_data_without_objects():
    found = judge(A_OVER_B, figures([{"a": -1.0, "b": -1.0}]))
    assert (found.word, found.reason) == ("not shown", "there are no objects")


def test_times_are_ratios():
    claim = Claim("a takes longer", ("a",), ("b",), "x 2", "s_per_step")

    def timed(pairs: list[tuple[float, float]]) -> list[SeedFigures]:
        states = {"a": "done", "b": "done"}
        return [
            SeedFigures(k, states, {"a": {"AP": -1.0, "s_per_step": one}, "b": {"AP": -1.0, "s_per_step": two}}, {}, 4)
            for k, (one, two) in enumerate(pairs)
        ]

    found = judge(claim, timed([(2.0, 1.0), (4.2, 2.0), (1.9, 1.0)]))
    assert found.word == "shown" and math.exp(found.mean) == pytest.approx((2.0 * 2.1 * 1.9) ** (1 / 3))
    assert judge(claim, timed([(1.0, 2.0), (2.0, 4.1)])).word == "contradicted"
    assert judge(claim, timed([(2.0, 1.0)])).word == "not shown"  # nothing says how times go up and down
    text = printed(claims_table([found], 3))
    assert "x 2.00" in text and "95%, 3 seeds" in text


def test_the_table_gives_points():
    text = printed(claims_table([judge(A_OVER_B, of_differences([0.05, 0.04, 0.06]))], 3))
    assert "+5.0" in text and "+2.5 to +7.5" in text and "shown" in text and "Table 0" in text


@pytest.mark.parametrize(
    "changes", [{"less": ("b", "c")}, {"more": (), "less": ()}, {"measure": "s_per_step", "margin": 0.1}]
)
def test_claims_that_make_no_sense(changes):
    with pytest.raises(ValueError, match=r"^a > b: "):
        Claim(**{"text": "a > b", "more": ("a",), "less": ("b",), "source": "", **changes})


# ---- The papers' claims


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_papers_claims_are_about_rows_and_their_figures(name):
    trials = {trial.key: trial for trial in EXPERIMENTS[name].trials(SCALES["tiny"])}
    assert CLAIMS[name] and len({claim.text for claim in CLAIMS[name]}) == len(CLAIMS[name])
    key = {"coco": "box_ap", "voc": "map"}[EXPERIMENTS[name].metric]
    for claim in CLAIMS[name]:
        assert claim.concerns(list(trials)), claim.text
        if claim.measure != "AP" or len(claim.more) > 1:
            continue
        given = [float(word) for word in claim.source.replace(" both", "").split(": ")[1].split(" and ")]
        best = [
            max(trial.paper[key] or 0 for own, trial in trials.items() if own == one or own.startswith(one.rstrip("*")))
            if one.endswith("*")
            else trials[one].paper[key]
            for (one,) in (claim.more, claim.less)
        ]
        assert given in (best, best[:1]) and best[0] - best[1] > 100 * claim.margin, claim.text
