"""ScratchDet's two-stage detector: VGG-16 Faster R-CNN from scratch and pre-trained (section 4.2.1).

The paper gives results but no settings, so the settings are those of Faster R-CNN (Ren et al., 2015) and of its
authors' Python code, except for the schedule.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from directdet.recipes.recipe import Phase, Recipe

SOURCES = {
    "scratch.resize": "Faster R-CNN, section 3.3: the shorter side to 600 pixels; its code: the longer to 1000 at most",
    "scratch.size": "Faster R-CNN, section 3.3, and its code",
    "scratch.eval_size": "Faster R-CNN, section 3.3, and its code",
    "scratch.batch_size": "ours: 2 images on each of 8 GPUs",
    "scratch.base_batch": "ours: 16 images",
    "fixed_batch": "the length is given in iterations: each takes as many images on any number of GPUs",
    "scratch.base_lr": "ours: 0.01 for 16 images",
    "scratch.bias_rate": "Faster R-CNN's code: biases learn at twice the rate",
    "scratch.iterations": "ours: 100k, as long as SSD300's in section 4.2.2",
    "scratch.milestones": "ours: after 70k and 90k",
    "scratch.warmup_iterations": "ours: 500",
    "scratch.weight_decay": "Faster R-CNN, section 3.1.3: 0.0005",
    "scratch.momentum": "Faster R-CNN, section 3.1.3: 0.9",
    "skip_difficult": "Faster R-CNN's code: difficult objects are left out",
    "best_by": "Faster R-CNN, section 4.1: VOC 2007 mAP; its code: by the 11-point rule",
    "gamma": "Faster R-CNN, section 3.1.3: divided by 10",
    "optimizer": "Faster R-CNN, section 3.1.3: SGD",
    "eval_every": "ours: about ten evaluations in all",
    "workers": "ours: enough for eight GPUs",
    "channels_last": "ours: faster, the same numbers",
    "model": "Faster R-CNN's code",
    "model.backbone": "section 4.2.1: VGG-16; Faster R-CNN: proposals and RoIs on conv5_3",
    "model.masks": "Faster R-CNN: boxes only",
    "model.pyramid": "Faster R-CNN: a single map",
    "model.box_convs": "Faster R-CNN: fc6 and fc7",
    "model.box_features": "Faster R-CNN: fc6 and fc7 of 4096; ours: no dropout",
    "model.anchor_scales": "Faster R-CNN, section 3.3: 128, 256 and 512 pixels, at stride 16",
    "model.cross_border_anchors": "Faster R-CNN, section 3.3: anchors across the border are ignored in training",
    "model.test_pre_nms": "ours: the most that TensorRT's top-k takes; Faster R-CNN's code: 6000",
}
NORM_SOURCES = {
    "bn": "section 4.2.1: with BN; ours: in the backbone",
    "none": "section 4.2.1: without BN",
}
VOC_PHASE = Phase(
    name="scratch",
    resize="edges",
    size=(600, 1000),
    skip_difficult=True,
    batch_size=2,
    iterations=100_000,
    base_lr=0.01,
    base_batch=16,
    fixed_batch=True,
    bias_rate=2.0,
    weight_decay=5e-4,
    milestones=(70_000, 90_000),
    workers=8,
    best_by="mAP_11point",
    eval_every=10,
)
MODEL = {
    "backbone": "vgg16",
    "masks": False,
    "pyramid": False,
    "box_convs": 0,
    "box_features": 4096,
    "anchor_scales": (8.0, 16.0, 32.0),
    "cross_border_anchors": False,
    "rpn_min_positive_iou": 0.0,
    "rpn_smooth_l1_beta": 1 / 9,
    "train_pre_nms": 12_000,
    "train_proposals": 2000,
    "test_pre_nms": 3840,
    "test_proposals": 300,
    "roi_samples": 128,
    "smooth_l1_beta": 1.0,
    "nms": 0.3,
}
PRETRAINED_PHASE = replace(VOC_PHASE, name="finetune", frozen_stages=1)
PRETRAINED_SOURCES = {
    "finetune.frozen_stages": "Faster R-CNN, section 3.1.3: conv3_1 and up are tuned",
    "finetune.norm": "not used: the network has no BN",
    "model.norm": "Faster R-CNN: VGG-16 has no BN",
    "model.box_features": "Faster R-CNN: fc6 and fc7 of 4096, from the ImageNet weights too; ours: no dropout",
}
# Normalisation of the backbone, and what the paper says about it.
VARIANTS = {
    "faster_rcnn_vgg16_scratch": ("bn", "with BN (in the paper: 67.2 mAP; pre-trained: 73.2)"),
    "faster_rcnn_vgg16_scratch_no_bn": ("none", "without BN (in the paper: cannot converge; pre-trained: 73.2 mAP)"),
}
TWO_STAGE_RECIPES: dict[str, Callable[[], Recipe]] = {
    name: partial(
        Recipe,
        name,
        f"Faster R-CNN VGG-16 from scratch on VOC 2007 + 2012, {words}",
        (VOC_PHASE,),
        model={**MODEL, "norm": norm},
        sources={**SOURCES, "model.norm": NORM_SOURCES[norm]},
    )
    for name, (norm, words) in VARIANTS.items()
}
_PRETRAINED = "faster_rcnn_vgg16_imagenet"
TWO_STAGE_RECIPES[_PRETRAINED] = partial(
    Recipe,
    _PRETRAINED,
    "Faster R-CNN VGG-16 from ImageNet on VOC 2007 + 2012 (in the paper: 73.2 mAP)",
    (PRETRAINED_PHASE,),
    model={**MODEL, "norm": "none"},
    init="imagenet",
    sources={**{key.replace("scratch.", "finetune."): text for key, text in SOURCES.items()}, **PRETRAINED_SOURCES},
)
