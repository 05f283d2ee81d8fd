"""Is the artefact the model? The same pictures through both, every detection matched, differences measured."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

import cv2
import numpy as np
from rich.table import Table

from directdet.data.records import Dataset
from directdet.infer.detections import Detections
from directdet.infer.predict.sources import read_bgr
from directdet.infer.predictor import Predictor
from directdet.infer.preprocess import STD, Placement, fixture_image


@dataclass(frozen=True)
class Tolerance:
    """Largest differences that still pass: box sides in pixels of the network's input, scores and mask probabilities
    absolute, the smallest share of detections that must be matched, and the AP (0 to 1) that may be lost or won.

    window: partners are looked for within so many tolerances. Above 1, a large difference is seen as one, and fails;
    with 1, a detection beyond the tolerance is a miss, of which a lower precision may have a few.
    disturbance: standard deviation of the noise on the normalised input that tells what PyTorch itself does not repeat,
    some ten times what rounding in this precision does to the maps.
    """

    box: float = 0.1
    score: float = 1e-3
    mask: float = 0.02
    matched: float = 0.99
    ap: float = 0.002
    window: float = 10.0
    disturbance: float = 1e-5


# AP: of the whole chain against PyTorch on its own float32 input, so the padding of a uint8 canvas is in it. It decides
# where there is data. The rest of a lower precision's row is wide enough for networks with random weights, which are
# more sensitive than trained ones.
TOLERANCES = {
    "fp32": Tolerance(),
    "fp16": Tolerance(box=2.0, score=0.02, mask=0.3, matched=0.9, ap=0.003, window=1.0, disturbance=1e-3),
    "bf16": Tolerance(box=4.0, score=0.05, mask=0.5, matched=0.8, ap=0.005, window=1.0, disturbance=1e-2),
    "int8": Tolerance(box=8.0, score=0.15, mask=0.6, matched=0.6, ap=0.01, window=1.0, disturbance=1e-2),
}
DISTURBED_RUNS = 8  # with 3, ties on a blank picture were missed: there are many ways to break them
DIFFERENCES = ("box", "score", "mask")


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
    """The comparisons of one artefact in one runtime, and the verdict.

    latency_ms: rough median time of a run of one batch; None if it was not measured. ap, reference_ap: AP 0 to 1 by
    "box" and "mask" of this runtime and of PyTorch on the same pictures, empty if there were none.
    """

    runtime: str
    tolerance: Tolerance
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = field(default=())
    latency_ms: float | None = None
    ap: dict[str, float] = field(default_factory=dict)
    reference_ap: dict[str, float] = field(default_factory=dict)

    @property
    def matched(self) -> float:
        """Share of the counted detections that were matched; 1 if there are none."""
        counted = sum(c.counted for c in self.comparisons)
        return sum(c.matched for c in self.comparisons) / counted if counted else 1.0

    def largest(self, what: str) -> float:
        return max((getattr(c, what) for c in self.comparisons), default=0.0)

    @property
    def ap_difference(self) -> float:
        """The largest difference of AP, either way; 0 without AP."""
        if self.ap.keys() != self.reference_ap.keys():
            return 1.0
        return max((abs(self.ap[kind] - self.reference_ap[kind]) for kind in self.ap), default=0.0)

    @property
    def passed(self) -> bool:
        limits = self.tolerance
        return (
            self.matched >= limits.matched
            and all(self.largest(what) <= getattr(limits, what) for what in DIFFERENCES)
            and self.ap_difference <= limits.ap
        )

    def to_dict(self) -> dict:
        return {
            "passed": self.passed,
            "runtime": self.runtime,
            "matched": self.matched,
            **{f"largest_{what}_difference": self.largest(what) for what in DIFFERENCES},
            "ap": self.ap,
            "reference_ap": self.reference_ap,
            "rough_latency_ms": self.latency_ms,
            "tolerance": asdict(self.tolerance),
            "pictures": [asdict(c) for c in self.comparisons],
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """A row a picture."""
        verdict = "[bold green]PASS[/]" if self.passed else "[bold red]FAIL[/]"
        limits = self.tolerance
        table = Table(
            "picture", "PyTorch", self.runtime, "matched", "box (px)", "score", "mask", title=f"verification: {verdict}"
        )
        for c in self.comparisons:
            share = f"{c.matched}/{c.counted}" + (f", {c.undecided} undecided" if c.undecided else "")
            table.add_row(c.picture, str(c.expected), str(c.found), share, *_numbers(c.box, c.score, c.mask))
        table.add_section()
        largest = _numbers(*(self.largest(what) for what in DIFFERENCES))
        table.add_row("all: largest", "", "", f"{self.matched:.1%}", *largest)
        allowed = _numbers(*(getattr(limits, what) for what in DIFFERENCES))
        table.add_row("tolerance", "", "", f"{limits.matched:.0%}", *allowed)
        table.caption = "\n".join(self.notes)
        return table


def _numbers(*values: float) -> list[str]:
    return [f"{value:.1e}" for value in values]


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


@dataclass(frozen=True)
class Expectation:
    """What PyTorch finds on one picture's canvas; network pixels per picture pixel; and what it finds when disturbed,
    which is computed once, when it is first needed."""

    found: Detections
    scale: float
    disturbed: Callable[[], Sequence[Detections]]


def expect(
    reference: Predictor, candidate: Predictor, pictures: Sequence[tuple[str, np.ndarray]], tolerance: Tolerance
) -> list[Expectation]:
    """The reference's side of `verify`, the same for every runtime of an artefact."""
    expected = []
    for _, image in pictures:
        batch, (placement,) = planes(candidate, [image])
        found = reference.decode(reference.run(batch), 0, placement)
        disturbed = cache(partial(_disturbed, reference, batch, placement, tolerance.disturbance))
        expected.append(Expectation(found, max(placement.scale_x, placement.scale_y), disturbed))
    return expected


def verify(
    reference: Predictor,
    candidate: Predictor,
    pictures: Sequence[tuple[str, np.ndarray]],
    precision: str = "fp32",
    expected: Sequence[Expectation] | None = None,
) -> Verification:
    """Run `pictures` through both detectors, which share one Preprocess, and compare.

    Both get the same canvas: where the candidate takes uint8, the reference gets that, normalised in float32.

    A detector makes hard choices (top k, NMS) between candidates that can be equal to the last digit: on a blank
    picture every place is. There two correct runtimes may differ, and so does PyTorch from itself if its input is
    disturbed by about a rounding error. What it does not repeat under that disturbance is undecided, and not counted.

    `expected`: of `expect`, where it is there already.
    """
    tolerance, comparisons, notes = TOLERANCES[precision], [], ()
    limits = reference.backend.model.config
    expected = expect(reference, candidate, pictures, tolerance) if expected is None else expected
    candidates = _in_several_batches(candidate, [image for _, image in pictures])
    for (name, _), own, found in zip(pictures, expected, candidates, strict=True):
        floors = [_floor(other, limits.detections, limits.score_threshold) for other in (own.found, found)]
        comparisons.append(compare(name, own.found, found, own.disturbed, floors, own.scale, tolerance))
    if not any(c.counted for c in comparisons):
        notes = ("no detections to compare: verify again with --data once the model is trained",)
    return Verification(candidate.runtime, tolerance, tuple(comparisons), notes)


def planes(candidate: Predictor, images: Sequence[np.ndarray]) -> tuple[np.ndarray, list[Placement]]:
    """float32 [B, 3, H, W], normalised, of exactly the canvases that `candidate` is given for `images`."""
    batch, placements = candidate.prepare(images)
    return (candidate.preprocess.normalise(batch) if candidate.backend.input.channels_last else batch), placements


def _in_several_batches(candidate: Predictor, images: Sequence[np.ndarray]) -> list[Detections]:
    """Detections of each image. Every row of a fixed batch gets images; a network that takes batches of any size gets
    the largest, the smallest, and three or so."""
    wanted = candidate.backend.input
    if wanted.batch is not None or wanted.max_batch is None:
        return candidate.detect_batch(images)
    found: list[Detections] = []
    for size in itertools.cycle((wanted.max_batch, wanted.min_batch, min(wanted.max_batch, wanted.min_batch + 2))):
        if len(found) >= len(images):
            return found
        found.extend(candidate.detect_batch(images[len(found) : len(found) + size]))
    raise AssertionError("a cycle has no end")


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
        difference = np.abs(expected.masks[left] - found.masks[right])
        mask = float(np.nan_to_num(difference, nan=1.0).max())  # NaN is as wrong as a probability can be
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


def _disturbed(reference: Predictor, batch: np.ndarray, placement: Placement, disturbance: float) -> list[Detections]:
    """What the reference finds in a batch of one picture under noise of about a rounding error."""
    unit = float(np.mean(STD) / np.mean(reference.preprocess.std))  # of inputs that are not divided by ImageNet's std
    found = []
    for seed in range(DISTURBED_RUNS):
        noise = np.random.default_rng(seed).normal(0.0, disturbance * unit, batch.shape).astype(np.float32)
        with _noisy_products(reference.backend.model, disturbance / 10, seed):
            found.append(reference.decode(reference.run(batch + noise), 0, placement))
    return found


@contextlib.contextmanager
def _noisy_products(model: Any, relative: float, seed: int) -> Iterator[None]:
    """Noise on what layers that multiply by weights put out, relative to its root mean square.

    Noise on the input alone does not reach beyond features that are all dead: there a score is its layer's bias, the
    same at every place to the last bit, and which of them NMS starts from is up to a runtime's top k.
    """
    import torch

    from directdet.export.precision import PRODUCTS

    generator = torch.Generator().manual_seed(seed)

    def add_noise(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
        return output + noise * (relative * output.square().mean().sqrt())

    layers = [module for module in model.modules() if isinstance(module, tuple(PRODUCTS))]
    hooks = [layer.register_forward_hook(add_noise) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _unmatched(detections: Detections, matched: set[int], floor: float) -> list[int]:
    return [i for i, score in enumerate(detections.scores) if i not in matched and score > floor]


def _floor(detections: Detections, limit: int, threshold: float) -> float:
    """The score that a list reaches down to: that of its last entry if it is full, else the model's threshold."""
    return float(detections.scores.min()) if len(detections) >= limit else threshold


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
