"""Direct pre-training's comparisons whose rows keep the paper's schedules: Tables 3, 4, 6, 9 and 10, section 3.2, and
Figures 1(b), 2 and 4.

Lengths are in units of a 1x schedule, of 88k steps in the paper. The rate is constant while pre-training, so that P1x
is the beginning of P4x: it is trained once, and rows start from where it was after their own length.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from directdet.recipes.direct.phases import MULTI_SCALE, SCRATCH_SCHEDULES
from directdet.recipes.recipe import Norm, Phase
from directdet.reproduce.scales import Scale
from directdet.reproduce.tables.direct import (
    batch_and_length,
    finetune,
    from_imagenet,
    pretrain,
    scaled_recipe,
    scratch,
    table1,
)
from directdet.reproduce.tables.trials import Trial

_EPOCHS = 12  # of 1x
_STEPS = 88_000  # of 1x (section 3.1)
_SHORT = 800  # the paper's short edge


def _paper(box: float, mask: float | None = None, days: float | None = None) -> Mapping[str, float | None]:
    found = {"box_ap": box, "mask_ap": mask, "days": days}
    return {name: value for name, value in found.items() if value is not None}


def _multi_scale(scale: Scale) -> tuple[int, ...]:
    """The short edges of section 4.5, scaled."""
    return tuple(max(32, round(edge * scale.full[0] / _SHORT)) for edge in MULTI_SCALE)


def _direct(
    scale: Scale, first: int, second: int, paper: Mapping[str, float | None] | None, multi_scale: bool = False
) -> Trial:
    """P`first`x + `second`x."""
    tune = finetune(scale, short_edges=_multi_scale(scale) if multi_scale else ())
    key, label = f"p{first}x_{second}x", f"Direct, P{first}x + {second}x"
    if multi_scale:
        key, label = f"{key}_ms", f"{label}, multi-scale"
    recipe = scaled_recipe(scale, (pretrain(scale), tune))
    return Trial(key, label, recipe, True, paper, lengths={"pretrain": Fraction(first), "finetune": Fraction(second)})


def _imagenet(scale: Scale, times: int, paper: Mapping[str, float | None], multi_scale: bool = False) -> Trial:
    key, label = f"imagenet_{times}x", f"ImageNet, {times}x"
    if multi_scale:
        key, label = f"{key}_ms", f"{label}, multi-scale"
    edges = _multi_scale(scale) if multi_scale else ()
    trial = from_imagenet(scale, key, label, paper, short_edges=edges)
    return replace(trial, lengths={"finetune": Fraction(times)})


def _scratch(
    scale: Scale, times: int, name: str, paper: Mapping[str, float | None], multi_scale: bool = False
) -> Trial:
    """A baseline from random weights, normalised by "sync" or "gn"."""
    epochs, drops = SCRATCH_SCHEDULES[times]
    norm: Norm = "sync" if name == "sync" else "live"
    phase = replace(scratch(scale, norm), short_edges=_multi_scale(scale) if multi_scale else ())
    recipe = scaled_recipe(scale, (phase,), norm="gn") if name == "gn" else scaled_recipe(scale, (phase,))
    label = f"Scratch ({'GN' if name == 'gn' else 'SyncBN'}), {times}x{', multi-scale' if multi_scale else ''}"
    return Trial(
        f"scratch_{name}_{times}x{'_ms' if multi_scale else ''}",
        label,
        recipe,
        paper=paper,
        lengths={"scratch": Fraction(epochs, _EPOCHS)},
        drops=tuple(Fraction(drop, epochs) for drop in drops),
    )


def table3(scale: Scale) -> list[Trial]:
    """The main results."""
    return [
        _imagenet(scale, 1, _paper(38.2, 34.7, 9.54)),
        _direct(scale, 1, 1, _paper(40.0, 35.8, 1.26)),
        _direct(scale, 2, 1, _paper(41.0, 36.6, 2.07)),
        _imagenet(scale, 2, _paper(39.2, 35.4, 10.03)),
        _scratch(scale, 6, "sync", _paper(39.6, 35.5, 3.84)),
        _scratch(scale, 6, "gn", _paper(41.1, 36.5, 2.35)),
        _direct(scale, 3, 1, _paper(41.5, 37.0, 1.52)),
        _direct(scale, 4, 1, _paper(41.7, 37.3, 1.89)),
    ]


_CURVES = {"p": "Direct", "imagenet": "ImageNet, without its own pre-training", "scratch": "from scratch"}


def figure1b(scale: Scale) -> list[Trial]:
    """AP against time: the rows of Table 3."""

    def curve(key: str) -> str:
        return next(words for start, words in _CURVES.items() if key.startswith(start))

    return [replace(trial, curve=curve(trial.key)) for trial in table3(scale)]


def table4(scale: Scale) -> list[Trial]:
    """The lengths of both phases."""
    return [
        _direct(scale, 1, 1, _paper(40.0, 35.8)),
        _direct(scale, 1, 2, _paper(40.4, 36.1)),
        _direct(scale, 2, 1, _paper(41.0, 36.6)),
        _direct(scale, 2, 2, _paper(40.8, 36.4)),
        _direct(scale, 3, 1, _paper(41.5, 37.0)),
        _direct(scale, 3, 2, _paper(41.0, 36.6)),
        _direct(scale, 4, 1, _paper(41.7, 37.3)),
    ]


FINE_TUNING = (6, 9, 12, 15, 18, 21, 24)  # epochs of Figure 4; the text names 9, 12, 15 and 24 of them


def figure4(scale: Scale) -> list[Trial]:
    """Fine-tuning for 6 to 24 epochs after P1x to P4x."""
    printed = {(trial.lengths["pretrain"], trial.lengths["finetune"]): trial.paper for trial in table4(scale)}
    trials = []
    for times in (1, 2, 3, 4):
        for epochs in FINE_TUNING:
            length = Fraction(epochs, _EPOCHS)
            trial = _direct(scale, times, 1, printed.get((Fraction(times), length)))
            trials.append(
                replace(
                    trial,
                    key=f"p{times}x_{epochs}epochs",
                    label=f"Direct, P{times}x, then {epochs} epochs",
                    lengths={"pretrain": Fraction(times), "finetune": length},
                    curve=f"P{times}x",
                    x=float(epochs),
                )
            )
    return trials


LENGTHS, BATCHES = (224, 320, 448, 640), (2, 4, 8, 16)


def figure2(scale: Scale) -> list[Trial]:
    """Sixteen settings of batch and resolution, all for the same steps: P3x, then 1x."""
    printed = {trial.key: trial.paper for trial in table1(scale)}
    rows = [(batch, length, batch_and_length(scale, batch, length)) for batch in BATCHES for length in LENGTHS]
    return [
        replace(
            trial,
            paper=printed.get(trial.key),
            lengths={"pretrain": Fraction(3), "finetune": Fraction(1)},
            curve=f"batch {batch}",
            x=float(scale.length(length)),
        )
        for batch, length, trial in rows
    ]


def table6(scale: Scale) -> list[Trial]:
    """Multi-scale training."""
    return [
        _imagenet(scale, 2, _paper(39.2, 35.4)),
        _direct(scale, 1, 1, _paper(40.0, 35.8)),
        _direct(scale, 1, 2, _paper(40.4, 36.1)),
        _imagenet(scale, 2, _paper(40.2, 36.1), multi_scale=True),
        _scratch(scale, 3, "sync", _paper(36.0, 32.8), multi_scale=True),
        _direct(scale, 1, 2, _paper(41.0, 36.7), multi_scale=True),
    ]


def table9(scale: Scale) -> list[Trial]:
    """Less data: a tenth of it for Mask R-CNN, and VOC's setting for Faster R-CNN. All rows are on the data given."""
    tenth = {"base_lr": 2 * scale.base_lr, "gamma": 0.02}  # section 4.8: 0.04 where the usual rate is 0.02
    voc_size = (scale.full[0] * 3 // 4, scale.full[1] * 3 // 4)  # mmdet, VOC: (1000, 600)
    voc = {"size": voc_size, "base_lr": scale.base_lr / 2, "warmup_iterations": 0}
    mmdet, last_of_four = (Fraction(2, 3), Fraction(8, 9)), (Fraction(3, 4),)

    def steps(**thousands: float) -> dict[str, Fraction]:
        return {phase: Fraction(round(1000 * number), _STEPS) for phase, number in thousands.items()}

    coco10 = from_imagenet(scale, "coco10_imagenet", "1/10 of the data, ImageNet", _paper(22.1), **tenth)
    tuned = replace(finetune(scale), **tenth)
    direct10 = scaled_recipe(scale, (pretrain(scale), tuned))
    from_voc = from_imagenet(scale, "voc_imagenet", "VOC's setting, ImageNet", _paper(79.47), **voc)
    no_masks = replace(from_voc.recipe, model={**from_voc.recipe.model, "masks": False})
    first = replace(pretrain(scale), base_lr=scale.base_lr / 2, eval_size=voc_size)
    direct_voc = scaled_recipe(scale, (first, finetune(scale, **voc)), masks=False)
    return [
        replace(
            coco10,
            recipe=replace(coco10.recipe, data_fraction=0.1),
            lengths=steps(finetune=60),
            drops=mmdet,
        ),
        Trial(
            "coco10_direct",
            "1/10 of the data, Direct",
            replace(direct10, data_fraction=0.1),
            paper=_paper(23.2),
            lengths=steps(pretrain=60, finetune=30),
            drops=mmdet,
        ),
        replace(from_voc, recipe=no_masks, lengths=steps(finetune=12.4), drops=last_of_four),
        Trial(
            "voc_direct",
            "VOC's setting, Direct",
            direct_voc,
            paper=_paper(72.01),
            lengths=steps(pretrain=93, finetune=12.4),
            drops=last_of_four,
        ),
    ]


def table10(scale: Scale) -> list[Trial]:
    """Against training at 640x640 throughout with SyncBN, as DropBlock's authors train."""
    side = scale.length(640)
    whole = replace(
        pretrain(scale, 8, 640),
        name="scratch",
        norm="sync",
        eval_size=(side, side),
        eval_fixed=True,
        eval_every=finetune(scale).eval_every,
    )
    return [
        _direct(scale, 2, 1, _paper(41.0, 36.6, 2.07)),
        Trial(
            "dropblock_sync_3x",
            f"DropBlock-style (SyncBN, {side}), 3x",
            scaled_recipe(scale, (whole,)),
            paper=_paper(39.8, 35.5, 3.32),
            lengths={"scratch": Fraction(3)},
        ),
    ]


def section3_2(scale: Scale) -> list[Trial]:
    """Two ways to make the pictures of the pre-training small, here of the same share of pixels as in the paper."""
    ratio = (800 * 1333 / 4) / 448**2  # pixels in Stitcher's style, divided by 2 a side, and in ImageNet's
    shrink = math.sqrt(scale.full[0] * scale.full[1] / (ratio * scale.length(448) ** 2))
    stitched = replace(pretrain(scale), resize="edges", size=scale.full, shrink=max(1.0, shrink))
    lengths = {"pretrain": Fraction(1), "finetune": Fraction(1)}

    def row(key: str, label: str, first: Phase, box: float) -> Trial:
        recipe = scaled_recipe(scale, (first, finetune(scale)))
        return Trial(key, label, recipe, paper=_paper(box), lengths=lengths)

    return [
        row("imagenet_style", "ImageNet style, batch 8", pretrain(scale), 40.0),
        row("stitcher_style", "Stitcher style, batch 8", stitched, 39.4),
    ]
