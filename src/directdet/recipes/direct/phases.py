"""The two phases of the direct pre-training paper, and the phases of the baselines that it compares them with.

Each constant of the paper is written here once; direct_sources.py says where it comes from.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from directdet.recipes.direct.sources import IMAGENET_SOURCES, MONTAGE_SOURCES, SCRATCH_SOURCES, SOURCES
from directdet.recipes.recipe import Init, Norm, Phase, Recipe


def pretrain(times: int = 1, batch: int = 8, length: int = 448) -> Phase:
    """Direct pre-training, P`times`x: images of length x length pixels, `batch` of them on each GPU.

    The number of steps does not depend on the batch (section 3.1: fixed steps K).
    """
    return Phase(
        name="pretrain",
        resize="direct",
        size=(length, length),
        batch_size=batch,
        epochs=12 * times,
        skip_empty=True,
        epoch_batch=2,
        skip_difficult=True,
        norm_weight_decay=False,
        warmup_factor=0.01,
        workers=4,
        eval_size=(800, 1333),
    )


def finetune(times: int = 1, **changes: Any) -> Phase:
    """Fine-tuning at (1333, 800), `times`x, with batch normalisation totally fixed; `changes` are fields of Phase."""
    phase = Phase(
        name="finetune",
        resize="edges",
        size=(800, 1333),
        epochs=12 * times,
        skip_empty=True,
        skip_difficult=True,
        milestones=(8 * times, 11 * times),
        norm="fixed",
        frozen_stages=1,
        workers=4,
    )
    return replace(phase, **changes)


def montage() -> Phase:
    """Montage pre-training of the backbone alone: Zhou et al., ECCV 2020 (arXiv 2004.12178)."""
    return Phase(
        name="montage",
        resize="direct",
        size=(224, 224),
        scale=(0.8, 1.5),
        skip_difficult=True,
        batch_size=64,
        iterations=64_000,
        base_lr=0.8,
        base_batch=512,
        fixed_batch=True,
        schedule="cosine",
        final_lr=0.0,
        warmup_iterations=1250,
        warmup_factor=0.25,
        workers=4,
        eval_every=0,
    )


MULTI_SCALE = (640, 672, 704, 736, 768, 800)
# Epochs and milestones of the baselines from scratch, by the name of the schedule (3 is 3x).
SCRATCH_SCHEDULES = {3: (36, (28, 34)), 4: (48, (40, 46)), 6: (73, (65, 71))}


def scratch(times: int, norm: Norm, **changes: Any) -> Phase:
    """Training from random weights at (1333, 800) throughout: the baselines of Tables 1, 3, 6 and 7."""
    epochs, milestones = SCRATCH_SCHEDULES[times]
    phase = finetune(epochs=epochs, milestones=milestones, norm=norm, frozen_stages=-1, norm_weight_decay=False)
    return replace(phase, name="scratch", warmup_factor=0.1, **changes)


def baseline(times: int = 1, **changes: Any) -> Phase:
    """Fine-tuning from ImageNet: affine batch normalisation."""
    return finetune(times, **{"norm": "affine", **changes})


def direct_recipe(
    name: str,
    summary: str,
    phases: tuple[Phase, ...],
    init: Init = "random",
    detector: str = "rcnn",
    sources: dict[str, str] | None = None,
    data_fraction: float = 1.0,
    **model: Any,
) -> Recipe:
    """A recipe of the paper; `sources` are its own, in addition to those that all recipes have."""
    own = dict(SOURCES)
    if phases[0].name == "scratch":
        own |= SCRATCH_SOURCES
    if phases[0].name == "montage":
        own |= MONTAGE_SOURCES
    if init == "imagenet":
        own |= IMAGENET_SOURCES
    if detector == "rcnn" and (init == "imagenet" or phases[0].name == "montage"):  # only the backbone is pre-trained
        model = {"box_convs": 0, **model}
    kept = {p.name for p in phases} | {"model"}
    own = {k: v for k, v in (own | (sources or {})).items() if "." not in k or k.partition(".")[0] in kept}
    return Recipe(name, summary, phases, detector, model, init, data_fraction, own)


MASK_R50 = partial(direct_recipe, backbone="resnet50", masks=True)
FASTER_R50 = partial(direct_recipe, backbone="resnet50", masks=False)
CASCADE_R50 = partial(direct_recipe, detector="cascade", backbone="resnet50", masks=False)
RETINANET_R50 = partial(direct_recipe, detector="retinanet", backbone="resnet50")
