"""A plan of pre-training: every setting that was tried, the choice, and the tables that show them."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

from directdet.recipes.published import direct_table3
from directdet.train.planning.memory import Measured

ENOUGH_FOR_BN = 8  # images: what the paper trains with, and what batch normalisation needs
# Days of each pre-training in Table 3 of the direct pre-training paper, by method.
PAPER_DAYS = {row.method: row.pretrain_cost_days for row in direct_table3().rows if row.pretrain_cost_days is not None}
PARTS_SHOWN = 10
NOT_COUNTED = (
    "Not in the memory: the CUDA context, workspaces of cuDNN and cuBLAS, fragmentation of the allocator; leave some "
    "hundred MB free. precision=auto counts as bf16. Not in the FLOPs (2 for a multiplication and addition): pooling "
    "of RoIs, elementwise work."
)
RULE = (
    "Rule (our own, since accuracy is not known beforehand): of the settings that fit, the largest "
    f"min(batch, {ENOUGH_FOR_BN}), then the largest length, then the largest batch. Both help and saturate (section "
    "3.3 of the direct pre-training paper); starting from 4 images at 448, 8 images gain 0.9 AP and 640 pixels 0.5 "
    "(Table 1); batch normalisation needs 8 images."
)


@dataclass(frozen=True)
class Setting:
    """One point of the grid.

    Attributes:
        length: images are length x length pixels.
        batch: images per GPU.
        peak: estimated memory in bytes.
        flops: of the forward and backward pass of one image.
        rate: the learning rate that the batch implies.
        iterations: of the whole schedule.
        seconds: per iteration.
        fits: whether it stays within the limit, by the measurement if there is one.
        measured: on a GPU; None if nothing was measured, or memory ran out.
    """

    length: int
    batch: int
    peak: int
    flops: float
    rate: float
    iterations: int
    seconds: float
    fits: bool
    measured: Measured | None = None

    @property
    def days(self) -> float:
        """Time for the whole schedule."""
        return self.iterations * self.seconds / 86_400


@dataclass(frozen=True)
class Check:
    """The estimate next to the paper's own figure, in bytes."""

    name: str
    ours: int
    theirs: float

    @property
    def error(self) -> float:
        """The relative error of the estimate."""
        return self.ours / self.theirs - 1


@dataclass(frozen=True)
class Plan:
    """The grid and the choice.

    Attributes:
        phase: its name.
        memory: the limit of each GPU in bytes.
        gpus: how many train together.
        images: in the training set.
        passes: over the training set, as asked for; None for the phase's own length.
        schedule: where the number of iterations comes from, in words.
        device: the GPU that was measured on, or None.
        settings: the grid.
        chosen: one of them; None if none fits.
        advice: what to give to `directdet train` for it.
        parts: the memory of the choice by purpose, in bytes.
        checks: how good the estimate is.
        objects: rows of the padded targets, those of a batch with the fullest image.
    """

    phase: str
    memory: int
    gpus: int
    images: int
    passes: int | None
    schedule: str
    device: str | None
    settings: tuple[Setting, ...]
    chosen: Setting | None
    advice: str
    parts: dict[str, int]
    checks: tuple[Check, ...]
    objects: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: bytes, seconds, days."""
        rows = [{**asdict(setting), "days": setting.days} for setting in self.settings]
        chosen = None if self.chosen is None else rows[self.settings.index(self.chosen)]
        checks = [{**asdict(check), "error": check.error} for check in self.checks]
        return {**asdict(self), "settings": rows, "chosen": chosen, "checks": checks}

    def table(self) -> Group:
        """The grid, the choice with its reasons, and what its memory is used for."""
        notes = [self._choice(), RULE, NOT_COUNTED, self._time(), self._errors()]
        return Group(self._grid(), *notes, *([] if self.chosen is None else [_parts(self.chosen, self.parts)]))

    def _grid(self) -> Table:
        # Headings of several lines, so that 80 columns hold all of them.
        columns = ["", "length", "batch", "memory,\nGB", "fits", "GFLOP\nan\nimage", "learning\nrate", "iterations"]
        columns += ["s per\nitera-\ntion", "days", *(["measured,\nGB"] if self.device else [])]
        limit = f"{self.memory / 1e9:.2f} GB on each of {self.gpus} GPU{'s' if self.gpus > 1 else ''}"
        table = Table(*columns, padding=(0, 0, 0, 1), title=f"pre-training under {limit}")
        for s in self.settings:
            cells = [f"{s.length}", f"{s.batch}", f"{s.peak / 1e9:.2f}", "yes" if s.fits else "no"]
            cells += [f"{s.flops / 1e9:.0f}", f"{s.rate:.4g}", f"{s.iterations}", f"{s.seconds:.3f}", f"{s.days:.2f}"]
            if self.device:
                cells.append(f"{s.measured.peak / 1e9:.2f}" if s.measured else "out of memory")
            table.add_row(">" if s is self.chosen else "", *cells, style=None if s.fits else "dim")
        return table

    def _choice(self) -> str:
        if self.chosen is None:
            s = min(self.settings, key=lambda s: s.peak)
            return f"Nothing fits: {s.length} with {s.batch} already takes {s.peak / 1e9:.2f} GB; try less of either."
        s = self.chosen
        return (
            f"Chosen: {s.length}x{s.length}, {s.batch} images per GPU, learning rate {s.rate:.4g} (linear scaling): "
            f"{self.advice}"
        )

    def _time(self) -> str:
        iterations = f"Iterations: {self.schedule}."
        if self.device:
            return f"{iterations} Time: measured on one {self.device}, without the exchange of gradients."
        return (
            f"{iterations} Time: on {self.gpus} of the paper's RTX 2080 Ti, scaled by FLOPs from its Table 3, where "
            f"P1x (448, 8, 88k iterations) takes {PAPER_DAYS['Direct(P1x)']} days. The table contradicts itself: three "
            f"times the iterations (P3x) take {PAPER_DAYS['Direct(P3x)']} days in it."
        )

    def _errors(self) -> str:
        lines = [
            f"{c.name}: {c.ours / 2**30:.2f} here, {c.theirs / 2**30:.2f} there, {100 * c.error:+.1f} %"
            for c in self.checks
        ]
        worst = max(abs(c.ours / (c.theirs / 2**30 * 1e9) - 1) for c in self.checks)
        return (
            f"Error of the estimate against the paper's Table 10: {'; '.join(lines)}, if its G means GiB (if GB, up to "
            f"{100 * worst:.1f} %). Its figure is taken for mmdet's peak, that of the fullest batch; here every batch "
            "is full: 512 RoIs and 128 mask slots per image, used or not, and targets padded to "
            f"{self.objects} objects, as a batch with the fullest image is."
        )


def _parts(chosen: Setting, parts: dict[str, int]) -> Table:
    """The memory of a setting by purpose, the operators of a function together."""
    sums: dict[str, int] = {}
    for label, size in parts.items():
        place = label if label.startswith(("backward", "inside")) else label.partition(":")[0]
        sums[place] = sums.get(place, 0) + size
    ordered = sorted(sums.items(), key=lambda item: -item[1])
    rest = sum(size for _, size in ordered[PARTS_SHOWN:])
    table = Table("memory at the peak", "GB", title=f"{chosen.length}x{chosen.length}, {chosen.batch}")
    for place, size in [*ordered[:PARTS_SHOWN], ("the rest", rest)]:
        table.add_row(place, f"{size / 1e9:.3f}")
    return table
