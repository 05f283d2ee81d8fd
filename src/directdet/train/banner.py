"""What is printed before a phase starts: its data, weights, normalisation and schedule."""

from pathlib import Path

from rich.table import Table

from directdet.common.terminal import TITLE, plain
from directdet.data.records import Dataset
from directdet.train import distributed
from directdet.train.loop import Trainer
from directdet.train.objects import ObjectCount
from directdet.train.prepare import IMAGENET, Loaded, describe_norm
from directdet.train.step import reduced_precision


def describe_start(loaded: Loaded | None, start: str | Path) -> str:
    """Where the weights of a phase come from, in words."""
    if loaded is None:
        return "random weights"
    name = "ImageNet (torchvision)" if str(start) == IMAGENET else loaded.source
    left = sum(len(names) for names in loaded.left.values())
    return f"{name}: {loaded.count()} tensors" + (f", {left} not loaded" if left else "")


def banner(trainer: Trainer, start: str) -> Table:
    """What is about to run, with the facts that decide whether training from scratch works."""
    phase, model = trainer.phase, trainer.model
    total = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    size = f"{phase.size[0]}x{phase.size[1]}"
    if phase.resize == "edges":
        size = f"edges {phase.size}, padded to multiples of 32"
        size += f", divided by {phase.shrink:g}" if phase.shrink != 1 else ""
        size += f", short edge from {', '.join(map(str, phase.short_edges))}" if phase.short_edges else ""
    whole = phase.iterations or trainer.steps_per_epoch * phase.epochs
    unit = "epochs" if phase.iterations is None else "steps"
    table = Table(title=plain(f"{trainer.recipe}: {phase.name}", TITLE), show_header=False)
    for name, value in {
        "data": f"{len(trainer.train)} train images with {_objects(trainer.objects)}, "
        f"{len(trainer.val) if trainer.val else 'no'} val images, {len(trainer.train.classes)} classes"
        f"{_left_out(trainer.train)}",
        "start": start,
        "input": f"{size}, {_images(trainer)}, {_precision(trainer)}, {trainer.device}",
        "normalisation": describe_norm(model, phase),
        "parameters": f"{total / 1e6:.2f} M, {frozen / 1e6:.2f} M of them frozen (frozen stages: "
        f"{phase.frozen_stages if phase.frozen_stages >= 0 else 'none'})",
        "learning rate": f"{trainer.rate:g} = {phase.base_lr:g} x {trainer.images_per_step} / {phase.base_batch} "
        f"images (linear scaling), warm-up {phase.warmup_iterations} steps, x{phase.gamma:g} after {unit} "
        f"{', '.join(map(str, phase.milestones)) or '(never)'}",
        "steps": f"{trainer.steps}{f' (max_steps) of {whole}' if trainer.steps < whole else ''}, "
        f"{whole / trainer.steps_per_pass:.4g} passes of {trainer.steps_per_pass}",
    }.items():
        table.add_row(name, plain(value))
    return table


def _precision(trainer: Trainer) -> str:
    """The precision that is computed in, and the one asked for where they differ."""
    asked = trainer.phase.precision
    same = asked != "fp16" or reduced_precision(trainer.phase, trainer.device) is not None
    return asked if same else f"fp32 ({asked} is for GPUs)"


def _images(trainer: Trainer) -> str:
    """The images of a step, by device and accumulated batch."""
    phase, processes = trainer.phase, distributed.world_size()
    text = f"{trainer.images_per_step} images per step"
    if processes > 1 or phase.accumulate > 1:
        text += f" ({phase.batch_size}"
        text += f" on each of {processes} devices" if processes > 1 else ""
        text += f", {phase.accumulate} times" if phase.accumulate > 1 else ""
        text += ")"
    return text


def _objects(count: ObjectCount) -> str:
    """The objects that training sees, in words."""
    if count.seen == count.objects:
        return f"{count.objects} objects"
    lost = count.objects - count.seen
    return f"{count.seen} objects ({lost} more are never seen: below a pixel at this size)"


def _left_out(dataset: Dataset) -> str:
    """The objects that were dropped while the annotations were read, and what was decided about them, in words."""
    parts = ["", *dataset.notes]
    dropped = [p for p in dataset.problems if p.action == "dropped"]
    if dropped:
        first = dropped[0]
        parts.insert(
            1,
            f"{len(dropped)} objects left out, the first: {first.file}: annotation {first.annotation_id}: "
            f"{first.message}",
        )
    return "; ".join(parts)
