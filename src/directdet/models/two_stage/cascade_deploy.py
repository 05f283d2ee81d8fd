"""Cascade R-CNN as deployed; see postprocess."""

import torch
from torch import Tensor

from directdet.models.parts.boxes import take
from directdet.models.parts.postprocess import choose, packed
from directdet.models.two_stage.cascade import STAGES, Cascade, refine
from directdet.models.two_stage.deploy import TwoStageDeploy
from directdet.models.two_stage.network import BOX_BINS, MASK_BINS, MASK_SIZE


class CascadeDeploy(TwoStageDeploy):
    """forward(images [N, 3, H, W]) -> num, boxes, scores, labels and, with masks, masks; see postprocess.

    A box is what three refinements make of a proposal; its scores are the softmax of the mean of the logits that each
    stage gives to the box it is fed (as mmdet; the Cascade R-CNN paper averages probabilities). Its mask is the mean of
    the three heads' masks.
    """

    model: Cascade

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features, boxes, real, sizes = self.propose(images)
        stages = []
        for stage in range(STAGES):
            logits, deltas = self.model.boxes_of(stage, self.pool(features, boxes, BOX_BINS))
            stages.append(logits)
            boxes = refine(stage, boxes, deltas, sizes)
        scores = torch.softmax(_mean(stages), -1).reshape(*real.shape, -1)[..., 1:]
        boxes, scores, labels = self._choose(boxes, scores * real.unsqueeze(-1).to(scores.dtype))
        outputs = packed(boxes, scores, labels)
        if not self.model.config.masks:
            return outputs
        masks = self._masks(self.pool(features, boxes, MASK_BINS), labels.flatten() + 1)
        masks = masks.reshape(*labels.shape, MASK_SIZE, MASK_SIZE)
        return (*outputs, masks * (scores > 0)[..., None, None])

    def _choose(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [N, R, 4] and scores [N, R, classes] -> boxes [N, K, 4], scores [N, K], labels [N, K], best first."""
        config, classes = self.model.config, scores.shape[2]
        scores = scores.flatten(1)
        # NMS is greedy, so the best candidates decide alone about the best survivors; k must fit what there is.
        scores, index = torch.topk(scores, min(config.candidates, scores.shape[1]), dim=1)
        roi = torch.div(index, classes, rounding_mode="floor")
        return choose(config, take(boxes, roi), scores, index - roi * classes)

    def _masks(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Pooled boxes [K, C, 14, 14] and labels [K] (1..classes) -> probabilities [K, 28, 28]."""
        masks = [torch.sigmoid(self.model.masks_of(stage, pooled, labels)) for stage in range(STAGES)]
        return _mean(masks)


def _mean(of_stages: list[Tensor]) -> Tensor:
    total = of_stages[0]
    for one in of_stages[1:]:
        total = total + one
    return total / STAGES
