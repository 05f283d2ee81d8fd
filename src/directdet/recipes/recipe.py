"""What a recipe is: frozen dataclasses, so that one recipe is made from another with dataclasses.replace."""

from dataclasses import dataclass, field, replace
from typing import Any

from directdet.infer.preprocess import STD

# The parts of a detector that can be taken from a checkpoint one by one, in the order of the paper's Table 5. "box" is
# the head of a one-stage detector, too.
PARTS = ("backbone", "fpn", "rpn", "box", "mask")


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

    name: str
    resize: str
    size: tuple[int, int]
    scale: tuple[float, float] = (0.8, 1.2)
    std: tuple[float, float, float] = STD
    shrink: float = 1.0
    short_edges: tuple[int, ...] = ()
    skip_empty: bool = False
    batch_size: int = 2
    accumulate: int = 1
    epochs: int = 12
    repeat: int = 1
    iterations: int | None = None
    max_steps: int | None = None
    optimizer: str = "sgd"
    base_lr: float = 0.02
    base_batch: int = 16
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_weight_decay: bool = True
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_iterations: int = 500
    warmup_factor: float = 0.001
    norm: str = "live"
    frozen_stages: int = -1
    parts: tuple[str, ...] = PARTS
    clip_norm: float | None = None
    precision: str = "fp32"
    channels_last: bool = True
    workers: int = 2
    eval_size: tuple[int, int] = (800, 1333)
    eval_fixed: bool = False
    eval_every: int = 1


@dataclass(frozen=True)
class Recipe:
    """A named recipe.

    Attributes:
        phases: in order, each starting from what the one before it ends with.
        detector: a key of models.build.DETECTORS; `model` holds those of its settings that differ from their defaults.
        init: what the first phase starts from: "random", or "imagenet" for a backbone trained on ImageNet.
        data_fraction: the share of the training images that is used (Table 9).
        sources: where constants come from, by "PHASE.setting", "setting" or "model.setting".
    """

    name: str
    summary: str
    phases: tuple[Phase, ...]
    detector: str = "rcnn"
    model: dict[str, Any] = field(default_factory=dict)
    init: str = "random"
    data_fraction: float = 1.0
    sources: dict[str, str] = field(default_factory=dict)

    def phase(self, name: str) -> Phase:
        """The phase of that name; KeyError if there is none."""
        return {phase.name: phase for phase in self.phases}[name]

    def with_phase(self, name: str, **changes: Any) -> "Recipe":
        """This recipe with settings of one phase changed."""
        self.phase(name)
        phases = tuple(replace(phase, **changes) if phase.name == name else phase for phase in self.phases)
        return replace(self, phases=phases)
