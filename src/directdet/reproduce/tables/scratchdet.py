"""ScratchDet's comparisons: Tables 1 and 2, and the results in the text of section 4."""

from dataclasses import replace
from typing import Any

from directdet.infer.preprocess import STD
from directdet.recipes.by_name import get_recipe
from directdet.recipes.published import scratchdet_table2
from directdet.recipes.recipe import Recipe
from directdet.recipes.scratchdet import PLACES, RATES, TABLE2_BACKBONES, VOC_PHASE
from directdet.reproduce.scales import Scale
from directdet.reproduce.tables.trials import AT_THE_END, Trial


def _ssd(scale: Scale, rate: float, **model: Any) -> Recipe:
    phase = replace(
        VOC_PHASE,
        size=(scale.ssd_size, scale.ssd_size),
        batch_size=scale.ssd_batch,
        base_batch=scale.ssd_batch,
        base_lr=rate,
        precision=scale.precision,
        channels_last=scale.precision == "bf16",  # on a GPU, where it is faster; on CPUs it has crashed
        workers=scale.workers,
        eval_every=AT_THE_END,
    )
    return Recipe("reproduce", "", (phase,), "ssd", {**model, "size": scale.ssd_size, "width": scale.ssd_width})


def _from_imagenet(recipe: Recipe) -> Recipe:
    """The recipe as a fine-tuning of ImageNet weights, whose pixels were divided by their standard deviation."""
    phases = tuple(replace(phase, name="finetune", std=STD) for phase in recipe.phases)
    return replace(recipe, phases=phases, init="imagenet")


# Table 1 by where the weights are from and where BN is: mAP at each of RATES. None is the table's "NaN".
_TABLE1 = {
    ("random", "none"): (67.6, None, None),
    ("random", "head"): (71.0, 75.6, None),
    ("random", "backbone"): (72.8, 77.8, 78.0),
    ("random", "both"): (71.8, 77.3, 78.7),
    ("imagenet", "none"): (77.1, 76.9, None),
    ("imagenet", "both"): (77.6, 78.2, 75.5),
}
_LABELS = {"none": "no BN", "head": "BN in head", "backbone": "BN in backbone", "both": "BN in both"}


def table1(scale: Scale) -> list[Trial]:
    """The six settings of Table 1, at the paper's learning rates whatever the batch."""
    trials = []
    for (start, place), values in _TABLE1.items():
        norm, head_norm, _ = PLACES[place]
        pretrained = start == "imagenet"
        for (rate_key, rate), value in zip(RATES.items(), values, strict=True):
            recipe = _ssd(scale, rate, backbone="vgg16", norm=norm, head_norm=head_norm)
            key, label = f"{place}_{rate_key}", f"{_LABELS[place]}, {rate:g}"
            if pretrained:
                recipe, key, label = _from_imagenet(recipe), f"imagenet_{key}", f"ImageNet, {label}"
            trials.append(Trial(key, label, recipe, paper={"map": value}, needs_imagenet=pretrained))
    return trials


def table2(scale: Scale) -> list[Trial]:
    """The ten first layers of Table 2."""
    rows = zip(TABLE2_BACKBONES, scratchdet_table2().rows, strict=True)
    return [
        Trial(
            name,
            row.method,
            _ssd(scale, 0.05, backbone=name, extras="residual"),
            paper={"map": row.ap, "fps": row.fps},
        )
        for name, row in rows
    ]


def section4(scale: Scale) -> list[Trial]:
    """Results on VOC 2007 in the text: deeper and other SSDs, and VGG-16 Faster R-CNN."""

    def dsod(key: str, label: str, value: float, name: str, warmup: int) -> Trial:
        whole = get_recipe(name)
        recipe = _ssd(scale, whole.phases[0].base_lr, **whole.model)
        recipe = replace(recipe, phases=(replace(recipe.phases[0], warmup_iterations=warmup),))
        return Trial(key, label, recipe, paper={"map": value})

    def resnet(backbone: str, label: str, value: float) -> Trial:
        return Trial(backbone, label, _ssd(scale, 0.05, backbone=backbone, extras="residual"), paper={"map": value})

    def faster(key: str, label: str, value: float | None, name: str) -> Trial:
        whole = get_recipe(name)
        phase = replace(
            whole.phases[0],
            size=(scale.full[0] * 3 // 4, scale.full[1] * 3 // 4),  # 600 where direct pre-training has 800
            base_lr=scale.base_lr / 2,  # of 0.02 for 16 images
            base_batch=scale.base_batch,
            fixed_batch=False,
            clip_norm=scale.clip_norm,
            precision=scale.precision,
            workers=scale.workers,
            eval_every=AT_THE_END,
        )
        model = {**whole.model, "width": scale.ssd_width, **scale.vgg_rcnn}
        imagenet = whole.init == "imagenet"
        recipe = Recipe("reproduce", "", (phase,), "rcnn", model, whole.init)
        return Trial(key, label, recipe, paper={"map": value}, needs_imagenet=imagenet)

    return [
        resnet("root_resnet34", "SSD300 Root-ResNet-34", 80.4),
        resnet("resnet18_a", "SSD300 ResNet-18-A", 75.3),
        dsod("dsod300", "DSOD300", 77.7, "dsod300", 0),
        dsod("dsod300_no_bn", "DSOD300 without BN", 71.5, "dsod300_no_bn", 100),
        faster("vgg16_bn", "Faster R-CNN VGG-16, scratch, BN", 67.2, "faster_rcnn_vgg16_scratch"),
        faster("vgg16_no_bn", "Faster R-CNN VGG-16, scratch, no BN", None, "faster_rcnn_vgg16_scratch_no_bn"),
        faster("vgg16_imagenet", "Faster R-CNN VGG-16, ImageNet", 73.2, "faster_rcnn_vgg16_imagenet"),
    ]
