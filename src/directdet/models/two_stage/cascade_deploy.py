"""The deployed form of Cascade R-CNN; see postprocess."""

import torch
from torch import Tensor

from directdet.models.parts.boxes import take
from directdet.models.parts.postprocess import select_detections
from directdet.models.two_stage.cascade import STAGES, Cascade, refine
from directdet.models.two_stage.deploy import TwoStageDeploy
from directdet.models.two_stage.network import BOX_BINS


class CascadeDeploy(TwoStageDeploy):
    """forward(images [N, 3, H, W]) -> num, boxes, scores, labels and, with masks, masks; see postprocess.

    A box is a proposal refined three times. Its scores are the softmax of the mean of the logits that each stage
    predicts for its input box (as in mmdet; the Cascade R-CNN paper averages probabilities). Its mask is the mean of
    the three heads' masks.
    """

    model: Cascade

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        rows, boxes, valid, sizes = self.propose(images)
        stages = []
        for stage in range(STAGES):
            logits, deltas = self.model.predict_boxes(stage, self.pool(rows, boxes, BOX_BINS))
            stages.append(logits)
            boxes = refine(stage, boxes, deltas, sizes)
        scores, _, roi, labels = self.best_candidates(_mean(stages), valid)
        boxes, scores, labels = select_detections(self.model.config, take(boxes, roi), scores, labels)
        return self.outputs(rows, boxes, scores, labels)

    def mask_probabilities(self, pooled: Tensor, labels: Tensor) -> Tensor:
        masks = [torch.sigmoid(self.model.predict_masks(stage, pooled, labels)) for stage in range(STAGES)]
        return _mean(masks)


def _mean(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)
