"""`directdet plan`: the largest batch and resolution for pre-training that fit a GPU.

This is equation 1 of the direct pre-training paper ("the paper" here), which asks for the best accuracy under a memory
limit and searches a grid (section 3.3). Memory and arithmetic of every setting are computed without a GPU (memory.py),
or measured on one. Accuracy is not known before training, so the paper's findings stand in for it; see choose().
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rich.progress import track

from directdet.common.errors import UsageProblem
from directdet.common.settings import SettingError
from directdet.common.terminal import terminal
from directdet.data.padding import target_rows
from directdet.recipes.derived import accumulated, images_per_step, passes_per_epoch
from directdet.recipes.published import direct_table10
from directdet.recipes.recipe import Phase
from directdet.train.optim import learning_rate
from directdet.train.planning.memory import OBJECTS, StepCost, device_name, measure, step_cost
from directdet.train.planning.result import ENOUGH_FOR_BN, PAPER_DAYS, Check, Plan, Setting

LENGTHS, BATCHES = (224, 320, 448, 640), (2, 4, 8, 16)  # section 3.3
COCO_IMAGES = 117_266  # of train2017, those with objects
PAPER_MODEL = {"detector": "rcnn", "num_classes": 80, "backbone": "resnet50", "masks": True}
PAPER_PHASE = Phase("pretrain", "direct", (448, 448), batch_size=8)
PAPER_GPUS, PAPER_ITERATIONS = 8, 88_000  # section 3.1: 1x
# One iteration of P1x, 448x448 with 8 images on each of 8 RTX 2080 Ti: 0.795 s.
PAPER_SECONDS = PAPER_DAYS["Direct(P1x)"] * 86_400 / PAPER_ITERATIONS
UNITS = {"MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}

T = TypeVar("T")
Costs = dict[tuple[int, int], StepCost]  # by (length, batch)


@dataclass(frozen=True)
class Grid:
    """The settings to try: every length with every batch.

    Attributes:
        lengths: side of the images in pixels, multiples of 32.
        batches: images per GPU.

    Raises:
        UsageProblem: no length or batch, or one that is not possible.
    """

    lengths: Sequence[int] = LENGTHS
    batches: Sequence[int] = BATCHES

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))
        object.__setattr__(self, "batches", tuple(sorted(set(self.batches))))
        for length in self.lengths or [0]:
            if length < 32 or length % 32:
                raise UsageProblem(f"--lengths {length}: must be a multiple of 32, the backbone's coarsest stride")
        if min(self.batches, default=0) < 1:
            raise UsageProblem(f"--batches {min(self.batches, default=0)}: must be at least 1")


@dataclass(frozen=True)
class Workload:
    """What is trained on, and with how many GPUs.

    Attributes:
        gpus: how many train together.
        images: in the training set.
        passes: over the training set; None takes the length of the phase.
        objects: in its fullest image, by which the targets of a batch with it are padded.

    Raises:
        UsageProblem: a number below 1.
    """

    gpus: int = 1
    images: int = COCO_IMAGES
    passes: int | None = None
    objects: int = OBJECTS

    def __post_init__(self) -> None:
        for name, value in (("--gpus", self.gpus), ("--images", self.images)):
            if value < 1:
                raise UsageProblem(f"{name} {value}: must be at least 1")


def parse_memory(text: str) -> int:
    """Bytes from "11GB" (10^9), "11GiB" (2^30), MB or MiB.

    Raises:
        UsageProblem: the text is something else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    units = {name.lower(): size for name, size in UNITS.items()}
    if found is None or found[2].lower() not in units or float(found[1]) == 0:
        raise UsageProblem(f"--memory {text}: write it as 11GB or 11GiB (or {', '.join(list(UNITS)[:2])})")
    return int(float(found[1]) * units[found[2].lower()])


def plan(
    model_config: Mapping[str, Any],
    phase: Phase,
    memory: int,
    grid: Grid | None = None,
    workload: Workload | None = None,
    on_gpu: bool = False,
    progress: bool = True,
) -> Plan:
    """Estimate every setting of a grid, and choose one.

    Args:
        model_config: as models.build.build_model takes it.
        phase: the pre-training phase whose size and batch are varied.
        memory: the limit of each GPU in bytes.
        grid: the settings to try; None takes the paper's.
        workload: data and GPUs; None takes one GPU and COCO.
        on_gpu: also measure every setting on the GPU here, and decide by that.
        progress: show progress bars on a terminal.

    Raises:
        UsageProblem: the phase has no length to plan, or there is no such network.
        UserError: on_gpu without a GPU.
    """
    workload = workload or Workload()
    grid = _possible(phase, grid or Grid(), workload.gpus)
    if phase.name == "montage":
        raise UsageProblem("montage: trains a classifier; choose a recipe with direct pre-training to plan")
    if phase.resize != "direct":
        raise UsageProblem(
            f"{phase.name}: resize={phase.resize}; only phases with resize=direct have a length to plan; choose a "
            "recipe with direct pre-training"
        )
    device = device_name() if on_gpu else None
    rows = target_rows(workload.objects)
    costs = _grid_costs(model_config, phase, grid, workload, progress)
    paper = paper_costs()
    second = paper[448].flops / PAPER_SECONDS  # FLOPs per second of the paper's GPU
    settings = []
    for (length, batch), cost in _track(list(costs.items()), "measuring", progress and on_gpu):
        at = _at(phase, length, batch)
        per_step, times = images_per_step(at, workload.gpus), accumulated(at, workload.gpus)
        found = measure(model_config, at, (length, length), batch, workload.gpus, objects=rows) if on_gpu else None
        setting = Setting(
            length,
            batch,
            cost.peak,
            cost.flops / batch,
            learning_rate(phase, per_step),
            _iterations(at, workload, per_step),
            found.seconds if found else times * cost.flops / second,
            (found is not None and found.peak <= memory) if on_gpu else cost.peak <= memory,
            found,
        )
        settings.append(setting)
    chosen = choose(settings)
    return Plan(
        phase.name,
        memory,
        workload.gpus,
        workload.images,
        workload.passes,
        _schedule(phase, workload),
        device,
        tuple(settings),
        chosen,
        _advice(phase, chosen) if chosen else "",
        costs[chosen.length, chosen.batch].parts if chosen else {},
        _checks(paper),
        rows,
    )


def choose(settings: Iterable[Setting]) -> Setting | None:
    """The setting to train with; None if none fits.

    Equation 1 asks for the most accurate. The paper finds that batch and length both help and saturate (section 3.3),
    that the batch helps more at first (Table 1), and that batch normalisation needs 8 images. So a batch of up to 8
    comes first, then the length, then a larger batch if there is room. At 11 GB this is the paper's own choice.
    """
    fitting = [s for s in settings if s.fits]
    return max(fitting, key=lambda s: (min(s.batch, ENOUGH_FOR_BN), s.length, s.batch), default=None)


def _possible(phase: Phase, grid: Grid, gpus: int) -> Grid:
    """The grid without the batches that cannot make up the phase's fixed step; SettingError if none can."""
    batches: list[int] = []
    for batch in grid.batches:
        try:
            accumulated(_at(phase, grid.lengths[0], batch), gpus)
        except SettingError:
            if batch == grid.batches[-1] and not batches:
                raise
        else:
            batches.append(batch)
    return replace(grid, batches=batches)


def _at(phase: Phase, length: int, batch: int) -> Phase:
    # A size of evaluation that is too far from this length is the user's to change: see _advice.
    return replace(phase, size=(length, length), batch_size=batch, eval_size=None)


def _advice(phase: Phase, setting: Setting) -> str:
    """The settings that train with a choice, by which no other setting is left behind."""
    settings = f"--set {phase.name}.size={setting.length} --set {phase.name}.batch_size={setting.batch}"
    try:
        replace(phase, size=(setting.length, setting.length), batch_size=setting.batch)
    except SettingError:  # evaluation would be at a size too far away
        return f"{settings} --set {phase.name}.eval_size=none"
    return settings


def _grid_costs(model_config: Mapping[str, Any], phase: Phase, grid: Grid, workload: Workload, progress: bool) -> Costs:
    """The cost of every setting. It is affine in the batch, so only the smallest and the largest are traced."""
    ends = sorted({grid.batches[0], grid.batches[-1]})
    points = [(length, batch) for length in grid.lengths for batch in ends]
    gpus, rows = workload.gpus, target_rows(workload.objects)
    traced = {
        (length, batch): step_cost(model_config, _at(phase, length, batch), (length, length), batch, gpus, objects=rows)
        for length, batch in _track(points, "estimating", progress)
    }
    return {
        (length, batch): interpolate(
            traced[length, ends[0]], traced[length, ends[-1]], (batch - ends[0]) / max(ends[-1] - ends[0], 1)
        )
        for length in grid.lengths
        for batch in grid.batches
    }


def interpolate(low: StepCost, high: StepCost, share: float) -> StepCost:
    """The cost between two: `low` at share 0, `high` at share 1."""

    def mix(a: int, b: int) -> int:
        return round(a + share * (b - a))

    labels = {**high.parts, **low.parts}
    parts = {label: mix(low.parts.get(label, 0), high.parts.get(label, 0)) for label in labels}
    return StepCost(mix(low.peak, high.peak), mix(low.flops, high.flops), parts)


def _iterations(phase: Phase, workload: Workload, per_step: int) -> int:
    """Steps of the schedule: those of the phase, or of the passes that were asked for.

    The rest of a pass that does not fill a batch is left out, as in training.
    """
    a_pass = workload.images // per_step
    if workload.passes is not None:
        steps = workload.passes * a_pass
    else:
        steps = phase.iterations or phase.epochs * round(a_pass * passes_per_epoch(phase))
    return min(steps, phase.max_steps or steps)


def _schedule(phase: Phase, workload: Workload) -> str:
    """Where the number of iterations comes from, in words."""
    if workload.passes is not None:
        return f"{workload.passes} passes over {workload.images} images"
    if phase.iterations is not None:
        return "those of the phase, whatever the batch"
    if phase.repeat is None and phase.epoch_batch is not None:
        return (
            f"{phase.epochs} epochs of {workload.images} images by {phase.epoch_batch} per GPU, whatever the batch "
            "(section 3.1 of the paper: fixed steps K)"
        )
    return f"{phase.epochs * (phase.repeat or 1)} passes over {workload.images} images"


def paper_costs() -> dict[int, StepCost]:
    """The two trainings of Table 10 by length: the paper's Mask R-CNN with 8 images on each of 8 GPUs."""
    return {
        length: step_cost(PAPER_MODEL, _at(PAPER_PHASE, length, 8), (length, length), 8, PAPER_GPUS)
        for length in (448, 640)
    }


def _checks(paper: dict[int, StepCost]) -> tuple[Check, ...]:
    names = ("448, batch 8, BN", "640, batch 8, SyncBN")
    printed = [row.memory_gb for row in direct_table10().rows if row.memory_gb is not None]
    return tuple(
        Check(name, cost.peak, memory_gb * 2**30)
        for name, cost, memory_gb in zip(names, paper.values(), printed, strict=True)
    )


def _track(items: list[T], what: str, shown: bool) -> Iterable[T]:
    """The items, with a progress bar on stderr."""
    console = terminal(stderr=True)
    hidden = not (shown and console.is_terminal)  # a bar that vanishes leaves an empty line in a log file
    return track(items, what, console=console, transient=True, disable=hidden)
