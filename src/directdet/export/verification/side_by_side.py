"""PyTorch next to every runtime that can run an artefact here: detections, AP, rough latency, and the verdict."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from directdet.common.errors import MissingLibraryError
from directdet.common.terminal import CAPTION, TITLE, plain, verdict
from directdet.data.records import Dataset, Record
from directdet.export.verification.matching import Tolerance
from directdet.export.verification.verify import (
    DIFFERENCES,
    SPREADS,
    TOLERANCES,
    SameCanvas,
    Verification,
    expect,
    marked,
    planes,
    verify,
)
from directdet.infer.accuracy.ap_difference import Found, average_precisions, spread_of_difference
from directdet.infer.accuracy.class_scores import suggested_score
from directdet.infer.accuracy.evaluate import detect
from directdet.infer.accuracy.matches import match
from directdet.infer.predictor import Predictor
from directdet.infer.runtimes.load import load
from directdet.infer.runtimes.names import RUNTIMES

AP_IMAGES = 100
ROWS = ("box px", "score", "mask")  # of the table, for verify.DIFFERENCES
TIMED_RUNS = 3


@dataclass(frozen=True)
class VerificationSet:
    """What an artefact is verified on.

    Attributes:
        pictures: names and BGR images; their detections are matched one by one.
        dataset: the AP is measured on its first `ap_images` images; None: no AP.
        ap_images: 0: no AP.
    """

    pictures: Sequence[tuple[str, np.ndarray]]
    dataset: Dataset | None = None
    ap_images: int = AP_IMAGES


@dataclass(frozen=True)
class SideBySide:
    """The figures of PyTorch, and the verification in each runtime.

    Attributes:
        runtimes: at least one.
        latency_ms: rough median time of a run in PyTorch.
        ap: AP of PyTorch by "box" and "mask", 0 to 1; empty if it was not measured.
        ap_images: images it was measured on.
        batch: images of a timed run.
        notes: what else to know about it, a line each.
        suggested: the score thresholds that suit the first runtime's detections on those images, see `suggested_score`;
            None: nothing was found, or no AP was measured.
    """

    runtimes: tuple[Verification, ...]
    latency_ms: float
    ap: dict[str, float]
    ap_images: int
    batch: int
    notes: tuple[str, ...] = ()
    suggested: dict[str, Any] | None = None

    @property
    def passed(self) -> bool:
        return all(one.passed for one in self.runtimes)

    def to_dict(self) -> dict:
        return {
            "passed": self.passed,
            "pytorch": {"rough_latency_ms": self.latency_ms, "ap": self.ap},
            "timed_batch": self.batch,
            "ap_images": self.ap_images,
            "failed": [f"{one.runtime}: {what.name}" for one in self.runtimes for what in one.failed],
            "runtimes": [one.to_dict() for one in self.runtimes],
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """A row for each figure, a column for each runtime; what failed is red. Within 80 columns."""
        table = Table(
            title=plain("verification: ", TITLE).append_text(verdict(self.passed)), box=SIMPLE_HEAD, padding=(0, 1)
        )
        table.add_column("", no_wrap=True)
        first, limits = self.runtimes[0], self.runtimes[0].tolerance
        for name in ("PyTorch", *(one.runtime for one in self.runtimes), "tolerance"):
            table.add_column(name, justify="right", no_wrap=True)
        own = {f"{kind} AP": f"{100 * ap:.2f}" for kind, ap in self.ap.items()}
        own |= {"found": str(sum(c.expected for c in first.comparisons)), "ms": f"{self.latency_ms:.0f}"}
        columns = [_cells(one) for one in self.runtimes]
        failed = [{criterion.name for criterion in one.failed} for one in self.runtimes]
        names = dict.fromkeys(name for cells in columns for name in cells if name != "ms")
        for name in (*names, "ms"):
            cells = [marked(cells.get(name, "-"), name in bad) for cells, bad in zip(columns, failed, strict=True)]
            table.add_row(name, own.get(name, ""), *cells, _allowed(name, limits, self.runtimes))
        notes = [reason for one in self.runtimes for reason in one.reasons]
        notes.append(f"ms: rough, median of {TIMED_RUNS} runs of {self.batch} image(s), network alone; not a benchmark")
        notes.append("unsure: what PyTorch itself does not repeat under rounding errors; not counted")
        notes += [f"AP: %, on {self.ap_images} images"] if self.ap else []
        if any(one.ap_spread for one in self.runtimes):
            notes.append(
                f"AP's tolerance: {100 * limits.ap:g}, and {SPREADS} times what the choice of the pictures does"
            )
        notes += [note for one in self.runtimes for note in one.notes]
        table.caption = plain("\n".join(dict.fromkeys([*notes, *self.notes])), CAPTION)
        return table


def _cells(one: Verification) -> dict[str, str]:
    """What was measured in one runtime, by row."""
    found, undecided = (str(sum(getattr(c, key) for c in one.comparisons)) for key in ("found", "undecided"))
    numbers = {name: f"{one.largest(what):.1e}" for name, what in zip(ROWS, DIFFERENCES, strict=True)}
    if one.mask_iou is None:
        del numbers["mask"]
    else:
        numbers["mask IoU"] = f"{one.mask_iou:.3f}"
    return {
        "found": found,
        "unsure": undecided,
        "matched": f"{one.matched:.1%}",
        **numbers,
        "shift px": f"{one.shift:.1e}",
        "score shift": f"{one.score_shift:.2%}",
        **{f"{kind} AP": f"{100 * one.ap[kind]:.2f}" if kind in one.ap else "none" for kind in one.reference_ap},
        "ms": "-" if one.latency_ms is None else f"{one.latency_ms:.0f}",
    }


def _allowed(name: str, limits: Tolerance, runtimes: Sequence[Verification]) -> str:
    """What is allowed of a row of `_cells`; empty for those that are only told."""
    fixed = {
        "matched": f"{limits.matched:.0%}",
        "box px": f"{limits.box:g}",
        "score": f"{limits.score:g}",
        "mask": "any" if limits.mask is None else f"{limits.mask:g}",
        "mask IoU": f"{limits.mask_iou:g}",
        "shift px": f"{limits.shift:g}",
        "score shift": f"{limits.score_shift:.2%}",
        "found": f"±{limits.count:.0%}",
    }
    if name.endswith(" AP"):
        return f"±{100 * max(one.ap_limit(name.removesuffix(' AP')) for one in runtimes):.2f}"
    return fixed.get(name, "")


def compare_runtimes(
    reference: Predictor,
    artefact: Path,
    kind: str,
    verify_on: VerificationSet,
    precision: str = "fp32",
    batch: int = 1,
    device: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> SideBySide:
    """Verify the artefact in every runtime of its `kind` that is installed here, one after the other.

    Args:
        reference: the model in PyTorch, with the artefact's canvas. In every comparison it gets the very canvases that
            the artefact gets: what uint8 does to the padding is no difference between runtimes.
        kind: of the artefact, a key of `RUNTIMES`.
        batch: images of a timed run.
        say: called with a line about each step.

    Raises:
        MissingLibraryError: no runtime of this kind is installed.
    """
    dataset, pictures, ap_images = verify_on.dataset, verify_on.pictures, verify_on.ap_images
    scored = dataset if dataset is not None and dataset.records and ap_images else None
    records = scored.records[:ap_images] if scored else ()
    count, own, own_found = len(records), dict[str, float](), []
    timing, expected, suggested, found, missing = 0.0, None, None, [], []
    for runtime in RUNTIMES[kind]:
        say(f"verification in {runtime}")
        try:
            candidate = load(artefact, runtime=runtime, device=device)
        except MissingLibraryError:
            missing.append(f"not verified in {runtime}, which is not installed here")
            continue
        sample = [image for _, image in pictures]
        sample = (sample * batch)[:batch]
        if expected is None:
            timing = _milliseconds(reference, planes(candidate, sample)[0])
            expected = expect(reference, candidate, pictures, TOLERANCES[precision])
            if scored:
                say(f"AP of PyTorch on {count} images")
                same = SameCanvas(reference, candidate)
                own_found = detect(same, scored, records, progress=True)
                own = average_precisions(own_found, scored, records)
        one = verify(reference, candidate, pictures, precision, expected)
        if scored:
            theirs = detect(candidate, scored, records, progress=True)
            one = with_ap(one, own, own_found, theirs, scored, records)
            ids = [record.image_id for record in records]
            suggested = suggested or suggested_score(match(theirs, records), scored.classes, ids)
        found.append(replace(one, latency_ms=_milliseconds(candidate, candidate.prepare(sample)[0])))
        del candidate  # so that two runtimes' copies of the weights are not in memory together
        gc.collect()
    if not found:
        raise MissingLibraryError(
            f"{artefact}: cannot be verified: {' or '.join(RUNTIMES[kind])} is not installed here"
        )
    return SideBySide(tuple(found), timing, own, count, batch, tuple(missing), suggested)


def with_ap(
    one: Verification,
    own: dict[str, float],
    own_found: Found,
    theirs: Found,
    dataset: Dataset,
    records: Sequence[Record],
) -> Verification:
    """`one` with the AP of both sides on `records`, and the spread of those differences that need it.

    Args:
        own: the AP of PyTorch, of `own_found`.
        theirs: what the runtime found.
    """
    ap = average_precisions(theirs, dataset, records)
    far = [kind for kind in own if kind in ap and abs(ap[kind] - own[kind]) > one.tolerance.ap]
    spread = {kind: spread_of_difference(own_found, theirs, dataset, records, kind) for kind in far}
    return replace(one, ap=ap, reference_ap=own, ap_spread=spread)


def _milliseconds(detector: Predictor, batch: np.ndarray) -> float:
    """Rough median time of a run."""
    detector.run(batch)
    times = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        detector.run(batch)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)
