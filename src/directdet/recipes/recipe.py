"""What a recipe is: frozen dataclasses that check themselves, so that one recipe is made from another with
dataclasses.replace."""

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, get_args

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

# The parts of a detector that can be taken from a checkpoint one by one, in the order of the paper's Table 5. "box" is
# the head of a one-stage detector, too.
Part = Literal["backbone", "fpn", "rpn", "box", "mask"]
PARTS: tuple[Part, ...] = get_args(Part)
PhaseName = Literal["pretrain", "finetune", "scratch"]
Pixels = Annotated[int, Between(32, MANY)]


@dataclass(frozen=True)
class Phase:
    """One phase of training.

    Attributes:
        name: "pretrain" and "finetune", in this order, or "scratch": all at once from random weights.
        resize: "direct": resize by alpha in `scale`, crop or pad to `size` (paper section 3.2); "edges": short and long
            edge, `size` = (short, long), padded to a multiple of 32; "warp": SSD's augmentation, then exactly `size`
            whatever the proportions, while training and evaluating.
        size: pixels, see resize.
        scale: the range of alpha.
        std: what pixels are divided by, their mean subtracted.
        shrink: edges: the resized picture is made so many times smaller (the Stitcher style of section 3.2).
        short_edges: edges: the short edge is drawn among these (multi-scale training, Table 6); none: size[0].
        skip_empty: leave out pictures without objects.
        batch_size: images per device and forward pass.
        accumulate: forward passes per step; batch normalisation still sees `batch_size` images.
        epochs, repeat: passes over the dataset are epochs * repeat; evaluation and milestones count epochs.
        iterations: the length in steps instead of epochs; milestones then count steps, too.
        max_steps: stop after so many steps, whatever the schedule says; None: no such limit.
        base_lr, base_batch: the linear scaling rule: learning rate = base_lr * images per step / base_batch.
        norm_weight_decay: whether weight decay applies to normalisations and position biases.
        milestones, gamma: epochs after which the learning rate is multiplied by gamma; none: constant.
        warmup_iterations, warmup_factor: the learning rate rises linearly from factor * lr.
        norm: batch normalisation: "live" (statistics of each device's batch), "sync" (of all devices'), "affine" (fixed
            statistics) or "fixed" (statistics and affine parameters, Table 2).
        frozen_stages: -1 none; 0 the stem; n the stem and the first n stages.
        parts: what is taken from the weights that the phase starts from (Table 5).
        clip_norm: the gradient's largest L2 norm, or None.
        precision: "fp32", "bf16" (autocast) or "fp16" (autocast with a scaled loss; on a CPU
            computed in fp32).
        eval_size: as `size`; evaluation resizes by edges, or onto a fixed canvas where eval_fixed.
        eval_every: epochs between evaluations, the end being always evaluated; 0: none at all.
    """

    name: PhaseName
    resize: Literal["direct", "edges", "warp"]
    size: tuple[Pixels, Pixels]
    scale: tuple[Positive, Positive] = (0.8, 1.2)
    std: tuple[Positive, Positive, Positive] = STD
    shrink: Annotated[float, Between(1, 1000)] = 1.0
    short_edges: tuple[Pixels, ...] = ()
    skip_empty: bool = False
    batch_size: Count = 2
    accumulate: Count = 1
    epochs: Count = 12
    repeat: Count = 1
    iterations: Count | None = None
    max_steps: Count | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    base_lr: NotNegative = 0.02
    base_batch: Count = 16
    momentum: Share = 0.9
    weight_decay: Share = 1e-4
    norm_weight_decay: bool = True
    milestones: tuple[Count, ...] = ()
    gamma: Share = 0.1
    warmup_iterations: ZeroOrMore = 500
    warmup_factor: Share = 0.001
    norm: Literal["live", "sync", "affine", "fixed"] = "live"
    frozen_stages: Annotated[int, Between(-1, 4)] = -1
    parts: tuple[Part, ...] = PARTS
    clip_norm: Annotated[float, Between(1e-6, 1e9)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    workers: ZeroOrMore = 2
    eval_size: tuple[Pixels, Pixels] = (800, 1333)
    eval_fixed: bool = False
    eval_every: ZeroOrMore = 1

    def __post_init__(self) -> None:
        check_word("phase", self.name, get_args(PhaseName))
        check_fields(self, f"{self.name}.")
        if self.scale[0] > self.scale[1]:
            raise SettingError(f"{self.name}.scale: {self.scale} is not a range (low, high); swap them")
        if self.resize != "edges" and self.size[0] != self.size[1]:
            raise SettingError(
                f"{self.name}.size: {self.size} is not a square, as {self.resize} resizing makes; give one number"
            )
        if self.resize == "warp":
            if self.eval_size != self.size:
                raise SettingError(
                    f"{self.name}.eval_size: {self.eval_size} must be {self.size}, the size, with resize=warp"
                )
        elif self.eval_fixed and any(side % 32 for side in self.eval_size):
            near = tuple(max(32, round(side / 32) * 32) for side in self.eval_size)
            raise SettingError(
                f"{self.name}.eval_size: {self.eval_size} are not multiples of 32, as a canvas must be; the nearest "
                f"are {near}"
            )


@dataclass(frozen=True)
class Recipe:
    """A named recipe.

    Attributes:
        phases: in order, each starting from what the one before it ends with.
        detector: a detector by name; `model` holds those of its settings that differ from their defaults.
        init: what the first phase starts from: "random", or "imagenet" for a backbone trained on ImageNet.
        data_fraction: the share of the training images that is used (Table 9).
        sources: where constants come from, by "PHASE.setting", "setting" or "model.setting".
    """

    name: str
    summary: str
    phases: tuple[Phase, ...]
    detector: str = "rcnn"
    model: dict[str, Any] = field(default_factory=dict)
    init: Literal["random", "imagenet"] = "random"
    data_fraction: Annotated[float, Between(0, 1, above=True)] = 1.0
    sources: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "")
        make_config(self.detector, 1, self.model)

    def phase(self, name: str) -> Phase:
        """The phase of that name; SettingError if there is none."""
        check_word("phase", name, [phase.name for phase in self.phases])
        return next(phase for phase in self.phases if phase.name == name)

    def with_phase(self, name: str, **changes: Any) -> "Recipe":
        """This recipe with settings of one phase changed."""
        self.phase(name)
        known = [f.name for f in fields(Phase)]
        for key in changes:
            check_key(f"{name}.{key}", key, known)
        phases = tuple(replace(phase, **changes) if phase.name == name else phase for phase in self.phases)
        return replace(self, phases=phases)
