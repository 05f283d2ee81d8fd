"""Is the artefact the model? The same pictures through both, every detection matched, differences measured."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import cv2
import numpy as np
from rich.table import Table

from ..data.records import Dataset
from ..infer.detections import Detections
from ..infer.preprocess import STD, Placement, fixture_image
from ..infer.runtimes import Detector
from ..infer.sources import read_bgr


@dataclass(frozen=True)
class Tolerance:
    """Largest differences that still pass: box sides in pixels of the network's input, scores and mask probabilities
    absolute, and the smallest share of detections that must be matched."""

    box: float = 0.1
    score: float = 1e-3
    mask: float = 0.02
    matched: float = 0.99


TOLERANCES = {"fp32": Tolerance()}
# Standard deviation of the noise on the normalised input: some ten times what float32 rounding does to the maps.
DISTURBANCE = 1e-5
DISTURBED_RUNS = 3


@dataclass(frozen=True)
class Comparison:
    """One picture: detections of both sides; how many were counted and matched; how many were left out because PyTorch
    does not repeat them itself (see verify); the largest differences among the matched."""

    picture: str
    expected: int
    found: int
    counted: int
    matched: int
    undecided: int
    box: float = 0.0
    score: float = 0.0
    mask: float = 0.0


@dataclass(frozen=True)
class Verification:
    """The comparisons of one artefact, and the verdict."""

    runtime: str
    tolerance: Tolerance
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def matched(self) -> float:
        """Share of the counted detections that were matched; 1 if there are none."""
        counted = sum(c.counted for c in self.comparisons)
        return sum(c.matched for c in self.comparisons) / counted if counted else 1.0

    def largest(self, what: str) -> float:
        return max((getattr(c, what) for c in self.comparisons), default=0.0)

    @property
    def passed(self) -> bool:
        limits = self.tolerance
        return self.matched >= limits.matched and all(
            self.largest(what) <= getattr(limits, what) for what in ("box", "score", "mask")
        )

    def to_dict(self) -> dict:
        return {
            "passed": self.passed,
            "runtime": self.runtime,
            "matched": self.matched,
            **{f"largest_{what}_difference": self.largest(what) for what in ("box", "score", "mask")},
            "tolerance": asdict(self.tolerance),
            "pictures": [asdict(c) for c in self.comparisons],
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        verdict = "[bold green]PASS[/]" if self.passed else "[bold red]FAIL[/]"
        limits = self.tolerance
        table = Table(
            "picture", "PyTorch", self.runtime, "matched", "box (px)", "score", "mask", title=f"verification: {verdict}"
        )
        for c in self.comparisons:
            share = f"{c.matched}/{c.counted}" + (f", {c.undecided} undecided" if c.undecided else "")
            numbers = (f"{c.box:.1e}", f"{c.score:.1e}", f"{c.mask:.1e}")
            table.add_row(c.picture, str(c.expected), str(c.found), share, *numbers)
        table.add_section()
        largest = (f"{self.largest(what):.1e}" for what in ("box", "score", "mask"))
        table.add_row("all: largest", "", "", f"{self.matched:.1%}", *largest)
        allowed = (f"{limits.box:.1e}", f"{limits.score:.1e}", f"{limits.mask:.1e}")
        table.add_row("tolerance", "", "", f"{limits.matched:.0%}", *allowed)
        table.caption = "\n".join(self.notes)
        return table


def verification_pictures(
    dataset: Dataset | None, size: tuple[int, int], count: int = 8
) -> list[tuple[str, np.ndarray]]:
    """Named BGR pictures to verify with: `count` of the dataset, spread over it, or made ones where there is none; a
    blank one; and one of an odd aspect ratio."""
    if dataset is not None and dataset.records:
        step = max(1, len(dataset.records) // count)
        records = dataset.records[::step][:count]
        pictures = [(record.path.name, read_bgr(record.path)) for record in records]
    else:
        shapes = [(size[0], size[1]), (size[0] * 3 // 4 + 1, size[1]), (size[0], size[1] * 2 // 3 + 1)]
        pictures = [(f"made {h}x{w}", fixture_image(h, w)) for h, w in shapes]
    first = pictures[0][1]
    odd = cv2.resize(first, (max(33, size[1] // 3 + 1), size[0] + 7))
    pictures.append(("blank", np.full((size[0], size[1], 3), 255, np.uint8)))
    pictures.append((f"odd aspect ratio {odd.shape[0]}x{odd.shape[1]}", odd))
    return pictures


def verify(
    reference: Detector,
    candidate: Detector,
    pictures: Sequence[tuple[str, np.ndarray]],
    precision: str = "fp32",
    notes: tuple[str, ...] = (),
) -> Verification:
    """Run `pictures` through both detectors, which share one Preprocess, and compare.

    A detector makes hard choices (top k, NMS) between candidates that can be equal to the last digit: on a blank
    picture every place is. There two correct runtimes may differ, and so does PyTorch from itself if its input is
    disturbed by about a rounding error. What it does not repeat under that disturbance is undecided, and not counted.
    """
    tolerance, comparisons = TOLERANCES[precision], []
    limits = reference.backend.model.config
    candidates = candidate.detect_batch([image for _, image in pictures])  # every row of the batch gets pictures
    for (name, image), found in zip(pictures, candidates, strict=True):
        batch, placements = reference.prepare([image])
        scale = max(placements[0].scale_x, placements[0].scale_y)
        expected = reference.decode(reference.run(batch), 0, placements[0])
        disturbed = partial(_disturbed, reference, batch, placements[0])
        floors = [_floor(other, limits.detections, limits.score_threshold) for other in (expected, found)]
        comparisons.append(compare(name, expected, found, disturbed, floors, scale, tolerance))
    if not any(c.counted for c in comparisons):
        notes = (*notes, "no detections to compare: verify again with --data once the model is trained")
    return Verification(candidate.runtime, tolerance, tuple(comparisons), notes)


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

    `scale`: network pixels per picture pixel. `floors`: the scores that `expected` and `found` reach down to. Left out
    of the count, if unmatched, are detections that stand at the other side's floor, within the tolerance, where
    rounding decides what makes the list; those of `expected` that some `disturbed` run lacks; and those of `found` that
    some `disturbed` run has (it is called only where something is unmatched). Where only one side has masks, nothing
    matches.
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
    if expected.masks is not None:
        mask = float(np.abs(expected.masks[left] - found.masks[right]).max())
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


def _disturbed(reference: Detector, batch: np.ndarray, placement: Placement) -> list[Detections]:
    """What the reference finds in a batch of one picture under noise of about a rounding error."""
    unit = float(np.mean(STD) / np.mean(reference.preprocess.std))  # of inputs that are not divided by ImageNet's std
    found = []
    for seed in range(DISTURBED_RUNS):
        noise = np.random.default_rng(seed).normal(0.0, DISTURBANCE * unit, batch.shape).astype(np.float32)
        found.append(reference.decode(reference.run(batch + noise), 0, placement))
    return found


def _unmatched(detections: Detections, matched: set[int], floor: float) -> list[int]:
    return [i for i, score in enumerate(detections.scores) if i not in matched and score > floor]


def _floor(detections: Detections, limit: int, threshold: float) -> float:
    """The score that a list reaches down to: that of its last entry if it is full, else the model's threshold."""
    return float(detections.scores.min()) if len(detections) >= limit else threshold


def _match(expected: Detections, found: Detections, scale: float, tolerance: Tolerance) -> list[tuple[int, int]]:
    """Pairs of the same label whose boxes and scores are near (ten tolerances, so that failures are seen as large
    differences and not only as misses), nearest first."""
    if not len(expected) or not len(found):
        return []
    distance = np.abs(expected.boxes[:, None] - found.boxes[None]).max(-1) * scale
    gap = np.abs(expected.scores[:, None] - found.scores[None])
    near = (distance <= 10 * tolerance.box) & (gap <= 10 * tolerance.score)
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
