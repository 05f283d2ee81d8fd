"""PyTorch next to every runtime that can run an artefact here: detections, AP, rough latency, and the verdict."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from directdet.common.errors import MissingLibraryError
from directdet.common.terminal import CAPTION, TITLE, plain, verdict
from directdet.data.records import Dataset
from directdet.export.verify import DIFFERENCES, TOLERANCES, SameCanvas, Verification, expect, planes, verify
from directdet.infer.accuracy.evaluate import Metrics, evaluate
from directdet.infer.predictor import Predictor
from directdet.infer.runtimes.load import load
from directdet.infer.runtimes.names import RUNTIMES

AP_IMAGES = 100
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
    """

    runtimes: tuple[Verification, ...]
    latency_ms: float
    ap: dict[str, float]
    ap_images: int
    batch: int
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(one.passed for one in self.runtimes)

    def to_dict(self) -> dict:
        return {
            "passed": self.passed,
            "pytorch": {"rough_latency_ms": self.latency_ms, "ap": self.ap},
            "timed_batch": self.batch,
            "ap_images": self.ap_images,
            "runtimes": [one.to_dict() for one in self.runtimes],
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """One row per runtime, and the tolerance, within 80 columns."""
        kinds = list(self.ap)
        table = Table(
            title=plain("verification: ", TITLE).append_text(verdict(self.passed)), box=SIMPLE_HEAD, padding=0
        )
        table.add_column("", no_wrap=True)
        columns = [
            "found",
            "unsure",
            "matched",
            "box px",
            "score",
            "mask",
            *(f"{kind} AP" for kind in kinds),
            "ms",
        ]
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        first, limits = self.runtimes[0], self.runtimes[0].tolerance
        expected = str(sum(c.expected for c in first.comparisons))
        own = [f"{100 * self.ap[kind]:.2f}" for kind in kinds]
        table.add_row("PyTorch", expected, "", "", "", "", "", *own, f"{self.latency_ms:.0f}")
        for one in self.runtimes:
            name = one.runtime if one.passed else Text(one.runtime, "bold red")
            found, undecided = (str(sum(getattr(c, key) for c in one.comparisons)) for key in ("found", "undecided"))
            numbers = [f"{one.largest(what):.1e}" for what in DIFFERENCES]
            theirs = [f"{100 * one.ap[kind]:.2f}" if kind in one.ap else "none" for kind in kinds]
            latency = "-" if one.latency_ms is None else f"{one.latency_ms:.0f}"
            table.add_row(name, found, undecided, f"{one.matched:.1%}", *numbers, *theirs, latency)
        table.add_section()
        allowed = [f"{getattr(limits, what):.1e}" for what in DIFFERENCES]
        ap = [f"±{100 * limits.ap:.2f}" for _ in kinds]
        table.add_row("tolerance", "", "", f"{limits.matched:.0%}", *allowed, *ap, "")
        notes = [f"ms: rough, median of {TIMED_RUNS} runs of {self.batch} image(s), network alone; not a benchmark"]
        notes.append("unsure: what PyTorch itself does not repeat under rounding errors; not counted")
        notes += [f"AP: %, on {self.ap_images} images"] if kinds else []
        notes += [note for one in self.runtimes for note in one.notes]
        table.caption = plain("\n".join(dict.fromkeys([*notes, *self.notes])), CAPTION)
        return table


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
    count = min(ap_images, len(scored.records)) if scored else 0
    own: dict[str, float] = {}
    timing, expected, found, missing = 0.0, None, [], []
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
                own = _ap(evaluate(same, scored, progress=True, max_images=ap_images))
        one = verify(reference, candidate, pictures, precision, expected)
        ap = _ap(evaluate(candidate, scored, progress=True, max_images=ap_images)) if scored else {}
        latency = _milliseconds(candidate, candidate.prepare(sample)[0])
        found.append(replace(one, latency_ms=latency, ap=ap, reference_ap=own))
        del candidate  # so that two runtimes' copies of the weights are not in memory together
        gc.collect()
    if not found:
        raise MissingLibraryError(
            f"{artefact}: cannot be verified: {' or '.join(RUNTIMES[kind])} is not installed here"
        )
    return SideBySide(tuple(found), timing, own, count, batch, tuple(missing))


def _ap(metrics: Metrics) -> dict[str, float]:
    """AP by kind; pycocotools' -1, where the ground truth has no such objects, is left as it is."""
    both = {"box": metrics.bbox["AP"]}
    if metrics.segm is not None:
        both["mask"] = metrics.segm["AP"]
    return both


def _milliseconds(detector: Predictor, batch: np.ndarray) -> float:
    """Rough median time of a run."""
    detector.run(batch)
    times = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        detector.run(batch)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)
