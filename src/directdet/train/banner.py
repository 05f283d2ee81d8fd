"""What is printed before a phase starts: its data, weights, normalisation and schedule."""

from pathlib import Path

from rich.table import Column, Table

from directdet.common.terminal import TITLE, plain
from directdet.data.pixels.format import RGB
from directdet.data.records import Dataset
from directdet.recipes.derived import evaluation_size, passes_per_epoch
from directdet.recipes.recipe import Phase
from directdet.train import distributed
from directdet.train.data import without_colour
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
    words = f"{name}: {loaded.count()} tensors" + (f", {left} not loaded" if left else "")
    if not loaded.carried:
        return words
    names = [one if one == other else f"{one} ({other})" for one, other in loaded.carried]
    return f"{words}; the class layers of {len(names)} classes by name: {', '.join(names)}"


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
    columns = Column(no_wrap=True), Column(overflow="fold")  # a long path is shown whole
    table = Table(*columns, title=plain(f"{trainer.recipe}: {phase.name}", TITLE), show_header=False)
    for name, value in {
        "data": f"{len(trainer.train)} train images with {_objects(trainer.objects)}, "
        f"{len(trainer.val) if trainer.val else 'no'} val images, {len(trainer.train.classes)} classes"
        f"{_left_out(trainer.train)}",
        "start": start,
        "input": f"{size}, {_images(trainer)}, {_precision(trainer)}, {trainer.device}",
        **_pictures(trainer),
        **({"sampling": trainer.loader.drawing} if trainer.loader.drawing else {}),
        "evaluation": _evaluation(trainer),
        "normalisation": describe_norm(model, phase),
        "parameters": f"{total / 1e6:.2f} M, {frozen / 1e6:.2f} M of them frozen (frozen stages: "
        f"{phase.frozen_stages if phase.frozen_stages >= 0 else 'none'})",
        "learning rate": f"{_rate(trainer)}, warm-up {phase.warmup_iterations} steps, {describe_schedule(phase)}",
        **({} if phase.ema is None else {"weights kept": f"their moving average, decay {phase.ema:g}"}),
        "steps": f"{trainer.steps}{f' (max_steps) of {whole}' if trainer.steps < whole else ''}, "
        f"{whole / trainer.steps_per_pass:.4g} passes of {trainer.steps_per_pass}{_length(trainer)}",
    }.items():
        table.add_row(name, plain(value))
    return table


def _pictures(trainer: Trainer) -> dict[str, str]:
    """A row about pictures that are not 8-bit RGB, and the augmentation that they go without."""
    pixels = trainer.train.pixels
    if pixels == RGB:
        return {}
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (pixels.mean, pixels.std))
    left_out = without_colour(trainer.phase, pixels)
    return {"pictures": f"{pixels.kind}, mean {mean}, std {std}{'; ' * bool(left_out)}{left_out}"}


def describe_schedule(phase: Phase) -> str:
    """How the learning rate falls, in words."""
    if phase.schedule != "steps":
        begin = "from half way" if phase.schedule == "flat-cosine" else "from the warm-up"
        return f"cosine {begin} to the end, down to {phase.final_lr:.3g} of it"
    unit = "epochs" if phase.iterations is None else "steps"
    return f"x{phase.gamma:g} after {unit} {', '.join(map(str, phase.milestones)) or '(never)'}"


def _precision(trainer: Trainer) -> str:
    """The precision that is computed in, and the one asked for where they differ."""
    asked, width = trainer.phase.precision, trainer.phase.size[1]
    if asked == "fp32" or reduced_precision(trainer.model, trainer.phase, trainer.device, width) is not None:
        return asked
    return f"fp32 ({asked} is for {'GPUs' if asked == 'fp16' else 'wider canvases'})"


def _images(trainer: Trainer) -> str:
    """The images of a step, by device and accumulated batch."""
    phase, processes = trainer.phase, distributed.world_size()
    text = f"{trainer.images_per_step} images per step"
    if processes > 1 or trainer.accumulate > 1:
        text += f" ({phase.batch_size}"
        text += f" on each of {processes} devices" if processes > 1 else ""
        text += f", {trainer.accumulate} times" if trainer.accumulate > 1 else ""
        text += ")"
    return f"{text} on any number of devices" if phase.fixed_batch else text


def _evaluation(trainer: Trainer) -> str:
    """The size of evaluation, where it comes from, and how often it is."""
    phase, (height, width) = trainer.phase, evaluation_size(trainer.phase)
    if phase.name == "montage":
        return "none: a classifier is trained, for its backbone"
    text = f"a canvas of {height}x{width}" if trainer.preprocess.fixed else f"edges {(height, width)}"
    text += " (follows size)" if phase.eval_size is None else ""
    if trainer.val is None or not phase.eval_every:
        return f"{text}; never evaluated"
    return f"{text}, every {phase.eval_every} epoch{'s' if phase.eval_every > 1 else ''}"


def _length(trainer: Trainer) -> str:
    """What an epoch is, where it is not a pass; and a warm-up that does not end."""
    phase, text = trainer.phase, ""
    if passes_per_epoch(phase) != 1 and phase.iterations is None:
        text = f"; {phase.epochs} epochs of {passes_per_epoch(phase):g} passes"
        text += f" (the steps of {phase.epoch_batch} images per device)" if phase.repeat is None else ""
    if phase.warmup_iterations >= trainer.steps:
        text += f"; the warm-up of {phase.warmup_iterations} steps does not end"
    return text


def _rate(trainer: Trainer) -> str:
    """The learning rate, and where it comes from."""
    phase = trainer.phase
    if phase.fixed_batch:
        return f"{trainer.rate:g} (that of {phase.base_batch} images, which every step takes)"
    images = f"{trainer.images_per_step} / {phase.base_batch} images"
    return f"{trainer.rate:g} = {phase.base_lr:g} x {images} (linear scaling)"


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
