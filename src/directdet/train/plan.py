"""`directdet plan`: the largest batch and resolution for pre-training that fit a GPU (equation 1 of the paper).

The paper asks for the best accuracy under a memory limit and searches a grid (section 3.3). Memory and arithmetic of
every setting are found here without a GPU (memory.py), or measured on one. Accuracy is not known before training: the
paper's findings stand in for it, see choose().
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console, Group
from rich.progress import track
from rich.table import Table

from directdet.common.errors import UsageProblem
from directdet.recipes.published import table3, table10
from directdet.recipes.recipe import Phase
from directdet.train.memory import Measured, StepCost, device_name, measure, step_cost
from directdet.train.optim import learning_rate

LENGTHS, BATCHES = (224, 320, 448, 640), (2, 4, 8, 16)  # section 3.3
ENOUGH_FOR_BN = 8  # images: what the paper trains with, and what batch normalisation wants
COCO_IMAGES = 117_266  # of train2017, those with objects
PAPER_MODEL = {"detector": "rcnn", "num_classes": 80, "backbone": "resnet50", "masks": True}
PAPER_PHASE = Phase("pretrain", "direct", (448, 448), batch_size=8)
PAPER_GPUS, PAPER_ITERATIONS = 8, 88_000  # section 3.1: 1x
PAPER_DAYS = {row.method: row.pretrain_cost_days for row in table3().rows}
# What an iteration of P1x took, 448x448 with 8 images on each of 8 RTX 2080 Ti: 0.795 s.
PAPER_SECONDS = PAPER_DAYS["Direct(P1x)"] * 86_400 / PAPER_ITERATIONS
UNITS = {"MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
PARTS_SHOWN = 10
NOT_COUNTED = (
    "Not in the memory: the CUDA context, workspaces of cuDNN and cuBLAS, fragmentation of the allocator; leave some "
    "hundred MB. Not in the FLOPs (2 for a multiplication and addition): pooling of RoIs, elementwise work."
)
RULE = (
    f"Rule (ours, as accuracy is not known beforehand): of what fits, the largest min(batch, {ENOUGH_FOR_BN}), then "
    "length, then batch. Either helps and saturates (section 3.3); from 4 images at 448, 8 images gain 0.9 AP and 640 "
    "pixels 0.5 (Table 1); batch normalisation wants 8 images."
)


@dataclass(frozen=True)
class Setting:
    """One point of the grid: pictures of length x length, `batch` of them on each GPU.

    peak: estimated bytes; flops: forward and backward pass of one image; rate: the learning rate the batch implies;
    iterations of the schedule, and seconds of each; fits: the limit, by what was measured if it was.
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
        """What the whole schedule takes."""
        return self.iterations * self.seconds / 86_400


@dataclass(frozen=True)
class Check:
    """The estimate beside the paper's own figure, in bytes."""

    name: str
    ours: int
    theirs: float

    @property
    def error(self) -> float:
        """Of ours, relative."""
        return self.ours / self.theirs - 1


@dataclass(frozen=True)
class Plan:
    """The grid, the choice (None where nothing fits), and what the memory of the choice is for, in bytes.

    memory: the limit of each GPU in bytes; passes: None where the phase counts iterations; device: the GPU that was
    measured, or None; checks: how good the estimate is.
    """

    phase: str
    memory: int
    gpus: int
    images: int
    passes: int | None
    device: str | None
    settings: tuple[Setting, ...]
    chosen: Setting | None
    parts: dict[str, int]
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: bytes, seconds, days."""
        rows = [{**asdict(setting), "days": setting.days} for setting in self.settings]
        chosen = None if self.chosen is None else rows[self.settings.index(self.chosen)]
        checks = [{**asdict(check), "error": check.error} for check in self.checks]
        return {**asdict(self), "settings": rows, "chosen": chosen, "checks": checks}

    def table(self) -> Group:
        """The grid, the choice with what it rests on, and what its memory is for."""
        notes = [self._choice(), RULE, NOT_COUNTED, self._time(), self._errors()]
        return Group(self._grid(), *notes, *([self._parts()] if self.chosen else []))

    def _grid(self) -> Table:
        # Headings of several lines: 80 columns hold all of them.
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
            f"--set {self.phase}.size={s.length} --set {self.phase}.batch_size={s.batch}"
        )

    def _time(self) -> str:
        passes = f"Iterations: {self.passes} passes over {self.images} images." if self.passes else ""
        if self.device:
            return f"{passes} Time: measured on one {self.device}, without exchanging gradients."
        return (
            f"{passes} Time: of {self.gpus} of the paper's RTX 2080 Ti, by FLOPs from its Table 3, where P1x (448, 8, "
            f"88k iterations) takes {PAPER_DAYS['Direct(P1x)']} days. The table disagrees with itself: three times the "
            f"iterations (P3x) take {PAPER_DAYS['Direct(P3x)']} days in it."
        )

    def _errors(self) -> str:
        lines = [
            f"{c.name}: {c.ours / 2**30:.2f} here, {c.theirs / 2**30:.2f} there, {100 * c.error:+.1f} %"
            for c in self.checks
        ]
        worst = max(abs(c.ours / (c.theirs / 2**30 * 1e9) - 1) for c in self.checks)
        return (
            f"Error of the estimate, by the paper's Table 10: {'; '.join(lines)}; its G being GiB (if GB, up to "
            f"{100 * worst:.1f} %). Theirs is taken for mmdet's peak, so the fullest batch's; here all are full: 512 "
            "RoIs and 128 mask slots an image, used or not."
        )

    def _parts(self) -> Table:
        """By what made it, operators of a function together."""
        sums: dict[str, int] = {}
        for label, size in self.parts.items():
            place = label if label.startswith(("backward", "inside")) else label.partition(":")[0]
            sums[place] = sums.get(place, 0) + size
        ordered = sorted(sums.items(), key=lambda item: -item[1])
        rest = sum(size for _, size in ordered[PARTS_SHOWN:])
        table = Table(
            "memory at the peak", "GB", title=f"{self.chosen.length}x{self.chosen.length}, {self.chosen.batch}"
        )
        for place, size in [*ordered[:PARTS_SHOWN], ("the rest", rest)]:
            table.add_row(place, f"{size / 1e9:.3f}")
        return table


def parse_memory(text: str) -> int:
    """Bytes from "11GB" (10^9), "11GiB" (2^30), MB or MiB; UsageProblem for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    units = {name.lower(): size for name, size in UNITS.items()}
    size = units.get(found[2].lower()) if found else None
    if size is None or float(found[1]) == 0:
        raise UsageProblem(f"--memory {text}: write it as 11GB or 11GiB (or {', '.join(list(UNITS)[:2])})")
    return int(float(found[1]) * size)


def plan(
    model_config: dict,
    phase: Phase,
    memory: int,
    lengths: Sequence[int] = LENGTHS,
    batches: Sequence[int] = BATCHES,
    gpus: int = 1,
    images: int = COCO_IMAGES,
    passes: int | None = None,
    on_gpu: bool = False,
    progress: bool = True,
) -> Plan:
    """Estimate every length with every batch, and choose.

    Args:
        model_config: as models.build.build_model takes it. phase: the pre-training, whose size and batch are varied.
        memory: the limit of each GPU, bytes. batches: images per GPU.
        images, passes: the length of the schedule; passes None: as the phase says.
        on_gpu: measure every setting on the GPU here as well, and go by that.

    Raises UsageProblem for a grid that makes no sense, UserError for on_gpu without a GPU.
    """
    lengths, batches = sorted(set(lengths)), sorted(set(batches))
    _check(phase, lengths, batches, gpus, images)
    if passes is None and phase.iterations is None:
        passes = phase.epochs * phase.repeat
    device = device_name() if on_gpu else None
    costs = _grid_costs(model_config, phase, lengths, batches, gpus, _bar("estimating", progress))
    paper = paper_costs()
    second = paper[448].flops / PAPER_SECONDS  # FLOPs of one on the paper's GPU
    settings = []
    for (length, batch), cost in _bar("measuring", progress and on_gpu)(costs.items()):
        images_per_step = batch * gpus * phase.accumulate
        found = measure(model_config, _at(phase, length, batch), (length, length), batch) if on_gpu else None
        setting = Setting(
            length,
            batch,
            cost.peak,
            cost.flops / batch,
            learning_rate(phase, images_per_step),
            _iterations(phase, images, passes, images_per_step),
            found.seconds if found else phase.accumulate * cost.flops / second,
            (found is not None and found.peak <= memory) if on_gpu else cost.peak <= memory,
            found,
        )
        settings.append(setting)
    chosen = choose(settings)
    parts = costs[chosen.length, chosen.batch].parts if chosen else {}
    return Plan(phase.name, memory, gpus, images, passes, device, tuple(settings), chosen, parts, _checks(paper))


def choose(settings: Iterable[Setting]) -> Setting | None:
    """The one to train with, None if none fits.

    Equation 1 wants the most accurate. The paper finds that batch and length both help and saturate (section 3.3), that
    the batch helps more at first (Table 1), and that batch normalisation wants 8 images. So a batch of up to 8 comes
    first, then the length, then what room is left for the batch. At 11 GB that is the paper's own choice.
    """
    fitting = [s for s in settings if s.fits]
    return max(fitting, key=lambda s: (min(s.batch, ENOUGH_FOR_BN), s.length, s.batch), default=None)


def _check(phase: Phase, lengths: list[int], batches: list[int], gpus: int, images: int) -> None:
    if phase.resize != "direct":
        raise UsageProblem(f"{phase.name}: resize={phase.resize}; there is a length to plan where resize=direct only")
    for length in lengths or [0]:
        if length < 32 or length % 32:
            raise UsageProblem(f"--lengths {length}: not a multiple of 32, the backbone's coarsest stride")
    for name, value in (("--batches", min(batches, default=0)), ("--gpus", gpus), ("--images", images)):
        if value < 1:
            raise UsageProblem(f"{name} {value}: at least 1")


def _at(phase: Phase, length: int, batch: int) -> Phase:
    return replace(phase, size=(length, length), batch_size=batch)


def _grid_costs(
    model_config: dict, phase: Phase, lengths: list[int], batches: list[int], gpus: int, bar: Callable
) -> dict[tuple[int, int], StepCost]:
    """By (length, batch). Everything is affine in the batch, so that the smallest and the largest are traced only."""
    ends = sorted({batches[0], batches[-1]})
    traced = {
        (length, batch): step_cost(model_config, _at(phase, length, batch), (length, length), batch, gpus)
        for length, batch in bar([(length, batch) for length in lengths for batch in ends])
    }
    return {
        (length, batch): interpolate(
            traced[length, ends[0]], traced[length, ends[-1]], (batch - ends[0]) / max(ends[-1] - ends[0], 1)
        )
        for length in lengths
        for batch in batches
    }


def interpolate(low: StepCost, high: StepCost, share: float) -> StepCost:
    """The cost that lies between: `low` at share 0, `high` at 1."""

    def mix(a: int, b: int) -> int:
        return round(a + share * (b - a))

    labels = {**high.parts, **low.parts}
    parts = {label: mix(low.parts.get(label, 0), high.parts.get(label, 0)) for label in labels}
    return StepCost(mix(low.peak, high.peak), mix(low.flops, high.flops), parts)


def _iterations(phase: Phase, images: int, passes: int | None, per_step: int) -> int:
    """Steps of the schedule; the rest of a pass that fills no batch is left out, as in training."""
    steps = phase.iterations if passes is None else passes * (images // per_step)
    return min(steps, phase.max_steps or steps)


def paper_costs() -> dict[int, StepCost]:
    """The two trainings of Table 10 by length: the paper's Mask R-CNN with 8 images on each of 8 GPUs."""
    return {
        length: step_cost(PAPER_MODEL, _at(PAPER_PHASE, length, 8), (length, length), 8, PAPER_GPUS)
        for length in (448, 640)
    }


def _checks(paper: dict[int, StepCost]) -> tuple[Check, ...]:
    names = ("448, batch 8, BN", "640, batch 8, SyncBN")
    return tuple(
        Check(name, cost.peak, row.memory_gb * 2**30)
        for name, cost, row in zip(names, paper.values(), table10().rows, strict=True)
    )


def _bar(what: str, shown: bool) -> Callable:
    """Walks through a list with a progress bar on stderr."""
    console = Console(stderr=True)
    hidden = not (shown and console.is_terminal)  # a bar that vanishes leaves an empty line in a log file
    return lambda items: track(list(items), what, console=console, transient=True, disable=hidden)
