"""What a comparison is to show, and whether it does: a paired test over seeds, and a bootstrap over pictures.

A claim says that one row has more of something than another. Its difference is taken seed by seed, so that what a seed
does to both rows drops out, and goes up and down for two reasons: the seed, and the pictures that AP is measured on.
Each has its 95% interval, and a claim is shown only where both lie beyond its margin.

Over seeds it is the interval of the paired t test (Student, Biometrika 6, 1908): with three seeds the mean -+ 2.48
standard deviations. It supposes that differences are normally distributed. Tests without this, of signs or
permutations, can conclude nothing from so few: three differences of the same sign have p = 0.25, and 0.05 takes six.

Over pictures it is the paired bootstrap of infer.accuracy.ap_difference. One seed says nothing about other seeds: the
pictures then decide alone, about this one training of each row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
from rich.table import Table

from directdet.common.terminal import plain
from directdet.infer.accuracy.ap_difference import LEAST, NORMAL_95

Measure = Literal["AP", "s_per_step", "images_per_second"]
Word = Literal["shown", "not shown", "contradicted", "to come"]
_SURE = 0.975  # of each tail, for an interval of 95%
_LEAST_AP = 10  # margins: below that, rows that learned hardly anything are "no worse" than each other


@dataclass(frozen=True)
class Claim:
    """One thing that a comparison is to show: the sum of `more` is higher than that of `less`, by more than `margin`.

    Attributes:
        text: the claim in words.
        more, less: keys of rows, as many on both sides; "both_*" is the best of the rows whose keys begin so.
        source: the paper's figures.
        measure: "AP" is COCO's box AP or VOC's mAP, as the comparison measures; the others are compared as ratios.
        margin: of AP, 0 to 1; below 0 the claim is that `more` is not worse by as much.
    """

    text: str
    more: tuple[str, ...]
    less: tuple[str, ...]
    source: str
    measure: Measure = "AP"
    margin: float = 0.0

    def __post_init__(self) -> None:
        if len(self.more) != len(self.less) or not self.more:
            raise ValueError(f"{self.text}: {self.more} and {self.less}; give as many rows on both sides")
        if self.margin and self.measure != "AP":
            raise ValueError(f"{self.text}: a margin is of AP, not of {self.measure}")

    def concerns(self, keys: Sequence[str]) -> bool:
        """Whether these rows are all that it takes."""
        return all(matching(name, keys) for name in (*self.more, *self.less))


def matching(name: str, keys: Sequence[str]) -> list[str]:
    """The rows that a name in a claim means."""
    return [key for key in keys if key == name or (name.endswith("*") and key.startswith(name[:-1]))]


@dataclass(frozen=True)
class SeedFigures:
    """What the rows reached with one seed.

    Attributes:
        seed: which.
        states: what became of each row, in its order: "done", "to come", "skipped" or "diverged".
        values: the measures of each row that is done; AP is 0 to 1, -1 where there are no objects.
        draws: AP of each row that is done on all pictures and on each draw of them, [1 + DRAWS], if it is known.
        pictures: how many AP is measured on.
    """

    seed: int
    states: Mapping[str, str]
    values: Mapping[str, Mapping[Measure, float]]
    draws: Mapping[str, np.ndarray]
    pictures: int


@dataclass(frozen=True)
class Verdict:
    """Whether a claim is shown, and why.

    Attributes:
        claim: it.
        word: "shown", "contradicted" (the opposite is), "not shown" or, where rows are still to come, "to come".
        reason: in words, where something else than the two intervals decided.
        rows: the rows that were compared, the best of several chosen.
        by_seed: the difference with each seed: of AP, or the logarithm of the ratio.
        mean, spread: of these; spread is the sample standard deviation, None with one seed.
        over_seeds: 95% interval of the mean by the paired t test; None with one seed.
        p: of the paired t test for no difference beyond the margin, two-sided; None with one seed.
        over_pictures: 95% interval of the mean by the paired bootstrap over pictures; None of times.
    """

    claim: Claim
    word: Word
    reason: str = ""
    rows: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    by_seed: list[float] = field(default_factory=list)
    mean: float | None = None
    spread: float | None = None
    over_seeds: tuple[float, float] | None = None
    p: float | None = None
    over_pictures: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = asdict(self)
        return {**found.pop("claim"), "verdict": found.pop("word"), **found}


def judge(claim: Claim, seeds: Sequence[SeedFigures]) -> Verdict:
    """The verdict on a claim from the rows of every seed.

    The best of several rows is that of the highest mean among those that came to their end with every seed. As it is
    chosen on the pictures that it is compared on, it looks a little better than it is, on both sides of a claim.
    """
    keys = list(seeds[0].states)
    concerned = {key for name in (*claim.more, *claim.less) for key in matching(name, keys)}
    if any(one.states[key] == "skipped" for one in seeds for key in concerned):
        return Verdict(claim, "not shown", "rows were skipped")
    if left := [f"{key} (seed {one.seed})" for one in seeds for key in concerned if one.states[key] == "to come"]:
        return Verdict(claim, "to come", f"to come: {min(left)}")
    sides = tuple(tuple(_best(name, claim.measure, keys, seeds) for name in side) for side in (claim.more, claim.less))
    more, less = sides
    for name in (*more, *less):
        if lost := [one.seed for one in seeds if claim.measure not in one.values.get(name, {})]:
            return Verdict(claim, "not shown", f"{name} has no result with seed {lost[0]}")
    if claim.measure == "AP" and min(one.values[key]["AP"] for one in seeds for key in (*more, *less)) < 0:
        return Verdict(claim, "not shown", "there are no objects")
    by_seed = [_difference(claim.measure, one, more, less) for one in seeds]
    mean = fmean(by_seed)
    pictures = _over_pictures(seeds, more, less, mean) if claim.measure == "AP" else None
    found: dict[str, Any] = {"rows": (more, less), "by_seed": by_seed, "mean": mean, "over_pictures": pictures}
    reasons = []
    if len(seeds) > 1:
        half, p = paired_t([one - claim.margin for one in by_seed])
        found |= {"spread": stdev(by_seed), "over_seeds": (mean - half, mean + half), "p": p}
    else:
        reasons.append("one seed: the pictures alone decide" if claim.measure == "AP" else "one seed")
    if claim.measure == "AP" and pictures is None:
        few = seeds[0].pictures < LEAST
        reasons.append(f"fewer than {LEAST} pictures" if few else "no draws of the pictures were kept")
    intervals = [found.get("over_seeds"), pictures]
    if (claim.measure == "AP" and pictures is None) or not any(intervals):
        word: Word = "not shown"
    else:
        word = _word([interval for interval in intervals if interval is not None], claim.margin)
    if word == "shown" and claim.margin < 0 and _level(seeds, less) < _LEAST_AP * -claim.margin:
        word = "not shown"
        reasons.append(f"AP is below {-_LEAST_AP * claim.margin:.0%}: too low for a margin of {-claim.margin:.0%}")
    return Verdict(claim, word, "; ".join(reasons), **found)


def _best(name: str, measure: Measure, keys: Sequence[str], seeds: Sequence[SeedFigures]) -> str:
    """The row that a name means; the name itself where none came to its end with every seed."""
    ended = [key for key in matching(name, keys) if all(measure in one.values.get(key, {}) for one in seeds)]
    return max(ended, key=lambda key: fmean(one.values[key][measure] for one in seeds), default=name)


def _level(seeds: Sequence[SeedFigures], keys: Sequence[str]) -> float:
    """The mean AP of rows."""
    return fmean(one.values[key]["AP"] for one in seeds for key in keys)


def _difference(measure: Measure, one: SeedFigures, more: Sequence[str], less: Sequence[str]) -> float:
    sides = [[one.values[key][measure] for key in side] for side in (more, less)]
    if measure != "AP":
        sides = [[math.log(value) for value in side] for side in sides]
    return sum(sides[0]) - sum(sides[1])


def _over_pictures(
    seeds: Sequence[SeedFigures], more: Sequence[str], less: Sequence[str], mean: float
) -> tuple[float, float] | None:
    """The interval of the mean difference over the draws of the pictures, which are the same for all rows and seeds."""
    if seeds[0].pictures < LEAST or any(key not in one.draws for one in seeds for key in (*more, *less)):
        return None
    drawn = [[np.stack([one.draws[key] for key in side])[:, 1:] for side in (more, less)] for one in seeds]
    valid = np.concatenate([side for pair in drawn for side in pair]).min(0) >= 0  # of those that drew some object
    differences = np.mean([(first.sum(0) - second.sum(0))[valid] for first, second in drawn], axis=0)
    reach = NORMAL_95 * float(np.std(differences)) if len(differences) else math.inf
    return mean - reach, mean + reach


def _word(intervals: Sequence[tuple[float, float]], margin: float) -> Word:
    if all(low > margin for low, _ in intervals):
        return "shown"
    return "contradicted" if all(high < margin for _, high in intervals) else "not shown"


def paired_t(differences: Sequence[float]) -> tuple[float, float]:
    """(half the 95% interval of the mean, two-sided p for a mean of zero) by Student's t test of n >= 2 differences."""
    free = len(differences) - 1
    error = stdev(differences) / math.sqrt(len(differences))
    mean = fmean(differences)
    p = (0.0 if mean else 1.0) if error == 0 else 2 * (1 - t_below(abs(mean) / error, free))
    return t_quantile(_SURE, free) * error, p


def t_below(t: float, free: int) -> float:
    """How much of Student's distribution with `free` degrees of freedom lies below t >= 0: Abramowitz and Stegun,
    Handbook of Mathematical Functions, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(free))
    cosine, odd = math.cos(angle), free % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(2 + odd, free + 1, 2):
        total += term
        term *= cosine**2 * (power - 1) / power
    inside = math.sin(angle) * total
    return 0.5 + ((angle + inside) / math.pi if odd else inside / 2)


def t_quantile(below: float, free: int) -> float:
    """The t >= 0 that `below`, at least 0.5, of Student's distribution lies below."""
    low, high = 0.0, 1.0
    while t_below(high, free) < below:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_below(middle, free) < below else (low, middle)
    return (low + high) / 2


def claims_table(verdicts: Sequence[Verdict], seeds: int) -> Table:
    """The claims with their verdicts, differences and intervals; AP in points, times as ratios."""
    table = Table("claim", "verdict", title="what it is to show, at this size", title_justify="left")
    for name in ("difference", f"95%, {seeds} seeds", "95%, pictures"):
        table.add_column(name, justify="right")
    table.add_column("in the paper")
    for one in verdicts:
        unit = one.claim.measure
        reason = f" ({one.reason})" if one.reason else ""
        cells = [_interval(interval, unit) for interval in (one.over_seeds, one.over_pictures)]
        mean = "-" if one.mean is None else _number(one.mean, unit)
        table.add_row(plain(one.claim.text), plain(one.word + reason), mean, *cells, plain(one.claim.source))
    return table


def _interval(interval: tuple[float, float] | None, measure: Measure) -> str:
    return "-" if interval is None else " to ".join(_number(end, measure) for end in interval)


def _number(value: float, measure: Measure) -> str:
    return f"{100 * value:+.1f}" if measure == "AP" else f"x {math.exp(value):.2f}"
