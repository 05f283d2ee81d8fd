"""Cascade R-CNN, with and without masks: three heads, each trained on the boxes refined by the previous one.

Cai and Vasconcelos, "Cascade R-CNN: Delving into High Quality Object Detection" (CVPR 2018), with the
settings of the direct pre-training paper's code, which are mmdet's.
"""

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from directdet.models.parts.boxes import clip_boxes, decode_boxes
from directdet.models.parts.start import init_head
from directdet.models.two_stage.config import CascadeConfig
from directdet.models.two_stage.network import (
    BOX_BINS,
    TwoStage,
    class_masks,
    init_predictor,
    mask_head,
    mask_predictor,
)

# Standard deviations by which each stage's deltas are normalised; they shrink as the boxes get better.
STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
STAGE_WEIGHTS = tuple((1 / x, 1 / y, 1 / w, 1 / h) for x, y, w, h in STAGE_STDS)
STAGES = len(STAGE_WEIGHTS)


class AgnosticPredictor(FastRCNNPredictor):
    """Predicts scores of all classes, background first, and a single class-agnostic box."""

    def __init__(self, features: int, classes: int):
        super().__init__(features, classes)
        self.bbox_pred = nn.Linear(features, 4)
        init_predictor(self)


class Cascade(TwoStage):
    """Cascade R-CNN, or Cascade Mask R-CNN if the configuration has masks."""

    config: CascadeConfig

    def __init__(self, config: CascadeConfig):
        super().__init__(config)
        inputs, features = self.channels * BOX_BINS**2, config.box_features
        self.box_heads = nn.ModuleList(TwoMLPHead(inputs, features) for _ in range(STAGES))
        init_head(self.box_heads)
        self.box_predictors = nn.ModuleList(AgnosticPredictor(features, config.num_classes + 1) for _ in range(STAGES))
        if config.masks:
            self.mask_heads = nn.ModuleList(mask_head(config, self.channels) for _ in range(STAGES))
            self.mask_predictors = nn.ModuleList(mask_predictor(config) for _ in range(STAGES))

    def parts(self) -> dict[str, tuple[str, ...]]:
        heads = {"box": ("box_heads", "box_predictors"), "mask": ("mask_heads", "mask_predictors")}
        return {**super().parts(), **heads}

    def class_layers(self) -> tuple[str, ...]:
        masks = [f"mask_predictors.{stage}.mask_fcn_logits" for stage in range(STAGES)]
        return ("box_predictors", *masks)

    def class_rows(self, name: str) -> tuple[int, int]:
        return 1, 0 if ".bbox_pred." in name else 1

    def predict_boxes(self, stage: int, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled RoIs [K, C, 7, 7] -> class logits [K, 1 + classes] and deltas [K, 4] of a stage (0..2), float32."""
        logits, deltas = self.box_predictors[stage](self.box_heads[stage](pooled))
        return logits.float(), deltas.float()

    def predict_masks(self, stage: int, pooled: Tensor, labels: Tensor) -> Tensor:
        """Pooled RoIs [K, C, 14, 14] and labels [K] (1..classes) -> a stage's mask logits [K, 28, 28], float32."""
        return class_masks(self.mask_predictors[stage], self.mask_heads[stage](pooled), labels)


def refine(stage: int, boxes: Tensor, deltas: Tensor, sizes: Tensor) -> Tensor:
    """Apply a stage's deltas [N * R, 4] to its boxes [N, R, 4], clip to the image sizes [N, 2] -> boxes [N, R, 4]."""
    return clip_boxes(decode_boxes(deltas.reshape(boxes.shape), boxes, STAGE_WEIGHTS[stage]), sizes)
