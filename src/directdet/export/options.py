"""The options of an export, checked against the table of formats before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from directdet.common.errors import UsageProblem
from directdet.common.settings import check_word
from directdet.export.formats import CALIBRATED, FORMATS, INPUTS, PRECISIONS

LARGEST_BATCH = 1024
DEFAULT_CAPABILITY = "8.9"


@dataclass(frozen=True)
class ExportOptions:
    """What an artefact is to be.

    Attributes:
        format: a key of `formats.FORMATS`.
        precision: one of the format's precisions; int8 is calibrated on pictures, so that it needs a dataset.
        input: "uint8" pixels, which the graph normalises itself, or "float32", normalised.
        size: (height, width) of the network's input in pixels, multiples of 32; None: the size the model was evaluated
            at in training. A model that warps its pictures to one size (SSD) takes no other.
        batch: images per run: N, or (MIN, OPT, MAX) or "MIN,OPT,MAX" for any number between MIN and MAX, with OPT the
            usual one.
        compute_capability: of the GPUs to build for, such as "8.9" or "8.6,8.9"; None: 8.9 where the format takes one.
        score: scores above this leave the graph, nms: the IoU above which it suppresses, detections: how many a picture
            it returns; None: what the model was trained with. They are constants of the graph.
        proposals: of a two-stage detector, how many of them enter its heads; None: as many as in training's evaluation.
        max_ms, min_ap: instead of a size and a number of proposals: take those with which a picture takes at most so
            many milliseconds here, or that find at least so much (box AP, 0 to 1); see `price`. They need a dataset.
        reduce_range: int8 weights of 7 bits, for x86 processors without VNNI: their 16-bit sums overflow with 8.

    Raises:
        UsageProblem: an unknown name (with the nearest known one), or a combination that is not in the table.
    """

    format: str = "onnx"
    precision: str = "fp32"
    input: str = "uint8"
    size: tuple[int, int] | None = None
    batch: int | str | Sequence[int] = 1
    compute_capability: str | None = None
    score: float | None = None
    nms: float | None = None
    detections: int | None = None
    proposals: int | None = None
    max_ms: float | None = None
    min_ap: float | None = None
    reduce_range: bool = False

    def __post_init__(self) -> None:
        check_word("--format", self.format, FORMATS)
        check_word("--precision", self.precision, PRECISIONS)
        check_word("--input", self.input, INPUTS)
        about = FORMATS[self.format]
        if self.precision not in about.precisions:
            raise UsageProblem(
                f"--precision {self.precision}: --format {self.format} has {', '.join(about.precisions)}; "
                f"{self.precision} is for "
                f"{', '.join(name for name in FORMATS if self.precision in FORMATS[name].precisions)}"
            )
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            shown = ",".join(map(str, self.size))
            raise UsageProblem(f"--size {shown}: is not a size; give height and width in pixels, as 448,448")
        if self.compute_capability is not None and not about.capabilities:
            takers = ", ".join(name for name in FORMATS if FORMATS[name].capabilities)
            raise UsageProblem(
                f"--compute-capability {self.compute_capability}: only for --format {takers}, not {self.format}"
            )
        if self.reduce_range and (self.format, self.precision) != ("onnx", CALIBRATED):
            raise UsageProblem(f"--reduce-range: only for --format onnx --precision {CALIBRATED}")
        for name in ("score", "nms"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageProblem(f"--{name} {value}: give a number from 0 to 1")
        for name in ("detections", "proposals"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageProblem(f"--{name} {value}: give at least 1")
        self._check_limits()
        check_batch(self.batch)
        for text in (self.compute_capability or DEFAULT_CAPABILITY).split(","):
            check_capability(text)

    def _check_limits(self) -> None:
        """UsageProblem unless what is to be measured for the limits can be."""
        if not self.limited:
            return
        given = self._limit
        if self.max_ms is not None and not self.max_ms > 0:
            raise UsageProblem(f"--max-ms {self.max_ms}: give a number above 0")
        if self.min_ap is not None and not 0 <= self.min_ap <= 1:
            raise UsageProblem(f"--min-ap {100 * self.min_ap:g}: give a number from 0 to 100")
        if FORMATS[self.format].capabilities:
            raise UsageProblem(f"{given}: is measured on a CPU here; not for --format {self.format}")
        if self.precision == CALIBRATED:
            raise UsageProblem(
                f"{given}: not with --precision {CALIBRATED}, which is calibrated for one size; choose in fp32"
            )

    @property
    def _limit(self) -> str:
        return "--max-ms" if self.max_ms is not None else "--min-ap"

    @property
    def limited(self) -> bool:
        """Whether canvas and proposals are chosen by what they cost and find."""
        return self.max_ms is not None or self.min_ap is not None

    def require_data(self, given: bool) -> None:
        """UsageProblem where the precision or a limit needs a dataset and none is `given`."""
        if self.precision == CALIBRATED and not given:
            raise UsageProblem(f"--precision {self.precision}: is calibrated on real pictures; give --data")
        if self.limited and not given:
            raise UsageProblem(
                f"{'--max-ms' if self.max_ms else '--min-ap'}: is measured on real pictures; give --data"
            )

    @property
    def thresholds(self) -> dict[str, float | int]:
        """What the model's own configuration is changed to."""
        given = {"score_threshold": self.score, "nms": self.nms, "detections": self.detections}
        given["test_proposals"] = self.proposals
        return {name: value for name, value in given.items() if value is not None}

    @property
    def batch_sizes(self) -> tuple[int, int, int]:
        """The fewest, usual and most images of a run."""
        return check_batch(self.batch)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities to build for, each once; empty where the format takes none."""
        if not FORMATS[self.format].capabilities:
            return ()
        texts = (self.compute_capability or DEFAULT_CAPABILITY).split(",")
        return tuple(dict.fromkeys(map(check_capability, texts)))


def check_batch(value: int | str | Sequence[int]) -> tuple[int, int, int]:
    """(MIN, OPT, MAX) from N, "N", (MIN, OPT, MAX) or "MIN,OPT,MAX"; UsageProblem for anything else."""
    shown = str(value) if isinstance(value, int | str) else ",".join(map(str, value))
    parts = [part.strip() for part in shown.split(",")]
    numbers = [int(part) for part in parts if re.fullmatch(r"\d{1,6}", part)]
    if len(numbers) != len(parts) or len(parts) not in (1, 3):
        raise UsageProblem(f"--batch {shown}: give N, or MIN,OPT,MAX as 1,4,8")
    least, usual, most = numbers * 3 if len(numbers) == 1 else numbers
    if not 1 <= least <= usual <= most <= LARGEST_BATCH:
        raise UsageProblem(f"--batch {shown}: expected 1 <= MIN <= OPT <= MAX <= {LARGEST_BATCH}")
    return least, usual, most


def check_capability(text: str) -> str:
    """ "8.9" from "8.9", "89", "SM89" or "sm_89"; UsageProblem for anything else."""
    found = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip().lower())
    if found is None:
        raise UsageProblem(f"--compute-capability {text}: write it as 8.9, several as 8.6,8.9")
    return f"{found[1]}.{found[2]}"
