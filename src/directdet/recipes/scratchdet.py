"""The recipes of the ScratchDet paper: SSD300 trained from scratch with its normalisation, learning rates and first
layers, and the one two-stage detector that the paper trains from scratch.

"Section", "Table" and "Figure" are those of the ScratchDet paper.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from directdet.infer.preprocess import STD
from directdet.recipes.recipe import Init, Phase, Recipe
from directdet.recipes.scratchdet_two_stage import TWO_STAGE_RECIPES

SOURCES = {
    "scratch.resize": "section 4.1: the augmentation of the original SSD, which warps to 300x300",
    "scratch.size": "section 4.1: 300x300",
    "scratch.eval_size": "section 4.1: 300x300",
    "scratch.std": "authors' PyTorch code: the mean is subtracted, nothing divided",
    "scratch.batch_size": "section 4.1: 128 images on 4 GPUs, so that normalisation sees 32",
    "scratch.base_batch": "section 4.1: 128 images",
    "fixed_batch": "the length is given in iterations: each takes as many images on any number of GPUs",
    "scratch.iterations": "section 4.2.2: 45k, 30k, 20k and 5k iterations",
    "scratch.milestones": "section 4.2.2: divided by 10 after 45k, 75k and 95k",
    "scratch.weight_decay": "section 4.1: 0.0005",
    "scratch.momentum": "section 4.1: 0.9",
    "scratch.warmup_iterations": "authors' code: none",
    "scratch.norm_weight_decay": "authors' code: on those of the backbone, extra layers included",
    "scratch.head_norm_weight_decay": "authors' code: not on those of the head",
    "scratch.bias_rate": "SSD's code, which the authors' is made from: biases learn at twice the rate",
    "scratch.bias_weight_decay": "SSD's code: none on biases",
    "skip_difficult": "SSD's code: it trains on difficult objects",
    "scratch.best_by": "section 4.1: VOC 2007 mAP; authors' code: by the 11-point rule",
    "gamma": "section 4.2.2: divided by 10",
    "optimizer": "section 4.1: SGD",
    "clip_norm": "authors' code: none",
    "precision": "authors' code: fp32",
    "eval_every": "ours: ten to forty evaluations in all",
    "workers": "ours: enough for four GPUs",
    "channels_last": "ours: PyTorch 2.15 has crashed on CPUs in the backward pass of channels-last SSDs",
    "model.size": "section 4.1: 300x300",
    "model.priors": "section 4.1: the original SSD's, for VOC",
    "model.l2_norm": "section 4.1: removed",
    "model.l2_scale": "not used; SSD's code: 20",
    "model.last_map_3x3": "caption of Figure 3: the last map is 1x1; 3x3 in the authors' PyTorch code",
    "model.candidates": "ours: 400 at a time, in three rounds; authors' code: 400 of each class",
}
# For networks whose schedule the paper does not state.
SAME_SCHEDULE = {
    "scratch.iterations": "ours: as in section 4.2.2, 100k",
    "scratch.milestones": "ours: as in section 4.2.2, after 45k, 75k and 95k",
    "gamma": "ours: as in section 4.2.2, divided by 10",
}

VOC_PHASE = Phase(
    name="scratch",
    resize="warp",
    size=(300, 300),
    std=(1.0, 1.0, 1.0),
    channels_last=False,
    batch_size=32,
    iterations=100_000,
    base_lr=0.05,
    base_batch=128,
    fixed_batch=True,
    weight_decay=5e-4,
    head_norm_weight_decay=False,
    bias_rate=2.0,
    bias_weight_decay=False,
    milestones=(45_000, 75_000, 95_000),
    warmup_iterations=0,
    workers=8,
    best_by="mAP_11point",
    eval_every=20,
)
COCO_PHASE = replace(VOC_PHASE, iterations=325_000, milestones=(150_000, 250_000, 310_000), best_by="AP", eval_every=10)
COCO_SOURCES = {
    "scratch.base_lr": "authors' COCO script: 0.05 for 128 images",
    "scratch.iterations": "authors' COCO script: 325k",
    "scratch.milestones": "authors' COCO script: after 150k, 250k and 310k",
    "gamma": "authors' COCO script: divided by 10",
    "scratch.best_by": "COCO's measure",
    "model.priors": "section 4.1: the original SSD's, for COCO",
}
IMAGENET_SOURCES = {
    "finetune.std": "torchvision's ImageNet weights were trained with it; use 1 for Caffe weights",
    "finetune.batch_size": "section 4.1: 32 images with pre-trained weights",
    "finetune.base_batch": "section 4.1: 32 images",
}


def ssd_recipe(
    name: str,
    summary: str,
    sources: dict[str, str],
    phase: Phase = VOC_PHASE,
    init: Init = "random",
    **model: Any,
) -> Recipe:
    """A recipe of SSD300; `sources` are added to SOURCES, and name the phase "scratch" even where it is "finetune"."""
    sources = SOURCES | sources
    if init == "imagenet":
        # A phase that starts from trained weights, with batches of 32 images: the share of one GPU.
        phase = replace(phase, name="finetune", base_batch=32, std=STD)
        sources = {key.replace("scratch.", "finetune."): text for key, text in sources.items()} | IMAGENET_SOURCES
    return Recipe(name, f"SSD300 {summary}", (phase,), "ssd", model, init, sources=sources)


RATES = {"lr001": 0.001, "lr01": 0.01, "lr05": 0.05}
# Where batch normalisation is: (the backbone's norm, the head's norm, a description).
PLACES = {
    "none": ("none", False, "without BN"),
    "head": ("none", True, "with BN in the head"),
    "backbone": ("bn", False, "with BN in the backbone"),
    "both": ("bn", True, "with BN in backbone and head"),
}


def _table1() -> dict[str, Callable[[], Recipe]]:
    """VGG-16 with normalisation in four places, at three learning rates, from scratch and from ImageNet."""
    starts = [(place, "random") for place in PLACES] + [("none", "imagenet"), ("both", "imagenet")]
    recipes = {}
    for rate, value in RATES.items():
        for place, init in starts:
            norm, head, words = PLACES[place]
            name = f"ssd300_vgg16_{'' if init == 'random' else 'imagenet_'}{place}_{rate}"
            summary = f"VGG-16 from {'scratch' if init == 'random' else 'ImageNet'} {words}, learning rate {value:g}"
            sources = {
                **SAME_SCHEDULE,
                "scratch.base_lr": f"Table 1: {value:g} for {128 if init == 'random' else 32} images",
                "model.backbone": "Table 1: truncated VGG-16",
                "model.extras": "section 4.2.1: the original SSD's",
                "model.norm": f"Table 1: {'BN' if norm == 'bn' else 'no BN'} in the backbone, extra layers included",
                "model.head_norm": f"Table 1: {'BN' if head else 'no BN'} in the detection head",
            }
            phase = replace(VOC_PHASE, base_lr=value)
            model = {"backbone": "vgg16", "norm": norm, "head_norm": head}
            recipes[name] = partial(ssd_recipe, name, summary, sources, phase, init, **model)
    return recipes


# ResNets by the stride of their first convolution and their root, in the order of Table 2.
TABLE2_BACKBONES = (
    "resnet18",
    "resnet18_s2_1x3x3",
    "resnet18_s2_2x3x3",
    "resnet18_s2_3x3x3",
    "resnet18_b",
    "resnet18_s1_1x3x3",
    "resnet18_s1_2x3x3",
    "root_resnet18",
    "resnet18_s1_4x3x3",
    "resnet18_s1_5x3x3",
)
OTHER_BACKBONES = {
    "resnet18_a": "Figure 3: ResNet-18 without its max-pool",
    "resnet34": "ours: to compare with Root-ResNet-34",
    "resnet101": "section 3.2: the truncated ResNet-101 of the original SSD",
    "root_resnet34": "section 4.1: Root-ResNet-34, to compare with the state of the art",
}
RESNET_SOURCES = {
    "scratch.base_lr": "section 4.2.2: 0.05 for 128 images",
    "model.extras": "Figure 8: four residual blocks of 128 channels",
    "model.norm": "section 3.1: BN in the backbone, extra layers included",
    "model.head_norm": "section 4.2.2: BN in the detection head too",
}


def _resnets() -> dict[str, Callable[[], Recipe]]:
    """ResNets followed by four residual blocks, with BN everywhere, on VOC; the deepest also on COCO."""
    recipes = {}
    for backbone in (*TABLE2_BACKBONES, *OTHER_BACKBONES):
        name = f"ssd300_{backbone}"
        sources = {
            **RESNET_SOURCES,
            "model.backbone": OTHER_BACKBONES.get(backbone, "Table 2: first layers of ResNet-18"),
        }
        recipes[name] = partial(
            ssd_recipe, name, f"{backbone} from scratch", sources, backbone=backbone, extras="residual"
        )
    name = "ssd300_root_resnet34_coco"
    recipes[name] = partial(
        ssd_recipe,
        name,
        "root_resnet34 from scratch on COCO",
        {**RESNET_SOURCES, "model.backbone": OTHER_BACKBONES["root_resnet34"], **COCO_SOURCES},
        COCO_PHASE,
        backbone="root_resnet34",
        extras="residual",
        priors="coco",
    )
    return recipes


def _dsod() -> dict[str, Callable[[], Recipe]]:
    """DSOD300 with and without BN (section 4.2.1).

    Its six maps are L2-normalised, as in DSOD's code: without BN, nothing else bounds what the head sees. And the rate
    without BN is that of Table 1's network without BN, which the paper could not train at 0.01 and 0.05 either. At that
    rate, heads without BN on all six maps swing ever further if their inputs have a length of 20 (3x3 cells of squared
    length 400 make the loss so curved); at 10 they do not, and a short warm-up takes the steep start.
    """
    sources = {
        **SAME_SCHEDULE,
        "model.backbone": "section 4.2.1: DSOD",
        "model.extras": "DSOD's own",
        "model.l2_norm": "DSOD's code: all six maps",
    }
    with_bn = {
        "scratch.base_lr": "ours: 0.05 for 128 images, the best of Table 1; section 4.2.1 states none",
        "model.l2_scale": "DSOD's code: 20",
        "model.norm": "section 4.2.1: DSOD has BN",
        "model.head_norm": "ours: BN in the detection head too",
    }
    without = {
        "scratch.base_lr": "ours: 0.001 for 128 images, the only rate in Table 1 at which a network without BN trains; "
        "section 4.2.1 states none",
        "scratch.warmup_iterations": "ours: 100, against the steep start of a head without BN; authors' code: none",
        "model.l2_scale": "ours: 10; DSOD's 20, with BN behind it, is too much for this rate without",
        **dict.fromkeys(("model.norm", "model.head_norm"), "section 4.2.1: no BN at all"),
    }
    return {
        name: partial(
            ssd_recipe,
            name,
            f"DSOD {words}",
            sources | own,
            replace(VOC_PHASE, base_lr=rate, warmup_iterations=warmup),
            backbone="dsod",
            extras="dsod",
            norm=norm,
            head_norm=head,
            l2_norm=True,
            l2_scale=length,
        )
        for name, words, own, rate, warmup, norm, head, length in (
            ("dsod300", "with BN", with_bn, 0.05, 0, "bn", True, 20.0),
            ("dsod300_no_bn", "without BN", without, 0.001, 100, "none", False, 10.0),
        )
    }


SCRATCHDET_RECIPES: dict[str, Callable[[], Recipe]] = {
    **_table1(),
    **_resnets(),
    **_dsod(),
    **TWO_STAGE_RECIPES,
}
