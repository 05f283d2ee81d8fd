"""Match the detections of an artefact with those of PyTorch on one picture, one to one, and measure the differences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from directdet.infer.detections import MASK_THRESHOLD, Detections


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that still pass.

    Attributes:
        box: of a box side, in pixels of the network's input.
        score: of a score.
        mask: of a mask's probabilities; None: not limited, since a lower precision moves an outline by a cell, where
            the probability goes from 0 to 1.
        mask_iou: the smallest mean IoU of the masks of matched detections, in the masks' own cells. Scores are the
            weights: the mask of a detection that is hardly one has nothing to go by, and rounding changes all of it.
        shift: of the mean over the matched detections, to either side and up or down, in pixels of the input: rounding
            moves boxes to all sides, a wrong graph to one.
        score_shift: the same of the scores, up or down, as a share of their mean.
        count: of the number of detections, more or fewer, as a share; of fewer than 20, as many may differ as of 20.
        matched: the smallest share of detections that must be matched.
        ap: of the AP (0 to 1), either way, beyond what the pictures leave open; see `ap_difference`.
        window: a partner may differ by this many tolerances. Above 1, a large difference counts as a difference, and
            fails; with 1, a detection beyond the tolerance counts as a miss, of which a lower precision may have a few.
        disturbance: standard deviation of the noise on the normalised input that shows what PyTorch itself does not
            repeat; about ten times what rounding in this precision does to the maps.
    """

    box: float = 0.1
    score: float = 1e-3
    mask: float | None = 0.02
    mask_iou: float = 0.99
    shift: float = 0.02
    score_shift: float = 5e-4
    count: float = 0.1
    matched: float = 0.99
    ap: float = 0.001
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
        mask_iou: the mean IoU of the matched masks, weighted by the expected scores; None without masks.
        shift: mean difference of the matched boxes' centres, found minus expected, in pixels of the input, (x, y).
        score_shift: mean difference of the matched scores, found minus expected; mean_score: the mean of the expected.
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
    mask_iou: float | None = None
    shift: tuple[float, float] = (0.0, 0.0)
    score_shift: float = 0.0
    mean_score: float = 0.0


def compare(
    name: str,
    expected: Detections,
    found: Detections,
    disturbed: Callable[[], Sequence[Detections]],
    floors: Sequence[float],
    scale: float,
    tolerance: Tolerance,
    nms: float = 0.5,
) -> Comparison:
    """Match detections one to one by label, overlap and score.

    Not counted, if unmatched, are detections at the other side's floor, within the tolerance, where rounding decides
    what gets onto the list; those of `expected` that some `disturbed` run lacks; and those of `found` that some
    `disturbed` run has, or that one which some run lacks keeps out by NMS: there are more ways to choose among many
    equal boxes than runs. Nor is a pair beyond the tolerance of which the same is true within it: of two boxes on one
    object, each side kept another. Where only one side has masks, nothing matches.

    Args:
        name: of the picture.
        disturbed: called only where something is unmatched, or matched beyond the tolerance.
        floors: the lowest scores that `expected` and `found` can contain.
        scale: network pixels per picture pixel.
        nms: the model's IoU of NMS.
    """
    if (expected.masks is None) != (found.masks is None):
        return Comparison(name, len(expected), len(found), len(expected) + len(found), 0, 0)
    pairs = _match(expected, found, scale, tolerance, tolerance.window)
    missed = _unmatched(expected, {i for i, _ in pairs}, floors[1] + tolerance.score)
    extra = _unmatched(found, {j for _, j in pairs}, floors[0] + tolerance.score)
    beyond = [pair for pair in pairs if not _within(expected, found, pair, scale, tolerance)]
    before = len(pairs) + len(missed) + len(extra)
    if missed or extra or beyond:
        runs = disturbed()
        varying, known = _unsteady(expected, found, runs, scale, tolerance, tolerance.window)
        kept_out = _kept_out(found, extra, expected, sorted(varying), nms, tolerance)
        missed = [i for i in missed if i not in varying]
        extra = [j for j in extra if j not in known and j not in kept_out]
        varying, known = _unsteady(expected, found, runs, scale, tolerance, 1.0)
        pairs = [(i, j) for i, j in pairs if (i, j) not in beyond or (i not in varying and j not in known)]
    counted = len(pairs) + len(missed) + len(extra)
    undecided = before - counted
    if not pairs:
        return Comparison(name, len(expected), len(found), counted, 0, undecided)
    left, right = (np.array(side) for side in zip(*pairs, strict=True))
    mask, mask_iou = 0.0, None
    if expected.masks is not None and found.masks is not None:
        difference = np.abs(expected.masks[left] - found.masks[right])
        mask = float(np.nan_to_num(difference, nan=1.0).max())  # NaN counts as the largest error
        ious = _mask_ious(expected.masks[left], found.masks[right])
        mask_iou = float(np.average(ious, weights=np.maximum(expected.scores[left], 1e-9)))
    moved = (found.boxes[right] - expected.boxes[left]) * scale
    x, y = (moved[:, :2] + moved[:, 2:]).mean(0) / 2
    return Comparison(
        name,
        len(expected),
        len(found),
        counted,
        len(pairs),
        undecided,
        float(np.abs(moved).max()),
        float(np.abs(expected.scores[left] - found.scores[right]).max()),
        mask,
        mask_iou,
        (float(x), float(y)),
        float((found.scores[right] - expected.scores[left]).mean()),
        float(expected.scores[left].mean()),
    )


def _mask_ious(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """IoU [K] of masks [K, M, M] in their own cells; two empty ones are the same, and NaN agrees with nothing."""
    ours, theirs = expected >= MASK_THRESHOLD, found >= MASK_THRESHOLD
    shared, either = (ours & theirs).sum((1, 2)), (ours | theirs).sum((1, 2))
    iou = np.where(either > 0, shared / np.maximum(either, 1), 1.0)
    return np.where(np.isnan(found).any((1, 2)), 0.0, iou)


def _within(expected: Detections, found: Detections, pair: tuple[int, int], scale: float, tolerance: Tolerance) -> bool:
    i, j = pair
    distance = np.abs(expected.boxes[i] - found.boxes[j]).max() * scale
    return bool(distance <= tolerance.box and abs(expected.scores[i] - found.scores[j]) <= tolerance.score)


def _kept_out(
    found: Detections, extra: list[int], expected: Detections, varying: list[int], nms: float, tolerance: Tolerance
) -> set[int]:
    """Which `extra` ones of `found` one of the `varying` of `expected` suppresses: same label, near score, overlap."""
    if not extra or not varying:
        return set()
    a, b = found.boxes[extra][:, None], expected.boxes[varying][None]
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(min=0)
    shared = sides.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    near = np.abs(found.scores[extra][:, None] - expected.scores[varying][None]) <= tolerance.score
    near &= found.labels[extra][:, None] == expected.labels[varying][None]
    return {j for j, hit in zip(extra, (near & (shared > nms * union)).any(1), strict=True) if hit}


def _unsteady(
    expected: Detections,
    found: Detections,
    runs: Sequence[Detections],
    scale: float,
    tolerance: Tolerance,
    window: float,
) -> tuple[set[int], set[int]]:
    """Which of `expected` some run lacks, and which of `found` some run has."""
    varying: set[int] = set()
    known: set[int] = set()
    for run in runs:
        varying |= set(range(len(expected))) - {i for i, _ in _match(expected, run, scale, tolerance, window)}
        known |= {j for j, _ in _match(found, run, scale, tolerance, window)}
    return varying, known


def _unmatched(detections: Detections, matched: set[int], floor: float) -> list[int]:
    return [i for i, score in enumerate(detections.scores) if i not in matched and score > floor]


def _match(
    expected: Detections, found: Detections, scale: float, tolerance: Tolerance, window: float
) -> list[tuple[int, int]]:
    """Pairs of the same label whose boxes and scores are within `window` tolerances, nearest first."""
    if not len(expected) or not len(found):
        return []
    distance = np.abs(expected.boxes[:, None] - found.boxes[None]).max(-1) * scale
    gap = np.abs(expected.scores[:, None] - found.scores[None])
    near = (distance <= window * tolerance.box) & (gap <= window * tolerance.score)
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
