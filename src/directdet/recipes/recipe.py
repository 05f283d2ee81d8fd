"""What a recipe is: frozen dataclasses that validate themselves; dataclasses.replace makes one from another."""

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, TypeAlias, get_args

from directdet.common.settings import (
    MANY,
    Between,
    Count,
    NotNegative,
    Positive,
    SettingError,
    Share,
    ZeroOrMore,
    check_fields,
    check_key,
    check_word,
)
from directdet.infer.preprocess import STD
from directdet.models.configs import make_config
from directdet.recipes.derived import check_together, in_proportion

# The parts of a detector that can be loaded from a checkpoint separately, in the order of Table 5 of the direct
# pre-training paper. "box" is also the head of a one-stage detector.
Part: TypeAlias = Literal["backbone", "fpn", "rpn", "box", "mask"]
PARTS: tuple[Part, ...] = get_args(Part)
PhaseName: TypeAlias = Literal["montage", "pretrain", "finetune", "scratch"]
Norm: TypeAlias = Literal["live", "sync", "affine", "fixed"]
Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
Schedule: TypeAlias = Literal["steps", "cosine", "flat-cosine"]
BestBy: TypeAlias = Literal["AP", "mAP_11point", "mAP_area"]
Draw: TypeAlias = Literal["uniform", "repeat_factor", "class_balanced"]
Init: TypeAlias = Literal["random", "imagenet"]
Pixels = Annotated[int, Between(32, MANY)]


@dataclass(frozen=True)
class Phase:
    """One phase of training. Sections and tables are those of the direct pre-training paper.

    Attributes:
        name: "pretrain" or "finetune" (run in this order), or "scratch": one phase from random weights. "montage":
            the backbone alone is trained before another phase, on objects cut out of the pictures (arXiv 2004.12178).
        resize: "direct": resize by a factor alpha from `scale`, then crop or pad to `size` (section 3.2); "edges":
            resize to a short and a long edge, `size` = (short, long), and pad to a multiple of 32; "warp": SSD's
            augmentation, then stretch to exactly `size` regardless of the aspect ratio, in training and evaluation. In
            "montage", "direct" does this with each object and its region of the picture.
        size: in pixels; see resize.
        scale: the range of alpha, (low, high).
        std: per channel, what pixels are divided by after their mean is subtracted.
        shrink: with "edges", the factor by which the resized image is then made smaller (Stitcher style, section 3.2).
        short_edges: with "edges", the short edge is drawn at random from these (multi-scale training, Table 6); if
            empty, it is size[0].
        flip: probability of mirroring left and right.
        quarter_turns: probability of a turn by one, two or three quarters.
        colour: "hsv": hue, saturation and value as YOLOX and RTMDet change them; "photometric": as SSD does, which is a
            part of "warp".
        ssd_crop: SSD's zoom-out and crop by overlap before the resize, a part of "warp".
        mosaic: probability of a mosaic of four images, with "direct" and "warp"; `scale` then applies to the mosaic.
        mixup: probability of blending with another image.
        copy_paste: probability of pasting objects of another image by their masks.
        skip_empty: leave out images without objects.
        sampling: "uniform": a pass draws each image once; "repeat_factor": images of rare classes more often, as LVIS
            does (arXiv 1908.03195), and a pass is longer by that; "class_balanced": each class equally often, in a pass
            of as many images (arXiv 1512.05830).
        repeat_threshold: with "repeat_factor", a class that a smaller share f of the images shows is rare, and its
            images are drawn sqrt(repeat_threshold / f) times as often.
        skip_difficult: leave out objects marked difficult, as mmdet and Faster R-CNN's code do on VOC.
        batch_size: images per device and forward pass.
        accumulate: forward passes per step; batch normalisation still sees `batch_size` images. None: as many as
            fixed_batch needs, otherwise 1. The losses are divided by the counts of the whole step.
        epochs, repeat: the phase makes epochs * repeat passes over the dataset; evaluation and milestones count epochs.
            repeat None follows epoch_batch, and is 1 without it.
        epoch_batch: images per device whose number of steps an epoch has, whatever the batch (section 3.1: fixed steps
            K). With batch_size 8 and epoch_batch 2, an epoch is 4 passes. None: an epoch is a pass.
        iterations: the length in steps, instead of epochs; milestones then count steps as well.
        max_steps: stop after this many steps, whatever the schedule says; None for no limit.
        optimizer: SGD with momentum, or AdamW whose beta1 is `momentum`.
        base_lr, base_batch: the linear scaling rule: learning rate = base_lr * images per step / base_batch.
        momentum, weight_decay: of the optimiser.
        fixed_batch: a step takes base_batch images on any number of devices, so that the learning rate is base_lr.
        norm_weight_decay: whether weight decay applies to normalisation layers and position biases.
        head_norm_weight_decay: whether, if so, it applies to those of the box head (part "box") too.
        bias_rate: what the learning rate of the biases of convolutions and fully connected layers is multiplied by.
        bias_weight_decay: whether weight decay applies to these biases.
        schedule: "steps": milestones; "cosine": half a cosine from the end of the warm-up to the end of the phase;
            "flat-cosine": the same from half way on (RTMDet, arXiv 2212.07784).
        milestones, gamma: with "steps", epochs after which the learning rate is multiplied by gamma; if empty, it is
            constant. They stay in proportion where only the length is changed; see Recipe.with_phase.
        final_lr: the share of the learning rate that a cosine ends at.
        warmup_iterations, warmup_factor: the learning rate rises linearly from warmup_factor times its full value.
        norm: batch normalisation: "live" (statistics of each device's batch), "sync" (statistics over all devices),
            "affine" (fixed statistics) or "fixed" (fixed statistics and affine parameters; Table 2).
        precise_bn: training images over which statistics are re-estimated before they are fixed (arXiv 2105.07576); 0
            keeps those of the weights that the phase starts from.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        parts: what is loaded from the weights that the phase starts from (Table 5).
        clip_norm: the largest L2 norm of the gradient, or None for no clipping.
        ema: decay of the moving average of the weights, which is evaluated, exported and handed to the next phase in
            place of the last weights; None keeps none.
        ema_warmup: steps in which that decay rises to 63 % of its value.
        precision: "fp32", "bf16" (autocast) or "fp16" (autocast with a scaled loss; on a CPU, computed in fp32). "auto"
            is bf16 on devices that compute in it, and fp32 on others; a run is of one of them to its end.
        channels_last: keep images and weights in the channels-last memory format.
        compiled: train network and losses as one graph of `torch.compile`, if a trial of 20 steps finds it as right as
            eager PyTorch, and faster.
        workers: processes that read data; no more than there are CPU cores are started.
        eval_size, eval_fixed: like `size`; evaluation resizes by edges, or onto a canvas of exactly this size if
            eval_fixed. eval_size None follows `size`; see derived.evaluation_size.
        best_by: by which number best.pt is chosen: COCO's box "AP", or VOC's "mAP_11point" (2007) or "mAP_area".
        eval_every: epochs between evaluations, with one more at the end of the phase; 0 for no evaluation at all.
        patience: end the phase when box AP has not risen for this many evaluations; None: never.

    Raises:
        SettingError: a value is not allowed, alone or with the others; the message names the nearest allowed one.
    """

    name: PhaseName
    resize: Literal["direct", "edges", "warp"]
    size: tuple[Pixels, Pixels]
    scale: tuple[Positive, Positive] = (0.8, 1.2)
    std: tuple[Positive, Positive, Positive] = STD
    shrink: Annotated[float, Between(1, 1000)] = 1.0
    short_edges: tuple[Pixels, ...] = ()
    flip: Share = 0.5
    quarter_turns: Share = 0.0
    colour: Literal["none", "hsv", "photometric"] = "none"
    ssd_crop: bool = False
    mosaic: Share = 0.0
    mixup: Share = 0.0
    copy_paste: Share = 0.0
    skip_empty: bool = False
    sampling: Draw = "uniform"
    repeat_threshold: Annotated[float, Between(0, 1, above=True)] = 0.001
    skip_difficult: bool = False
    batch_size: Count = 2
    accumulate: Count | None = None
    epochs: Count = 12
    repeat: Count | None = None
    epoch_batch: Count | None = None
    iterations: Count | None = None
    max_steps: Count | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    base_lr: NotNegative = 0.02
    base_batch: Count = 16
    fixed_batch: bool = False
    momentum: Share = 0.9
    weight_decay: Share = 1e-4
    norm_weight_decay: bool = True
    head_norm_weight_decay: bool = True
    bias_rate: Positive = 1.0
    bias_weight_decay: bool = True
    schedule: Schedule = "steps"
    milestones: tuple[Count, ...] = ()
    gamma: Share = 0.1
    final_lr: Share = 0.05
    warmup_iterations: ZeroOrMore = 500
    warmup_factor: Share = 0.001
    norm: Norm = "live"
    precise_bn: ZeroOrMore = 0
    frozen_stages: Annotated[int, Between(-1, 4)] = -1
    parts: tuple[Part, ...] = PARTS
    clip_norm: Annotated[float, Between(1e-6, 1e9)] | None = None
    ema: Share | None = None
    ema_warmup: ZeroOrMore = 2000
    precision: Precision = "fp32"
    channels_last: bool = True
    compiled: bool = False
    workers: ZeroOrMore = 2
    eval_size: tuple[Pixels, Pixels] | None = None
    eval_fixed: bool = False
    best_by: BestBy = "AP"
    eval_every: ZeroOrMore = 1
    patience: Count | None = None

    def __post_init__(self) -> None:
        check_word("phase", self.name, get_args(PhaseName))
        check_fields(self, f"{self.name}.")
        if self.scale[0] > self.scale[1]:
            raise SettingError(f"{self.name}.scale: {self.scale} is not a range (low, high); swap the two numbers")
        if self.resize != "edges" and self.size[0] != self.size[1]:
            raise SettingError(
                f"{self.name}.size: {self.size} is not square, and resize={self.resize} makes square images; give one "
                "number"
            )
        if self.precise_bn and self.norm not in ("fixed", "affine"):
            raise SettingError(
                f"{self.name}.precise_bn: {self.precise_bn} is for statistics that are then fixed, not for "
                f"norm={self.norm}; give 0"
            )
        if self.patience and not self.eval_every:
            raise SettingError(
                f"{self.name}.patience: {self.patience} needs evaluations; give eval_every of at least 1"
            )
        if self.mosaic and self.resize == "edges":
            raise SettingError(f"{self.name}.mosaic: {self.mosaic:g} needs resize=direct or resize=warp; or give 0")
        if self.resize == "warp":
            for setting, off in (("colour", "none"), ("ssd_crop", False)):
                if getattr(self, setting) != off:
                    raise SettingError(f"{self.name}.{setting}: is part of resize=warp already; give {off}")
        check_together(self)


@dataclass(frozen=True)
class Recipe:
    """What to train and how.

    Attributes:
        name: what the command line calls it.
        summary: one line for the list of recipes.
        phases: in order; each starts from the weights at the end of the one before.
        detector: the name of a detector.
        model: the detector's settings that differ from their defaults.
        init: what the first phase starts from: "random" weights, or "imagenet" for a backbone trained on ImageNet.
        data_fraction: the share of the training images that is used (Table 9 of the direct pre-training paper).
        sources: where each constant comes from, by "PHASE.setting", "setting" or "model.setting".
        fit: lengths, batches, sizes and rates that were not given follow the data; see fit.py.
        given: the settings of phases that were changed, "PHASE.setting"; with_phase adds to it.

    Raises:
        SettingError: a value is not allowed.
    """

    name: str
    summary: str
    phases: tuple[Phase, ...]
    detector: str = "rcnn"
    model: dict[str, Any] = field(default_factory=dict)
    init: Init = "random"
    data_fraction: Annotated[float, Between(0, 1, above=True)] = 1.0
    sources: dict[str, str] = field(default_factory=dict)
    fit: bool = False
    given: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        check_fields(self, "")
        make_config(self.detector, 1, self.model)

    def phase(self, name: str) -> Phase:
        """The phase called `name`.

        Raises:
            SettingError: the recipe has no such phase.
        """
        check_word("phase", name, [phase.name for phase in self.phases])
        return next(phase for phase in self.phases if phase.name == name)

    def with_phase(self, name: str, **changes: Any) -> "Recipe":
        """A copy of this recipe with settings of one phase changed.

        Milestones that are not among them keep their place in the phase if its length changes.

        Raises:
            SettingError: no such phase or setting, or a value that is not allowed.
        """
        self.phase(name)
        known = [f.name for f in fields(Phase)]
        for key in changes:
            check_key(f"{name}.{key}", key, known)
        phases = tuple(
            replace(phase, **in_proportion(phase, changes)) if phase.name == name else phase for phase in self.phases
        )
        given = dict.fromkeys((*self.given, *(f"{name}.{key}" for key in changes)))
        return replace(self, phases=phases, given=tuple(given))
