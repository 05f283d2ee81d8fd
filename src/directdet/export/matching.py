"""Match the detections of an artefact with those of PyTorch on one picture, one to one, and measure the differences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from directdet.infer.detections import Detections


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that still pass.

    Attributes:
        box: of a box side, in pixels of the network's input.
        score, mask: of a score, and of a mask's probabilities.
        matched: the smallest share of detections that must be matched.
        ap: of the AP (0 to 1), either way.
        window: a partner may differ by this many tolerances. Above 1, a large difference counts as a difference, and
            fails; with 1, a detection beyond the tolerance counts as a miss, of which a lower precision may have a few.
        disturbance: standard deviation of the noise on the normalised input that shows what PyTorch itself does not
            repeat; about ten times what rounding in this precision does to the maps.
    """

    box: float = 0.1
    score: float = 1e-3
    mask: float = 0.02
    matched: float = 0.99
    ap: float = 0.002
    window: float = 10.0
    disturbance: float = 1e-5


@dataclass(frozen=True)
class Comparison:
    """One picture through both detectors.

    Attributes:
        picture: its name.
        expected, found: detections of PyTorch and of the artefact.
        counted: detections that must have a partner; matched: those that have one.
        undecided: detections not counted, because PyTorch itself does not repeat them (see `verify`).
        box, score, mask: the largest differences among the matched.
    """

    picture: str
    expected: int
    found: int
    counted: int
    matched: int
    undecided: int
    box: float = 0.0
    score: float = 0.0
    mask: float = 0.0


def compare(
    name: str,
    expected: Detections,
    found: Detections,
    disturbed: Callable[[], Sequence[Detections]],
    floors: Sequence[float],
    scale: float,
    tolerance: Tolerance,
) -> Comparison:
    """Match detections one to one by label, overlap and score.

    Not counted, if unmatched, are detections at the other side's floor, within the tolerance, where rounding decides
    what gets onto the list; those of `expected` that some `disturbed` run lacks; and those of `found` that some
    `disturbed` run has. Where only one side has masks, nothing matches.

    Args:
        name: of the picture.
        disturbed: called only where something is unmatched.
        floors: the lowest scores that `expected` and `found` can contain.
        scale: network pixels per picture pixel.
    """
    if (expected.masks is None) != (found.masks is None):
        return Comparison(name, len(expected), len(found), len(expected) + len(found), 0, 0)
    pairs = _match(expected, found, scale, tolerance)
    missed = _unmatched(expected, {i for i, _ in pairs}, floors[1] + tolerance.score)
    extra = _unmatched(found, {j for _, j in pairs}, floors[0] + tolerance.score)
    undecided = 0
    if missed or extra:
        runs = disturbed()
        repeated = [{i for i, _ in _match(expected, run, scale, tolerance)} for run in runs]
        known = [{j for j, _ in _match(found, run, scale, tolerance)} for run in runs]
        undecided += sum(any(i not in run for run in repeated) for i in missed)
        undecided += sum(any(j in run for run in known) for j in extra)
    counted = len(pairs) + len(missed) + len(extra) - undecided
    if not pairs:
        return Comparison(name, len(expected), len(found), counted, 0, undecided)
    left, right = (np.array(side) for side in zip(*pairs, strict=True))
    mask = 0.0
    if expected.masks is not None and found.masks is not None:
        difference = np.abs(expected.masks[left] - found.masks[right])
        mask = float(np.nan_to_num(difference, nan=1.0).max())  # NaN counts as the largest error
    return Comparison(
        name,
        len(expected),
        len(found),
        counted,
        len(pairs),
        undecided,
        float(np.abs(expected.boxes[left] - found.boxes[right]).max()) * scale,
        float(np.abs(expected.scores[left] - found.scores[right]).max()),
        mask,
    )


def _unmatched(detections: Detections, matched: set[int], floor: float) -> list[int]:
    return [i for i, score in enumerate(detections.scores) if i not in matched and score > floor]


def _match(expected: Detections, found: Detections, scale: float, tolerance: Tolerance) -> list[tuple[int, int]]:
    """Pairs of the same label whose boxes and scores are near, nearest first."""
    if not len(expected) or not len(found):
        return []
    distance = np.abs(expected.boxes[:, None] - found.boxes[None]).max(-1) * scale
    gap = np.abs(expected.scores[:, None] - found.scores[None])
    near = (distance <= tolerance.window * tolerance.box) & (gap <= tolerance.window * tolerance.score)
    near &= expected.labels[:, None] == found.labels[None]
    cost = np.where(near, distance / tolerance.box + gap / tolerance.score, np.inf)
    pairs, used_i, used_j = [], set(), set()
    for flat in np.argsort(cost, axis=None, kind="stable"):
        i, j = divmod(int(flat), cost.shape[1])
        if not np.isfinite(cost[i, j]):
            break
        if i not in used_i and j not in used_j:
            pairs.append((i, j))
            used_i.add(i)
            used_j.add(j)
    return pairs
