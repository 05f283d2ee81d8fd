"""Whether an artefact is the model: the same pictures through both, every detection matched, differences measured."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, partial

import numpy as np
from rich.table import Table
from rich.text import Text

from directdet.common.terminal import CAPTION, TITLE, plain, verdict
from directdet.data.image import resize
from directdet.data.pixels.format import STD
from directdet.data.records import Dataset
from directdet.export.verification.criteria import WHAT_TO_DO, Criterion
from directdet.export.verification.disturbed import disturbed_runs
from directdet.export.verification.matching import Comparison, Tolerance, compare
from directdet.infer.detections import Detections
from directdet.infer.predict.sources import read_for_detector
from directdet.infer.predictor import Predictor
from directdet.infer.preprocess import Placement, Preprocess, made_picture
from directdet.infer.runtimes.torch_runtime import TorchBackend
from directdet.models.parts.network import Network
from directdet.models.parts.postprocess import HasThresholds

# fp32 must repeat the model to the last digits, every mask pixel included. A lower precision moves single detections by
# much without being worse: there the matched share, the mean IoU of the masks, the mean shift, and the AP decide. Their
# limits are wide enough for networks with random weights, which are more sensitive than trained ones.
TOLERANCES = {
    "fp32": Tolerance(),
    "fp16": Tolerance(
        2.0, 0.02, None, 0.97, 0.1, score_shift=2e-3, matched=0.9, ap=0.003, window=1.0, disturbance=1e-3
    ),
    "bf16": Tolerance(
        4.0, 0.05, None, 0.95, 0.25, score_shift=0.01, count=0.2, matched=0.8, ap=0.005, window=1.0, disturbance=1e-2
    ),
    "int8": Tolerance(
        8.0, 0.15, None, 0.9, 0.35, score_shift=0.05, count=0.3, matched=0.75, ap=0.01, window=1.0, disturbance=1e-2
    ),
}
SPREADS = 3  # standard deviations of the AP's difference over the pictures that are put down to their choice
INPUT_LEVELS = 0.51  # a uint8 canvas is rounded to grey levels
WHOLLY_DIFFERENT = 255.0  # grey levels
FEW = 20  # detections, of which a single one more is no large share
DIFFERENCES = ("box", "score", "mask")


@dataclass(frozen=True)
class Verification:
    """The comparisons of one artefact in one runtime, and the verdict.

    latency_ms: rough median time of a run of one batch; None if it was not measured. ap, reference_ap: AP 0 to 1 by
    "box" and "mask" of this runtime and of PyTorch on the same pictures; empty if it was not measured. ap_spread: see
    `ap_difference`, for those whose difference is beyond the tolerance. input: the largest difference between the
    canvases that the two are given, in grey levels.
    """

    runtime: str
    tolerance: Tolerance
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = field(default=())
    latency_ms: float | None = None
    ap: dict[str, float] = field(default_factory=dict)
    reference_ap: dict[str, float] = field(default_factory=dict)
    ap_spread: dict[str, float] = field(default_factory=dict)
    precision: str = "fp32"
    input: float = 0.0

    @property
    def matched(self) -> float:
        """Share of the counted detections that were matched; 1 if none were counted."""
        counted = sum(c.counted for c in self.comparisons)
        return sum(c.matched for c in self.comparisons) / counted if counted else 1.0

    def largest(self, what: str) -> float:
        return max((getattr(c, what) for c in self.comparisons), default=0.0)

    @property
    def mask_iou(self) -> float | None:
        """The mean IoU of all matched masks, weighted by their scores; None without any."""
        known = [(c.mask_iou, max(c.mean_score, 1e-9) * c.matched) for c in self.comparisons if c.mask_iou is not None]
        return sum(iou * scores for iou, scores in known) / sum(scores for _, scores in known) if known else None

    @property
    def shift(self) -> float:
        """The mean shift of all matched boxes, along the axis where it is larger, in pixels of the input."""
        count = sum(c.matched for c in self.comparisons)
        sums = [sum(c.shift[axis] * c.matched for c in self.comparisons) for axis in (0, 1)]
        return max(map(abs, sums)) / count if count else 0.0

    @property
    def score_shift(self) -> float:
        """How far the scores of all matched detections lie above or below in the mean, as a share of their mean."""
        scores = sum(c.mean_score * c.matched for c in self.comparisons)
        return abs(sum(c.score_shift * c.matched for c in self.comparisons)) / scores if scores else 0.0

    @property
    def count(self) -> float:
        """How many detections more or fewer there are, as a share; low scores, of which none has to match, included."""
        expected, found = (sum(getattr(c, side) for c in self.comparisons) for side in ("expected", "found"))
        return abs(found - expected) / max(expected, FEW)

    def ap_limit(self, kind: str) -> float:
        """The largest difference of this AP that passes."""
        return self.tolerance.ap + SPREADS * self.ap_spread.get(kind, 0.0)

    @cached_property
    def criteria(self) -> tuple[Criterion, ...]:
        """What the verdict is made of."""
        limits = self.tolerance
        about = "its preprocessing differs from the model's by {measured:.2g} grey levels, at most {limit:g}"
        made = [
            Criterion("input", self.input, INPUT_LEVELS, about),
            Criterion("matched", self.matched, limits.matched, "{measured:.1%} matched, at least {limit:.0%}", True),
            Criterion(
                "box px", self.largest("box"), limits.box, "a box differs by {measured:.2g} px, at most {limit:g}"
            ),
            Criterion(
                "score", self.largest("score"), limits.score, "a score differs by {measured:.2g}, at most {limit:g}"
            ),
        ]
        if limits.mask is not None:
            about = "a mask's probability differs by {measured:.2g}, at most {limit:g}"
            made.append(Criterion("mask", self.largest("mask"), limits.mask, about))
        if self.mask_iou is not None:
            about = "the masks' mean IoU is {measured:.3f}, at least {limit:g}"
            made.append(Criterion("mask IoU", self.mask_iou, limits.mask_iou, about, True))
        about = "boxes are shifted by {measured:.2g} px in the mean, at most {limit:g}"
        made.append(Criterion("shift px", self.shift, limits.shift, about))
        about = "scores are shifted by {measured:.2%} in the mean, at most {limit:.2%}"
        made.append(Criterion("score shift", self.score_shift, limits.score_shift, about))
        about = "the number of detections differs by {measured:.1%}, at most {limit:.0%}"
        made.append(Criterion("found", self.count, limits.count, about))
        for kind, own in self.reference_ap.items():
            measured = abs(self.ap[kind] - own) if kind in self.ap else 1.0  # masks were lost
            about = f"the {kind} AP differs by {{measured:.4f}}, at most {{limit:.4f}}"
            made.append(Criterion(f"{kind} AP", measured, self.ap_limit(kind), about))
        return tuple(made)

    @property
    def failed(self) -> tuple[Criterion, ...]:
        return tuple(one for one in self.criteria if not one.passed)

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it failed, a line for each criterion, and what to do; empty if it passed."""
        if self.passed:
            return ()
        whose = [f"FAIL in {self.runtime}: {one}" for one in self.failed]
        return (*whose, f"What to do: {WHAT_TO_DO[self.precision]}")

    def to_dict(self) -> dict:
        return {
            "passed": self.passed,
            "failed": [one.name for one in self.failed],
            "criteria": [one.to_dict() for one in self.criteria],
            "reasons": list(self.reasons),
            "runtime": self.runtime,
            "matched": self.matched,
            **{f"largest_{what}_difference": self.largest(what) for what in DIFFERENCES},
            "mask_iou": self.mask_iou,
            "shift": self.shift,
            "score_shift": self.score_shift,
            "count": self.count,
            "ap": self.ap,
            "reference_ap": self.reference_ap,
            "ap_spread": self.ap_spread,
            "rough_latency_ms": self.latency_ms,
            "tolerance": asdict(self.tolerance),
            "pictures": [asdict(c) for c in self.comparisons],
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """One row per picture."""
        limits = self.tolerance
        title = plain("verification: ", TITLE).append_text(verdict(self.passed))
        columns = ("picture", "PyTorch", self.runtime, "matched", "box (px)", "score", "mask")
        table = Table(*columns, title=title)
        for c in self.comparisons:
            share = f"{c.matched}/{c.counted}" + (f", {c.undecided} undecided" if c.undecided else "")
            table.add_row(plain(c.picture), str(c.expected), str(c.found), share, *_numbers(c.box, c.score, c.mask))
        table.add_section()
        bad = {one.name for one in self.failed}
        names = ("box px", "score", "mask")
        largest = [
            marked(f"{self.largest(what):.1e}", key in bad) for what, key in zip(DIFFERENCES, names, strict=True)
        ]
        table.add_row("all: largest", "", "", marked(f"{self.matched:.1%}", "matched" in bad), *largest)
        allowed = [limited(getattr(limits, what)) for what in DIFFERENCES]
        table.add_row("tolerance", "", "", f"{limits.matched:.0%}", *allowed)
        table.caption = plain("\n".join((*self.reasons, *self.notes)), CAPTION)
        return table


def marked(text: str, bad: bool) -> Text:
    """A cell of a table, in red where its criterion failed."""
    return Text(text, "bold red" if bad else "")


def limited(limit: float | None) -> str:
    """A limit in a table."""
    return "any" if limit is None else f"{limit:.1e}"


def _numbers(*values: float) -> list[str]:
    return [f"{value:.1e}" for value in values]


def verification_pictures(
    dataset: Dataset | None, preprocess: Preprocess, count: int = 8
) -> list[tuple[str, np.ndarray]]:
    """Named pictures to verify with, as the model takes them; among them a blank one and one of an odd aspect ratio.

    The others are `count` pictures spread over the dataset, or made ones where there is no dataset.
    """
    size, pixels = preprocess.size, preprocess.pixels
    if dataset is not None and dataset.records:
        step = max(1, len(dataset.records) // count)
        records = dataset.records[::step][:count]
        pictures = [(record.path.name, read_for_detector(record.path, pixels)) for record in records]
    else:
        shapes = [(size[0], size[1]), (size[0] * 3 // 4 + 1, size[1]), (size[0], size[1] * 2 // 3 + 1)]
        pictures = [(f"made {h}x{w}", made_picture(h, w, pixels)) for h, w in shapes]
    first = pictures[0][1]
    odd = resize(first, size[0] + 7, max(33, size[1] // 3 + 1))
    white = 255 if pixels.dtype == "uint8" else np.asarray(pixels.mean) + 2 * np.asarray(pixels.std)
    blank = np.empty((*size, pixels.channels), pixels.dtype)
    blank[:] = white if pixels.dtype == "float32" else np.clip(white, 0, np.iinfo(pixels.dtype).max)
    pictures.append(("blank", blank))
    pictures.append((f"odd aspect ratio {odd.shape[0]}x{odd.shape[1]}", odd))
    return pictures


def network_of(detector: Predictor) -> Network:
    """The PyTorch network of a checkpoint's detector; TypeError for a detector in another runtime."""
    if not isinstance(detector.backend, TorchBackend):
        raise TypeError(f"{detector.source}: runs in {detector.runtime}, not in torch")
    return detector.backend.model


def thresholds_of(detector: Predictor) -> HasThresholds:
    """The settings of a checkpoint's network that decide about detections."""
    return network_of(detector).config


@dataclass(frozen=True)
class Expectation:
    """PyTorch's side of one picture.

    Attributes:
        found: what it finds on the picture's canvas.
        scale: network pixels per picture pixel.
        disturbed: what it finds under noise, several runs; computed once, when it is first needed.
    """

    found: Detections
    scale: float
    disturbed: Callable[[], Sequence[Detections]]


def expect(
    reference: Predictor, candidate: Predictor, pictures: Sequence[tuple[str, np.ndarray]], tolerance: Tolerance
) -> list[Expectation]:
    """The reference's side of `verify`, which is the same for every runtime of an artefact."""
    expected = []
    for _, image in pictures:
        batch, (placement,) = planes(candidate, [image])
        found = reference.decode(reference.run(batch), 0, placement)
        disturbed = cache(
            partial(disturbed_runs, reference, network_of(reference), batch, placement, tolerance.disturbance)
        )
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

    A detector makes hard choices (top k, NMS) between candidates that can be equal to the last digit, as all places of
    a blank picture are. There two correct runtimes may differ, and PyTorch differs from itself if its input is
    disturbed by about a rounding error. What it does not repeat under that disturbance is undecided, and not counted.

    Args:
        reference: of a checkpoint.
        expected: what `expect` returned for these pictures, if that is known already.
    """
    tolerance, comparisons, notes = TOLERANCES[precision], [], ()
    limits = thresholds_of(reference)
    expected = expect(reference, candidate, pictures, tolerance) if expected is None else expected
    candidates = _in_several_batches(candidate, [image for _, image in pictures])
    for (name, _), own, found in zip(pictures, expected, candidates, strict=True):
        floors = [_floor(other, limits.detections, limits.score_threshold) for other in (own.found, found)]
        comparisons.append(compare(name, own.found, found, own.disturbed, floors, own.scale, tolerance, limits.nms))
    levels = max((input_difference(reference, candidate, image) for _, image in pictures), default=0.0)
    if not any(c.counted for c in comparisons):
        notes = ("no detections to compare: verify again with --data when the model is trained",)
    return Verification(candidate.runtime, tolerance, tuple(comparisons), notes, precision=precision, input=levels)


def planes(candidate: Predictor, images: Sequence[np.ndarray]) -> tuple[np.ndarray, list[Placement]]:
    """float32 [B, C, H, W], normalised, of exactly the canvases that `candidate` gets for `images`."""
    batch, placements = candidate.prepare(images)
    return (candidate.preprocess.normalise(batch) if candidate.backend.input.channels_last else batch), placements


def input_difference(reference: Predictor, candidate: Predictor, image: np.ndarray) -> float:
    """The largest difference between what both make of an image, in grey levels; 255 if it lies elsewhere.

    Detections are compared on the candidate's canvases, so that a wrong one would not show there.
    """
    (theirs,), (placement,) = planes(candidate, [image])
    ours, own = reference.preprocess(image)
    if ours.shape != theirs.shape or own != placement:
        return WHOLLY_DIFFERENT
    eight = reference.preprocess.dtype == "uint8"  # others are counted as if ImageNet's deviation were theirs
    std = np.array(reference.preprocess.std if eight else [np.mean(STD)], np.float32)[:, None, None]
    return float((np.abs(ours - theirs) * std).max())


class SameCanvas(Predictor):
    """The reference on exactly the canvases that `candidate` gets: whole grey levels in the padding, too."""

    def __init__(self, reference: Predictor, candidate: Predictor) -> None:
        super().__init__(
            reference.backend, reference.preprocess, reference.classes, reference.category_ids, reference.source
        )
        self._candidate = candidate

    def prepare(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, list[Placement]]:
        """The candidate's canvases as float32 [B, C, H, W], normalised."""
        return planes(self._candidate, images)


def _in_several_batches(candidate: Predictor, images: Sequence[np.ndarray]) -> list[Detections]:
    """Detections of each image.

    Every row of a fixed batch is used; a network that takes batches of any size gets the largest, the smallest and one
    between them.
    """
    wanted = candidate.backend.input
    if wanted.batch is not None or wanted.max_batch is None:
        return candidate.detect_batch(images)
    found: list[Detections] = []
    for size in itertools.cycle((wanted.max_batch, wanted.min_batch, min(wanted.max_batch, wanted.min_batch + 2))):
        if len(found) >= len(images):
            return found
        found.extend(candidate.detect_batch(images[len(found) : len(found) + size]))
    raise AssertionError("a cycle has no end")


def _floor(detections: Detections, limit: int, threshold: float) -> float:
    """The lowest score a list can contain: that of its last entry if it is full, else the model's threshold."""
    return float(detections.scores.min()) if len(detections) >= limit else threshold
