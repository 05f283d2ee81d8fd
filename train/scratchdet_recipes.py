"""ScratchDet's recipes: SSD300 trained from scratch, its normalisation, learning rates and first layers."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from .recipe import Phase, Recipe

SOURCES = {
    "scratch.resize": "section 4.1: the augmentation of the original SSD, 300x300",
    "scratch.size": "section 4.1: 300x300",
    "scratch.eval_size": "section 4.1: 300x300",
    "scratch.std": "authors' PyTorch code: the mean is subtracted, nothing divided",
    "scratch.batch_size": "section 4.1: 128 images on 4 GPUs, so that normalisation sees 32",
    "scratch.base_batch": "section 4.1: 128 images",
    "scratch.base_lr": "Table 1: 0.001, 0.01 or 0.05 for 128 images",
    "scratch.iterations": "section 4.2.2: 45k, 30k, 20k and 5k iterations",
    "scratch.milestones": "section 4.2.2: divided by 10 after 45k, 75k and 95k",
    "scratch.weight_decay": "section 4.1: 0.0005",
    "scratch.momentum": "section 4.1: 0.9",
    "scratch.warmup_iterations": "authors' code: none",
    "gamma": "section 4.2.2: divided by 10",
    "optimizer": "section 4.1: SGD",
    "clip_norm": "authors' code: none",
    "precision": "authors' code: none",
    "eval_every": "ours",
    "workers": "ours",
    "channels_last": "ours: faster, the same numbers",
    "model.norm": "Table 1: batch normalisation in the backbone (and extra layers)",
    "model.head_norm": "Table 1: batch normalisation in the detection head",
    "model.extras": "Figure 8: four residual blocks of 128 channels, or the original's layers",
    "model.priors": "the original SSD's, for VOC or COCO",
    "model.backbone": "Table 1: truncated VGG-16; Table 2: first layers of ResNet-18",
    "model.l2_norm": "section 4.1: removed",
}

VOC = Phase(
    name="scratch",
    resize="warp",
    size=(300, 300),
    std=(1.0, 1.0, 1.0),
    batch_size=32,
    iterations=100_000,
    base_lr=0.05,
    base_batch=128,
    weight_decay=5e-4,
    milestones=(45_000, 75_000, 95_000),
    warmup_iterations=0,
    workers=8,
    eval_size=(300, 300),
    eval_every=20,
)
COCO = replace(VOC, iterations=325_000, milestones=(150_000, 250_000, 310_000), eval_every=10)
COCO_SOURCES = {
    "scratch.iterations": "authors' COCO script: 325k",
    "scratch.milestones": "authors' COCO script: after 150k, 250k and 310k",
}
IMAGENET_SOURCES = {
    "finetune.batch_size": "section 4.1: 32 images with pre-trained weights",
    "finetune.base_batch": "section 4.1: 32 images",
}


def ssd(name: str, summary: str, phase: Phase = VOC, init: str = "random", **model: Any) -> Recipe:
    """A recipe of SSD300."""
    sources = SOURCES | (COCO_SOURCES if phase.iterations == COCO.iterations else {})
    if init == "imagenet":
        # Whole batches of 32 images, one GPU's share, in a phase that starts from trained weights.
        phase = replace(phase, name="finetune", base_batch=32)
        sources = {key.replace("scratch.", "finetune."): text for key, text in sources.items()} | IMAGENET_SOURCES
    return Recipe(name, f"SSD300 {summary}", (phase,), "ssd", model, init, sources=sources)


RATES = {"lr001": 0.001, "lr01": 0.01, "lr05": 0.05}
# Where batch normalisation is: (norm of the backbone, of the head), words.
PLACES = {
    "none": ("none", False, "without BN"),
    "head": ("none", True, "with BN in the head"),
    "backbone": ("bn", False, "with BN in the backbone"),
    "both": ("bn", True, "with BN in backbone and head"),
}


def _table1() -> dict[str, Callable[[], Recipe]]:
    """VGG-16 with normalisation in four places, at three learning rates, from scratch and from ImageNet."""
    recipes = {}
    for rate, value in RATES.items():
        phase = replace(VOC, base_lr=value)
        for place, (norm, head, words) in PLACES.items():
            name = f"ssd300_vgg16_{place}_{rate}"
            summary = f"VGG-16 from scratch {words}, learning rate {value:g}"
            recipes[name] = partial(ssd, name, summary, phase, backbone="vgg16", norm=norm, head_norm=head)
        for place in ("none", "both"):
            norm, head, words = PLACES[place]
            name = f"ssd300_vgg16_imagenet_{place}_{rate}"
            summary = f"VGG-16 from ImageNet {words}, learning rate {value:g}"
            recipes[name] = partial(ssd, name, summary, phase, "imagenet", backbone="vgg16", norm=norm, head_norm=head)
    return recipes


# ResNets by the stride of their first convolution and their root, as Table 2 lists them.
TABLE2 = (
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
OTHERS = ("resnet18_a", "resnet34", "resnet101", "root_resnet34")


def _resnets() -> dict[str, Callable[[], Recipe]]:
    """ResNets with four residual blocks after them and BN everywhere, on VOC; the deepest on COCO too."""
    recipes = {}
    for backbone in (*TABLE2, *OTHERS):
        name = f"ssd300_{backbone}"
        recipes[name] = partial(ssd, name, f"{backbone} from scratch", backbone=backbone, extras="residual")
    name = "ssd300_root_resnet34_coco"
    recipes[name] = partial(
        ssd,
        name,
        "root_resnet34 from scratch on COCO",
        COCO,
        backbone="root_resnet34",
        extras="residual",
        priors="coco",
    )
    return recipes


def _dsod() -> dict[str, Callable[[], Recipe]]:
    """DSOD300 with and without BN (section 4.2.1)."""
    return {
        name: partial(ssd, name, f"DSOD {words}", backbone="dsod", extras="dsod", norm=norm, head_norm=head)
        for name, words, norm, head in (
            ("dsod300", "with BN", "bn", True),
            ("dsod300_no_bn", "without BN", "none", False),
        )
    }


SCRATCHDET_RECIPES: dict[str, Callable[[], Recipe]] = {**_table1(), **_resnets(), **_dsod()}
